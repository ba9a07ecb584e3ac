package artifact

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/skyloom/skyloom/internal/filesync"
)

// TestFullDiskForReal fills a small filesystem.
func TestFullDiskForReal(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small filesystem needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("cannot mount: ", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
	s := open(t, filepath.Join(dir, "s"))
	t.Cleanup(func() { _ = s.Close() })
	small := put(t, s, "small")
	big := strings.Repeat("x", 1<<20)
	if _, err := s.Put(sum(big), strings.NewReader(big)); !errors.Is(err, ErrFull) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	must(t, s.Commit())
	if !has(t, s, small) || has(t, s, sum(big)) {
		t.Fatal("a full disk cost what was there, or left a part")
	}
	// The same for a destination.
	src := t.TempDir()
	must(t, os.WriteFile(filepath.Join(src, "big"), []byte(big), 0o644))
	tree, err := filesync.Scan(t.Context(), src, filesync.ScanOptions{})
	must(t, err)
	if _, err := filesync.Apply(t.Context(), tree.Manifest, filesync.Target{Dst: filepath.Join(dir, "dst")}, tree); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "free some space") {
		t.Fatal(err)
	}
	if list, _ := os.ReadDir(filepath.Join(dir, "dst")); len(list) != 0 {
		t.Fatal(list)
	}
}
