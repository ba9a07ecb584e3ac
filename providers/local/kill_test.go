package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"github.com/skyloom/skyloom/agent/gpus"
	"github.com/skyloom/skyloom/providers"
)

// helperEnv makes this test program a server that carries one operation out and is killed at a failpoint on the way.
const helperEnv = "SKYLOOM_TEST_LOCAL_HELPER"

type helperCall struct {
	Op, Root, Agent, SHA string
	Request              providers.CreateRequest
}

// TestHelper is not a test: it is what TestKilledAtFailpoints starts.
func TestHelper(t *testing.T) {
	var c helperCall
	if json.Unmarshal([]byte(os.Getenv(helperEnv)), &c) != nil {
		t.Skip("started by TestKilledAtFailpoints only")
	}
	agent := agentFile{c.Agent, c.SHA}
	p, err := New(Options{Root: c.Root, Installation: installation, Agent: agent, GPUs: []gpus.GPU{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	switch c.Op {
	case "create":
		_, err = p.Create(ctx, c.Request)
	case "stop":
		err = p.Stop(ctx, c.Request.Cluster, nil)
	case "start":
		_, err = p.Start(ctx, c.Request.Cluster, "s", agent)
	case "delete":
		err = p.Delete(ctx, c.Request.Cluster, nil)
	}
	t.Fatalf("%s lived through the failpoint: %v", c.Op, err)
}

func TestKilledAtFailpoints(t *testing.T) {
	for i, c := range []struct{ op, point string }{
		{"create", fpWritten}, {"create", fpSpawned}, {"stop", fpStopping}, {"start", fpStarting}, {"start", fpSpawned}, {"delete", fpKilled}, {"delete", fpRemoved},
	} {
		t.Run(c.op+"/"+c.point, func(t *testing.T) {
			ctx := context.Background()
			p := open(t, nil)
			q := request(ref("killed", fmt.Sprint("k", i)), 2)
			var before []providers.Node
			if c.op != "create" {
				before = create(t, p, q)
			}
			if c.op == "start" {
				if err := p.Stop(ctx, q.Cluster, nil); err != nil {
					t.Fatal(err)
				}
			}
			killed(t, p, c.op, c.point, q)
			next, err := New(p.o) // the restarted server
			if err != nil {
				t.Fatal(err)
			}
			defer next.Close()
			switch c.op {
			case "create":
				first := list(t, next, q.Cluster)
				if len(first) != 2 {
					t.Fatalf("%d nodes are listed", len(first))
				}
				got := create(t, next, q)
				if !slices.Equal([]string{got[0].ID, got[1].ID}, []string{first[0].ID, first[1].ID}) {
					t.Errorf("%v, then %v", first, got)
				}
				for _, n := range got {
					client(t, next, n)
				}
			case "start":
				back, err := next.Start(ctx, q.Cluster, "s", theAgent)
				if err != nil || back[0].State != providers.NodeRunning || back[1].State != providers.NodeRunning {
					t.Fatalf("%v, %v", back, err)
				}
				for _, n := range back {
					client(t, next, n)
				}
			case "stop":
				until(t, "both nodes are stopped", func() bool {
					ns := list(t, next, q.Cluster)
					return len(ns) == 2 && ns[0].State == providers.NodeStopped && ns[1].State == providers.NodeStopped
				})
				back, err := next.Start(ctx, q.Cluster, "s", theAgent)
				if err != nil || back[0].ID != before[0].ID {
					t.Errorf("%v, %v", back, err)
				}
			}
			until(t, "nothing is left", func() bool {
				err := next.Delete(ctx, q.Cluster, nil)
				if err != nil && !providers.Is(err, providers.NotFound) {
					t.Fatal(err)
				}
				return err != nil
			})
			if exists(next.clusterDir(q.Cluster)) {
				t.Error("the cluster's folder is left")
			}
		})
	}
}

// killed carries an operation out in a process of its own, which a failpoint kills.
func killed(t *testing.T, p *Provider, op, point string, q providers.CreateRequest) {
	t.Helper()
	b, err := json.Marshal(helperCall{op, p.root, theAgent.path, theAgent.sha, q})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelper$")
	cmd.Env = append(os.Environ(), helperEnv+"="+string(b), "SKYLOOM_FAILPOINTS="+point+"=kill", "SKYLOOM_FAILPOINT_DIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	var ee *exec.ExitError
	if !errors.As(err, &ee) || ee.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("%s was not killed at %s: %v\n%s", op, point, err, out)
	}
}
