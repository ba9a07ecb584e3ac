package filesync

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// TestPlacer: into an empty folder blobs go as they come; the rest is left to the spool and to Apply.
func TestPlacer(t *testing.T) {
	files := map[string]string{"a": "one", "d/b": "two", "d/e/c": "three", "d/l": "@b", "twin1": "same", "d/twin2": "same", "empty/": "", "zero": "", "big": strings.Repeat("x", 300<<10)}
	for i := range 50 {
		files[fmt.Sprintf("many/%02d", i)] = fmt.Sprint("file ", i)
	}
	src := tree(t, files)
	if err := os.Chmod(filepath.Join(src, "d/e"), 0o555); err != nil {
		t.Fatal(err)
	}
	tr := scan(t, src)
	dst, ix := t.TempDir(), filepath.Join(t.TempDir(), "ix")
	tg := Target{Dst: dst, Trusted: true, Index: OpenIndex(ix)}
	need, err := Plan(t.Context(), tr.Manifest, tg)
	if err != nil || !need.Fresh() {
		t.Fatal(need.Fresh(), err)
	}
	spool := memBlobs{}
	half := len(need.Missing) / 2
	for _, hashes := range [][]string{need.Missing[:half], need.Missing[half:]} {
		p, err := NewPlacer(t.Context(), tr.Manifest, tg, &need)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range hashes {
			r, n, err := tr.Open(h)
			if err != nil {
				t.Fatal(err)
			}
			done, err := p.Add(h, n, r)
			if err != nil {
				t.Fatal(err)
			}
			if !done {
				spool[h], _ = io.ReadAll(r)
			}
			r.Close()
		}
		if err := p.Close(nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(spool) != 1 {
		t.Errorf("%d blobs left to the spool; only the one used twice should be", len(spool))
	}
	// A sync that broke off here goes on by itself: what is in place is known by its content.
	if again, err := Plan(t.Context(), tr.Manifest, Target{Dst: dst}); err != nil || len(again.Missing) != 1 || again.Fresh() {
		t.Errorf("a plan after it: %d missing, fresh %v, %v", len(again.Missing), again.Fresh(), err)
	}
	tg.Planned = &need
	res, err := Apply(t.Context(), tr.Manifest, tg, spool)
	if err != nil || res.Written != len(files)-1 || res.Unchanged != 0 { // all but the folder
		t.Errorf("%+v %v", res, err)
	}
	if !slices.Equal(dump(t, dst), dump(t, src)) {
		t.Errorf("%q", dump(t, dst))
	}
	for _, p := range []string{"d/e", "d/e/c", "big"} {
		a, _ := os.Stat(filepath.Join(src, p))
		b, err := os.Stat(filepath.Join(dst, p))
		if err != nil || a.Mode() != b.Mode() || !a.IsDir() && !a.ModTime().Equal(b.ModTime()) {
			t.Errorf("%s: %v, %v", p, a, b)
		}
	}
	if n, err := Plan(t.Context(), tr.Manifest, Target{Dst: dst, Index: OpenIndex(ix)}); err != nil || len(n.Missing) > 0 {
		t.Errorf("%d missing at the end, %v", len(n.Missing), err)
	}
}

// TestPlacerFails: damaged bytes and a file in the way leave nothing half.
func TestPlacerFails(t *testing.T) {
	tr := scan(t, tree(t, map[string]string{"small": "abc", "big": strings.Repeat("y", 300<<10), "way": "mine"}))
	dst := filepath.Join(t.TempDir(), "new")
	tg := Target{Dst: dst, Trusted: true}
	need, err := Plan(t.Context(), tr.Manifest, tg)
	if err != nil {
		t.Fatal(err)
	}
	hash := map[string]string{}
	for _, e := range tr.Manifest.Entries {
		hash[e.Path] = e.Hash
	}
	p, err := NewPlacer(t.Context(), tr.Manifest, tg, &need)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		size int64
	}{{"small", 3}, {"big", 300 << 10}} {
		bad := io.MultiReader(strings.NewReader(strings.Repeat("z", int(c.size))), iotest.ErrReader(invalidf("wrong bytes")))
		if done, err := p.Add(hash[c.name], c.size, bad); !done || !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v %v", c.name, done, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dst, "way"), []byte("someone's"), 0o644); err != nil {
		t.Fatal(err)
	}
	if done, err := p.Add(hash["way"], 4, strings.NewReader("mine")); !done || err != nil {
		t.Errorf("%v %v", done, err)
	}
	if err := p.Close(nil); err != nil {
		t.Error(err)
	}
	if got := dump(t, dst); !slices.Equal(got, []string{"way=someone's"}) {
		t.Errorf("left behind: %q", got)
	}
	if _, err := Apply(t.Context(), tr.Manifest, Target{Dst: dst, Trusted: true, Planned: &need}, memBlobs{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an apply without the content: %v", err)
	}
}

// place sends everything that a plan needs through a Placer; what that leaves goes to rest.
func place(t *testing.T, tr *Tree, tg Target, need *Need, rest memBlobs) error {
	t.Helper()
	p, err := NewPlacer(t.Context(), tr.Manifest, tg, need)
	if err != nil {
		return err
	}
	for _, h := range tr.Manifest.InOrder(need.Missing) {
		r, n, oerr := tr.Open(h)
		if oerr != nil {
			t.Fatal(oerr)
		}
		done := false
		if done, err = p.Add(h, n, r); !done && err == nil {
			rest[h], err = io.ReadAll(r)
		}
		r.Close()
		if err != nil {
			break
		}
	}
	return p.Close(err)
}
