package cluster

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/providers"
)

func nodes(states ...providers.NodeState) []providers.Node {
	var out []providers.Node
	for i, s := range states {
		out = append(out, providers.Node{ID: string(rune('a' + i)), Rank: i, State: s})
	}
	return out
}

func TestJudge(t *testing.T) {
	const run, pend, stop, gone = providers.NodeRunning, providers.NodePending, providers.NodeStopped, providers.NodeGone
	for _, c := range []struct {
		name  string
		nodes []providers.Node
		want  int
		v     Verdict
	}{
		{"all run", nodes(run, run), 2, VerdictUp},
		{"one comes", nodes(run, pend), 2, VerdictPending},
		{"all stopped", nodes(stop, stop), 2, VerdictStopped},
		{"all gone", nodes(gone, gone), 2, VerdictGone},
		{"nothing listed", nil, 2, VerdictGone},
		{"one gone", nodes(run, gone), 2, VerdictUnhealthy},
		{"one missing", nodes(run), 2, VerdictUnhealthy},
		{"one stopped", nodes(run, stop), 2, VerdictUnhealthy},
		{"the rest gone", nodes(stop, gone), 2, VerdictUnhealthy},
	} {
		v, why := Judge(c.nodes, c.want)
		if v != c.v {
			t.Errorf("%s: got %s (%s), want %s", c.name, v, why, c.v)
		}
		if (v == VerdictUnhealthy || v == VerdictGone) && why == "" {
			t.Errorf("%s: no reason is given", c.name)
		}
	}
	preempted := nodes(run, gone)
	preempted[1].Reason = "preempted"
	if _, why := Judge(preempted, 2); why != "node 1: preempted" {
		t.Errorf("reason %q does not tell which node and why", why)
	}
}

func TestAdmit(t *testing.T) {
	state := func(s api.ClusterStatus, spot bool) *State {
		return &State{Name: "c", Row: api.Cluster{Name: "c", Hash: "h", Status: s, Spot: spot}}
	}
	for _, c := range []struct {
		name string
		st   *State
		op   OpKind
		stop bool
		want string
	}{
		{"exec on UP", state(api.ClusterUp, false), OpExec, true, ""},
		{"exec on STOPPED", state(api.ClusterStopped, false), OpExec, true, api.ErrClusterNotUp},
		{"exec on nothing", &State{Name: "c"}, OpExec, true, api.ErrClusterDoesNotExist},
		{"launch on nothing", &State{Name: "c"}, OpLaunch, true, ""},
		{"down on nothing", &State{Name: "c"}, OpDown, true, api.ErrClusterDoesNotExist},
		{"stop of spot", state(api.ClusterUp, true), OpStop, true, api.ErrNotSupported},
		{"stop where there is none", state(api.ClusterUp, false), OpStop, false, api.ErrNotSupported},
		{"autostop on STOPPED", state(api.ClusterStopped, false), OpAutostop, true, api.ErrClusterNotUp},
		{"cancel on STOPPED", state(api.ClusterStopped, false), OpCancel, true, api.ErrClusterNotUp},
		{"down of INIT", state(api.ClusterInit, false), OpDown, true, ""},
	} {
		got := ""
		if e := c.st.Admit(Op{Kind: c.op}, c.stop, false); e != nil {
			got = e.Kind
			if e.Hint == "" {
				t.Errorf("%s: the error gives no hint: %v", c.name, e)
			}
		}
		if got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestOutcomesAreRememberedByKey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s State
		n := rapid.IntRange(0, 3*MaxDone).Draw(t, "outcomes")
		for i := range n {
			s.Remember(Outcome{Key: time.Duration(i).String()})
		}
		if len(s.Done) > MaxDone {
			t.Fatalf("%d outcomes kept", len(s.Done))
		}
		for i := max(0, n-MaxDone); i < n; i++ {
			if _, ok := s.Outcome(time.Duration(i).String()); !ok {
				t.Fatalf("outcome %d of %d is forgotten", i, n)
			}
		}
	})
}

func TestRetryDelayGrowsToItsBound(t *testing.T) {
	last := time.Duration(0)
	for i := 1; i < 20; i++ {
		d := RetryDelay(i)
		if d < last || d < 30*time.Second || d > 5*time.Minute {
			t.Fatalf("round %d waits %s after %s", i, d, last)
		}
		last = d
	}
}

func TestForgetKeepsTheNameAndTheSequence(t *testing.T) {
	s := State{Name: "c", Row: api.Cluster{Name: "c", Hash: "h", Seq: 7, Status: api.ClusterUp}, Token: "h-1", Epoch: 3, Nodes: nodes(providers.NodeRunning)}
	s.Forget()
	if s.Exists() || s.Row.Seq != 7 || s.Row.Name != "c" || len(s.Nodes) != 0 || s.Token != "" || s.Epoch != 0 {
		t.Fatalf("left: %+v", s)
	}
}
