package local

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestCanonical(t *testing.T) {
	for _, c := range []struct {
		driver string
		mib    float64
		want   string
	}{
		{"NVIDIA A100-SXM4-80GB", 81920, "A100-80GB"},
		{"NVIDIA A100-SXM4-40GB", 40960, "A100"},
		{"A100-PCIE-40GB", 40536, "A100"},
		{"NVIDIA H100 80GB HBM3", 81559, "H100"},
		{"NVIDIA H200", 143771, "H200"},
		{"NVIDIA B200", 183359, "B200"},
		{"NVIDIA L4", 23034, "L4"},
		{"NVIDIA L40S", 46068, "L40S"},
		{"Tesla T4", 15360, "T4"},
		{"Tesla V100-SXM2-16GB", 16384, "V100"},
		{"Tesla V100-SXM2-32GB", 32768, "V100-32GB"},
		{"Tesla P100-PCIE-16GB", 16384, "P100"},
		{"Tesla K80", 11441, "K80"},
		{"NVIDIA A10G", 23028, "A10G"},
		{"NVIDIA GeForce RTX 4090", 24564, "RTX4090"},
		{"NVIDIA GeForce RTX 3080 Laptop GPU", 16384, "RTX3080"},
		{"NVIDIA RTX A6000", 49140, "RTXA6000"},
		{"NVIDIA RTX 6000 Ada Generation", 49140, "RTX6000-Ada"},
		{"", 0, "GPU"},
	} {
		if got := canonical(c.driver, c.mib); got != c.want {
			t.Errorf("%q, %v MiB: %s, want %s", c.driver, c.mib, got, c.want)
		}
	}
}

func TestFindGPUs(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if gpus, err := findGPUs(t.Context()); err != nil || gpus != nil {
		t.Errorf("without nvidia-smi: %v, %v", gpus, err)
	}
	script := func(s string) { os.WriteFile(filepath.Join(dir, "nvidia-smi"), []byte("#!/bin/sh\n"+s), 0o755) }
	script("echo 'NVIDIA A100-SXM4-80GB, 81920, GPU-1'\necho 'Tesla T4, [N/A], GPU-2'")
	want := []GPU{{"GPU-1", "A100-80GB", 80}, {"GPU-2", "T4", 0}}
	if gpus, err := findGPUs(t.Context()); err != nil || !reflect.DeepEqual(gpus, want) {
		t.Errorf("%v, %v", gpus, err)
	}
	script("echo 'has failed because it could not communicate with the driver' >&2; exit 9")
	if _, err := findGPUs(t.Context()); err == nil {
		t.Error("a broken driver is not told")
	}
	script("echo what")
	if _, err := findGPUs(t.Context()); err == nil {
		t.Error("nonsense is understood")
	}
}
