package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"sync"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/objects"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/filesync"
)

// objectsAtOnce is how many objects are on their way to or from a store.
const objectsAtOnce = 8

func (a *Agent) bucketRoutes(m *http.ServeMux) {
	handle(m, "POST /v1/checkpoint/put", with(func(p agentapi.BlobsPut, r *http.Request) (any, error) {
		return nil, a.PutBlobs(r.Context(), p)
	}))
	handle(m, "POST /v1/files/get", with(func(g agentapi.BlobsGet, r *http.Request) (any, error) {
		return nil, a.GetBlobs(r.Context(), g)
	}))
}

// PutBlobs sends content of the picture last taken to an object store.
func (a *Agent) PutBlobs(ctx context.Context, in agentapi.BlobsPut) error {
	if _, err := a.checkpointed(agentapi.CheckpointSpec{JobID: in.JobID, Epoch: in.Epoch, Ended: in.Ended}); err != nil {
		return err
	}
	a.pictures.mu.Lock()
	tree, id := a.pictures.last, a.pictures.id
	a.pictures.mu.Unlock()
	if tree == nil || id != in.Manifest {
		return notFound("manifest %.12s is not the one that was saved last: save again", in.Manifest)
	}
	sizes := tree.Manifest.Sizes()
	for _, p := range in.Puts {
		whole, ok := sizes[p.Hash]
		if !ok || p.Offset < 0 || p.Size < 0 || p.Size > whole-p.Offset || !p.Part && (p.Offset != 0 || p.Size != whole) {
			return invalid("blob %.12s is no part of manifest %.12s, or not as large", p.Hash, in.Manifest)
		}
	}
	return a.moveObjects(ctx, len(in.Puts), func(ctx context.Context, c *objects.Client, i int) error {
		p := in.Puts[i]
		return c.Put(ctx, p.URL, p.Size, func() (io.ReadCloser, error) { return openPart(tree, p) })
	})
}

// GetBlobs gets blobs from an object store into the spool, which checks them.
func (a *Agent) GetBlobs(ctx context.Context, in agentapi.BlobsGet) error {
	spool, err := a.blobs()
	if err != nil {
		return err
	}
	for _, b := range in.Gets {
		if !filesync.IsHash(b.Hash) || b.Size < 0 {
			return invalid("%.80q is not the hash of a blob", b.Hash)
		}
	}
	return a.moveObjects(ctx, len(in.Gets), func(ctx context.Context, c *objects.Client, i int) error {
		b := in.Gets[i]
		return c.Get(ctx, b.URL, b.Size, func(r io.Reader) error {
			_, err := spool.Put(b.Hash, r)
			return err
		})
	})
}

// moveObjects moves n objects, some at a time; the first error ends it.
func (a *Agent) moveObjects(ctx context.Context, n int, move func(ctx context.Context, c *objects.Client, i int) error) error {
	c := objects.New(objectsAtOnce)
	defer c.Close()
	each, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	todo := make(chan int)
	for range min(n, objectsAtOnce) {
		wg.Go(func() {
			for i := range todo {
				if err := move(each, c, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := 0; i < n && each.Err() == nil; i++ {
		select {
		case todo <- i:
		case <-each.Done():
		}
	}
	close(todo)
	wg.Wait()
	if each.Err() == nil {
		return nil
	}
	return a.objectError(ctx, context.Cause(each))
}

// objectError tells trouble with a store from trouble with files.
func (a *Agent) objectError(ctx context.Context, err error) error {
	var e *objects.Error
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &e) && e.Status == http.StatusNotFound && e.Code != "NoSuchBucket":
		return notFound("%v", e)
	case errors.As(err, &e):
		return &agentapi.Error{Kind: agentapi.KindBucket, Detail: fmt.Sprintf("from %s: %v", api.NodeName(a.cfg.Rank), e)}
	}
	return fileError(err)
}

// openPart reads what is to be sent of a file. Its last bytes are given out only if the file is still the one of the picture: of a
// whole file its hash tells, of a part that the file was not written to since.
func openPart(tree *filesync.Tree, p agentapi.BlobPut) (io.ReadCloser, error) {
	f, _, err := tree.Open(p.Hash)
	if err != nil {
		return nil, err
	}
	if !p.Part {
		return &wholeFile{ReadCloser: f, left: p.Size, h: sha256.New(), hash: p.Hash, path: tree.PathOf(p.Hash)}, nil
	}
	file, ok := f.(*os.File)
	if !ok {
		f.Close()
		return nil, changed(tree.PathOf(p.Hash))
	}
	part := &filePart{f: file, r: io.NewSectionReader(file, p.Offset, p.Size), left: p.Size, entry: tree.EntryOf(p.Hash), path: tree.PathOf(p.Hash)}
	if err := part.same(); err != nil {
		f.Close()
		return nil, err
	}
	return part, nil
}

func changed(path string) error {
	return &filesync.PathError{Op: "save", Path: path, Err: filesync.ErrChanged, Hint: "have the program write beside it and rename when done"}
}

// wholeFile reads a file and checks its hash before its end.
type wholeFile struct {
	io.ReadCloser
	left       int64
	h          hash.Hash
	hash, path string
}

func (w *wholeFile) Read(p []byte) (int, error) {
	if w.left == 0 {
		return 0, io.EOF
	}
	n, err := w.ReadCloser.Read(p[:min(int64(len(p)), w.left)])
	w.h.Write(p[:n])
	w.left -= int64(n)
	switch want, _ := hex.DecodeString(w.hash); {
	case w.left == 0 && !bytes.Equal(w.h.Sum(nil), want), w.left > 0 && err == io.EOF:
		return 0, changed(w.path)
	case err == io.EOF:
		err = nil
	}
	return n, err
}

// filePart reads a part of a file and looks at the file's size and time before its end.
type filePart struct {
	f     *os.File
	r     io.Reader
	left  int64
	entry *filesync.Entry
	path  string
}

func (f *filePart) Read(p []byte) (int, error) {
	if f.left == 0 {
		return 0, io.EOF
	}
	n, err := f.r.Read(p[:min(int64(len(p)), f.left)])
	f.left -= int64(n)
	if f.left == 0 || err != nil {
		if serr := f.same(); serr != nil {
			return 0, serr
		}
	}
	if err == io.EOF {
		if err = nil; f.left > 0 {
			return 0, changed(f.path)
		}
	}
	return n, err
}

func (f *filePart) same() error {
	fi, err := f.f.Stat()
	if err != nil || fi.Size() != f.entry.Size || fi.ModTime().UnixNano() != f.entry.ModTime {
		return changed(f.path)
	}
	return nil
}

func (f *filePart) Close() error { return f.f.Close() }
