package filesync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Progress tells how far a scan is. The totals are known once the tree was walked, before it is read.
type Progress struct {
	Files, TotalFiles int
	Bytes, TotalBytes int64
}

// ScanOptions tune a scan.
type ScanOptions struct {
	// Progress, if set, is called at most every 50 ms and at the end, from one goroutine at a time.
	Progress func(Progress)
	// Cache, if set, saves reading files that did not change. The caller saves it afterwards.
	Cache *HashCache
	// Workers is the number of files read at once; 0: up to 4.
	Workers int
	// NoIgnore sends everything, ignore files or not.
	NoIgnore bool
	// Tolerant goes on, with a warning, where files keep changing or vanish, as the package describes. Else they are an ErrChanged.
	Tolerant bool
	// Copy, with Tolerant, names files to be copied while they are read, so that it does not matter what becomes of them.
	Copy func(path string, fi fs.FileInfo) bool
}

// Tree is a scanned source. As a BlobSource it reads the files as they are now; one that changed since gives ErrChanged.
type Tree struct {
	Root     string // absolute, links resolved
	Manifest *Manifest
	// Warnings are lines for the person: links that point outside, things that were left out.
	Warnings []string

	once   sync.Once
	byHash map[string]int
	copies *copies // of files that keep changing
}

// Close removes copies of files that kept changing. The tree is no BlobSource any more.
func (t *Tree) Close() { t.copies.remove() }

// Scan describes the folder root. It leaves out what .skyignore names, or else what git ignores. A file that changes or
// vanishes meanwhile makes it start once more, and then fail with ErrChanged if it is not Tolerant.
func Scan(ctx context.Context, root string, o ScanOptions) (*Tree, error) {
	abs, fi, err := resolve(root)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return nil, &PathError{Op: "read", Path: root, Err: errors.New("it is not a folder")}
	}
	return twice(ctx, o, func(o ScanOptions, last bool) (*Tree, error) { return scanFolder(ctx, abs, fi, o, last) })
}

// ScanFile describes a single file, following a link to it: a manifest of one entry whose path is the file's own name.
func ScanFile(ctx context.Context, path string, o ScanOptions) (*Tree, error) {
	abs, fi, err := resolve(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, &PathError{Op: "read", Path: path, Err: errors.New("it is not a plain file")}
	}
	return twice(ctx, o, func(o ScanOptions, last bool) (*Tree, error) {
		fi, err := os.Lstat(abs)
		if err != nil {
			return nil, vanishedOr(abs, err)
		}
		s := newScanner(filepath.Dir(abs), o, last)
		s.seen, s.single = []fs.FileInfo{fi}, true
		s.entries = []Entry{{Path: filepath.Base(abs), Kind: KindFile, Mode: permOf(fi), Size: fi.Size(), ModTime: fi.ModTime().UnixNano()}}
		if err := s.hashAll(ctx); err != nil {
			s.copies.remove()
			return nil, err
		}
		return &Tree{Root: s.root, Manifest: &Manifest{Entries: s.entries}, Warnings: s.warnings, copies: s.copies}, nil
	})
}

func resolve(path string) (string, fs.FileInfo, error) {
	abs, err := filepath.Abs(path)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return "", nil, &PathError{Op: "read", Path: path, Err: err, Hint: "check the path"}
	}
	fi, err := os.Lstat(abs)
	if err != nil {
		return "", nil, &PathError{Op: "read", Path: path, Err: err, Hint: "check the path"}
	}
	return abs, fi, nil
}

func twice(ctx context.Context, o ScanOptions, scan func(o ScanOptions, last bool) (*Tree, error)) (*Tree, error) {
	if o.Cache == nil {
		o.Cache = newHashCache("") // saves the second try reading everything again
	}
	if o.Copy != nil { // known to change
		return scan(o, true)
	}
	t, err := scan(o, false)
	if !errors.Is(err, ErrChanged) {
		return t, err
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(100 * time.Millisecond):
	}
	return scan(o, true)
}

func scanFolder(ctx context.Context, root string, rootInfo fs.FileInfo, o ScanOptions, last bool) (_ *Tree, err error) {
	s := newScanner(root, o, last)
	defer func() {
		if err != nil {
			s.copies.remove()
		}
	}()
	var rules *ignoreRules
	if !o.NoIgnore {
		var err error
		if rules, err = rulesFor(root); err != nil {
			return nil, err
		}
	}
	if err := s.walk(ctx, "", rules); err != nil {
		return nil, err
	}
	if s.ignored > 0 && !s.keptFile && rules.repo != nil {
		s.reset()
		if err := s.walk(ctx, "", nil); err != nil {
			return nil, err
		}
		s.warn("git ignores everything in %s, so nothing is left out; add a .skyignore to choose", root)
	}
	if err := s.hashAll(ctx); err != nil {
		return nil, err
	}
	if err := s.dropVanished(); err != nil {
		return nil, err
	}
	// A folder that was removed or replaced under the scan may look merely small.
	if now, err := os.Lstat(root); err != nil || !os.SameFile(now, rootInfo) {
		return nil, changedErr(root)
	}
	sortEntries(s.entries)
	m := &Manifest{Entries: s.entries}
	if err := m.Validate(); err != nil {
		return nil, &PathError{Op: "sync", Path: root, Err: err}
	}
	s.flushWarnings()
	return &Tree{Root: root, Manifest: m, Warnings: s.warnings, copies: s.copies}, nil
}

// scanner collects one tree.
type scanner struct {
	root     string
	o        ScanOptions
	entries  []Entry
	seen     []fs.FileInfo // by entry; nil but for files
	ignored  int
	keptFile bool // something other than git's own files is kept
	tolerant bool // nobody scans again after this
	single   bool // one file was asked for, no folder
	copies   *copies

	mu       sync.Mutex
	warnings []string
	counts   map[string]int
	vanished int
}

func newScanner(root string, o ScanOptions, last bool) *scanner {
	return &scanner{root: root, o: o, tolerant: last && o.Tolerant, copies: &copies{}}
}

func (s *scanner) reset() {
	s.entries, s.seen, s.ignored, s.keptFile, s.warnings, s.counts, s.vanished = nil, nil, 0, false, nil, nil, 0
}

func (s *scanner) warn(format string, args ...any) {
	const most = 10 // of one sort; the rest is counted
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.counts == nil {
		s.counts = map[string]int{}
	}
	if s.counts[format]++; s.counts[format] <= most {
		s.warnings = append(s.warnings, fmt.Sprintf(format, args...))
	}
}

func (s *scanner) flushWarnings() {
	more := 0
	for _, n := range s.counts {
		more += max(0, n-10)
	}
	if more > 0 {
		s.warnings = append(s.warnings, fmt.Sprintf("… and %d more warnings of the same sorts", more))
	}
}

func (s *scanner) walk(ctx context.Context, dir string, rules *ignoreRules) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	full := filepath.Join(s.root, filepath.FromSlash(dir))
	list, err := os.ReadDir(full)
	if s.gone(err) && dir != "" {
		s.entries, s.seen = s.entries[:len(s.entries)-1], s.seen[:len(s.seen)-1] // the folder itself
		s.vanish(full)
		return nil
	}
	if err != nil {
		return vanishedOr(full, err)
	}
	rules, err = rules.enter(full, dir)
	if err != nil {
		return err
	}
	for _, d := range list {
		p := d.Name()
		if dir != "" {
			p = dir + "/" + p
		}
		ignored, descend := rules.ignores(p, d.IsDir())
		if ignored && !descend {
			s.ignored++
			continue
		}
		if err := s.visit(ctx, p, rules.below(ignored)); err != nil {
			return err
		}
	}
	return nil
}

func (s *scanner) visit(ctx context.Context, p string, rules *ignoreRules) error {
	full := filepath.Join(s.root, filepath.FromSlash(p))
	fi, err := os.Lstat(full)
	if s.gone(err) {
		s.vanish(full)
		return nil
	}
	if err != nil {
		return vanishedOr(full, err)
	}
	if err := checkPath(p); err != nil {
		return &PathError{Op: "sync", Path: full, Err: err}
	}
	e := Entry{Path: p, Mode: permOf(fi)}
	var info fs.FileInfo
	switch mode := fi.Mode(); {
	case mode.IsRegular():
		e.Kind, e.Size, e.ModTime, info = KindFile, fi.Size(), fi.ModTime().UnixNano(), fi
	case mode.IsDir():
		e.Kind = KindDir
	case mode&fs.ModeSymlink != 0:
		e.Kind, e.Mode = KindLink, 0
		if e.Link, err = os.Readlink(full); s.gone(err) {
			s.vanish(full)
			return nil
		} else if err != nil {
			return vanishedOr(full, err)
		}
		e.Link = filepath.ToSlash(e.Link)
		if leadsOutside(p, e.Link) {
			s.warn("the link %s points outside of what is synced (%s); it is sent as a link", p, e.Link)
		}
	default:
		s.warn("%s is neither a file, a folder nor a link and is left out", p)
		return nil
	}
	s.entries = append(s.entries, e)
	s.seen = append(s.seen, info)
	if e.Kind != KindDir {
		s.keptFile = s.keptFile || !isGitPath(p)
		return nil
	}
	return s.walk(ctx, p, rules)
}

func isGitPath(p string) bool {
	return p == ".git" || len(p) > 5 && p[:5] == ".git/"
}

func permOf(fi fs.FileInfo) uint32 { return uint32(fi.Mode().Perm()) }

func vanishedOr(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return changedErr(path)
	}
	return readErr(path, err)
}

// PathOf names a file of the tree that holds the blob, absolute; "" if there is none.
func (t *Tree) PathOf(hash string) string {
	e := t.EntryOf(hash)
	if e == nil {
		return ""
	}
	return filepath.Join(t.Root, filepath.FromSlash(e.Path))
}

// EntryOf gives the entry of a file of the tree that holds the blob; nil if there is none. It must not be changed.
func (t *Tree) EntryOf(hash string) *Entry {
	t.once.Do(func() {
		t.byHash = make(map[string]int, len(t.Manifest.Entries))
		for i := range t.Manifest.Entries {
			if e := &t.Manifest.Entries[i]; e.Kind == KindFile {
				t.byHash[e.Hash] = i
			}
		}
	})
	i, ok := t.byHash[hash]
	if !ok {
		return nil
	}
	return &t.Manifest.Entries[i]
}

// Open reads the file that holds the blob.
func (t *Tree) Open(hash string) (io.ReadCloser, int64, error) {
	if r, size, err := t.copies.open(hash); r != nil || err != nil {
		return r, size, err
	}
	path := t.PathOf(hash)
	if path == "" {
		return nil, 0, fmt.Errorf("blob %s: %w", short(hash), fs.ErrNotExist)
	}
	f, err := os.OpenFile(path, openFlags, 0)
	if err != nil {
		return nil, 0, vanishedOr(path, err)
	}
	want := &t.Manifest.Entries[t.byHash[hash]]
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() || fi.Size() < want.Size {
		_ = f.Close()
		return nil, 0, changedErr(path)
	}
	if fi.Size() > want.Size { // it may have grown and else be as it was, which its hash will tell
		return &prefix{io.LimitedReader{R: f, N: want.Size}, f}, want.Size, nil
	}
	return f, want.Size, nil
}
