package filesync

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	copied := s.tolerant && s.o.Copy != nil && s.o.Copy(full, s.seen[i])
	key := statKey(full, s.seen[i])
	if sum, ok := s.o.Cache.get(key); ok && !copied {
		e.Hash = sum
		meter.add(1, e.Size)
		return nil
	}
	var err error
	if s.tolerant {
		err = s.hashUnsteady(ctx, e, full, copied, h, meter)
	} else {
		var r reading
		if r, err = s.read(ctx, full, -1, h, meter, nil); err == nil && (statKey(full, r.before) != key || !r.steady(full)) {
			err = changedErr(full)
		}
		if err == nil {
			s.take(e, full, r)
		}
	}
	if err == nil {
		meter.add(1, 0)
	}
	return err
}

// reading is one time that a file was read.
type reading struct {
	start         time.Time
	before, after fs.FileInfo
	n             int64 // bytes
	sum           [sha256.Size]byte
}

func (r *reading) steady(full string) bool {
	return r.n == r.before.Size() && statKey(full, r.before) == statKey(full, r.after)
}

// take notes what was read.
func (s *scanner) take(e *Entry, full string, r reading) {
	e.Mode, e.Size, e.ModTime, e.Hash = permOf(r.before), r.n, r.before.ModTime().UnixNano(), hex.EncodeToString(r.sum[:])
	if r.steady(full) {
		s.o.Cache.put(statKey(full, r.before), r.sum, r.start)
	}
}

// read hashes the first limit bytes of a file, or as many as it has when it is opened (-1), copying them to w if that is not nil.
func (s *scanner) read(ctx context.Context, full string, limit int64, h *hasher, meter *meter, w io.Writer) (r reading, err error) {
	f, err := os.OpenFile(full, openFlags, 0)
	if err != nil {
		if now, lerr := os.Lstat(full); lerr == nil && !now.Mode().IsRegular() {
			return r, changedErr(full)
		}
		return r, vanishedOr(full, err)
	}
	defer f.Close()
	if r.before, err = f.Stat(); err != nil {
		return r, readErr(full, err)
	}
	if !r.before.Mode().IsRegular() {
		return r, changedErr(full)
	}
	r.start = time.Now()
	h.h.Reset()
	if limit < 0 {
		limit = r.before.Size()
	}
	for left := limit; left > 0; left = limit - r.n {
		n, err := f.Read(h.buf[:min(int64(len(h.buf)), left)])
		h.h.Write(h.buf[:n])
		r.n += int64(n)
		meter.add(0, int64(n))
		if w != nil && n > 0 {
			if _, werr := w.Write(h.buf[:n]); werr != nil {
				return r, werr
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return r, readErr(full, err)
		}
		if err := ctx.Err(); err != nil {
			return r, err
		}
	}
	if r.after, err = f.Stat(); err != nil {
		return r, readErr(full, err)
	}
	h.h.Sum(r.sum[:0])
	return r, nil
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
