package activities

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"go.temporal.io/sdk/testsuite"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/recovery"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
)

// hosts are an infra of two nodes that lists them as last known; those that are mute can't be reached.
type hosts struct {
	providers.Provider
	addr string
	mute map[int]bool
}

func (*hosts) Name() string { return "hosts" }

func (h *hosts) List(context.Context, providers.Tag) ([]providers.Node, error) { return h.nodes(), nil }

func (*hosts) nodes() []providers.Node {
	ref := providers.ClusterRef{Name: "c", Hash: "h"}
	return []providers.Node{{ID: "n0", Cluster: ref, State: providers.NodeRunning}, {ID: "n1", Rank: 1, Cluster: ref, State: providers.NodeRunning}}
}

func (h *hosts) Transport(_ context.Context, n providers.Node) (providers.Transport, error) {
	if h.mute[n.Rank] {
		return nil, errors.New("no way there")
	}
	return wire(h.addr), nil
}

type wire string

func (w wire) DialAgent(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", string(w))
}

func (wire) Close() error { return nil }

// Where the infra can't tell whether a silent node lives, the node itself is asked once more: the head's answer says nothing of another.
func TestJudgeAsksTheSilentNode(t *testing.T) {
	st, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "sky.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/jobs/1") {
			_ = json.NewEncoder(w).Encode(api.Job{ID: 1, Status: api.JobRunning})
			return
		}
		_ = json.NewEncoder(w).Encode(agentapi.Info{})
	}))
	defer srv.Close()
	h := &hosts{addr: srv.Listener.Addr().String()}
	a := &Activities{Store: st, Providers: providers.NewRegistry(h)}
	const lost = "node 1 has been silent for 5m0s"
	for _, c := range []struct {
		name  string
		mute  map[int]bool
		lost  string
		ranks []int
		gone  bool
	}{
		{"nothing was heard", map[int]bool{1: true}, "", nil, false},
		{"it is silent", map[int]bool{1: true}, lost, []int{1}, true},
		{"it answers", nil, lost, []int{1}, false},
		{"another is silent", map[int]bool{1: true}, lost, []int{0}, false},
		{"one of two is", map[int]bool{1: true}, lost, []int{0, 1}, true},
		{"the head is", map[int]bool{0: true}, lost, []int{0}, true},
		{"the head is, told by an older server", map[int]bool{0: true}, lost, nil, true},
	} {
		h.mute = c.mute
		var env testsuite.WorkflowTestSuite
		e := env.NewTestActivityEnvironment()
		e.RegisterActivity(a.Judge)
		e.RegisterActivity(a.LookAtLane)
		e.RegisterActivity(a.Inspect)
		nodes := NodesInput{Provider: "hosts", Ref: h.nodes()[0].Cluster, Nodes: h.nodes(), NumNodes: 2}
		got, err := e.ExecuteActivity(a.Judge, JudgeInput{Lost: c.lost, LostRanks: c.ranks, Outcome: JobOutcomeInput{Nodes: nodes, JobID: 1}})
		var out JudgeOutput
		if err == nil {
			err = got.Get(&out)
		}
		if err != nil || out.GoesOn == c.gone || c.gone && (out.Decision.Move != recovery.Recover || out.Decision.Reason != lost) {
			t.Errorf("%s: %v %+v", c.name, err, out)
		}
		got, err = e.ExecuteActivity(a.LookAtLane, LookInput{Lost: c.lost, LostRanks: c.ranks, Nodes: nodes, Batches: []int64{1}})
		var lane LookOutput
		if err == nil {
			err = got.Get(&lane)
		}
		if err != nil || (lane.Lost != "") != c.gone {
			t.Errorf("%s, of an array: %v %+v", c.name, err, lane)
		}
		// That a node runs is only what was known last: whoever wants to know for sure has it asked.
		for _, nodes.Ask = range []bool{false, true} {
			got, err = e.ExecuteActivity(a.Inspect, nodes)
			var seen NodesOutput
			if err == nil {
				err = got.Get(&seen)
			}
			if err != nil || seen.Verdict != cluster.VerdictUp || seen.Silent != (nodes.Ask && len(c.mute) > 0) {
				t.Errorf("%s, asked %v: %v %+v", c.name, nodes.Ask, err, seen)
			}
		}
	}
}
