package filesync

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestPlacerFullDisk: a disk that fills up stops the placing with its reason and nothing half done; with room it goes on.
func TestPlacerFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small filesystem needs root")
	}
	for _, size := range []int{8 << 10, 200 << 10} { // by the workers, and by the reader itself
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			disk := t.TempDir()
			if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=512k"); err != nil {
				t.Skip("cannot mount: ", err)
			}
			t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
			files := map[string]string{}
			for i := range 1 << 20 / size {
				files[fmt.Sprintf("d/%03d", i)] = strings.Repeat(fmt.Sprintf("%04d", i), size/4)
			}
			src := tree(t, files)
			tr := scan(t, src)
			index := filepath.Join(t.TempDir(), "ix")
			tg := Target{Dst: filepath.Join(disk, "dst"), Trusted: true, Index: OpenIndex(index)}
			need, err := Plan(t.Context(), tr.Manifest, tg)
			if err != nil {
				t.Fatal(err)
			}
			if err := place(t, tr, tg, &need, nil); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "free some space") {
				t.Fatal(err)
			}
			whole := dump(t, src)
			for _, f := range dump(t, tg.Dst) {
				if !slices.Contains(whole, f) {
					t.Errorf("half a file: %.40q", f)
				}
			}
			if err := syscall.Mount("tmpfs", disk, "tmpfs", syscall.MS_REMOUNT, "size=4m"); err != nil {
				t.Fatal(err)
			}
			tg.Index = OpenIndex(index)
			again, err := Plan(t.Context(), tr.Manifest, tg)
			if err != nil || again.Fresh() || len(again.Missing) == 0 || len(again.Missing) == len(need.Missing) {
				t.Errorf("%d missing, fresh %v, %v", len(again.Missing), again.Fresh(), err)
			}
			if _, err := Apply(t.Context(), tr.Manifest, tg, tr); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(dump(t, tg.Dst), whole) {
				t.Error("the trees differ at the end")
			}
		})
	}
}
