package gpus

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"math"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// GPU is one device.
type GPU struct {
	ID       string  `json:"id"`        // for CUDA_VISIBLE_DEVICES
	Name     string  `json:"name"`      // canonical
	MemoryGB float64 `json:"memory_gb"` // whole gigabytes; 0 if the driver does not tell
}

// Find asks nvidia-smi. No nvidia-smi means no GPU; one that fails is an error.
func Find(ctx context.Context) ([]GPU, error) {
	path, err := exec.LookPath("nvidia-smi")
	if err != nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--query-gpu=name,memory.total,uuid", "--format=csv,noheader,nounits").Output()
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			return nil, fmt.Errorf("nvidia-smi: %w: %s", err, strings.TrimSpace(string(out)+string(ee.Stderr)))
		}
		return nil, fmt.Errorf("nvidia-smi: %w", err)
	}
	return Parse(string(out))
}

// Parse reads lines of name, memory in MiB, uuid. A device whose memory is not told ([N/A]) counts all the same.
func Parse(out string) ([]GPU, error) {
	r := csv.NewReader(strings.NewReader(out))
	r.TrimLeadingSpace = true
	r.FieldsPerRecord = 3
	rows, err := r.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("nvidia-smi's answer is not understood: %w", err)
	}
	var found []GPU
	for _, f := range rows {
		mib, _ := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(f[1], "MiB")), 64)
		id := strings.TrimSpace(f[2])
		if id == "" {
			return nil, fmt.Errorf("nvidia-smi's answer is not understood: a device without a uuid (%q)", f[0])
		}
		found = append(found, GPU{ID: id, Name: Canonical(f[0], mib), MemoryGB: math.Round(mib / 1024)})
	}
	return found, nil
}

var (
	brand  = regexp.MustCompile(`(?i)\b(NVIDIA|Tesla|GeForce|Quadro|Graphics Device)\b`)
	models = regexp.MustCompile(`(?i)\b(GB200|GB300|B200|B300|B100|GH200|H200|H100|H800|H20|A100|A800|A40|A30|A16|A10G|A10|A2|L40S|L40|L20|L4|T4G|T4|V100|P100|P40|P4|K80|M60)\b`)
	other  = regexp.MustCompile(`[^A-Za-z0-9]+`)
)

// Canonical makes the name under which users ask for a GPU from the one its driver tells: "NVIDIA A100-SXM4-80GB" is
// A100-80GB, "Tesla V100-SXM2-16GB" is V100, "NVIDIA GeForce RTX 4090" is RTX4090, "NVIDIA RTX A6000" is RTXA6000.
func Canonical(driver string, mib float64) string {
	name := strings.TrimSpace(brand.ReplaceAllString(driver, ""))
	if m := models.FindString(name); m != "" {
		switch m = strings.ToUpper(m); {
		case m == "A100" && mib > 60000:
			return "A100-80GB"
		case m == "V100" && mib > 20000:
			return "V100-32GB"
		}
		return m
	}
	if i := strings.Index(name, " Ada"); i > 0 {
		return other.ReplaceAllString(name[:i], "") + "-Ada"
	}
	for _, noise := range []string{" Laptop GPU", " Generation", " Edition", " with Max-Q Design"} {
		name = strings.ReplaceAll(name, noise, "")
	}
	if name = other.ReplaceAllString(name, ""); name == "" {
		return "GPU"
	}
	return name
}
