package agent_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

// quick shortens the time between TERM and KILL.
func quick(c *agentapi.NodeConfig, _ *[]string) { c.KillGrace = 300 * time.Millisecond }

func TestGang(t *testing.T) {
	nodes := cluster(t, 3, quick)
	head := nodes[0]

	t.Run("ranks and logs", func(t *testing.T) {
		j := head.submit(agentapi.JobSpec{Name: "g", NumNodes: 3, Setup: "echo setup $SKYPILOT_SETUP_NODE_RANK of $SKYPILOT_NUM_NODES", Run: "echo rank $SKYPILOT_NODE_RANK of $SKYPILOT_NUM_NODES; echo \"$SKYPILOT_NODE_IPS\""})
		for i, n := range nodes {
			setup, run, end := n.output(j.ID, agentapi.LogQuery{Follow: true})
			if setup != fmt.Sprintf("setup %d of 3\n", i) || run != fmt.Sprintf("rank %d of 3\n10.0.0.1\n10.0.0.2\n10.0.0.3\n", i) {
				t.Errorf("node %d: %q, %q", i, setup, run)
			}
			if !end.End || end.Status != api.JobSucceeded {
				t.Errorf("node %d: end %+v", i, end)
			}
			name := []string{"0-head.log", "1-worker1.log", "2-worker2.log"}[i]
			if n.file(strings.TrimPrefix(j.LogPath, "~/")+"/tasks/"+name) != run {
				t.Errorf("node %d has no %s", i, name)
			}
		}
		if row := head.job(j.ID); !slices.Equal(row.ExitCodes, []int{0, 0, 0}) || !slices.Equal(row.RunsOn, []int{0, 1, 2}) {
			t.Errorf("row: %+v", row)
		}
	})

	t.Run("a failed rank ends the others", func(t *testing.T) {
		j := head.submit(agentapi.JobSpec{NumNodes: 3, Run: `if [ $SKYPILOT_NODE_RANK = 1 ]; then sleep 0.2; exit 9; fi; exec -a gang-rank-5d1 sleep 300`})
		row := head.reaches(j.ID, api.JobFailed)
		if !slices.Equal(row.ExitCodes, []int{137, 9, 137}) || !strings.Contains(row.Reason, "rank 1 (worker1) exited with code 9") {
			t.Errorf("row: %+v", row)
		}
		if alive(t, "gang-rank-5d1") != 0 {
			t.Error("ranks are left")
		}
	})

	t.Run("setup fails on one node that has no rank", func(t *testing.T) {
		j := head.submit(agentapi.JobSpec{Setup: "[ $SKYPILOT_SETUP_NODE_RANK != 2 ] || exit 4", Run: "touch ~/must-not"})
		row := head.reaches(j.ID, api.JobFailedSetup)
		if !strings.Contains(row.Reason, "worker2") || head.file("must-not") != "" {
			t.Errorf("row: %+v", row)
		}
	})

	t.Run("cancel ends all ranks", func(t *testing.T) {
		j := head.submit(agentapi.JobSpec{NumNodes: 3, Run: "trap '' TERM; touch ~/up; exec -a gang-cancel-81c sleep 300"})
		head.eventually("all run", func() bool { return alive(t, "gang-cancel-81c") == 3 })
		if r, err := head.api.Cancel(ctx(t), agentapi.CancelSpec{Latest: true}); err != nil || !slices.Equal(r.Cancelled, []int64{j.ID}) {
			t.Fatalf("%+v %v", r, err)
		}
		if alive(t, "gang-cancel-81c") != 0 {
			t.Error("ranks are left")
		}
	})

	t.Run("agents die in the middle", func(t *testing.T) {
		j := head.submit(agentapi.JobSpec{NumNodes: 3, Run: "echo x >> ~/ran; while [ ! -e ~/go ]; do sleep 0.02; done; exit $SKYPILOT_NODE_RANK"})
		for _, n := range nodes {
			n.eventually("it runs", func() bool { return n.file("ran") != "" })
		}
		nodes[1].kill9()
		head.kill9()
		nodes[2].kill9()
		if row := head.job(j.ID); row.Status != api.JobRunning {
			t.Fatalf("row: %+v", row)
		}
		for _, n := range nodes[:2] {
			n.run2("touch ~/go")
		}
		row := head.reaches(j.ID, api.JobFailed)
		// Rank 0 was let go first, but on a busy machine rank 1's failure may still end it.
		if c := row.ExitCodes; len(c) != 3 || c[0] != 0 && c[0] != 137 || c[1] != 1 || c[2] != 137 {
			t.Errorf("codes: %v (%s)", row.ExitCodes, row.Reason)
		}
		for i, n := range nodes {
			if n.file("ran") != "x\n" {
				t.Errorf("node %d ran %q", i, n.file("ran"))
			}
		}
	})
}

// TestVerdictAfterRestart kills the head's agent when it has ended the other ranks of a failed job: the new one blames
// the rank that failed, not those that were ended for it.
func TestVerdictAfterRestart(t *testing.T) {
	t.Parallel()
	nodes := []*testNode{newNode(t, 0, quick, fails("agent.before-finish=kill"))}
	for rank := 1; rank < 3; rank++ {
		nodes = append(nodes, newNode(t, rank, quick))
	}
	form(t, 1, nodes...)
	head := nodes[0]
	j := head.submit(agentapi.JobSpec{NumNodes: 3, Run: `trap 'exit 3' TERM; touch ~/up; if [ $SKYPILOT_NODE_RANK = 2 ]; then while [ ! -e ~/go ]; do sleep 0.02; done; exit 9; fi; while :; do sleep 0.02; done`})
	for _, n := range nodes {
		n.eventually("it runs", func() bool { _, err := shell(n.cfg.Home, "test -e up"); return err == nil })
	}
	nodes[2].run2("touch ~/go")
	row := head.reaches(j.ID, api.JobFailed)
	if !strings.Contains(row.Reason, "rank 2 (worker2) exited with code 9") {
		t.Errorf("%v %s", row.ExitCodes, row.Reason)
	}
	if _, err := shell(head.cfg.Dir, "test -e failpoints/agent.before-finish.killed"); err != nil {
		t.Error("the agent did not die there")
	}
}

// run2 does something in a node's home from outside.
func (n *testNode) run2(script string) {
	n.t.Helper()
	if out, err := shell(n.cfg.Home, script); err != nil {
		n.t.Fatalf("%v %s", err, out)
	}
}

func TestSilentWorker(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 2, quick)
	head, worker := nodes[0], nodes[1]
	j := head.submit(agentapi.JobSpec{NumNodes: 2, Run: "touch ~/up; while [ ! -e ~/go ]; do sleep 0.02; done"})
	worker.eventually("it runs", func() bool { _, err := shell(worker.cfg.Home, "test -e up"); return err == nil })
	freeze := func(sig syscall.Signal) { // silent, not dead
		syscall.Kill(worker.cmd.Process.Pid, sig)
		syscall.Kill(worker.serve, sig)
	}
	worker.serve = worker.info().PID
	freeze(syscall.SIGSTOP)
	syscall.Kill(worker.serve, syscall.SIGKILL) // its connections break, and init is stopped
	head.eventually("the row names the silent node", func() bool { return strings.Contains(head.job(j.ID).Reason, "worker1 does not answer") })
	if row := head.job(j.ID); row.Status != api.JobRunning {
		t.Fatalf("row: %+v", row)
	}
	syscall.Kill(worker.cmd.Process.Pid, syscall.SIGCONT)
	worker.ready()
	head.eventually("the row no longer does", func() bool { return head.job(j.ID).Reason == "" })
	for _, n := range nodes {
		n.run2("touch go")
	}
	head.reaches(j.ID, api.JobSucceeded)
}

func TestLostWorker(t *testing.T) {
	nodes := cluster(t, 2, quick)
	head, worker := nodes[0], nodes[1]
	j := head.submit(agentapi.JobSpec{NumNodes: 2, Run: "touch ~/up; exec -a lost-peer-c41 sleep 300"})
	head.eventually("it runs", func() bool { return alive(t, "lost-peer-c41") == 2 })
	worker.stop()
	if err := head.api.PeerLost(ctx(t), agentapi.PeerLost{NodeID: "nobody"}); !agentapi.IsKind(err, agentapi.KindNotFound) {
		t.Errorf("unknown node: %v", err)
	}
	if err := head.api.PeerLost(ctx(t), agentapi.PeerLost{NodeID: worker.cfg.NodeID, Reason: "preempted"}); err != nil {
		t.Fatal(err)
	}
	row := head.reaches(j.ID, api.JobFailedDriver)
	if !strings.Contains(row.Reason, "worker1 was lost: preempted") || alive(t, "lost-peer-c41") != 0 {
		t.Errorf("row: %+v", row)
	}
	// A job that needs both waits; one that fits on the head runs.
	big := head.submit(agentapi.JobSpec{NumNodes: 2, Run: "true"})
	head.eventually("it says why it waits", func() bool { return strings.Contains(head.job(big.ID).Reason, "lost node") })
	if _, err := head.api.Cancel(ctx(t), agentapi.CancelSpec{All: true}); err != nil {
		t.Fatal(err)
	}
	small := head.run("true")
	head.reaches(small.ID, api.JobSucceeded)
}

func TestLostHead(t *testing.T) {
	nodes := cluster(t, 3, quick)
	head, worker := nodes[0], nodes[1]
	head.submit(agentapi.JobSpec{NumNodes: 3, Run: "exec -a lost-head-c42 sleep 300"})
	head.eventually("it runs", func() bool { return alive(t, "lost-head-c42") == 3 })
	head.stop()
	for _, n := range nodes[1:] {
		if err := n.api.PeerLost(ctx(t), agentapi.PeerLost{NodeID: head.cfg.NodeID, Reason: "preempted"}); err != nil {
			t.Fatal(err)
		}
	}
	worker.eventually("what has no driver ends", func() bool { return alive(t, "lost-head-c42") == 0 })
}

func TestStoppedCluster(t *testing.T) {
	stopCluster(t, func(*testNode) {})
}

// TestStoppedClusterAgentDies: the agent dies once more after the node was restarted, before the server has said what that means.
func TestStoppedClusterAgentDies(t *testing.T) {
	stopCluster(t, (*testNode).kill9)
}

func stopCluster(t *testing.T, before func(*testNode)) {
	n := newNode(t, 0, quick)
	spec := form(t, 1, n)
	done := n.run("true")
	n.reaches(done.ID, api.JobSucceeded)
	j := n.run("echo x >> ~/ran; sleep 300")
	n.eventually("it runs", func() bool { return n.file("ran") != "" })
	waiting := n.submit(agentapi.JobSpec{Run: "echo x >> ~/ran", CPUs: 4})
	n.stop()
	n.start()
	before(n)
	if row := n.job(j.ID); row.Status != api.JobRunning {
		t.Errorf("before the server spoke: %+v", row)
	}
	spec.Epoch, spec.Restarted = 2, true
	for range 2 { // a repeated call changes nothing
		if err := n.api.Configure(ctx(t), spec); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []int64{j.ID, waiting.ID} {
		if row := n.reaches(id, api.JobFailed); !strings.Contains(row.Reason, "stopped") {
			t.Errorf("row: %+v", row)
		}
	}
	again := n.submit(agentapi.JobSpec{Run: "true", Epoch: 2})
	if again.ID != waiting.ID+1 {
		t.Errorf("job ids go on: %d", again.ID)
	}
	n.reaches(again.ID, api.JobSucceeded)
	if err := n.api.Configure(ctx(t), spec); err != nil {
		t.Fatal(err)
	}
	if row := n.job(again.ID); row.Status != api.JobSucceeded {
		t.Errorf("row: %+v", row)
	}
	if n.file("ran") != "x\n" {
		t.Errorf("ran: %q", n.file("ran"))
	}
}

func TestVanishedShim(t *testing.T) {
	n := cluster(t, 1, quick)[0]
	j := n.run("exec -a vanish-2b9 sleep 300")
	n.eventually("it runs", func() bool { return alive(t, "vanish-2b9") == 1 })
	killMatching(t, n.cfg.Dir, "job-shim")
	row := n.reaches(j.ID, api.JobFailedDriver)
	if !strings.Contains(row.Reason, "vanished") || alive(t, "vanish-2b9") != 0 {
		t.Errorf("row: %+v", row)
	}
}

func TestRestartTakesJobsUp(t *testing.T) {
	n := cluster(t, 1, quick)[0]
	j := n.run("echo begin; while [ ! -e ~/go-1 ]; do sleep 0.02; done; echo end; exit 5")
	n.reaches(j.ID, api.JobRunning)
	n.kill9()
	n.kill9()
	release(n, 1)
	if got := n.log(j.ID); got != "begin\nend\n" {
		t.Errorf("log: %q", got)
	}
	if row := n.reaches(j.ID, api.JobFailed); row.ExitCodes[0] != 5 {
		t.Errorf("row: %+v", row)
	}
	// One that ends while the agent is away hands its record in.
	j = n.run("while [ ! -e ~/go-2 ]; do sleep 0.02; done; exit 6")
	n.reaches(j.ID, api.JobRunning)
	syscall.Kill(n.cmd.Process.Pid, syscall.SIGSTOP)
	syscall.Kill(n.info().PID, syscall.SIGKILL)
	release(n, 2)
	time.Sleep(100 * time.Millisecond)
	syscall.Kill(n.cmd.Process.Pid, syscall.SIGCONT)
	n.ready()
	if row := n.reaches(j.ID, api.JobFailed); row.ExitCodes[0] != 6 {
		t.Errorf("row: %+v", row)
	}
}

// TestFailpoints lets the agent die at each point of a job's life: the job runs once and ends as it would have.
func TestFailpoints(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"submit-before-journal", "submit-after-journal", "placed", "before-prepare", "after-stage", "before-start",
		"after-start", "before-exit-record-read", "after-exit-record-read", "before-finish", "after-finish"} {
		t.Run(point, func(t *testing.T) {
			n := newNode(t, 0, quick, fails("agent."+point+"=kill"))
			form(t, 1, n)
			spec := agentapi.JobSpec{Key: "k", Epoch: 1, Name: "once", Setup: "echo s >> ~/ran", Run: "echo r >> ~/ran; exit 7"}
			var j api.Job
			n.eventually("it is submitted", func() bool {
				c, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				defer cancel()
				var err error
				j, err = n.api.Submit(c, spec)
				return err == nil
			})
			row := n.reaches(j.ID, api.JobFailed)
			n.eventually("the agent died there", func() bool {
				_, err := shell(n.cfg.Dir, "test -e failpoints/agent."+point+".killed")
				return err == nil
			})
			n.ready()
			if row = n.job(j.ID); j.ID != 1 || !slices.Equal(row.ExitCodes, []int{7}) || n.file("ran") != "s\nr\n" {
				t.Errorf("row %+v, ran %q", row, n.file("ran"))
			}
		})
	}
	for _, point := range []string{"cancel-before-kill", "cancel-after-kill"} {
		t.Run(point, func(t *testing.T) {
			n := newNode(t, 0, quick, fails("agent."+point+"=kill"))
			form(t, 1, n)
			j := n.run("exec -a fp-cancel-9e2 sleep 300")
			n.eventually("it runs", func() bool { return alive(t, "fp-cancel-9e2") == 1 })
			n.api.Cancel(ctx(t), agentapi.CancelSpec{JobIDs: []int64{j.ID}})
			n.reaches(j.ID, api.JobCancelled)
			if alive(t, "fp-cancel-9e2") != 0 {
				t.Error("it still runs")
			}
		})
	}
}
