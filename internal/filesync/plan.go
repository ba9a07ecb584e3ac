package filesync

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"sync"
	"sync/atomic"
	"syscall"
)

// Target is a place to bring to a manifest's state.
type Target struct {
	// Dst is the folder, absolute; with File, the file. A link at Dst itself is followed.
	Dst string
	// File: the manifest holds one file, to be Dst itself, or to lie in Dst if that is a folder.
	File bool
	// Mirror removes what the manifest lacks. It never leaves the filesystem that Dst is on.
	Mirror bool
	// Prune removes files that an earlier sync put there, by the index, and that the manifest lacks, unless they were changed.
	Prune bool
	// Trusted says that the source holds what it says, so that its bytes are not hashed again.
	Trusted bool
	// Planned, if set, is what Plan said a moment ago: Apply does not look again at what was in order.
	Planned *Need
	// Index, if set, is that of Dst. Plan fills it, Apply saves it.
	Index *Index
}

// Need is what a destination lacks.
type Need struct {
	Missing []string // hashes, sorted
	Bytes   int64

	// settled marks, by entry of the manifest, the files that Apply will find as they have to be.
	settled []bool
	// fresh is set if nothing was there.
	fresh *freshPlan
}

// Plan says which blobs Apply will ask for. It changes nothing.
func Plan(ctx context.Context, m *Manifest, t Target) (Need, error) {
	var need Need
	if err := m.Validate(); err != nil {
		return need, err
	}
	dir, m, err := t.place(m)
	if err != nil {
		return need, err
	}
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		for h, n := range m.Sizes() {
			need.Missing = append(need.Missing, h)
			need.Bytes += n
		}
		sort.Strings(need.Missing)
		need.settled = make([]bool, len(m.Entries))
		if !t.File {
			need.fresh = &freshPlan{}
		}
		return need, nil
	}
	if err != nil {
		return need, writeErr("open", dir, err)
	}
	defer root.Close()
	if f, err := root.Open("."); err == nil && !t.File {
		_, err = f.ReadDir(1)
		if errors.Is(err, io.EOF) {
			need.fresh = &freshPlan{}
		}
		f.Close()
	}

	// A folder that is none yet has nothing to offer.
	absent := map[string]bool{}
	for i := range m.Entries {
		e := &m.Entries[i]
		if e.Kind != KindDir {
			continue
		}
		fi, err := root.Lstat(e.Path)
		if absent[parentOf(e.Path)] || err != nil || !fi.IsDir() {
			absent[e.Path] = true
		}
	}
	var mu sync.Mutex
	missing := map[string]int64{}
	need.settled = make([]bool, len(m.Entries))
	err = forChunks(ctx, root, m, func(c *chunk, h *hasher) error {
		for _, i := range c.entries {
			e := &m.Entries[i]
			if e.Kind != KindFile {
				continue
			}
			same := false
			if !absent[c.dir] {
				fi, err := c.root.Lstat(baseOf(e.Path))
				if err == nil {
					same, err = c.holds(ctx, e, fi, t.Index, h)
				}
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
				need.settled[i] = same && err == nil && permOf(fi) == e.Mode && fi.ModTime().UnixNano() == e.ModTime
			}
			if !same {
				mu.Lock()
				missing[e.Hash] = e.Size
				mu.Unlock()
			}
		}
		return nil
	}, absent)
	if err != nil {
		return need, err
	}
	for h, n := range missing {
		need.Missing = append(need.Missing, h)
		need.Bytes += n
	}
	sort.Strings(need.Missing)
	return need, nil
}

// place resolves a target to the folder to work in, and the manifest to apply there.
func (t *Target) place(m *Manifest) (dir string, _ *Manifest, err error) {
	if !filepath.IsAbs(t.Dst) {
		return "", nil, invalidf("destination %q is not absolute", t.Dst)
	}
	if !t.File {
		return filepath.Clean(t.Dst), m, nil
	}
	if len(m.Entries) != 1 || m.Entries[0].Kind != KindFile {
		return "", nil, invalidf("a manifest of a single file was expected")
	}
	if fi, err := os.Stat(t.Dst); err == nil && fi.IsDir() {
		return filepath.Clean(t.Dst), m, nil
	}
	e := m.Entries[0]
	dir, e.Path = filepath.Split(filepath.Clean(t.Dst))
	return dir, &Manifest{Entries: []Entry{e}}, nil
}

// chunk is a part of one folder's files and links: the unit of parallel work.
type chunk struct {
	dir     string
	root    *os.Root // the folder itself
	fd      *os.File // the same, for those who need its number; closed with it
	entries []int
}

const chunkSize = 256

// forChunks calls do for all files and links, folder by folder, from a few goroutines. Folders in skip are not opened.
func forChunks(ctx context.Context, root *os.Root, m *Manifest, do func(*chunk, *hasher) error, skip map[string]bool) error {
	var chunks []*chunk
	open := map[string]*chunk{}
	for i := range m.Entries {
		if m.Entries[i].Kind == KindDir {
			continue
		}
		dir := parentOf(m.Entries[i].Path)
		c := open[dir]
		if c == nil || len(c.entries) == chunkSize {
			c = &chunk{dir: dir}
			open[dir] = c
			chunks = append(chunks, c)
		}
		c.entries = append(c.entries, i)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(4, max(2, runtime.GOMAXPROCS(0)), max(1, len(chunks))) {
		wg.Go(func() {
			h := newHasher()
			for ctx.Err() == nil {
				i := int(next.Add(1) - 1)
				if i >= len(chunks) {
					return
				}
				c := chunks[i]
				if err := c.run(root, skip, func() error { return do(c, h) }); err != nil {
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
	return nil
}

func (c *chunk) run(root *os.Root, skip map[string]bool, do func() error) error {
	if skip[c.dir] {
		return do()
	}
	c.root = root
	defer func() {
		if c.fd != nil {
			c.fd.Close()
			c.fd = nil
		}
	}()
	if c.dir != "" {
		sub, err := root.OpenRoot(c.dir)
		if err != nil {
			return writeErr("open", filepath.Join(root.Name(), c.dir), err)
		}
		defer sub.Close()
		c.root = sub
	}
	return do()
}

// full is a path for messages.
func (c *chunk) full(e *Entry) string { return filepath.Join(c.root.Name(), baseOf(e.Path)) }

// holds says whether the file fi at e's place has e's content, reading it if the index doesn't know.
func (c *chunk) holds(ctx context.Context, e *Entry, fi fs.FileInfo, x *Index, h *hasher) (bool, error) {
	if !fi.Mode().IsRegular() || fi.Size() != e.Size {
		return false, nil
	}
	mtime := fi.ModTime().UnixNano()
	if hash, ok := x.get(e.Path, e.Size, mtime); ok {
		return hash == e.Hash, nil
	}
	f, err := c.root.OpenFile(baseOf(e.Path), openFlags, 0)
	if err != nil {
		if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) {
			return false, nil // it is replaced, which needs no reading
		}
		return false, err
	}
	defer f.Close()
	if now, err := f.Stat(); err != nil || !os.SameFile(now, fi) {
		return false, err
	}
	h.h.Reset()
	var n int64
	for {
		k, err := f.Read(h.buf)
		h.h.Write(h.buf[:k])
		n += int64(k)
		if err == io.EOF {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return false, readErr(c.full(e), err)
		}
	}
	var got [sha256.Size]byte
	h.h.Sum(got[:0])
	if n == e.Size {
		x.put(e.Path, e.Size, mtime, hex.EncodeToString(got[:]))
	}
	want, _ := hex.DecodeString(e.Hash)
	return bytes.Equal(got[:], want), nil
}
