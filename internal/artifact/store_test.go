package artifact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/skyloom/skyloom/internal/filesync"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir, Options{})
	must(t, err)
	return s
}

func sum(text string) string {
	h := sha256.Sum256([]byte(text))
	return hex.EncodeToString(h[:])
}

func put(t testing.TB, s *Store, text string) string {
	t.Helper()
	n, err := s.Put(sum(text), strings.NewReader(text))
	if err != nil || n != int64(len(text)) {
		t.Fatal(n, err)
	}
	return sum(text)
}

func get(t testing.TB, s *Store, hash string) string {
	t.Helper()
	r, size, err := s.Open(hash)
	must(t, err)
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil || int64(len(b)) != size {
		t.Fatal(size, err)
	}
	return string(b)
}

func has(t testing.TB, s *Store, hashes ...string) bool {
	t.Helper()
	missing, err := s.Has(t.Context(), hashes)
	must(t, err)
	return len(missing) == 0
}

// big makes a text too long for a segment.
func big(text string) string { return text + strings.Repeat(".", smallBlob) }

func manifest(texts ...string) *filesync.Manifest {
	m := &filesync.Manifest{}
	for i, x := range texts {
		m.Entries = append(m.Entries, filesync.Entry{Path: fmt.Sprintf("f%03d", i), Kind: filesync.KindFile, Mode: 0o644, Size: int64(len(x)), Hash: sum(x)})
	}
	return m
}

func TestBlobs(t *testing.T) {
	t.Run("small", func(t *testing.T) { testBlobs(t, func(s string) string { return s }) })
	t.Run("big", func(t *testing.T) { testBlobs(t, big) })
}

func testBlobs(t *testing.T, text func(string) string) {
	dir := t.TempDir()
	s := open(t, dir)
	a := put(t, s, text("one"))
	b := put(t, s, "")
	put(t, s, text("one"))
	if get(t, s, a) != text("one") || get(t, s, b) != "" {
		t.Fatal("content")
	}
	missing, err := s.Has(t.Context(), []string{sum("x"), a, sum("x"), sum("y")})
	if err != nil || !slices.Equal(missing, []string{sum("x"), sum("y")}) {
		t.Fatal(missing, err)
	}
	must(t, s.Commit())
	must(t, s.Commit())
	if get(t, s, a) != text("one") || !has(t, s, a, b) || len(s.pending) != 0 || s.small.dirty {
		t.Fatal("after the commit")
	}
	if _, _, err := s.Open(sum("x")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	must(t, s.Remove(a, sum("x")))
	if has(t, s, a) {
		t.Fatal("removed")
	}
	c := put(t, s, text("three"))
	must(t, s.Remove(c))
	must(t, s.Commit())
	if has(t, s, c) {
		t.Fatal("removed before it was durable")
	}
	if !has(t, open(t, dir), b) {
		t.Fatal("after opening again")
	}
	for _, bad := range []string{"", "../../etc/passwd", strings.ToUpper(a), a + "0"} {
		_, e1 := s.Put(bad, strings.NewReader(""))
		_, _, e2 := s.Open(bad)
		_, e3 := s.Has(t.Context(), []string{bad})
		_, e4 := s.Manifest(bad)
		for i, err := range []error{e1, e2, e3, e4, s.Remove(bad)} {
			if !errors.Is(err, filesync.ErrInvalid) {
				t.Errorf("%q, call %d: %v", bad, i, err)
			}
		}
	}
}

func TestPutLeavesNothingHalf(t *testing.T) {
	t.Run("small", func(t *testing.T) { testHalf(t, func(s string) string { return s }) })
	t.Run("big", func(t *testing.T) { testHalf(t, big) })
}

func testHalf(t *testing.T, text func(string) string) {
	s := open(t, t.TempDir())
	boom := errors.New("boom")
	for name, r := range map[string]io.Reader{"wrong": strings.NewReader(text("two")), "fails": iotest.ErrReader(boom), "cut": io.MultiReader(strings.NewReader(text("on")), iotest.ErrReader(io.ErrUnexpectedEOF))} {
		if _, err := s.Put(sum(text("one")), r); err == nil {
			t.Errorf("%s was accepted", name)
		}
		if list, _ := os.ReadDir(filepath.Join(s.dir, pendingDir)); len(list) != 0 || has(t, s, sum(text("one"))) {
			t.Errorf("%s left %v", name, list)
		}
	}
	put(t, s, text("one"))
	if _, err := s.Put(sum(text("one")), strings.NewReader(text("two"))); !errors.Is(err, filesync.ErrInvalid) {
		t.Fatal(err) // wrong bytes are told even for a blob that is here
	}
}

func TestCrash(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	whole := put(t, s, big("whole"))
	cut := put(t, s, big("cut by the crash"))
	must(t, os.Truncate(s.pendingPath(cut), 3))
	must(t, os.WriteFile(filepath.Join(dir, pendingDir, "tmp-1"), []byte("half"), 0o600))
	s = open(t, dir) // the old one died without a commit
	if !has(t, s, whole) || has(t, s, cut) {
		t.Fatal("what was whole is kept, what was cut is not")
	}
	if list, _ := os.ReadDir(filepath.Join(dir, pendingDir)); len(list) != 1 {
		t.Fatal(list)
	}
	must(t, s.Commit())
	if get(t, s, whole) != big("whole") {
		t.Fatal("content")
	}
}

func TestManifests(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	m := manifest("one", "two", "two")
	put(t, s, "one")
	id, missing, err := s.PutManifest(t.Context(), m)
	if err != nil || id != m.ID() || !slices.Equal(missing, []string{sum("two")}) {
		t.Fatal(id, missing, err)
	}
	put(t, s, "two")
	if _, missing, err = s.PutManifest(t.Context(), m); err != nil || len(missing) != 0 {
		t.Fatal(missing, err)
	}
	if len(s.pending) != 0 || s.small.dirty {
		t.Fatal("called complete before it was durable")
	}
	got, err := open(t, dir).Manifest(id)
	if err != nil || got.ID() != id {
		t.Fatal(err)
	}
	if _, err := s.Manifest(sum("x")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	bad := manifest("one")
	bad.Entries[0].Path = "../x"
	if _, _, err := s.PutManifest(t.Context(), bad); !errors.Is(err, filesync.ErrInvalid) {
		t.Fatal(err)
	}
	must(t, os.WriteFile(s.manifestPath(id), []byte("damaged"), 0o600))
	if _, err := s.Manifest(id); !errors.Is(err, filesync.ErrInvalid) {
		t.Fatal(err)
	}
}

func TestUpload(t *testing.T) {
	src := t.TempDir()
	for i := range 300 {
		must(t, os.WriteFile(filepath.Join(src, fmt.Sprint("f", i)), []byte(fmt.Sprint("content ", i%200)), 0o644))
	}
	tree, err := filesync.Scan(t.Context(), src, filesync.ScanOptions{})
	must(t, err)
	s := open(t, t.TempDir())
	_, missing, err := s.PutManifest(t.Context(), tree.Manifest)
	if err != nil || len(missing) != 200 {
		t.Fatal(len(missing), err)
	}
	var buf bytes.Buffer
	must(t, filesync.WritePack(t.Context(), &buf, tree, missing, filesync.PackOptions{}))
	// The connection breaks in the middle: what arrived is kept, the rest is asked for again.
	raw := bytes.Buffer{}
	must(t, filesync.WritePack(t.Context(), &raw, tree, missing, filesync.PackOptions{Raw: true}))
	if _, err := s.PutPack(t.Context(), bytes.NewReader(raw.Bytes()[:raw.Len()/2]), filesync.PackLimits{}); !errors.Is(err, filesync.ErrInvalid) {
		t.Fatal(err)
	}
	left, err := s.Missing(t.Context(), tree.Manifest)
	if err != nil || len(left) < 90 || len(left) > 110 {
		t.Fatal(len(left), err)
	}
	st, err := s.PutPack(t.Context(), &buf, filesync.PackLimits{})
	if err != nil || st.Blobs != 200 {
		t.Fatal(st, err)
	}
	id, missing, err := s.PutManifest(t.Context(), tree.Manifest)
	if err != nil || len(missing) != 0 {
		t.Fatal(missing, err)
	}
	m, err := s.Manifest(id)
	must(t, err)
	dst := t.TempDir()
	if _, err := filesync.Apply(t.Context(), m, filesync.Target{Dst: dst}, s); err != nil {
		t.Fatal(err)
	}
	again, err := filesync.Scan(t.Context(), dst, filesync.ScanOptions{})
	if err != nil || again.Manifest.ID() != id {
		t.Fatal("the tree that arrived is another", err)
	}
}

func TestConcurrentPutsAndCommits(t *testing.T) {
	s := open(t, t.TempDir())
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 100 {
				text := fmt.Sprint("blob ", (i+w*10)%120)
				if i%4 == 0 {
					text = big(text)
				}
				if _, err := s.Put(sum(text), strings.NewReader(text)); err != nil {
					t.Error(err)
				}
				if i%25 == w {
					if err := s.Commit(); err != nil {
						t.Error(err)
					}
				}
				r, _, err := s.Open(sum(text))
				if err != nil {
					t.Errorf("a blob just put can't be opened: %v", err)
					continue
				}
				r.Close()
			}
		})
	}
	wg.Wait()
	must(t, s.Commit())
	if list, _ := os.ReadDir(filepath.Join(s.dir, pendingDir)); len(list) != 0 {
		t.Fatal(list)
	}
}

func old(t *testing.T, paths ...string) {
	t.Helper()
	past := time.Now().Add(-48 * time.Hour)
	for _, p := range paths {
		must(t, os.Chtimes(p, past, past))
	}
}

func TestGC(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := t.Context()
	texts := []string{big("kept"), big("shared"), big("dropped"), big("young"), big("stray"), big("told")}
	for _, x := range texts {
		put(t, s, x)
	}
	kept, _, err := s.PutManifest(ctx, manifest(big("kept"), big("shared")))
	must(t, err)
	dropped, _, err := s.PutManifest(ctx, manifest(big("dropped"), big("shared")))
	must(t, err)
	young, _, err := s.PutManifest(ctx, manifest(big("young")))
	must(t, err)
	for _, x := range texts {
		old(t, s.blobPath(sum(x)))
	}
	old(t, s.manifestPath(kept), s.manifestPath(dropped))
	must(t, os.WriteFile(filepath.Join(s.dir, pendingDir, "tmp-old"), nil, 0o600))
	old(t, filepath.Join(s.dir, pendingDir, "tmp-old"))
	pending := put(t, s, big("pending"))
	st, err := s.GC(ctx, func(id string) bool {
		// A client asks while the collection runs: what it is told to be here must stay.
		if !has(t, s, sum(big("told"))) {
			t.Error("told")
		}
		return id == kept
	}, time.Hour)
	if err != nil || st != (GCStats{Manifests: 1, Blobs: 2, Bytes: int64(len(big("dropped")) + len(big("stray"))), Kept: 4}) {
		t.Fatalf("%+v %v", st, err)
	}
	for x, want := range map[string]bool{"kept": true, "shared": true, "dropped": false, "young": true, "stray": false, "told": true} {
		if has(t, s, sum(big(x))) != want {
			t.Errorf("%s: %v", x, !want)
		}
	}
	if !has(t, s, pending) {
		t.Error("an upload under way was collected")
	}
	if _, err := s.Manifest(young); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, pendingDir, "tmp-old")); err == nil {
		t.Error("an old unfinished file is left")
	}
	// A damaged manifest must not cost the blobs it named.
	must(t, os.WriteFile(s.manifestPath(kept), []byte("damaged"), 0o600))
	if _, err := s.GC(ctx, func(string) bool { return true }, 0); !errors.Is(err, filesync.ErrInvalid) || !has(t, s, sum(big("kept"))) {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.GC(cancelled, func(string) bool { return true }, 0); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestFullDisk(t *testing.T) {
	s := open(t, t.TempDir())
	for _, cause := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		err := s.full(&fs.PathError{Op: "write", Path: "x", Err: cause})
		if !errors.Is(err, ErrFull) || !errors.Is(err, cause) || !strings.Contains(err.Error(), s.dir) || !strings.Contains(err.Error(), "free some space") {
			t.Fatal(err)
		}
	}
}

func BenchmarkPut20kBlobs(b *testing.B) {
	for b.Loop() {
		s := open(b, b.TempDir())
		m := &filesync.Manifest{}
		for i := range 20_000 {
			text := fmt.Sprint(i)
			if _, err := s.put(sum(text), strings.NewReader(text), false); err != nil {
				b.Fatal(err)
			}
			m.Entries = append(m.Entries, filesync.Entry{Path: fmt.Sprintf("%06d", i), Kind: filesync.KindFile, Size: int64(len(text)), Hash: sum(text)})
		}
		if _, missing, err := s.PutManifest(b.Context(), m); err != nil || len(missing) > 0 {
			b.Fatal(len(missing), err)
		}
	}
}
