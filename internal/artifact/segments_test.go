package artifact

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func segmentFiles(t *testing.T, s *Store) (segs, idx []string) {
	t.Helper()
	segs, _ = filepath.Glob(filepath.Join(s.dir, segmentDir, "*"+segmentExt))
	idx, _ = filepath.Glob(filepath.Join(s.dir, segmentDir, "*"+indexExt))
	return segs, idx
}

func TestSegmentsSurvive(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	var hashes []string
	for i := range 100 {
		hashes = append(hashes, put(t, s, fmt.Sprint("blob ", i)))
	}
	s = open(t, dir) // the first process was killed
	if !has(t, s, hashes...) || get(t, s, hashes[42]) != "blob 42" {
		t.Fatal("after a kill")
	}
	late := put(t, s, "late")
	must(t, s.Close())
	if segs, idx := segmentFiles(t, s); len(segs) != 2 || len(idx) != 2 {
		t.Fatal(segs, idx)
	}
	// An index that is damaged or missing is made again.
	_, idx := segmentFiles(t, s)
	must(t, os.WriteFile(idx[0], []byte("damaged"), 0o600))
	must(t, os.Remove(idx[1]))
	must(t, os.WriteFile(idx[1]+".tmp", nil, 0o600))
	s = open(t, dir)
	if !has(t, s, append(hashes, late)...) {
		t.Fatal("after the indexes were lost")
	}
	must(t, s.Close())
	for _, h := range hashes {
		if s2 := open(t, dir); !has(t, s2, h) {
			t.Fatal(h)
		} else if must(t, s2.Close()); h == hashes[3] {
			break
		}
	}
}

// TestSegmentCut: wherever a crash cuts a segment or garbles its end, the blobs before stay and the rest is forgotten.
func TestSegmentCut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "seg")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		s, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		texts := rapid.SliceOfNDistinct(rapid.StringN(0, 40, -1), 1, 12, rapid.ID[string]).Draw(t, "texts")
		for _, x := range texts {
			if _, err := s.Put(sum(x), strings.NewReader(x)); err != nil {
				t.Fatal(err)
			}
		}
		path := s.small.active.f.Name()
		data, _ := os.ReadFile(path)
		at := rapid.IntRange(0, len(data)-1).Draw(t, "at")
		if rapid.Bool().Draw(t, "garble") {
			data[at] ^= 0xff
		} else {
			data = data[:at]
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s2, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		off, whole := 0, true
		for _, x := range texts {
			off += recordHeader + len(x)
			whole = whole && off <= at
			r, _, err := s2.Open(sum(x))
			if (err == nil) != whole {
				t.Fatalf("%q: want %v, %v", x, whole, err)
			}
			if err != nil {
				continue
			}
			var buf bytes.Buffer
			if _, err := buf.ReadFrom(r); err != nil || buf.String() != x {
				t.Fatalf("%q came back as %q, %v", x, buf.String(), err)
			}
		}
		// It can be used on.
		for _, x := range texts {
			if _, err := s2.Put(sum(x), strings.NewReader(x)); err != nil {
				t.Fatal(err)
			}
		}
		if missing, err := s2.Has(t.Context(), []string{sum(texts[0]), sum(texts[len(texts)-1])}); err != nil || len(missing) > 0 {
			t.Fatal(missing, err)
		}
		_ = s2.Close()
		_ = s.small.active.f.Close()
	})
}

func TestSpoolEmptiesItself(t *testing.T) {
	s := open(t, t.TempDir())
	var hashes []string
	for i := range 50 {
		hashes = append(hashes, put(t, s, fmt.Sprint(i)))
		if i == 20 {
			must(t, s.small.rotate())
		}
	}
	must(t, s.Remove(hashes[:30]...))
	if segs, idx := segmentFiles(t, s); len(segs) != 1 || len(idx) != 0 {
		t.Fatal(segs, idx)
	}
	if has(t, s, hashes[3]) || !has(t, s, hashes[30:]...) {
		t.Fatal("the wrong ones went")
	}
	must(t, s.Remove(hashes...))
	if segs, _ := segmentFiles(t, s); len(segs) != 0 {
		t.Fatal(segs)
	}
	put(t, s, "again")
}

func TestSegmentGC(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := t.Context()
	put(t, s, "kept")
	told := put(t, s, "told")
	for i := range 50 {
		put(t, s, fmt.Sprint("garbage ", i))
	}
	kept, _, err := s.PutManifest(ctx, manifest("kept"))
	must(t, err)
	old(t, s.manifestPath(kept))
	keep := func(id string) bool {
		if !has(t, s, told) {
			t.Error("told")
		}
		return id == kept
	}
	// The segment is young: nothing goes.
	if st, err := s.GC(ctx, keep, time.Hour); err != nil || st.Blobs != 0 || st.Kept != 52 {
		t.Fatalf("%+v %v", st, err)
	}
	s.small.active.made = time.Now().Add(-48 * time.Hour)
	old(t, s.small.active.f.Name())
	if st, err := s.GC(ctx, keep, time.Hour); err != nil || st.Blobs != 50 || st.Kept != 2 || st.Bytes < 50*recordHeader {
		t.Fatalf("%+v %v", st, err)
	}
	if get(t, s, sum("kept")) != "kept" || !has(t, s, told) || has(t, s, sum("garbage 7")) {
		t.Fatal("content")
	}
	if segs, _ := segmentFiles(t, s); len(segs) != 1 {
		t.Fatal(segs)
	}
	// Mostly used: it stays as it is.
	must(t, s.small.rotate())
	old(t, s.small.sealed[0].f.Name())
	if st, err := s.GC(ctx, func(string) bool { return true }, time.Hour); err != nil || st.Blobs != 1 && st.Kept != 2 {
		t.Fatalf("%+v %v", st, err)
	}
}

func TestSegmentsRotate(t *testing.T) {
	dir := t.TempDir()
	for name, set := range map[string]func(*segments){"size": func(g *segments) { g.maxSize = 5 * (recordHeader + 3) }, "records": func(g *segments) { g.maxRecords = 5 }} {
		t.Run(name, func(t *testing.T) {
			s := open(t, filepath.Join(dir, name))
			set(s.small)
			var hashes []string
			for i := range 23 {
				hashes = append(hashes, put(t, s, fmt.Sprintf("%03d", i)))
			}
			if segs, idx := segmentFiles(t, s); len(segs) != 5 || len(idx) != 4 || !has(t, s, hashes...) {
				t.Fatal(segs, idx)
			}
			must(t, s.Commit())
			s = open(t, s.dir)
			for i, h := range hashes {
				if get(t, s, h) != fmt.Sprintf("%03d", i) {
					t.Fatal(i)
				}
			}
		})
	}
}
