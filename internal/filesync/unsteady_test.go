package filesync

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sent gives the content of a tree as a pack carries it, by path.
func sent(t *testing.T, tr *Tree) map[string]string {
	t.Helper()
	var pack bytes.Buffer
	if err := WritePack(t.Context(), &pack, tr, tr.Manifest.Hashes(), PackOptions{Raw: true}); err != nil {
		t.Fatal(err)
	}
	blobs := map[string]string{}
	_, err := ReadPack(t.Context(), &pack, PackLimits{}, func(hash string, _ int64, r io.Reader) error {
		b, err := io.ReadAll(r)
		blobs[hash] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range tr.Manifest.Entries {
		if e.Kind == KindFile {
			out[e.Path] = blobs[e.Hash]
		}
	}
	return out
}

// TestGrowing: of a log that is written to all the time its beginning is taken, with one warning.
func TestGrowing(t *testing.T) {
	root := tree(t, map[string]string{"log": strings.Repeat("l", 600<<10), "still": "s"})
	f, err := os.OpenFile(filepath.Join(root, "log"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	grow := func(Progress) { f.WriteString("more\n"); time.Sleep(55 * time.Millisecond) }
	for _, file := range []bool{false, true} {
		var tr *Tree
		if file {
			tr, err = ScanFile(t.Context(), filepath.Join(root, "log"), ScanOptions{Workers: 1, Tolerant: true, Progress: grow})
		} else {
			tr, err = Scan(t.Context(), root, ScanOptions{Workers: 1, Tolerant: true, Progress: grow})
		}
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		if len(tr.Warnings) != 1 || !strings.Contains(tr.Warnings[0], "log is being written to") {
			t.Errorf("%q", tr.Warnings)
		}
		f.WriteString("and on it goes")
		now, _ := os.ReadFile(filepath.Join(root, "log"))
		if got := sent(t, tr)["log"]; len(got) < 600<<10 || len(got) >= len(now) || !strings.HasPrefix(string(now), got) {
			t.Errorf("%d bytes were sent of what are %d now", len(got), len(now))
		}
	}
}

// TestRewritten: of a file that is written anew all the time a copy is sent, which is gone afterwards.
func TestRewritten(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	size := 600 << 10
	root := tree(t, map[string]string{"db": strings.Repeat("a", size)})
	f, err := os.OpenFile(filepath.Join(root, "db"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	alter := func(Progress) {
		n++
		f.WriteAt([]byte(strings.Repeat(string(rune('a'+n%26)), 10)), int64(n%1000))
		time.Sleep(55 * time.Millisecond)
	}
	tr, err := Scan(t.Context(), root, ScanOptions{Workers: 1, Tolerant: true, Progress: alter})
	if err != nil {
		t.Fatal(err)
	}
	if len(tr.Warnings) != 1 || !strings.Contains(tr.Warnings[0], "db is being written to") {
		t.Errorf("%q", tr.Warnings)
	}
	if err := os.Remove(filepath.Join(root, "db")); err != nil {
		t.Fatal(err)
	}
	if got := sent(t, tr)["db"]; len(got) != size {
		t.Errorf("%d bytes were sent", len(got))
	}
	tr.Close()
	if left, _ := os.ReadDir(os.TempDir()); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestCopied: what is copied does not care any more.
func TestCopied(t *testing.T) {
	root := tree(t, map[string]string{"a": "one", "d/b": "two"})
	o := ScanOptions{Tolerant: true, Copy: func(p string, _ os.FileInfo) bool { return p == filepath.Join(root, "a") }}
	tr, err := Scan(t.Context(), root, o)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	if err := os.RemoveAll(filepath.Join(root, "a")); err != nil {
		t.Fatal(err)
	}
	if got := sent(t, tr); got["a"] != "one" || got["d/b"] != "two" || len(tr.Warnings) != 0 {
		t.Errorf("%q, %q", got, tr.Warnings)
	}
}

// TestVanishing: single files may vanish, a folder may not.
func TestVanishing(t *testing.T) {
	big := strings.Repeat("x", 300<<10)
	files := map[string]string{"0": big, "1": big + "1", "d/2": "2"}
	root := tree(t, files)
	n := 0
	once := func(Progress) {
		n++
		_ = os.Remove(filepath.Join(root, "1"))
		_ = os.RemoveAll(filepath.Join(root, "d"))
		if n < 4 { // the second reading meets the same
			_ = os.WriteFile(filepath.Join(root, "1"), []byte(big), 0o644)
			_ = os.Mkdir(filepath.Join(root, "d"), 0o755)
		}
		time.Sleep(55 * time.Millisecond)
	}
	tr, err := Scan(t.Context(), root, ScanOptions{Workers: 1, Tolerant: true, Progress: once})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	if got := sent(t, tr); got["0"] != big || len(got) > 2 {
		t.Errorf("%d files", len(got))
	}
	// Most of a folder, though not the folder itself.
	many := map[string]string{}
	for _, a := range "abcdefghij" {
		for _, b := range "abcdefghij" {
			many[string(a)+string(b)] = big
		}
	}
	root = tree(t, many)
	gone := false
	_, err = Scan(t.Context(), root, ScanOptions{Workers: 1, Tolerant: true, Copy: func(string, os.FileInfo) bool {
		if !gone {
			gone = true
			for name := range many {
				_ = os.Remove(filepath.Join(root, name))
			}
		}
		return false
	}})
	if !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), "much of the folder vanished") {
		t.Errorf("%v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "sky-copy-*")); len(left) > 0 && os.Getenv("TMPDIR") != "" {
		t.Errorf("left behind: %v", left)
	}
}
