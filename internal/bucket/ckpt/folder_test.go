//go:build unix

package ckpt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/objects"
	"github.com/skyloom/skyloom/internal/bucket"
	"github.com/skyloom/skyloom/internal/filesync"
	"github.com/skyloom/skyloom/tests/objectstore"
)

// program is a folder that is saved, and what a node does of it.
type program struct {
	t    *testing.T
	dir  string
	c    *objects.Client
	puts int // URLs that were used
}

func newProgram(t *testing.T) *program {
	return &program{t: t, dir: t.TempDir(), c: objects.New(4)}
}

func (p *program) write(name string, data []byte) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), data, 0o640); err != nil {
		p.t.Fatal(err)
	}
}

func (p *program) scan() *filesync.Tree {
	p.t.Helper()
	tree, err := filesync.Scan(p.t.Context(), p.dir, filesync.ScanOptions{NoIgnore: true})
	if err != nil {
		p.t.Fatal(err)
	}
	return tree
}

// sender sends as a node does, but for its checks.
func (p *program) sender(tree *filesync.Tree) func(context.Context, []agentapi.BlobPut) error {
	return func(ctx context.Context, puts []agentapi.BlobPut) error {
		for _, put := range puts {
			data, err := os.ReadFile(tree.PathOf(put.Hash))
			if err != nil {
				return err
			}
			data = data[put.Offset : put.Offset+put.Size]
			if err := p.c.Put(ctx, put.URL, put.Size, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }); err != nil {
				return &agentapi.Error{Kind: agentapi.KindBucket, Detail: err.Error()}
			}
			p.puts++
		}
		return nil
	}
}

// save saves the folder as it is, and gives the address.
func (p *program) save(f *Folder, attempt int) (string, *filesync.Manifest) {
	p.t.Helper()
	tree := p.scan()
	l, err := f.List(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	if err := f.Send(p.t.Context(), tree.Manifest, l.Missing(tree.Manifest), p.sender(tree)); err != nil {
		p.t.Fatal(err)
	}
	where, err := f.Commit(p.t.Context(), Saved{Job: 7, Attempt: attempt, SavedAt: time.Now(), Why: "demand", Path: "~/ckpt"}, []*filesync.Manifest{tree.Manifest}, "")
	if err != nil {
		p.t.Fatal(err)
	}
	return where, tree.Manifest
}

func folder(t *testing.T, s *objectstore.Store) (*bucket.Registry, *Folder) {
	t.Helper()
	s.Bucket("bkt")
	r := bucket.New(map[string]bucket.Settings{"s3": {Endpoint: s.URL, Region: objectstore.Region, Profile: "owner", CredentialsFile: s.Credentials}})
	f, err := Open(t.Context(), r, "s3://bkt/in/here", "inst", 7, 0)
	if err != nil {
		t.Fatal(err)
	}
	return r, f
}

func TestSaveAndRead(t *testing.T) {
	s := objectstore.Start(t)
	r, f := folder(t, s)
	f.PartSize, f.BatchURLs = bucket.MinPart, 2
	p := newProgram(t)
	big := bytes.Repeat([]byte("some state "), 2*bucket.MinPart/11+100) // in three parts
	p.write("big", big)
	p.write("state", []byte("one"))
	p.write("same", []byte("one"))
	p.write("empty", nil)
	p.write("caf\xe9", []byte("a name that is no text"))
	if err := os.Mkdir(filepath.Join(p.dir, "sub"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../state", filepath.Join(p.dir, "sub", "link")); err != nil {
		t.Fatal(err)
	}
	where, m := p.save(f, 1)
	if p.puts != 6 { // three parts, and one, the empty one and that of the odd name
		t.Errorf("%d objects were sent", p.puts)
	}
	g, key, err := OpenSaved(t.Context(), r, where)
	if err != nil || g.Address() != f.Address() || f.Address() != "s3://bkt/in/here/inst/job-7/task-0" {
		t.Fatal(g, err)
	}
	saved, err := g.Read(t.Context(), key)
	if err != nil || saved.Job != 7 || saved.Attempt != 1 || saved.Path != "~/ckpt" || len(saved.Nodes) != 1 {
		t.Fatalf("%+v %v", saved, err)
	}
	back, err := saved.Nodes[0].Tree()
	if err != nil || back.ID() != m.ID() {
		t.Fatal(err)
	}
	got := map[string]string{}
	err = g.Fetch(t.Context(), back.Hashes(), back.Sizes(), func(ctx context.Context, gets []agentapi.BlobGet) error {
		for _, b := range gets {
			if err := p.c.Get(ctx, b.URL, b.Size, func(r io.Reader) error {
				data, err := io.ReadAll(r)
				got[b.Hash] = string(data)
				return err
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || len(got) != 4 {
		t.Fatal(len(got), err)
	}
	for _, e := range back.Entries {
		if e.Path == "big" && got[e.Hash] != string(big) || e.Path == "state" && got[e.Hash] != "one" {
			t.Errorf("%s came back as %.20q", e.Path, got[e.Hash])
		}
	}
	// Whoever has damaged it is found out.
	saved.Nodes[0].Entries[0].Mode = "0777"
	if _, err := saved.Nodes[0].Tree(); !errors.Is(err, filesync.ErrInvalid) {
		t.Errorf("damaged: %v", err)
	}
	// What did not change is not sent again.
	p.write("state", []byte("two"))
	before := p.puts
	if p.save(f, 1); p.puts != before+1 {
		t.Errorf("%d objects were sent of one change", p.puts-before)
	}
}

// TestHalf leaves saves half done: what is not whole gets no JSON, and is no obstacle.
func TestHalf(t *testing.T) {
	s := objectstore.Start(t)
	_, f := folder(t, s)
	f.PartSize = bucket.MinPart
	p := newProgram(t)
	p.write("state", []byte("one"))
	p.write("big", bytes.Repeat([]byte("x"), bucket.MinPart+10))
	tree := p.scan()
	l, _ := f.List(t.Context())
	broken := errors.New("the node is gone")
	send := p.sender(tree)
	err := f.Send(t.Context(), tree.Manifest, l.Missing(tree.Manifest), func(ctx context.Context, puts []agentapi.BlobPut) error {
		if err := send(ctx, puts[:1]); err != nil {
			return err
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Error(err)
	}
	ms := []*filesync.Manifest{tree.Manifest}
	if where, err := f.Commit(t.Context(), Saved{Job: 7, Attempt: 1, SavedAt: time.Now()}, ms, ""); err == nil {
		t.Errorf("half a checkpoint is at %s", where)
	}
	for key := range s.Objects("bkt") {
		if strings.Contains(key, "/checkpoints/") {
			t.Errorf("there is %s", key)
		}
	}
	first, _ := p.save(f, 1)
	// URLs that have expired are handed out anew.
	p.write("state", []byte("two"))
	tree = p.scan()
	f.Lasts = 5 * time.Second
	calls := 0
	send = p.sender(tree)
	l, _ = f.List(t.Context())
	err = f.Send(t.Context(), tree.Manifest, l.Missing(tree.Manifest), func(ctx context.Context, puts []agentapi.BlobPut) error {
		if calls++; calls == 1 {
			time.Sleep(f.Lasts + time.Second)
		}
		return send(ctx, puts)
	})
	if err != nil || calls < 2 {
		t.Errorf("%d calls: %v", calls, err)
	}
	// A checkpoint that did not become known goes.
	where, err := f.Commit(t.Context(), Saved{Job: 7, Attempt: 2, SavedAt: time.Now()}, []*filesync.Manifest{tree.Manifest}, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Forget(t.Context(), where); err != nil {
		t.Error(err)
	}
	l, _ = f.List(t.Context())
	if l.Has(f, where) || !l.Has(f, first) {
		t.Errorf("%v", l.saved)
	}
}

func TestPrune(t *testing.T) {
	s := objectstore.Start(t)
	r, f := folder(t, s)
	p := newProgram(t)
	var wheres []string
	for i := range 4 {
		p.write("state", fmt.Appendf(nil, "number %d", i))
		p.write("always", []byte("the same"))
		where, _ := p.save(f, 1)
		wheres = append(wheres, where)
	}
	other, err := Open(t.Context(), r, "s3://bkt/in/here", "inst", 7, 1)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, _ := p.save(other, 1)
	if n, err := f.Prune(t.Context(), append(wheres[2:], elsewhere)); err != nil || n != 4 {
		t.Errorf("%d deleted, %v", n, err)
	}
	l, err := f.List(t.Context())
	if err != nil || len(l.saved) != 2 || len(l.blobs) != 3 || !l.Has(f, wheres[2]) || !l.Has(f, wheres[3]) {
		t.Errorf("%+v %v", l, err)
	}
	if l, err := other.List(t.Context()); err != nil || len(l.blobs) != 2 {
		t.Errorf("the other task's: %+v %v", l, err)
	}
	// One that can't be read may need anything.
	if n, err := f.Prune(t.Context(), []string{wheres[0], wheres[3]}); err == nil || n != 0 {
		t.Errorf("%d deleted, %v", n, err)
	}
}
