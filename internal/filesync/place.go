package filesync

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Placer puts blobs of a plan in place while they arrive. It serves destinations that were empty, where nothing has to be
// kept until all is there; elsewhere blobs wait in a spool, so that a sync that breaks off changes nothing. Apply comes
// after it all the same, for what a Placer leaves: folders' modes, links, and content that is used more than once.
type Placer struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	a      *applier
	need   *Need
	byHash map[string]int // entry; -1 if several have the blob
	work   chan *batch
	free   chan *batch
	next   *batch // being filled
	wg     sync.WaitGroup
	own    placeDir
	probe  [1]byte
}

// batch is small blobs of one folder on their way to a worker: handing them over one by one would cost more than writing
// them, and two workers in one folder would wait for each other.
type batch struct {
	dir     string
	entries []int
	ends    []int // in data
	data    []byte
}

// placeDir is the folder that a worker writes to: blobs come in the order of the tree, so it seldom changes.
type placeDir struct {
	c     *chunk
	close func()
}

// Fresh says whether a Placer may serve the plan: there was nothing at the destination.
func (n *Need) Fresh() bool { return n.fresh != nil }

// freshPlan is what the Placers of one plan share.
type freshPlan struct {
	once   sync.Once
	err    error
	byHash map[string]int
	// What Placers wrote so far.
	files, bytes atomic.Int64
}

// prepare makes the folders and the table of entries by hash, once.
func (f *freshPlan) prepare(ctx context.Context, a *applier) (map[string]int, error) {
	f.once.Do(func() {
		if f.err = a.folders(ctx); f.err != nil {
			return
		}
		f.byHash = make(map[string]int, len(a.m.Entries))
		for i := range a.m.Entries {
			e := &a.m.Entries[i]
			if e.Kind != KindFile {
				continue
			}
			if _, twice := f.byHash[e.Hash]; twice {
				f.byHash[e.Hash] = -1
				continue
			}
			f.byHash[e.Hash] = i
		}
	})
	return f.byHash, f.err
}

const (
	// smallPlacing is up to which size blobs are handed to workers, in bytes.
	smallPlacing = 128 << 10
	// batchPlacing is the size of a batch in bytes.
	batchPlacing = 512 << 10
)

// NewPlacer makes the folders of the manifest. need is the plan's, of the same manifest and target. Close must be called.
func NewPlacer(ctx context.Context, m *Manifest, t Target, need *Need) (*Placer, error) {
	if need.fresh == nil || t.File {
		return nil, errors.New("the destination was not empty")
	}
	dir, m, err := t.place(m)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, writeErr("make folder", dir, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, writeErr("open", dir, err)
	}
	p := &Placer{a: &applier{root: root, dir: dir, m: m, t: t, made: map[string]bool{}}, need: need}
	if p.byHash, err = need.fresh.prepare(ctx, p.a); err != nil {
		root.Close()
		return nil, err
	}
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	workers := min(4, max(2, runtime.GOMAXPROCS(0)))
	p.work, p.free = make(chan *batch), make(chan *batch, workers+1)
	for range workers {
		p.free <- nil
		p.wg.Go(p.worker)
	}
	p.free <- nil
	return p, nil
}

// Add puts a blob in place, or says that it doesn't: then r was not read. Its errors are also those of blobs before.
func (p *Placer) Add(hash string, size int64, r io.Reader) (done bool, err error) {
	i, ok := p.byHash[hash]
	if !ok || i < 0 || p.need.settled[i] || p.a.m.Entries[i].Size != size {
		return false, nil
	}
	if size > smallPlacing {
		return true, p.put(&p.own, i, r)
	}
	dir := parentOf(p.a.m.Entries[i].Path)
	if b := p.next; b != nil && (b.dir != dir || len(b.data)+int(size) > cap(b.data)) {
		if err := p.hand(); err != nil {
			return true, err
		}
	}
	if p.next == nil {
		select {
		case p.next = <-p.free:
		case <-p.ctx.Done():
			return true, context.Cause(p.ctx)
		}
		if p.next == nil {
			p.next = &batch{data: make([]byte, 0, batchPlacing)}
		}
		p.next.dir = dir
	}
	b := p.next
	start := len(b.data)
	if _, err := io.ReadFull(r, b.data[start:start+int(size)]); err != nil {
		return true, err
	}
	// A blob's reader says at its end whether the hash was right.
	if _, err := io.ReadFull(r, p.probe[:]); err != io.EOF {
		if err == nil {
			err = invalidf("blob %.12s is longer than announced", hash)
		}
		return true, err
	}
	b.data = b.data[:start+int(size)]
	b.entries, b.ends = append(b.entries, i), append(b.ends, len(b.data))
	return true, nil
}

// hand gives the batch that is being filled to a worker.
func (p *Placer) hand() error {
	b := p.next
	if b == nil {
		return nil
	}
	p.next = nil
	select {
	case p.work <- b:
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
}

func (p *Placer) worker() {
	var d placeDir
	defer d.leave()
	var r bytes.Reader
	for b := range p.work {
		start := 0
		for k, entry := range b.entries {
			if p.ctx.Err() != nil {
				break
			}
			r.Reset(b.data[start:b.ends[k]])
			start = b.ends[k]
			if err := p.put(&d, entry, &r); err != nil {
				p.cancel(err)
			}
		}
		b.entries, b.ends, b.data = b.entries[:0], b.ends[:0], b.data[:0]
		p.free <- b
	}
}

// put writes a file under its own name, which nothing has.
func (p *Placer) put(d *placeDir, i int, r io.Reader) error {
	e := &p.a.m.Entries[i]
	if err := d.enter(p.a.root, parentOf(e.Path)); err != nil {
		return err
	}
	name := baseOf(e.Path)
	f, err := d.c.create(name, e.Mode)
	if errors.Is(err, fs.ErrExist) {
		// Someone else's, since the plan: Apply judges it, and asks again for the content.
		_, err := io.Copy(io.Discard, r)
		return err
	}
	if err != nil {
		return writeErr("write", d.c.full(e), err)
	}
	if err = p.copy(f, r, e); err == nil {
		err = f.finish(time.Unix(0, e.ModTime))
	} else {
		f.abort()
	}
	if err != nil {
		_ = d.c.root.Remove(name)
		var pe *PathError
		if errors.As(err, &pe) || errors.Is(err, ErrInvalid) || p.ctx.Err() != nil {
			return err
		}
		return writeErr("write", d.c.full(e), err)
	}
	p.need.settled[i] = true
	p.need.fresh.files.Add(1)
	p.need.fresh.bytes.Add(e.Size)
	p.a.t.Index.put(e.Path, e.Size, e.ModTime, e.Hash)
	return nil
}

// copy writes what its reader has checked.
func (p *Placer) copy(f *newFile, r io.Reader, e *Entry) error {
	if b, ok := r.(*bytes.Reader); ok {
		_, err := b.WriteTo(f)
		return err
	}
	return copyChecked(p.ctx, f, r, e, newHasher(), true)
}

func (d *placeDir) enter(root *os.Root, dir string) error {
	if d.c != nil && d.c.dir == dir {
		return nil
	}
	d.leave()
	c := &chunk{dir: dir, root: root}
	d.close = func() {}
	if dir != "" {
		sub, err := root.OpenRoot(dir)
		if err != nil {
			return writeErr("open", dir, err)
		}
		c.root = sub
		d.close = func() { sub.Close() }
	}
	d.c = c
	return nil
}

func (d *placeDir) leave() {
	if d.c == nil {
		return
	}
	if d.c.fd != nil {
		d.c.fd.Close()
	}
	d.close()
	d.c = nil
}

// Close waits for the blobs that were added. Its error is the first of theirs, or else err: why no more came. After one the
// index is saved, so that what is in place is known to the next plan without reading it.
func (p *Placer) Close(err error) error {
	if herr := p.hand(); err == nil {
		err = herr
	}
	close(p.work)
	p.wg.Wait()
	p.own.leave()
	if cause := context.Cause(p.ctx); cause != nil {
		err = cause
	}
	p.cancel(nil)
	if cerr := p.a.root.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = p.a.t.Index.save(true)
	}
	return err
}
