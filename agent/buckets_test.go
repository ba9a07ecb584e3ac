//go:build unix

package agent_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/internal/bucket"
	"github.com/skyloom/skyloom/internal/bucket/ckpt"
	"github.com/skyloom/skyloom/internal/filesync"
	"github.com/skyloom/skyloom/tests/objectstore"
)

// TestPutBlobs sends pictures to a real store and gets them back, as a save and a restore do.
func TestPutBlobs(t *testing.T) {
	store := objectstore.Start(t)
	store.Bucket("bkt")
	f, err := ckpt.Open(t.Context(), bucket.New(map[string]bucket.Settings{"s3": {Endpoint: store.URL, Region: objectstore.Region, Profile: "owner", CredentialsFile: store.Credentials}}), "s3://bkt", "inst", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.PartSize = bucket.MinPart
	n := cluster(t, 1, quick)[0]
	dir := filepath.Join(n.cfg.Home, "ckpt")
	big := bytes.Repeat([]byte("state"), (bucket.MinPart+1000)/5)
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("big", big)
	write("small", []byte("small"))
	write("empty", nil)
	j := n.submit(agentapi.JobSpec{Epoch: 1, Run: "sleep 1000"})
	var m *filesync.Manifest
	picture := func() string {
		t.Helper()
		var r agentapi.CheckpointReply
		n.eventually("a picture", func() bool {
			var err error
			r, err = n.api.Checkpoint(ctx(t), agentapi.CheckpointSpec{JobID: j.ID, Epoch: 1, Path: dir})
			return err == nil
		})
		var err error
		if m, err = filesync.Decode(bytes.NewReader(r.Manifest), filesync.Limits{}); err != nil {
			t.Fatal(err)
		}
		return r.ID
	}
	id := picture()
	send := func(before func()) error {
		return f.Send(t.Context(), m, m.Hashes(), func(ctx context.Context, puts []agentapi.BlobPut) error {
			if before != nil {
				before()
				before = nil
			}
			return n.api.PutBlobs(ctx, agentapi.BlobsPut{JobID: j.ID, Epoch: 1, Manifest: id, Puts: puts})
		})
	}
	if err := send(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Commit(t.Context(), ckpt.Saved{Job: 1, SavedAt: time.Now()}, []*filesync.Manifest{m}, ""); err != nil {
		t.Fatal(err)
	}
	refused := func(what, kind string, err error) {
		t.Helper()
		if !agentapi.IsKind(err, kind) || strings.Contains(fmt.Sprint(err), "Signature=") {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Back into another folder.
	to := agentapi.FileApply{Manifest: id, Dst: "~/back", Mirror: true}
	encoded, err := m.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	plan, err := n.api.PlanFiles(ctx(t), to, bytes.NewReader(encoded))
	if err != nil || len(plan.Missing) != 3 {
		t.Fatal(plan, err)
	}
	get := func(ctx context.Context, gets []agentapi.BlobGet) error {
		return n.api.GetBlobs(ctx, agentapi.BlobsGet{Gets: gets})
	}
	smallest := m.Entries[len(m.Entries)-1] // small
	object := filepath.Join(store.Dir, "data", "bkt", "inst", "job-1", "task-0", "blobs", smallest.Hash)
	if err := os.WriteFile(object, []byte("SMALL"), 0o644); err != nil {
		t.Fatal(err)
	}
	refused("a damaged object", agentapi.KindInvalid, f.Fetch(t.Context(), m.Hashes(), m.Sizes(), get))
	if err := os.WriteFile(object, []byte("small"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := f.Fetch(t.Context(), m.Hashes(), m.Sizes(), get); err != nil {
		t.Fatal(err)
	}
	if res, err := n.api.ApplyFiles(ctx(t), to); err != nil || res.Written != 3 {
		t.Errorf("%+v %v", res, err)
	}
	if b, err := os.ReadFile(filepath.Join(n.cfg.Home, "back", "big")); err != nil || !bytes.Equal(b, big) {
		t.Errorf("%d bytes came back, %v", len(b), err)
	}
	refused("an object that is not there", agentapi.KindNotFound, f.Fetch(t.Context(), []string{strings.Repeat("0", 64)}, map[string]int64{}, func(ctx context.Context, gets []agentapi.BlobGet) error {
		gets[0].Size = 5
		return get(ctx, gets)
	}))
	refused("a URL for something else", agentapi.KindBucket, f.Fetch(t.Context(), m.Hashes(), m.Sizes(), func(ctx context.Context, gets []agentapi.BlobGet) error {
		gets[0].URL = strings.Replace(gets[0].URL, "/blobs/", "/blobs/0", 1)
		return get(ctx, gets[:1])
	}))
	// A file that changes after the picture is not sent: neither whole nor in parts.
	for _, name := range []string{"small", "big"} {
		write(name, append([]byte("new "), m.Entries[0].Hash...))
		write("big", append([]byte(name+" new"), big...))
		id = picture()
		refused("a changed file", agentapi.KindConflict, send(func() { write(name, append([]byte(name+" old"), big...)) }))
	}
	refused("another picture", agentapi.KindNotFound, n.api.PutBlobs(ctx(t), agentapi.BlobsPut{JobID: j.ID, Epoch: 1, Manifest: strings.Repeat("0", 64)}))
	refused("no part of it", agentapi.KindInvalid, n.api.PutBlobs(ctx(t), agentapi.BlobsPut{JobID: j.ID, Epoch: 1, Manifest: id, Puts: []agentapi.BlobPut{{Hash: strings.Repeat("0", 64), Size: 1}}}))
	form(t, 2, n)
	refused("a stale epoch", agentapi.KindStaleEpoch, send(nil))
}
