package filesync

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
)

// readings is how often a file that changes is read before a copy of it is made.
const readings = 2

// mostCopied bounds the copies of one tree, in bytes.
const mostCopied = 1 << 30

// gone says whether an error is only that something vanished, where that is tolerated.
func (s *scanner) gone(err error) bool { return s.tolerant && errors.Is(err, fs.ErrNotExist) }

func (s *scanner) vanish(full string) {
	s.warn("%s vanished while the folder was read; it is left out", full)
	s.mu.Lock()
	s.vanished++
	s.mu.Unlock()
}

// dropVanished takes out the files that were there when the folder was walked, and no more when they were to be read.
func (s *scanner) dropVanished() error {
	if s.vanished > 10+len(s.entries)/10 {
		return &PathError{Op: "sync", Path: s.root, Err: ErrChanged, Hint: "much of the folder vanished meanwhile; try again when nothing is removed from it"}
	}
	k := 0
	for i := range s.entries {
		if e := &s.entries[i]; e.Kind != KindFile || e.Hash != "" {
			s.entries[k], s.seen[k] = *e, s.seen[i]
			k++
		}
	}
	s.entries, s.seen = s.entries[:k], s.seen[:k]
	return nil
}

// hashUnsteady reads a file that may be written to meanwhile. With copied, it is copied in any case.
func (s *scanner) hashUnsteady(ctx context.Context, e *Entry, full string, copied bool, h *hasher, meter *meter) error {
	err := s.hashSome(ctx, e, full, copied, h, meter)
	if s.single || !errors.Is(err, ErrChanged) {
		return err
	}
	if now, lerr := os.Lstat(full); lerr == nil && now.Mode().IsRegular() {
		return err
	}
	e.Hash = ""
	s.vanish(full)
	return nil
}

func (s *scanner) hashSome(ctx context.Context, e *Entry, full string, copied bool, h *hasher, meter *meter) error {
	for try := 0; try < readings && !copied; try++ {
		r, err := s.read(ctx, full, -1, h, meter, nil)
		if err != nil {
			return err
		}
		if r.steady(full) {
			s.take(e, full, r)
			return nil
		}
		if r.n < r.before.Size() || r.after.Size() <= r.n {
			continue
		}
		// It grows. If the part that was read stays as it was, that is a state it was in.
		again, err := s.read(ctx, full, r.n, h, meter, nil)
		if err != nil {
			return err
		}
		if again.n == r.n && again.sum == r.sum {
			s.take(e, full, r)
			s.warn(writtenTo, full)
			return nil
		}
	}
	r, err := s.copies.add(func(w io.Writer) (reading, error) { return s.read(ctx, full, -1, h, meter, w) })
	var pe *PathError
	if err != nil && !errors.As(err, &pe) && ctx.Err() == nil {
		err = &PathError{Op: "sync", Path: full, Err: ErrChanged,
			Hint: "it was to be copied for that, which failed (" + err.Error() + "); try again when nothing writes to it, or list it in .skyignore"}
	}
	if err != nil {
		return err
	}
	s.take(e, full, r)
	if !r.steady(full) {
		s.warn(writtenTo, full)
	}
	return nil
}

const writtenTo = "%s is being written to; what it held when it was read is synced"

// copies are files of a temporary folder, by their hash.
type copies struct {
	mu    sync.Mutex
	dir   string
	bytes int64
	paths map[string]string
}

// add makes one of what read writes.
func (c *copies) add(read func(io.Writer) (reading, error)) (r reading, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dir == "" {
		if c.dir, err = os.MkdirTemp("", "sky-copy-"); err != nil {
			return r, err
		}
		c.paths = map[string]string{}
	}
	f, err := os.CreateTemp(c.dir, "")
	if err != nil {
		return r, err
	}
	r, err = read(&bounded{f, mostCopied - c.bytes})
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return r, err
	}
	c.bytes += r.n
	c.paths[hex.EncodeToString(r.sum[:])] = f.Name()
	return r, nil
}

// open gives the copy with a hash; r is nil if there is none.
func (c *copies) open(hash string) (r io.ReadCloser, size int64, err error) {
	if c == nil {
		return nil, 0, nil
	}
	c.mu.Lock()
	path, ok := c.paths[hash]
	c.mu.Unlock()
	if !ok {
		return nil, 0, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

func (c *copies) remove() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dir != "" {
		_ = os.RemoveAll(c.dir)
	}
	c.dir, c.paths = "", nil
}

// bounded is a writer that takes so many bytes.
type bounded struct {
	w    io.Writer
	left int64
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, errors.New("more than 1 GB keeps changing")
	}
	return b.w.Write(p)
}

// prefix is the beginning of a file.
type prefix struct {
	io.LimitedReader
	io.Closer
}
