package agent_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/supervisor"
	"github.com/skyloom/skyloom/api"
)

// TestRandomKills kills the agents of a cluster at random while gangs run: every job runs once on every rank, and ends
// as it would have.
func TestRandomKills(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 3, quick)
	head := nodes[0]
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	const jobs = 12
	for i := range jobs {
		spec := agentapi.JobSpec{Key: fmt.Sprint("chaos-", i), Epoch: 1, Name: "c", NumNodes: 1 + i%3, Setup: "echo s$SKYPILOT_TASK_ID >> ~/ran",
			Run: fmt.Sprintf("echo r$SKYPILOT_INTERNAL_JOB_ID >> ~/ran; sleep 0.%d; exit %d", r.IntN(4), i%2*7)}
		head.eventually("it is submitted", func() bool {
			c, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			_, err := head.api.Submit(c, spec)
			return err == nil
		})
		if i%2 == 0 {
			n := nodes[r.IntN(3)]
			if info, err := n.api.Info(ctx(t)); err == nil {
				time.Sleep(time.Duration(r.IntN(40)) * time.Millisecond)
				syscall.Kill(info.PID, syscall.SIGKILL)
			}
		}
	}
	head.eventually("all have ended", func() bool {
		info, err := head.api.Info(context.Background())
		return err == nil && info.ActiveJobs == 0
	})
	list, err := head.api.Jobs(ctx(t))
	if err != nil || len(list) != jobs {
		t.Fatalf("%d jobs, %v", len(list), err)
	}
	for _, j := range list {
		want := api.JobSucceeded
		if j.ID%2 == 0 {
			want = api.JobFailed
		}
		if j.Status != want || len(j.ExitCodes) != j.NumNodes {
			t.Errorf("job %d: %s %v %s", j.ID, j.Status, j.ExitCodes, j.Reason)
		}
		for i, n := range nodes {
			ran := "\n" + n.file("ran")
			if got := strings.Count(ran, fmt.Sprintf("_c_%d\n", j.ID)); got != 1 {
				t.Errorf("setup of job %d ran %d times on node %d", j.ID, got, i)
			}
			hasRank := 0
			for _, on := range j.RunsOn {
				if on == i {
					hasRank = 1
				}
			}
			// A rank that had not begun when another failed may never have run.
			if got := strings.Count(ran, fmt.Sprintf("\nr%d\n", j.ID)); got > hasRank || (got < hasRank && want == api.JobSucceeded) {
				t.Errorf("run of job %d ran %d times on node %d", j.ID, got, i)
			}
		}
	}
}

// TestAutostopFailpoints lets the agent die around the announced stop: the node ends all the same, once its grace is over.
func TestAutostopFailpoints(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"drain-before-journal", "drain-after-journal", "hook-before-start", "hook-after-start", "self-end"} {
		t.Run(point, func(t *testing.T) {
			n := newNode(t, 0, quick, grace(200*time.Millisecond), fails("agent."+point+"=kill"))
			form(t, 1, n)
			n.autostop(agentapi.Autostop{Generation: 1, IdleSeconds: 0.2, Down: true, Hooks: []agentapi.Hook{{Run: "echo x >> ~/hooked", Events: []string{"down"}}}})
			cmd := n.cmd
			n.cmd = nil
			done := make(chan error, 1)
			go func() { done <- cmd.Wait() }()
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(time.Minute):
				cmd.Process.Kill()
				t.Fatal("the node did not end")
			}
			if e := supervisor.ReadEnded(n.cfg.Dir); e == nil || !e.Down {
				t.Errorf("ended.json: %+v", e)
			}
			if got := n.file("hooked"); got != "x\n" {
				t.Errorf("hooks: %q", got)
			}
			if _, err := shell(n.cfg.Dir, "test -e failpoints/agent."+point+".killed"); err != nil {
				t.Error("the agent did not die there")
			}
		})
	}
}
