package agent_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/internal/filesync"
	"github.com/skyloom/skyloom/internal/filesync/fanout"
)

// spread is one tree on its way to all nodes of a cluster, as a server sends it.
type spread struct {
	t       *testing.T
	nodes   []*testNode
	tree    *filesync.Tree
	to      agentapi.FileApply
	sent    atomic.Int64 // bytes from the source
	passed  atomic.Int64 // blobs from peers
	trouble atomic.Int64 // fetches that a peer broke off
}

// randomTree is a folder whose content does not repeat.
func randomTree(t *testing.T, files, size int) *filesync.Tree {
	t.Helper()
	dir := t.TempDir()
	buf := make([]byte, size)
	rnd := rand.New(rand.NewSource(7))
	for i := range files {
		rnd.Read(buf)
		name := filepath.Join(dir, fmt.Sprintf("d%d/f%03d", i%3, i))
		os.MkdirAll(filepath.Dir(name), 0o755)
		if err := os.WriteFile(name, buf, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := filesync.Scan(t.Context(), dir, filesync.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tree.Manifest.ID()
	return tree
}

func (s *spread) round(ctx context.Context) error {
	m, err := s.tree.Manifest.Bytes()
	if err != nil {
		return err
	}
	s.to.Manifest = s.tree.Manifest.ID()
	missing := make([][]string, len(s.nodes))
	for i, n := range s.nodes {
		plan, err := n.api.PlanFiles(ctx, s.to, bytes.NewReader(m))
		if err != nil {
			return err
		}
		missing[i] = s.tree.Manifest.InOrder(plan.Missing)
	}
	tr := &fanout.Transfer{
		Missing: missing, Sizes: s.tree.Manifest.Sizes(), Peers: true,
		Send: func(ctx context.Context, i int, hashes []string, progress func(int, int64)) error {
			o := filesync.PackOptions{Raw: true, Progress: func(b int, n int64) { progress(b, n) }}
			if err := s.nodes[i].api.SendBlobs(ctx, filesync.NewPackBody(ctx, s.tree, hashes, o)); err != nil {
				return err
			}
			for _, h := range hashes {
				s.sent.Add(s.tree.Manifest.Sizes()[h])
			}
			return nil
		},
		Fetch: func(ctx context.Context, i, from int, hashes []string) ([]string, error) {
			got, err := s.nodes[i].api.FetchBlobs(ctx, agentapi.FileFetch{NodeID: s.nodes[from].cfg.NodeID, Hashes: hashes})
			s.passed.Add(int64(len(hashes) - len(got.Missing)))
			if got.Trouble != "" {
				s.trouble.Add(1)
			}
			return got.Missing, err
		},
		Done: func(ctx context.Context, i int) error {
			_, err := s.nodes[i].api.ApplyFiles(ctx, s.to)
			return err
		},
	}
	return tr.Run(ctx)
}

// arrived checks every file of every node.
func (s *spread) arrived() {
	s.t.Helper()
	for i, n := range s.nodes {
		for _, e := range s.tree.Manifest.Entries {
			want, _ := os.ReadFile(filepath.Join(s.tree.Root, e.Path))
			got, err := os.ReadFile(filepath.Join(n.cfg.Home, "data", e.Path))
			if e.Kind == filesync.KindFile && (err != nil || !bytes.Equal(got, want)) {
				s.t.Errorf("node %d: %s: %d of %d bytes, %v", i, e.Path, len(got), len(want), err)
			}
		}
	}
}

// TestPeersPassOn: what one node was sent, the others have from it.
func TestPeersPassOn(t *testing.T) {
	s := &spread{t: t, nodes: cluster(t, fanout.PeerNodes, quick), tree: randomTree(t, 24, 1<<20), to: agentapi.FileApply{Dst: "~/data"}}
	if err := s.round(ctx(t)); err != nil {
		t.Fatal(err)
	}
	s.arrived()
	if s.sent.Load() != 24<<20 || s.passed.Load() != 3*24 || s.trouble.Load() != 0 {
		t.Errorf("the source sent %d MB, peers %d files, with %d troubles; each file should have been sent once, and passed on three times", s.sent.Load()>>20, s.passed.Load(), s.trouble.Load())
	}
	for _, n := range s.nodes {
		if left, _ := filepath.Glob(filepath.Join(n.cfg.Dir, "spool", "*", "*")); len(left) != 0 {
			t.Errorf("left in the spool: %v", left)
		}
	}
}

// TestPeerDies: nodes die while they pass files on, each once. They go on when they are back.
func TestPeerDies(t *testing.T) {
	nodes := cluster(t, fanout.PeerNodes, quick, fails("agent.files-passing-on=kill"))
	s := &spread{t: t, nodes: nodes, tree: randomTree(t, 24, 1<<20), to: agentapi.FileApply{Dst: "~/data"}}
	// As a server does, begin anew from what is there when a node's connection broke.
	for try := 1; ; try++ {
		err := s.round(ctx(t))
		if err == nil {
			break
		}
		if try > 2*len(nodes) {
			t.Fatalf("round %d: %v", try, err)
		}
		for _, n := range nodes {
			n.ready()
		}
	}
	s.arrived()
	died := 0
	for _, n := range nodes {
		if _, err := os.Stat(filepath.Join(n.cfg.Dir, "failpoints", "agent.files-passing-on.killed")); err == nil {
			died++
		}
	}
	if died == 0 {
		t.Error("no peer died")
	}
}

// TestPlacingCut: an agent that is killed while files come into an empty folder leaves nothing that the repetition does not
// put right.
func TestPlacingCut(t *testing.T) {
	n := cluster(t, 1, quick)[0]
	tree := randomTree(t, 60, 100<<10)
	os.Chmod(filepath.Join(tree.Root, "d1"), 0o550)
	os.Symlink("../d0/f000", filepath.Join(tree.Root, "d2/link"))
	tree, err := filesync.Scan(t.Context(), tree.Root, filesync.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m, _ := tree.Manifest.Bytes()
	to := agentapi.FileApply{Dst: "~/data", Manifest: tree.Manifest.ID(), Now: true, Place: true}
	plan, err := n.api.PlanFiles(ctx(t), to, bytes.NewReader(m))
	if err != nil {
		t.Fatal(err)
	}
	body := &halfBody{t: t, done: make(chan struct{})}
	var pack bytes.Buffer
	if err := filesync.WritePack(t.Context(), &pack, tree, tree.Manifest.InOrder(plan.Missing), filesync.PackOptions{Raw: true}); err != nil {
		t.Fatal(err)
	}
	body.Reader = bytes.NewReader(pack.Bytes()[:pack.Len()/2])
	failed := make(chan error, 1)
	go func() { failed <- n.api.PlaceBlobs(context.Background(), to, body) }()
	n.eventually("files are placed before all of them came", func() bool {
		list, _ := filepath.Glob(filepath.Join(n.cfg.Home, "data/d*/f*"))
		return len(list) >= 25
	})
	n.kill9()
	close(body.done)
	if err := <-failed; err == nil {
		t.Error("sending to a dead agent succeeded")
	}
	plan, err = n.api.PlanFiles(ctx(t), to, bytes.NewReader(m))
	if err != nil || len(plan.Missing) > 36 || len(plan.Missing) < 25 {
		t.Fatalf("%d missing, %v", len(plan.Missing), err)
	}
	pack.Reset()
	if err := filesync.WritePack(t.Context(), &pack, tree, plan.Missing, filesync.PackOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := n.api.PlaceBlobs(ctx(t), to, &pack); err != nil {
		t.Fatal(err)
	}
	if _, err := n.api.ApplyFiles(ctx(t), to); err != nil {
		t.Fatal(err)
	}
	s := &spread{t: t, nodes: []*testNode{n}, tree: tree}
	s.arrived()
	for _, e := range tree.Manifest.Entries {
		fi, err := os.Lstat(filepath.Join(n.cfg.Home, "data", e.Path))
		if err != nil {
			t.Error(err)
		} else if e.Kind == filesync.KindLink {
			if to, _ := os.Readlink(filepath.Join(n.cfg.Home, "data", e.Path)); to != e.Link {
				t.Errorf("%s leads to %s", e.Path, to)
			}
		} else if uint32(fi.Mode().Perm()) != e.Mode || e.Kind == filesync.KindFile && fi.ModTime().UnixNano() != e.ModTime {
			t.Errorf("%s: %v %v", e.Path, fi.Mode(), fi.ModTime())
		}
	}
	if plan, err = n.api.PlanFiles(ctx(t), to, bytes.NewReader(m)); err != nil || plan.Applied == nil || plan.Applied.Written != 0 {
		t.Errorf("once more: %+v, %v", plan, err)
	}
}

// halfBody is a stream that stalls after its first half.
type halfBody struct {
	*bytes.Reader
	t    *testing.T
	done chan struct{}
}

func (b *halfBody) Read(p []byte) (int, error) {
	if n, err := b.Reader.Read(p); err == nil {
		return n, nil
	}
	select {
	case <-b.done:
	case <-time.After(time.Minute):
		b.t.Error("the agent was not killed")
	}
	return 0, syscall.ECONNRESET
}
