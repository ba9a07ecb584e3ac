package chaos

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent"
	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/rig"
)

// launched brings the agents' cluster up and waits until its job has ended.
func (in *instance) launched() {
	in.t.Helper()
	if a, r := in.Do("launch", agentCluster, rig.Job{}, rig.Succeeds); r != nil {
		in.JobReaches(a, r, api.JobSucceeded)
	}
}

// agentVisits are the agent's points, by what makes it pass them.
var agentVisits = []struct {
	what   string
	run    func(in *instance, point string)
	points []string
}{
	{"a job's life", agentJob, []string{"agent.submit-before-journal", "agent.submit-after-journal", "agent.placed", "agent.before-prepare", "agent.after-stage",
		"agent.before-start", "agent.after-start", "agent.before-exit-record-read", "agent.after-exit-record-read", "agent.before-finish", "agent.after-finish"}},
	{"a cancel", agentCancel, []string{"agent.cancel-before-kill", "agent.cancel-after-kill"}},
	{"autostop with a hook", agentAutostop, []string{"agent.drain-before-journal", "agent.drain-after-journal", "agent.hook-before-start", "agent.hook-after-start"}},
	{"an upgrade", agentUpgrade, []string{"agent.upgrade-before-rename", "agent.upgrade-after-rename"}},
}

// unreachableAgent are points of the agent that the visits leave out, with the reason.
var unreachableAgent = map[string]string{
	"agent.self-end":         "the agent acts alone after two minutes without its server: TestIdleWithoutServer, by make chaos",
	"agent.files-passing-on": "nodes of one machine pass no files on: TestPeerDies of package agent",
}

// TestAgentFailpoints kills an agent once at each of its points: its jobs run once, and what was asked of it is done.
func TestAgentFailpoints(t *testing.T) {
	var visited []string
	for _, v := range agentVisits {
		visited = append(visited, v.points...)
	}
	for _, p := range agent.Failpoints {
		if _, excused := unreachableAgent[p]; slices.Contains(visited, p) == excused {
			t.Errorf("point %s: visited is %v, unreachable is %v", p, !excused, excused)
		}
	}
	programs(t)
	t.Parallel()
	in := open(t)
	defer in.Observe()()
	for _, v := range agentVisits {
		for _, p := range v.points {
			begin := time.Now()
			v.run(in, p)
			if _, ok := in.fired(p); !ok {
				in.disarm(p)
				t.Errorf("%s: %s was not passed", v.what, p)
			}
			in.Do("down", agentCluster, rig.Job{}, rig.Succeeds)
			in.settles()
			t.Logf("%-22s killed at %-30s %v in all", v.what, p, time.Since(begin).Round(time.Millisecond))
			if t.Failed() {
				return
			}
		}
	}
	agentDeadAtStop(in)
	in.Do("down", agentCluster, rig.Job{}, rig.Succeeds)
	in.verify()
}

// TestIdleWithoutServer lets a cluster idle out while its server is away: it stops all the same, though its agent dies as
// it is about to end, and the server finds it stopped.
func TestIdleWithoutServer(t *testing.T) {
	if programs(t); !thorough() {
		t.Skip("takes three minutes: make chaos runs it")
	}
	t.Parallel()
	in := open(t)
	in.launched()
	in.Do("autostop", agentCluster, rig.Job{}, rig.Succeeds)
	in.arm("agent.self-end")
	back := in.Away()
	defer back()
	in.idle(agentCluster)
	for end := time.Now().Add(4 * time.Minute); len(in.processes()) > 0; time.Sleep(time.Second) {
		if time.Now().After(end) {
			t.Fatal("the cluster has not stopped itself")
		}
	}
	if _, ok := in.fired("agent.self-end"); !ok {
		t.Error("the agent was not killed as it was about to end")
	}
	back()
	in.Healthy(2 * time.Minute)
	in.Eventually("the cluster is seen to be stopped", func() bool { return in.Status(agentCluster) == api.ClusterStopped })
	in.Do("start", agentCluster, rig.Job{}, rig.Succeeds)
	in.Do("down", agentCluster, rig.Job{}, rig.Succeeds)
	in.verify()
}

const agentCluster = "ag"

func agentJob(in *instance, point string) {
	var a *rig.Ask
	var r *api.Request
	if strings.Contains(point, "prepare") || strings.Contains(point, "start") {
		in.arm(point) // for whichever of two nodes comes first
		a, r = in.Do("launch", agentCluster, rig.Job{Nodes: 2, Sleep: "0.1"}, rig.Succeeds)
	} else {
		in.launched()
		in.arm(point)
		a, r = in.Do("exec", agentCluster, rig.Job{Sleep: "0.1"}, rig.Succeeds)
	}
	if r != nil {
		in.JobReaches(a, r, api.JobSucceeded)
	}
}

func agentCancel(in *instance, point string) {
	a, r := in.Do("launch", agentCluster, rig.Job{Sleep: "300"}, rig.Succeeds)
	in.Eventually("the job runs", func() bool { return in.begun()[a.ID][0] == 1 })
	in.arm(point)
	in.Do("cancel", agentCluster, rig.Job{}, rig.Succeeds)
	if r != nil {
		in.JobReaches(a, r, api.JobCancelled)
	}
	for _, p := range in.processes() {
		if slices.Equal(p.args, []string{"sleep", "300"}) {
			in.t.Errorf("the cancelled job still runs as %d", p.pid)
		}
	}
}

func agentAutostop(in *instance, point string) {
	in.launched()
	in.Do("autostop", agentCluster, rig.Job{}, rig.Succeeds)
	mark := filepath.Join(in.dir, "hook-"+point)
	in.arm(point)
	in.idle(agentCluster, agentapi.Hook{Run: "echo ran >> " + mark, Events: []string{"stop"}})
	in.Eventually("the cluster is stopped", func() bool { return in.Status(agentCluster) == api.ClusterStopped })
	if b, err := os.ReadFile(mark); string(b) != "ran\n" {
		in.t.Errorf("%s: the stop hook wrote %q (%v)", point, b, err)
	}
}

// agentDeadAtStop stops a cluster whose agent has just died, for the third time in a row: its hook runs all the same.
func agentDeadAtStop(in *instance) {
	in.launched()
	in.Do("autostop", agentCluster, rig.Job{}, rig.Succeeds)
	mark := filepath.Join(in.dir, "hook-of-the-dead")
	in.rule(agentCluster, func(r *agentapi.Autostop) {
		r.Hooks = []agentapi.Hook{{Run: "echo ran >> " + mark, Events: []string{"stop"}}}
	})
	for died := 0; died < 3; time.Sleep(10 * time.Millisecond) {
		for _, p := range in.processes() {
			if p.verb() == "serve" && syscall.Kill(p.pid, syscall.SIGKILL) == nil {
				died++
			}
		}
	}
	in.Do("stop", agentCluster, rig.Job{}, rig.Succeeds)
	if b, err := os.ReadFile(mark); string(b) != "ran\n" {
		in.t.Errorf("the stop hook wrote %q (%v)", b, err)
	}
}

func agentUpgrade(in *instance, point string) {
	a, r := in.Do("launch", agentCluster, rig.Job{Sleep: "1"}, rig.Succeeds)
	in.Eventually("the job runs", func() bool { return in.begun()[a.ID][0] == 1 })
	program, err := os.ReadFile(filepath.Join(in.bin, "sky-agent"))
	if err != nil {
		in.t.Fatal(err)
	}
	other := append(program, "another build"...)
	sum := sha256.Sum256(other)
	want := hex.EncodeToString(sum[:])
	in.arm(point)
	c := agentapi.NewUnix(in.node(agentCluster).Socket)
	defer c.Close()
	in.Eventually("the agent is upgraded", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if i, err := c.Info(ctx); err == nil && i.BinarySHA == want {
			return true
		}
		c.Upgrade(ctx, want, bytes.NewReader(other)) // its connection may end with the agent
		return false
	})
	if r != nil {
		in.JobReaches(a, r, api.JobSucceeded)
	}
	last, _ := in.Do("exec", agentCluster, rig.Job{}, rig.Succeeds)
	in.Eventually("the upgraded agent runs a job", func() bool { return in.begun()[last.ID][0] == 1 })
}

// idle makes the head of a cluster idle out at once, with a hook. Over the API a minute is the least.
func (in *instance) idle(cluster string, hooks ...agentapi.Hook) {
	in.t.Helper()
	in.rule(cluster, func(r *agentapi.Autostop) { r.IdleSeconds, r.Hooks, r.WaitFor = 0.05, hooks, "none" })
}

// hurry does the same again, if the head has another rule meanwhile.
func (in *instance) hurry(cluster string) {
	c := agentapi.NewUnix(in.node(cluster).Socket)
	defer c.Close()
	changeRule(c, func(r *agentapi.Autostop) bool {
		other := r.IdleSeconds == 0
		r.IdleSeconds, r.WaitFor = 0.05, "none"
		return other
	})
}

// rule changes the idle rule that the head of a cluster was given, behind the server's back.
func (in *instance) rule(cluster string, change func(*agentapi.Autostop)) {
	in.t.Helper()
	c := agentapi.NewUnix(in.node(cluster).Socket)
	defer c.Close()
	in.Eventually("the idle rule is taken", func() bool {
		return changeRule(c, func(r *agentapi.Autostop) bool { change(r); return true })
	})
}

// changeRule tries once to change the idle rule of an agent, if change says so; done says that the agent took it.
func changeRule(c *agentapi.Client, change func(*agentapi.Autostop) bool) (done bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	i, err := c.Info(ctx)
	if err != nil || i.Autostop == nil {
		return false
	}
	r := *i.Autostop
	if !change(&r) {
		return false
	}
	_, err = c.SetAutostop(ctx, r)
	return err == nil
}

// node is the configuration of a cluster's head.
func (in *instance) node(cluster string) agentapi.NodeConfig {
	in.t.Helper()
	var c agentapi.NodeConfig
	paths, _ := filepath.Glob(filepath.Join(in.home, "local", cluster+"-*", "node0", "node.json"))
	if len(paths) != 1 {
		in.t.Fatalf("cluster %s has the heads %v", cluster, paths)
	}
	b, err := os.ReadFile(paths[0])
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		in.t.Fatal(err)
	}
	return c
}
