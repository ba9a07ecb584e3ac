package agent_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/internal/filesync"
)

// push syncs a tree to a node as a server would, and tells how many blobs went over.
func (n *testNode) push(tree *filesync.Tree, to agentapi.FileApply) (agentapi.FileResult, int) {
	n.t.Helper()
	b, err := tree.Manifest.Bytes()
	if err != nil {
		n.t.Fatal(err)
	}
	to.Manifest = tree.Manifest.ID()
	plan, err := n.api.PlanFiles(ctx(n.t), to, bytes.NewReader(b))
	if err != nil {
		n.t.Fatal(err)
	}
	if len(plan.Missing) > 0 {
		var pack bytes.Buffer
		if err := filesync.WritePack(context.Background(), &pack, tree, plan.Missing, filesync.PackOptions{}); err != nil {
			n.t.Fatal(err)
		}
		half := pack.Bytes()[:pack.Len()/2]
		if err := n.api.PlaceBlobs(ctx(n.t), to, bytes.NewReader(half)); !agentapi.IsKind(err, agentapi.KindInvalid) {
			n.t.Errorf("half a pack: %v", err)
		}
		if _, err := n.api.ApplyFiles(ctx(n.t), to); !agentapi.IsKind(err, agentapi.KindNotFound) {
			n.t.Errorf("applied without its blobs: %v", err)
		}
		if err := n.api.PlaceBlobs(ctx(n.t), to, &pack); err != nil {
			n.t.Fatal(err)
		}
	}
	res, err := n.api.ApplyFiles(ctx(n.t), to)
	if err != nil {
		n.t.Fatal(err)
	}
	return res, len(plan.Missing)
}

func TestFiles(t *testing.T) {
	n := cluster(t, 1, quick)[0]
	src := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		os.MkdirAll(filepath.Dir(filepath.Join(src, name)), 0o755)
		if err := os.WriteFile(filepath.Join(src, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	scan := func() *filesync.Tree {
		t.Helper()
		tree, err := filesync.Scan(context.Background(), src, filesync.ScanOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return tree
	}
	write("run.sh", "echo from the workdir\n")
	write("sub/data", strings.Repeat("data", 10000))
	to := agentapi.FileApply{Dst: "~/sky_workdir"}
	if res, sent := n.push(scan(), to); sent != 2 || res.Written != 2 {
		t.Errorf("first: %+v, %d sent", res, sent)
	}
	j := n.submit(agentapi.JobSpec{Run: "./run.sh; touch made-by-job", Workdir: true})
	if got := n.log(j.ID); got != "from the workdir\n" {
		t.Errorf("the job printed %q", got)
	}
	if res, sent := n.push(scan(), to); sent != 0 || res.Written != 0 {
		t.Errorf("unchanged: %+v, %d sent", res, sent)
	}
	write("sub/data", "less")
	if res, sent := n.push(scan(), to); sent != 1 || res.Written != 1 || n.file("sky_workdir/sub/data") != "less" {
		t.Errorf("changed: %+v, %d sent", res, sent)
	}
	to.Mirror = true
	if res, _ := n.push(scan(), to); res.Removed != 1 {
		t.Errorf("mirrored: %+v", res)
	}
	one, err := filesync.ScanFile(context.Background(), filepath.Join(src, "run.sh"), filesync.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.push(one, agentapi.FileApply{Dst: "etc/start", File: true})
	if n.file("sky_workdir/etc/start") != "echo from the workdir\n" {
		t.Error("a single file did not arrive")
	}
	for _, d := range []string{"spool/pending", "spool/segments", "manifests"} {
		if left, _ := os.ReadDir(filepath.Join(n.cfg.Dir, d)); len(left) != 0 {
			t.Errorf("%d files are left in %s", len(left), d)
		}
	}
	if _, err := n.api.PlanFiles(ctx(t), to, strings.NewReader("no manifest")); !agentapi.IsKind(err, agentapi.KindInvalid) {
		t.Errorf("garbage: %v", err)
	}
	if _, err := n.api.ApplyFiles(ctx(t), agentapi.FileApply{Dst: "x", Manifest: strings.Repeat("0", 64)}); !agentapi.IsKind(err, agentapi.KindNotFound) {
		t.Errorf("unknown manifest: %v", err)
	}
}

// TestManifestsByDelta: a node that knows a manifest needs its id only, and of the next what changed, also after a restart.
func TestManifestsByDelta(t *testing.T) {
	n := cluster(t, 1, quick)[0]
	tree := randomTree(t, 30, 100)
	to := agentapi.FileApply{Dst: "~/data", Manifest: tree.Manifest.ID(), Now: true}
	plan := func(known bool, base string, body []byte) agentapi.FilePlan {
		t.Helper()
		to.Known, to.Base = known, base
		p, err := n.api.PlanFiles(ctx(t), to, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	if p := plan(true, "", nil); !p.Unknown || p.Base != "" {
		t.Errorf("at first: %+v", p)
	}
	n.push(tree, agentapi.FileApply{Dst: "~/data"})
	base := tree.Manifest
	for _, restart := range []bool{false, true} {
		if restart {
			n.kill9()
		}
		if p := plan(true, "", nil); p.Unknown || p.Applied == nil || p.Applied.Written != 0 {
			t.Errorf("unchanged: %+v", p)
		}
	}
	// What a job changed is put right, though the manifest is known.
	one := filepath.Join(n.cfg.Home, "data/d0/f000")
	if err := os.WriteFile(one, []byte("by a job"), 0o600); err != nil {
		t.Fatal(err)
	}
	if p := plan(true, "", nil); p.Unknown || len(p.Missing) != 1 {
		t.Errorf("after a job: %+v", p)
	}
	for _, restart := range []bool{false, true} {
		if restart {
			n.kill9()
		}
		if err := os.WriteFile(filepath.Join(tree.Root, "d0/f000"), []byte(fmt.Sprint("changed", restart)), 0o600); err != nil {
			t.Fatal(err)
		}
		next, err := filesync.Scan(t.Context(), tree.Root, filesync.ScanOptions{})
		if err != nil {
			t.Fatal(err)
		}
		to.Manifest = next.Manifest.ID()
		p := plan(true, "", nil)
		if !p.Unknown || p.Base != base.ID() {
			t.Fatalf("changed: %+v, not %s", p, base.ID())
		}
		delta, err := filesync.Diff(base, next.Manifest).Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if p = plan(false, strings.Repeat("0", 64), delta); !p.Unknown {
			t.Errorf("against another base: %+v", p)
		}
		wrong, _ := (&filesync.Delta{}).Bytes()
		if p = plan(false, base.ID(), wrong); !p.Unknown {
			t.Errorf("a delta that makes another manifest: %+v", p)
		}
		if p = plan(false, base.ID(), delta); p.Unknown || len(p.Missing) != 1 {
			t.Fatalf("by delta: %+v", p)
		}
		var pack bytes.Buffer
		if err := filesync.WritePack(t.Context(), &pack, next, p.Missing, filesync.PackOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := n.api.PlaceBlobs(ctx(t), to, &pack); err != nil {
			t.Fatal(err)
		}
		if r, err := n.api.ApplyFiles(ctx(t), to); err != nil || r.Written != 1 {
			t.Errorf("%+v, %v", r, err)
		}
		if got := n.file("data/d0/f000"); got != fmt.Sprint("changed", restart) {
			t.Errorf("it holds %q", got)
		}
		base = next.Manifest
	}
	if kept, _ := os.ReadDir(filepath.Join(n.cfg.Dir, "known")); len(kept) != 1 {
		t.Errorf("kept: %v", kept)
	}
}
