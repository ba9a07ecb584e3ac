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
