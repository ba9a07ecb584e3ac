package gpus

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	got, err := Parse("NVIDIA A100-SXM4-80GB, 81920, GPU-1\nTesla V100-SXM2-16GB, 16160 MiB, GPU-2\nNVIDIA GeForce RTX 4090, [N/A], GPU-3\n")
	want := []GPU{{"GPU-1", "A100-80GB", 80}, {"GPU-2", "V100", 16}, {"GPU-3", "RTX4090", 0}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	for _, bad := range []string{"No devices were found\n", "a, 1, \n", "a, 1\n"} {
		if got, err := Parse(bad); err == nil {
			t.Errorf("%q was read as %v", bad, got)
		}
	}
	if got, err := Parse(""); err != nil || got != nil {
		t.Errorf("nothing was read as %v, %v", got, err)
	}
}

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
		if got := Canonical(c.driver, c.mib); got != c.want {
			t.Errorf("%q, %v MiB: %s, want %s", c.driver, c.mib, got, c.want)
		}
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	if got, err := Find(context.Background()); err != nil || got != nil {
		if _, e := os.Stat("/usr/bin/nvidia-smi"); e != nil {
			t.Errorf("without nvidia-smi: %v, %v", got, err)
		}
	}
	script := func(s string) {
		if err := os.WriteFile(filepath.Join(dir, "nvidia-smi"), []byte("#!/bin/sh\n"+s), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script("echo 'NVIDIA H100 80GB HBM3, 81559, GPU-x'\n")
	if got, err := Find(context.Background()); err != nil || len(got) != 1 || got[0].Name != "H100" {
		t.Errorf("got %v, %v", got, err)
	}
	script("echo driver mismatch; exit 9\n")
	if _, err := Find(context.Background()); err == nil || !strings.Contains(err.Error(), "driver mismatch") {
		t.Errorf("the reason is not told: %v", err)
	}
}
