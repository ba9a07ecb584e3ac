package agent_test

import (
	"bytes"
	"context"
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
