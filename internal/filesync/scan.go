package filesync

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
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
}

// Tree is a scanned source. As a BlobSource it reads the files as they are now; one that changed since gives ErrChanged.
type Tree struct {
	Root     string // absolute, links resolved
	Manifest *Manifest
	// Warnings are lines for the person: links that point outside, things that were left out.
	Warnings []string

	once   sync.Once
	byHash map[string]int
}

// Scan describes the folder root. It leaves out what .skyignore names, or else what git ignores. A file that changes or
// vanishes meanwhile makes it start once more, and then fail with ErrChanged.
func Scan(ctx context.Context, root string, o ScanOptions) (*Tree, error) {
	abs, fi, err := resolve(root)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return nil, &PathError{Op: "read", Path: root, Err: errors.New("it is not a folder")}
	}
	return twice(ctx, o, func(o ScanOptions) (*Tree, error) { return scanFolder(ctx, abs, fi, o) })
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
	return twice(ctx, o, func(o ScanOptions) (*Tree, error) {
		fi, err := os.Lstat(abs)
		if err != nil {
			return nil, vanishedOr(abs, err)
		}
		s := &scanner{root: filepath.Dir(abs), o: o, seen: []fs.FileInfo{fi}}
		s.entries = []Entry{{Path: filepath.Base(abs), Kind: KindFile, Mode: permOf(fi), Size: fi.Size(), ModTime: fi.ModTime().UnixNano()}}
		if err := s.hashAll(ctx); err != nil {
			return nil, err
		}
		return &Tree{Root: s.root, Manifest: &Manifest{Entries: s.entries}}, nil
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

func twice(ctx context.Context, o ScanOptions, scan func(ScanOptions) (*Tree, error)) (*Tree, error) {
	if o.Cache == nil {
		o.Cache = newHashCache("") // saves the second try reading everything again
	}
	t, err := scan(o)
	if !errors.Is(err, ErrChanged) {
		return t, err
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(100 * time.Millisecond):
	}
	return scan(o)
}

func scanFolder(ctx context.Context, root string, rootInfo fs.FileInfo, o ScanOptions) (*Tree, error) {
	s := &scanner{root: root, o: o}
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
	return &Tree{Root: root, Manifest: m, Warnings: s.warnings}, nil
}

// scanner collects one tree.
type scanner struct {
	root     string
	o        ScanOptions
	entries  []Entry
	seen     []fs.FileInfo // by entry; nil but for files
	ignored  int
	keptFile bool // something other than git's own files is kept
	warnings []string
	counts   map[string]int
}

func (s *scanner) reset() {
	s.entries, s.seen, s.ignored, s.keptFile, s.warnings, s.counts = nil, nil, 0, false, nil, nil
}

func (s *scanner) warn(format string, args ...any) {
	const most = 10 // of one sort; the rest is counted
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
		if e.Link, err = os.Readlink(full); err != nil {
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

// hashAll reads what the cache doesn't know.
func (s *scanner) hashAll(ctx context.Context) error {
	workers := s.o.Workers
	if workers <= 0 {
		workers = min(4, runtime.GOMAXPROCS(0))
	}
	meter := newMeter(s.o.Progress, s.entries)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			h := newHasher()
			for ctx.Err() == nil {
				i := int(next.Add(1) - 1)
				if i >= len(s.entries) {
					return
				}
				if s.entries[i].Kind != KindFile {
					continue
				}
				if err := s.hashOne(ctx, i, h, meter); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	meter.done()
	return nil
}

type hasher struct {
	h   hash.Hash
	buf []byte
}

func newHasher() *hasher { return &hasher{sha256.New(), make([]byte, 256<<10)} }

func (s *scanner) hashOne(ctx context.Context, i int, h *hasher, meter *meter) error {
	e := &s.entries[i]
	full := filepath.Join(s.root, filepath.FromSlash(e.Path))
	key := statKey(full, s.seen[i])
	if sum, ok := s.o.Cache.get(key); ok {
		e.Hash = sum
		meter.add(1, e.Size)
		return nil
	}
	f, err := os.OpenFile(full, openFlags, 0)
	if err != nil {
		if now, lerr := os.Lstat(full); lerr == nil && !now.Mode().IsRegular() {
			return changedErr(full)
		}
		return vanishedOr(full, err)
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return readErr(full, err)
	}
	if statKey(full, before) != key {
		return changedErr(full)
	}
	start := time.Now()
	h.h.Reset()
	var read int64
	for {
		n, err := f.Read(h.buf)
		h.h.Write(h.buf[:n])
		read += int64(n)
		meter.add(0, int64(n))
		if err == io.EOF {
			break
		}
		if err != nil {
			return readErr(full, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	after, err := f.Stat()
	if err != nil {
		return readErr(full, err)
	}
	if read != e.Size || statKey(full, after) != key {
		return changedErr(full)
	}
	var sum [sha256.Size]byte
	h.h.Sum(sum[:0])
	e.Hash = hex.EncodeToString(sum[:])
	s.o.Cache.put(key, sum, start)
	meter.add(1, 0)
	return nil
}

// meter thins out progress reports.
type meter struct {
	report func(Progress)
	mu     sync.Mutex
	p      Progress
	last   time.Time
}

func newMeter(report func(Progress), entries []Entry) *meter {
	m := &meter{report: report}
	m.p.TotalFiles, m.p.TotalBytes = (&Manifest{Entries: entries}).Totals()
	return m
}

func (m *meter) add(files int, bytes int64) {
	if m.report == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.p.Files += files
	m.p.Bytes += bytes
	if now := time.Now(); now.Sub(m.last) >= 50*time.Millisecond {
		m.last = now
		m.report(m.p)
	}
}

func (m *meter) done() {
	if m.report != nil {
		m.report(m.p)
	}
}

// PathOf names a file of the tree that holds the blob, absolute; "" if there is none.
func (t *Tree) PathOf(hash string) string {
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
		return ""
	}
	return filepath.Join(t.Root, filepath.FromSlash(t.Manifest.Entries[i].Path))
}

// Open reads the file that holds the blob.
func (t *Tree) Open(hash string) (io.ReadCloser, int64, error) {
	path := t.PathOf(hash)
	if path == "" {
		return nil, 0, fmt.Errorf("blob %s: %w", short(hash), fs.ErrNotExist)
	}
	f, err := os.OpenFile(path, openFlags, 0)
	if err != nil {
		return nil, 0, vanishedOr(path, err)
	}
	want := &t.Manifest.Entries[t.byHash[hash]]
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() || fi.Size() != want.Size {
		_ = f.Close()
		return nil, 0, changedErr(path)
	}
	return f, want.Size, nil
}
