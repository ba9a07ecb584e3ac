package worker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/objects"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/bucket"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/tests/objectstore"
)

// put sends what it is told to, as an agent does.
func (n *fakeNode) put(w http.ResponseWriter, r *http.Request) {
	var in agentapi.BlobsPut
	_ = json.NewDecoder(r.Body).Decode(&in)
	n.mu.Lock()
	tree := n.tree
	cut := n.cut > 0
	n.cut--
	n.mu.Unlock()
	if cut {
		in.Puts = in.Puts[:len(in.Puts)/2]
	}
	c := objects.New(2)
	defer c.Close()
	for _, p := range in.Puts {
		if err := c.Put(r.Context(), p.URL, p.Size, func() (io.ReadCloser, error) { f, _, err := tree.Open(p.Hash); return f, err }); err != nil {
			w.WriteHeader(http.StatusBadGateway)
			_ = json.NewEncoder(w).Encode(&agentapi.Error{Kind: agentapi.KindBucket, Detail: err.Error()})
			return
		}
	}
	if cut {
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write([]byte("{}"))
}

// bucketSaves is saves of one node into a bucket.
func bucketSaves(t *testing.T) (*objectstore.Store, *saver, activities.WatchRow, *fakeNode) {
	t.Helper()
	in := objectstore.Start(t)
	in.Bucket("bkt")
	n := newFakeNode(t)
	s, row := saves(t, false, n)
	s.buckets = bucket.New(map[string]bucket.Settings{"s3": {Endpoint: in.URL, Region: objectstore.Region, Profile: "owner", CredentialsFile: in.Credentials}})
	row.Checkpoint.To = "s3://bkt/x"
	return in, s, row, n
}

// whole checks that the bucket holds the checkpoints that are known, and nothing else, and gives their numbers.
func whole(t *testing.T, in *objectstore.Store, s *saver, blobs int) (ns []int) {
	t.Helper()
	list, err := s.store.Checkpoints(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	objects := in.Objects("bkt")
	for _, c := range list {
		ns = append(ns, c.N)
		if _, ok := objects[strings.TrimPrefix(c.Where, "s3://bkt/")]; !ok {
			t.Errorf("checkpoint %d is not at %s", c.N, c.Where)
		}
	}
	if len(objects) != len(list)+blobs {
		t.Errorf("%d objects, not %d and %d blobs: %v", len(objects), len(list), blobs, objects)
	}
	return ns
}

func TestHalfACheckpointInABucketIsNone(t *testing.T) {
	objs, s, row, n := bucketSaves(t)
	if _, _, err := s.save(t.Context(), row, whyInterval, 0); !errors.Is(err, errNothingYet) {
		t.Errorf("an empty folder: %v", err)
	}
	n.write("state", "one")
	n.write("more", "two")
	n.cut = saveTries
	if _, _, err := s.save(t.Context(), row, whyInterval, 0); err == nil {
		t.Error("a save that was cut every time")
	}
	if list, err := s.store.Checkpoints(t.Context(), 1); err != nil || len(list) > 0 {
		t.Errorf("%+v %v", list, err)
	}
	c, fresh, err := s.save(t.Context(), row, whyInterval, 0)
	if err != nil || !fresh || c.N != 1 || c.Files != 2 {
		t.Errorf("%+v %v %v", c, fresh, err)
	}
	if again, fresh, err := s.save(t.Context(), row, whyDemand, 0); err != nil || fresh || again.N != 1 || again.Where != c.Where {
		t.Errorf("nothing has changed: %+v %v %v", again, fresh, err)
	}
	whole(t, objs, s, 2)
	// What somebody deletes is there again with the next save, though nothing has changed.
	if err := os.RemoveAll(filepath.Join(objs.Dir, "data", "bkt", "x")); err != nil {
		t.Fatal(err)
	}
	if again, fresh, err := s.save(t.Context(), row, whyDemand, 0); err != nil || fresh || again.Where != c.Where {
		t.Errorf("deleted by hand: %+v %v %v", again, fresh, err)
	}
	whole(t, objs, s, 2)
	for i := range 3 {
		n.write("state", string(rune('a'+i)))
		if _, _, err := s.save(t.Context(), row, whyInterval, 0); err != nil {
			t.Error(err)
		}
	}
	if got := whole(t, objs, s, 3); !slices.Equal(got, []int{4, 3}) { // more, and the two newest of state
		t.Errorf("kept are %v", got)
	}
	// Once another attempt has begun, this one saves no more: no object tells of what it tried.
	attempt(t, s, 2, 2)
	n.write("state", "late")
	if _, _, err := s.save(t.Context(), row, whyInterval, 0); !errors.Is(err, errAttemptOver) {
		t.Errorf("a stale attempt: %v", err)
	}
	if got := whole(t, objs, s, 4); !slices.Equal(got, []int{4, 3}) {
		t.Errorf("kept are %v", got)
	}
	// The next attempt's save clears up after it.
	row.Checkpoint.Attempt = 2
	n.write("state", "of the next attempt")
	if _, _, err := s.save(t.Context(), row, whyInterval, 0); err != nil {
		t.Error(err)
	}
	if got := whole(t, objs, s, 3); !slices.Equal(got, []int{5, 4}) {
		t.Errorf("kept are %v", got)
	}
}

// TestBucketTroubleIsTold tells what is wrong with a store in an event, once, and on demand.
func TestBucketTroubleIsTold(t *testing.T) {
	objs, s, row, n := bucketSaves(t)
	n.write("state", "one")
	objs.Stop()
	_, _, err := s.save(t.Context(), row, whyInterval, 0)
	if !ofBucket(err) {
		t.Fatal(err)
	}
	last := ""
	for range 3 {
		last = s.tell(t.Context(), row, whyInterval, api.Checkpoint{}, false, err, last)
	}
	evs, err2 := s.store.Events(t.Context(), store.EventFilter{Hash: row.Ref.Hash})
	if err2 != nil || len(evs) != 1 || !strings.Contains(evs[0].Message, "not saved: s3://bkt: the server can't reach the store") || !strings.Contains(evs[0].Message, "check buckets.s3.endpoint") {
		t.Errorf("%+v %v", evs, err2)
	}
	var e *api.Error
	if errors.As(demandError(1, err), &e); e == nil || !strings.Contains(e.Hint, "buckets.s3.endpoint") {
		t.Errorf("%+v", e)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := s.save(ctx, row, whyInterval, 0); err == nil {
		t.Error("saved though nobody waits")
	}
}
