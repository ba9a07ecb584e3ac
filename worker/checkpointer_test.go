package worker

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/artifact"
	"github.com/skyloom/skyloom/internal/filesync"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
)

// fakeNode is a node's agent as far as checkpoints go.
type fakeNode struct {
	t   *testing.T
	dir string
	url string

	mu    sync.Mutex
	tree  *filesync.Tree
	asked []agentapi.CheckpointSpec
	// refuse is answered in place of a picture; cut ends that many transfers half way; hang holds pictures up that run no command.
	refuse *agentapi.Error
	cut    int
	hang   bool
}

func newFakeNode(t *testing.T) *fakeNode {
	n := &fakeNode{t: t, dir: t.TempDir()}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/checkpoint", n.picture)
	mux.HandleFunc("POST /v1/files/read", n.blobs)
	mux.HandleFunc("POST /v1/checkpoint/put", n.put)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	n.url = s.Listener.Addr().String()
	return n
}

func (n *fakeNode) write(name, text string) {
	if err := os.WriteFile(filepath.Join(n.dir, name), []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func (n *fakeNode) picture(w http.ResponseWriter, r *http.Request) {
	var spec agentapi.CheckpointSpec
	_ = json.NewDecoder(r.Body).Decode(&spec)
	n.mu.Lock()
	n.asked = append(n.asked, spec)
	refuse, hang := n.refuse, n.hang && spec.Command == ""
	n.mu.Unlock()
	if hang {
		<-r.Context().Done()
		return
	}
	if refuse != nil {
		w.WriteHeader(http.StatusConflict)
		_ = json.NewEncoder(w).Encode(refuse)
		return
	}
	tree, err := filesync.Scan(r.Context(), n.dir, filesync.ScanOptions{NoIgnore: true})
	if r.Context().Err() != nil {
		return // whoever asked has given up
	}
	if err != nil {
		n.t.Error(err)
		return
	}
	n.mu.Lock()
	n.tree = tree
	n.mu.Unlock()
	b, _ := tree.Manifest.Bytes()
	files, size := tree.Manifest.Totals()
	_ = json.NewEncoder(w).Encode(agentapi.CheckpointReply{ID: tree.Manifest.ID(), Manifest: b, Files: files, Bytes: size})
}

func (n *fakeNode) blobs(w http.ResponseWriter, r *http.Request) {
	var in agentapi.BlobsRead
	_ = json.NewDecoder(r.Body).Decode(&in)
	n.mu.Lock()
	tree := n.tree
	cut := n.cut > 0
	n.cut--
	n.mu.Unlock()
	if cut {
		in.Hashes = in.Hashes[:len(in.Hashes)/2]
		_, _ = w.Write([]byte("skypk1r"))
		panic(http.ErrAbortHandler)
	}
	if err := filesync.WritePack(r.Context(), w, tree, in.Hashes, filesync.PackOptions{}); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// saves is a saver with nodes, and the row of a job on them.
func saves(t *testing.T, all bool, nodes ...*fakeNode) (*saver, activities.WatchRow) {
	t.Helper()
	dir := t.TempDir()
	st, err := store.Open(t.Context(), filepath.Join(dir, "sky.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	files, err := artifact.Open(filepath.Join(dir, "artifacts"), artifact.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { files.Close() })
	s := newSaver(st, files, nil, nil, slog.New(slog.DiscardHandler))
	s.dial = func(_ context.Context, _ string, n providers.Node) (*agentapi.Client, error) {
		return agentapi.New(func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", nodes[n.Rank].url)
		}), nil
	}
	row := activities.WatchRow{Name: "c", Ref: providers.ClusterRef{Hash: "h"}, Checkpoint: &activities.WatchedCheckpoint{Job: 1, Attempt: 1, ClusterJob: 1, Epoch: 1,
		CheckpointRule: activities.CheckpointRule{Path: "~/ckpt", OnPreempt: "./save.sh", Keep: 2, All: all}}}
	for i := range nodes {
		row.Nodes = append([]providers.Node{{Rank: i}}, row.Nodes...)
	}
	attempt(t, s, 1, 1)
	return s, row
}

func attempt(t *testing.T, s *saver, attempt int, seq int64) {
	t.Helper()
	if err := s.store.PutManagedJobs(t.Context(), api.ManagedJob{ID: 1, Status: api.ManagedRunning, Attempt: attempt, Seq: seq}); err != nil {
		t.Fatal(err)
	}
}

func known(t *testing.T, s *saver) (ns []int) {
	t.Helper()
	list, err := s.store.Checkpoints(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		ns = append(ns, c.N)
		for _, id := range c.Manifests { // whatever is known is whole
			m, err := s.artifacts.Manifest(id)
			if err != nil {
				t.Fatal(err)
			}
			if missing, err := s.artifacts.Missing(t.Context(), m); err != nil || len(missing) > 0 {
				t.Errorf("checkpoint %d lacks %v %v", c.N, missing, err)
			}
		}
	}
	return ns
}

func TestHalfACheckpointIsNone(t *testing.T) {
	n := newFakeNode(t)
	s, row := saves(t, false, n)
	if _, _, err := s.save(t.Context(), row, whyInterval, 0); !errors.Is(err, errNothingYet) {
		t.Errorf("an empty folder: %v", err)
	}
	n.write("state", "one")
	n.cut = saveTries
	if _, _, err := s.save(t.Context(), row, whyInterval, 0); err == nil || len(known(t, s)) > 0 {
		t.Errorf("a save that was cut every time: %v %v", err, known(t, s))
	}
	n.cut = saveTries - 1
	if c, fresh, err := s.save(t.Context(), row, whyInterval, 0); err != nil || !fresh || c.N != 1 || c.Files != 1 {
		t.Errorf("%+v %v %v", c, fresh, err)
	}
	if c, fresh, err := s.save(t.Context(), row, whyDemand, 0); err != nil || fresh || c.N != 1 {
		t.Errorf("nothing has changed: %+v %v %v", c, fresh, err)
	}
	for i := range 3 {
		n.write("state", string(rune('a'+i)))
		if _, _, err := s.save(t.Context(), row, whyInterval, 0); err != nil {
			t.Error(err)
		}
	}
	if got := known(t, s); !slices.Equal(got, []int{4, 3}) {
		t.Errorf("kept are %v", got)
	}
	// A save that meets the job's end is no failure that anybody is told of.
	n.refuse = &agentapi.Error{Kind: agentapi.KindEnded, Detail: "job 1 has ended on head"}
	_, _, err := s.save(t.Context(), row, whyInterval, 0)
	if said := s.tell(t.Context(), row, whyInterval, api.Checkpoint{}, false, err, ""); !errors.Is(err, errAttemptOver) || said != "" {
		t.Errorf("the end of the job: %v, told as %q", err, said)
	}
	n.refuse = nil
	// Once another attempt has begun, this one saves no more.
	attempt(t, s, 2, 2)
	n.write("state", "late")
	if _, _, err := s.save(t.Context(), row, whyInterval, 0); !errors.Is(err, errAttemptOver) {
		t.Errorf("a stale attempt: %v", err)
	}
	if got := known(t, s); !slices.Equal(got, []int{4, 3}) {
		t.Errorf("kept are %v", got)
	}
}

func TestAllRanksOrNone(t *testing.T) {
	head, other := newFakeNode(t), newFakeNode(t)
	s, row := saves(t, true, head, other)
	head.write("state", "of the head")
	other.write("state", "of the other")
	other.refuse = &agentapi.Error{Kind: agentapi.KindConflict, Detail: "the folder kept changing"}
	if _, _, err := s.save(t.Context(), row, whyInterval, 0); err == nil || len(known(t, s)) > 0 {
		t.Errorf("one rank only: %v %v", err, known(t, s))
	}
	other.refuse = nil
	c, _, err := s.save(t.Context(), row, whyInterval, 0)
	if err != nil || c.Ranks != 2 || c.Files != 2 || c.Manifests[0] != head.tree.Manifest.ID() || c.Manifests[1] != other.tree.Manifest.ID() {
		t.Errorf("%+v %v", c, err)
	}
	row.Checkpoint.All = false
	if c, _, err = s.save(t.Context(), row, whyInterval, 0); err != nil || c.Ranks != 1 {
		t.Errorf("the head alone: %+v %v", c, err)
	}
}

func TestNoticeBreaksIn(t *testing.T) {
	n := newFakeNode(t)
	s, row := saves(t, false, n)
	row.Checkpoint.Every = time.Millisecond
	n.write("state", "one")
	n.hang = true
	ctx, cancel := context.WithCancel(t.Context())
	notices, ended := make(chan time.Time, 1), make(chan struct{})
	go func() { defer close(ended); s.loop(ctx, row, notices) }()
	wait := func(what string, f func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("waited in vain: %s", what)
			}
		}
	}
	wait("a save at the interval", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return len(n.asked) > 0 })
	notices <- time.Now().Add(time.Minute)
	wait("the save of the notice", func() bool { return len(known(t, s)) == 1 })
	cancel()
	<-ended
	c, err := s.store.NewestCheckpoint(t.Context(), 1, 0)
	if err != nil || c.Why != whyNotice {
		t.Errorf("%+v %v", c, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.asked[0].Command != "" || n.asked[1].Command != "./save.sh" || n.asked[1].Seconds < 30 {
		t.Errorf("%+v", n.asked)
	}
}

// TestOneSaveAtATime holds the turn of a cluster over the end of a loop: a lease may change hands while someone saves on demand.
func TestOneSaveAtATime(t *testing.T) {
	s, row := saves(t, false, newFakeNode(t))
	unlock, err := s.lock(t.Context(), row.Ref.Hash)
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() { defer close(over); s.loop(ctx, row, make(chan time.Time)) }()
	end()
	<-over
	ctx, end = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer end()
	if _, err := s.lock(ctx, row.Ref.Hash); err == nil {
		t.Error("two save the same cluster")
	}
	unlock()
	if unlock, err = s.lock(t.Context(), row.Ref.Hash); err != nil {
		t.Fatal(err)
	}
	unlock()
	if len(s.busy) != 0 {
		t.Errorf("%d turns are left over", len(s.busy))
	}
}
