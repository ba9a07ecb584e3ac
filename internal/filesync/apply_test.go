package filesync

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"
)

// dump lists a folder as "path=content", "path/" and "path@target".
func dump(t testing.TB, root string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		switch {
		case d.IsDir():
			out = append(out, rel+"/")
		case d.Type()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(p)
			out = append(out, rel+"@"+to)
		default:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			out = append(out, rel+"="+string(b))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(out)
	return out
}

func scan(t testing.TB, root string) *Tree {
	t.Helper()
	tr, err := Scan(t.Context(), root, ScanOptions{NoIgnore: true})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// sync plans and applies, giving Apply only the blobs that the plan named.
func sync_(t testing.TB, tr *Tree, tg Target) (Need, Result) {
	t.Helper()
	need, err := Plan(t.Context(), tr.Manifest, tg)
	if err != nil {
		t.Fatal(err)
	}
	spool := memBlobs{}
	for _, h := range need.Missing {
		r, _, err := tr.Open(h)
		if err != nil {
			t.Fatal(err)
		}
		spool[h], _ = io.ReadAll(r)
		r.Close()
	}
	res, err := Apply(t.Context(), tr.Manifest, tg, spool)
	if err != nil {
		t.Fatal(err)
	}
	return need, res
}

func TestApply(t *testing.T) {
	src := tree(t, map[string]string{"a": "one", "d/b": "two", "d/e/c": "one", "d/l": "@b", "empty/": "", "out": "@/nowhere", "zero": ""})
	for p, mode := range map[string]fs.FileMode{"a": 0o751, "d/b": 0o400, "d/e": 0o555, "empty": 0o700} {
		if err := os.Chmod(filepath.Join(src, p), mode); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(src, "d/e"), 0o755) })
	when := time.Unix(1234567890, 987654321)
	if err := os.Chtimes(filepath.Join(src, "a"), when, when); err != nil {
		t.Fatal(err)
	}
	tr := scan(t, src)
	dst := filepath.Join(t.TempDir(), "new", "dst")
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(dst, "d/e"), 0o755) })
	tg := Target{Dst: dst, Index: OpenIndex(filepath.Join(t.TempDir(), "ix"))}
	need, res := sync_(t, tr, tg)
	if len(need.Missing) != 3 || need.Bytes != 6 || res.Written != 6 || res.Bytes != 9 || res.Removed != 0 {
		t.Fatalf("%+v %+v", need, res)
	}
	if len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0], "out points outside") {
		t.Fatalf("%q", res.Warnings)
	}
	same(t, dump(t, dst), dump(t, src)...)
	if got := scan(t, dst).Manifest.ID(); got != tr.Manifest.ID() {
		t.Fatal("modes or times differ")
	}

	// Unchanged: nothing is needed, nothing written, with the index and without.
	for _, x := range []*Index{OpenIndex(tg.Index.path), nil} {
		tg.Index = x
		need, res = sync_(t, tr, tg)
		if len(need.Missing) != 0 || res.Written != 0 || res.Unchanged != 6 {
			t.Fatalf("%+v %+v", need, res)
		}
	}
}

func TestApplyChanges(t *testing.T) {
	src := tree(t, map[string]string{"a": "one", "b": "two", "d/x": "three", "e": "@a", "f/g": "four"})
	dst := t.TempDir()
	ix := filepath.Join(t.TempDir(), "ix")
	sync_(t, scan(t, src), Target{Dst: dst, Index: OpenIndex(ix)})
	write(t, dst, "job/output", "precious")
	write(t, dst, "b", "edited by the job")

	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p := func(s string) string { return filepath.Join(src, s) }
	must(os.WriteFile(p("a"), []byte("ONE"), 0o600))
	must(os.RemoveAll(p("d")))
	write(t, src, "d", "now a file")
	must(os.Remove(p("e")))
	write(t, src, "e/f", "now a folder")
	must(os.RemoveAll(p("f")))
	must(os.Symlink("a", p("f")))
	need, res := sync_(t, scan(t, src), Target{Dst: dst, Index: OpenIndex(ix)})
	same(t, dump(t, dst), "a=ONE", "b=two", "d=now a file", "e/", "e/f=now a folder", "f@a", "job/", "job/output=precious")
	if len(need.Missing) != 4 || res.Written != 5 {
		t.Fatalf("%+v %+v", need, res)
	}

	_, res = sync_(t, scan(t, src), Target{Dst: dst, Mirror: true, Index: OpenIndex(ix)})
	same(t, dump(t, dst), "a=ONE", "b=two", "d=now a file", "e/", "e/f=now a folder", "f@a")
	if res.Removed != 2 || res.Written != 0 {
		t.Fatalf("%+v", res)
	}
}

func TestApplySparesFolderOfOthers(t *testing.T) {
	src := tree(t, map[string]string{"d": "file"})
	dst := tree(t, map[string]string{"d/job": "precious"})
	tr := scan(t, src)
	_, err := Apply(t.Context(), tr.Manifest, Target{Dst: dst}, tr)
	if err == nil || !strings.Contains(err.Error(), "d/job") || !strings.Contains(err.Error(), "mirror") {
		t.Fatalf("%v", err)
	}
	same(t, dump(t, dst), "d/", "d/job=precious")
	sync_(t, tr, Target{Dst: dst, Mirror: true})
	same(t, dump(t, dst), "d=file")
}

func TestApplyNeverLeavesDst(t *testing.T) {
	outside := tree(t, map[string]string{"victim": "safe", "sub/deep": "safe"})
	src := tree(t, map[string]string{"d/victim": "evil", "e": "evil", "g/sub/deep": "evil"})
	dst := tree(t, map[string]string{
		"d": "@" + outside,             // a folder of the manifest is a link to elsewhere
		"e": "@" + outside + "/victim", // a file is
		"g": "@../" + filepath.Base(outside),
	})
	for _, mirror := range []bool{false, true} {
		sync_(t, scan(t, src), Target{Dst: dst, Mirror: mirror})
		same(t, dump(t, outside), "sub/", "sub/deep=safe", "victim=safe")
		same(t, dump(t, dst), "d/", "d/victim=evil", "e=evil", "g/", "g/sub/", "g/sub/deep=evil")
	}
	// Mirror removes a link, not what it points to.
	if err := os.Symlink(outside, filepath.Join(dst, "extra")); err != nil {
		t.Fatal(err)
	}
	sync_(t, scan(t, src), Target{Dst: dst, Mirror: true})
	same(t, dump(t, outside), "sub/", "sub/deep=safe", "victim=safe")

	// Someone swaps a folder for a link while files are being written.
	tr := scan(t, src)
	write(t, src, "d/victim", "more evil")
	tr = scan(t, src)
	swapped := false
	_, err := Apply(t.Context(), tr.Manifest, Target{Dst: dst}, sourceFunc(func(h string) (io.ReadCloser, int64, error) {
		if !swapped {
			swapped = true
			_ = os.RemoveAll(filepath.Join(dst, "d"))
			_ = os.Symlink(outside, filepath.Join(dst, "d"))
		}
		return tr.Open(h)
	}))
	_ = err // it may fail or write into the folder it had open; it may not write elsewhere
	same(t, dump(t, outside), "sub/", "sub/deep=safe", "victim=safe")
}

type sourceFunc func(string) (io.ReadCloser, int64, error)

func (f sourceFunc) Open(h string) (io.ReadCloser, int64, error) { return f(h) }

func TestApplyDstItself(t *testing.T) {
	src := tree(t, map[string]string{"a": "one"})
	tr := scan(t, src)
	// A link at the destination is the owner's choice.
	real := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	sync_(t, tr, Target{Dst: link})
	same(t, dump(t, real), "a=one")
	file := filepath.Join(t.TempDir(), "f")
	write(t, filepath.Dir(file), "f", "x")
	var pe *PathError
	if _, err := Apply(t.Context(), tr.Manifest, Target{Dst: file}, tr); !errors.As(err, &pe) || !strings.Contains(err.Error(), "a file stands there") {
		t.Fatalf("%v", err)
	}
	if _, err := Apply(t.Context(), tr.Manifest, Target{Dst: "rel"}, tr); !errors.Is(err, ErrInvalid) {
		t.Fatalf("%v", err)
	}
	if _, err := Apply(t.Context(), &Manifest{Entries: []Entry{{Path: "../x", Kind: KindFile, Hash: hashA}}}, Target{Dst: real}, tr); !errors.Is(err, ErrInvalid) {
		t.Fatalf("%v", err)
	}
}

func TestApplySingleFile(t *testing.T) {
	src := tree(t, map[string]string{"data.csv": "1,2"})
	tr, err := ScanFile(t.Context(), filepath.Join(src, "data.csv"), ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	dst := t.TempDir()
	ix := filepath.Join(t.TempDir(), "ix")
	for i := range 2 {
		need, _ := sync_(t, tr, Target{Dst: filepath.Join(dst, "x/y.csv"), File: true, Index: OpenIndex(ix)})
		if len(need.Missing) != 1-i {
			t.Fatalf("round %d: %+v", i, need)
		}
	}
	write(t, dst, "folder/", "")
	write(t, dst, "x/other", "stays")
	sync_(t, tr, Target{Dst: filepath.Join(dst, "folder"), File: true, Mirror: true})
	same(t, dump(t, dst), "folder/", "folder/data.csv=1,2", "x/", "x/other=stays", "x/y.csv=1,2")
}

func TestApplyBrokenSource(t *testing.T) {
	src := tree(t, map[string]string{"a": "one", "b": "two"})
	tr := scan(t, src)
	h := hashOf([]byte("two"))
	for name, c := range map[string]struct {
		src  BlobSource
		want error
	}{
		"missing":  {blobs("one"), fs.ErrNotExist},
		"damaged":  {memBlobs{hashOf([]byte("one")): []byte("one"), h: []byte("tw0")}, ErrInvalid},
		"too long": {memBlobs{hashOf([]byte("one")): []byte("one"), h: []byte("twoo")}, ErrInvalid},
		"full disk": {sourceFunc(func(string) (io.ReadCloser, int64, error) {
			return io.NopCloser(failingReader{}), 3, nil
		}), syscall.ENOSPC},
	} {
		dst := t.TempDir()
		tg := Target{Dst: dst, Index: OpenIndex(filepath.Join(t.TempDir(), "ix"))}
		_, err := Apply(t.Context(), tr.Manifest, tg, c.src)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		for _, f := range dump(t, dst) {
			if f != "a=one" {
				t.Errorf("%s: left %q", name, f)
			}
		}
		// The next sync heals it.
		sync_(t, tr, Target{Dst: dst, Index: OpenIndex(tg.Index.path)})
		same(t, dump(t, dst), "a=one", "b=two")
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestApplyFullDisk(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("needs /dev/full")
	}
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	_, werr := f.Write([]byte("x"))
	err = writeErr("write", "/data/x", werr)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "no space left") || !strings.Contains(err.Error(), "free some space") || strings.Contains(err.Error(), "/dev/full") {
		t.Fatalf("%v", err)
	}
}

func TestApplyClearsLeftovers(t *testing.T) {
	src := tree(t, map[string]string{"d/a": "one"})
	tr := scan(t, src)
	dst := tree(t, map[string]string{tempPrefix + "x": "half", "d/" + tempPrefix + "y": "half"})
	ix := OpenIndex(filepath.Join(t.TempDir(), "ix"))
	if err := ix.save(true); err != nil { // as if an apply had been killed
		t.Fatal(err)
	}
	sync_(t, tr, Target{Dst: dst, Index: OpenIndex(ix.path)})
	same(t, dump(t, dst), "d/", "d/a=one")
	if OpenIndex(ix.path).dirty {
		t.Fatal("still marked")
	}
	if err := os.WriteFile(ix.path, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if x := OpenIndex(ix.path); !x.dirty || len(x.m) != 0 {
		t.Fatalf("%+v", x)
	}
}

func TestApplyInUseFileKeepsItsInode(t *testing.T) {
	src := tree(t, map[string]string{"prog": "new"})
	dst := tree(t, map[string]string{"prog": "old"})
	f, err := os.Open(filepath.Join(dst, "prog"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sync_(t, scan(t, src), Target{Dst: dst})
	if b, _ := io.ReadAll(f); string(b) != "old" {
		t.Fatalf("the running job sees %q", b)
	}
	same(t, dump(t, dst), "prog=new")
}

// TestPrune: what an earlier sync brought goes with the source; what others made or changed stays.
func TestPrune(t *testing.T) {
	src := tree(t, map[string]string{"keep": "1", "gone": "2", "changed": "3", "d/e/only": "4", "d2/only": "5", "link": "@keep", "turned": "6"})
	dst := t.TempDir()
	ix := filepath.Join(t.TempDir(), "ix")
	target := func(prune bool) Target { return Target{Dst: dst, Prune: prune, Index: OpenIndex(ix)} }
	sync_(t, scan(t, src), target(true))
	for name, text := range map[string]string{"by a job": "x", "d2/by a job": "y", "changed": "by a job"} {
		if err := os.WriteFile(filepath.Join(dst, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"gone", "changed", "d", "d2", "link", "turned"} {
		if err := os.RemoveAll(filepath.Join(src, p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("keep", filepath.Join(src, "turned")); err != nil {
		t.Fatal(err)
	}
	_, res := sync_(t, scan(t, src), target(true))
	want := []string{"by a job=x", "changed=by a job", "d2/", "d2/by a job=y", "keep=1", "turned@keep"}
	if got := dump(t, dst); !slices.Equal(got, want) {
		t.Errorf("%q, not %q", got, want)
	}
	if res.Removed != 6 { // gone, link, d/e/only, d/e, d, d2/only
		t.Errorf("%d removed", res.Removed)
	}
	// Without pruning nothing goes.
	os.Remove(filepath.Join(src, "keep"))
	sync_(t, scan(t, src), target(false))
	if got := dump(t, dst); !slices.Equal(got, want) {
		t.Errorf("additive: %q", got)
	}
}

// TestMove: a spool gives big blobs away; equal ones and small ones are copied.
func TestMove(t *testing.T) {
	big := strings.Repeat("b", MoveFrom)
	twin := strings.Repeat("t", MoveFrom)
	src := tree(t, map[string]string{"big": big, "d/twin": twin, "d/twin2": twin, "small": "s"})
	if err := os.Chmod(filepath.Join(src, "big"), 0o751); err != nil {
		t.Fatal(err)
	}
	tr := scan(t, src)
	for _, fail := range []bool{false, true} {
		m := &movers{memBlobs: memBlobs{}, fail: fail}
		for _, h := range tr.Manifest.Hashes() {
			r, _, err := tr.Open(h)
			if err != nil {
				t.Fatal(err)
			}
			m.memBlobs[h], _ = io.ReadAll(r)
			r.Close()
		}
		dst := t.TempDir()
		res, err := Apply(t.Context(), tr.Manifest, Target{Dst: dst, Trusted: true}, m)
		if err != nil || res.Written != 4 {
			t.Fatal(res, err)
		}
		if !slices.Equal(dump(t, dst), dump(t, src)) {
			t.Error("the trees differ")
		}
		a, _ := os.Stat(filepath.Join(src, "big"))
		b, err := os.Stat(filepath.Join(dst, "big"))
		if err != nil || b.Mode() != a.Mode() || !b.ModTime().Equal(a.ModTime()) {
			t.Errorf("mode and time: %v, %v", a, b)
		}
		if want := map[bool]int{false: 1, true: 0}[fail]; m.moved != want && runtime.GOOS == "linux" {
			t.Errorf("%d moved, not %d", m.moved, want)
		}
	}
}

type movers struct {
	memBlobs
	fail  bool
	moved int
}

func (m *movers) Move(hash string, dir *os.File, name string) error {
	if m.fail {
		return syscall.EXDEV
	}
	m.moved++
	return os.WriteFile(filepath.Join(dir.Name(), name), m.memBlobs[hash], 0o600)
}
