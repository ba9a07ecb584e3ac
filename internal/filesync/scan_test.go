package filesync

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

func age(t testing.TB, root string) {
	t.Helper()
	past := time.Now().Add(-time.Hour)
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		return os.Chtimes(p, past, past)
	})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(60 * time.Millisecond) // the change time can't be set; the cache distrusts what is younger than 50 ms
}

func TestScan(t *testing.T) {
	root := tree(t, map[string]string{"a": "one", "d/b": "two", "d/link": "@../a", "empty/": "", "out": "@/etc/hosts", "up": "@../x"})
	if err := os.Chmod(filepath.Join(root, "a"), 0o751); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(root, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	var last Progress
	tr, err := Scan(t.Context(), root, ScanOptions{Progress: func(p Progress) { last = p }})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range tr.Manifest.Entries {
		got = append(got, fmt.Sprintf("%s:%v:%o:%d:%s", e.Path, e.Kind, e.Mode, e.Size, e.Link))
	}
	want := "a:file:751:3: d:folder:755:0: d/b:file:644:3: d/link:link:0:0:../a empty:folder:755:0: out:link:0:0:/etc/hosts up:link:0:0:../x"
	if strings.Join(got, " ") != want {
		t.Fatalf("got  %s\nwant %s", strings.Join(got, " "), want)
	}
	if tr.Manifest.Entries[0].Hash != hashOf([]byte("one")) {
		t.Fatal("hash")
	}
	if w := strings.Join(tr.Warnings, "\n"); len(tr.Warnings) != 3 || !strings.Contains(w, "out points outside") || !strings.Contains(w, "up points outside") || !strings.Contains(w, "pipe is neither") {
		t.Fatalf("warnings %q", tr.Warnings)
	}
	if last != (Progress{Files: 2, TotalFiles: 2, Bytes: 6, TotalBytes: 6}) {
		t.Fatalf("progress %+v", last)
	}

	// A link to the root is followed, and the same tree has the same id.
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(root, link); err != nil {
		t.Fatal(err)
	}
	again, err := Scan(t.Context(), link, ScanOptions{})
	if err != nil || again.Manifest.ID() != tr.Manifest.ID() {
		t.Fatalf("%v", err)
	}
}

func TestScanFile(t *testing.T) {
	root := tree(t, map[string]string{"data.csv": "1,2", "l": "@data.csv", ".skyignore": "*"})
	for _, name := range []string{"data.csv", "l"} {
		tr, err := ScanFile(t.Context(), filepath.Join(root, name), ScanOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if es := tr.Manifest.Entries; len(es) != 1 || es[0].Path != "data.csv" || es[0].Hash != hashOf([]byte("1,2")) {
			t.Fatalf("%+v", es)
		}
		var buf bytes.Buffer
		if err := WritePack(t.Context(), &buf, tr, tr.Manifest.Hashes(), PackOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []string{"none", "."} {
		if _, err := ScanFile(t.Context(), filepath.Join(root, bad), ScanOptions{}); err == nil {
			t.Fatal(bad)
		}
	}
}

func TestScanErrors(t *testing.T) {
	root := tree(t, map[string]string{"d/secret": "x"})
	var pe *PathError
	if _, err := Scan(t.Context(), filepath.Join(root, "none"), ScanOptions{}); !errors.As(err, &pe) || !strings.Contains(err.Error(), "none") || !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%v", err)
	}
	if _, err := Scan(t.Context(), filepath.Join(root, "d/secret"), ScanOptions{}); !errors.As(err, &pe) || !strings.Contains(err.Error(), "not a folder") {
		t.Fatalf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Scan(ctx, root, ScanOptions{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v", err)
	}
	if os.Geteuid() == 0 {
		t.Skip("root reads everything; the rest needs an ordinary user")
	}
	if err := os.Chmod(filepath.Join(root, "d/secret"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Scan(t.Context(), root, ScanOptions{}); !errors.As(err, &pe) || !strings.Contains(err.Error(), "d/secret") || !strings.Contains(err.Error(), "permission denied") {
		t.Fatalf("%v", err)
	}
}

// TestScanChanges alters the tree from the progress callback, which the scan calls between two files.
func TestScanChanges(t *testing.T) {
	big := strings.Repeat("x", 600<<10)
	t.Run("once", func(t *testing.T) {
		root := tree(t, map[string]string{"a": big, "b": big + "y"})
		done := false
		tr, err := Scan(t.Context(), root, ScanOptions{Workers: 1, Progress: func(Progress) {
			if !done {
				done = true
				write(t, root, "b", "new content")
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		if e := tr.Manifest.Entries[1]; e.Size != 11 || e.Hash != hashOf([]byte("new content")) {
			t.Fatalf("%+v", e)
		}
	})
	t.Run("always", func(t *testing.T) {
		root := tree(t, map[string]string{"a": big, "b": big + "y"})
		n := 0
		_, err := Scan(t.Context(), root, ScanOptions{Workers: 1, Progress: func(Progress) {
			n++
			write(t, root, "b", strings.Repeat("z", n))
			write(t, root, "a", big+strings.Repeat("z", n))
		}})
		if !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), "changed while it was read") || !strings.Contains(err.Error(), root) {
			t.Fatalf("%v", err)
		}
	})
	t.Run("vanishes", func(t *testing.T) {
		root := tree(t, map[string]string{"a": big, "b": big + "y"})
		_, err := Scan(t.Context(), root, ScanOptions{Workers: 1, Progress: func(Progress) { _ = os.RemoveAll(root) }})
		if !errors.Is(err, ErrChanged) && !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("%v", err)
		}
	})
}

func TestTreeChangesBeforeUpload(t *testing.T) {
	for name, change := range map[string]func(string) error{
		"other bytes": func(p string) error { return os.WriteFile(p, []byte("two"), 0o644) },
		"other size":  func(p string) error { return os.WriteFile(p, []byte("three"), 0o644) },
		"gone":        os.Remove,
		"a link": func(p string) error {
			_ = os.Remove(p)
			return os.Symlink("/etc/passwd", p)
		},
		"a pipe": func(p string) error {
			_ = os.Remove(p)
			return syscall.Mkfifo(p, 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := tree(t, map[string]string{"a": "one"})
			tr, err := Scan(t.Context(), root, ScanOptions{})
			if err != nil {
				t.Fatal(err)
			}
			p := filepath.Join(root, "a")
			if err := change(p); err != nil {
				t.Fatal(err)
			}
			err = WritePack(t.Context(), io.Discard, tr, tr.Manifest.Hashes(), PackOptions{})
			if name == "a link" {
				if err == nil {
					t.Fatal("the link was followed")
				}
				return
			}
			if !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), p) {
				t.Fatalf("%v", err)
			}
		})
	}
}

func TestHashCache(t *testing.T) {
	root := tree(t, map[string]string{"a": "one", "b": "two", "d/c": "three"})
	age(t, root)
	file := CacheFile(t.TempDir(), root)
	scan := func() (*Tree, *HashCache) {
		c := OpenHashCache(file)
		tr, err := Scan(t.Context(), root, ScanOptions{Cache: c})
		if err != nil {
			t.Fatal(err)
		}
		hadNew := c.dirty
		if err := c.Save(); err != nil {
			t.Fatal(err)
		}
		c.dirty = hadNew
		return tr, c
	}
	first, c := scan()
	if !c.dirty {
		t.Fatal("nothing was remembered")
	}
	second, c := scan()
	if c.dirty || second.Manifest.ID() != first.Manifest.ID() {
		t.Fatal("an unchanged tree was read again")
	}
	// Same size, same modification time: the change time tells.
	fi, _ := os.Stat(filepath.Join(root, "a"))
	write(t, root, "a", "uno")
	if err := os.Chtimes(filepath.Join(root, "a"), fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	third, _ := scan()
	if third.Manifest.Entries[0].Hash != hashOf([]byte("uno")) {
		t.Fatal("a stale hash was used")
	}
	if err := os.Remove(filepath.Join(root, "b")); err != nil {
		t.Fatal(err)
	}
	scan()
	if n := len(OpenHashCache(file).old); n > 2 {
		t.Fatalf("%d entries are kept for 2 files", n)
	}
	// Damage is harmless.
	data, _ := os.ReadFile(file)
	for _, bad := range [][]byte{data[:len(data)-1], {}, []byte("junk"), append(bytes.Clone(data[:len(data)-5]), 1, 2, 3, 4, 5)} {
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if n := len(OpenHashCache(file).old); n != 0 {
			t.Fatalf("%d entries out of a damaged file", n)
		}
	}
}

func TestHashCacheDistrustsTheYoung(t *testing.T) {
	c := newHashCache("")
	now := time.Unix(1000, 500)
	var sum [32]byte
	for i, k := range []fileKey{{Ino: 1, Ctime: now.UnixNano()}, {Ino: 2, Mtime: now.UnixNano() + 5, Ctime: 1}, {Ino: 3, Mtime: 999e9, Ctime: 999e9}} {
		c.put(k, sum, now)
		if _, ok := c.get(k); ok {
			t.Errorf("%d was remembered", i)
		}
	}
	k := fileKey{Ino: 4, Mtime: 999e9 + 1, Ctime: 999e9 + 1}
	c.put(k, sum, now)
	if _, ok := c.get(k); !ok {
		t.Error("an old file was not remembered")
	}
}

func TestScanMemory(t *testing.T) {
	// 200,000 entries have to stay in the order of 40 MB.
	m := &Manifest{Entries: make([]Entry, 0, 200_000)}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 200_000 {
		m.Entries = append(m.Entries, Entry{Path: fmt.Sprintf("f%07d", i), Kind: KindFile, Mode: 0o644, Size: int64(i), Hash: hashOf([]byte{byte(i), byte(i >> 8), byte(i >> 16)})})
	}
	data, err := m.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(bytes.NewReader(data), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	m = nil
	runtime.GC()
	runtime.ReadMemStats(&after)
	if mb := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) >> 20; mb > 60 {
		t.Fatalf("%d MB for 200,000 entries", mb)
	}
	runtime.KeepAlive(got)
}
