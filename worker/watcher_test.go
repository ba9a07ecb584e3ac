package worker

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/config"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
)

// listed is an infra that lists nodes in one state.
type listed struct {
	providers.Provider
	state atomic.Value
}

func (l *listed) List(context.Context, providers.Tag) ([]providers.Node, error) {
	return []providers.Node{{ID: "n0", State: l.state.Load().(providers.NodeState)}}, nil
}

// hears takes the signals of workflows.
type hears struct {
	client.Client
	told chan activities.Observed
}

func (h hears) SignalWorkflow(_ context.Context, _, _, _ string, arg any) error {
	h.told <- arg.(activities.Observed)
	return nil
}

// TestAwaitedNodesStop: a machine that is restarted while a launch waits for it lists its node as stopped, for ever. The
// launch hears of it; but not at once, since a listing may be older than the start of the node.
func TestAwaitedNodesStop(t *testing.T) {
	h := hears{told: make(chan activities.Observed, 1)}
	w := &watcher{engine: h, log: slog.New(slog.DiscardHandler), stopSettle: time.Second}
	p := &listed{}
	p.state.Store(providers.NodeStopped)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	began := time.Now()
	go w.untilReady(ctx, p, providers.Features{}, &watch{row: activities.WatchRow{Name: "c", NumNodes: 1, Provisioning: true}})
	select {
	case o := <-h.told:
		if o.Kind != activities.ObservedReady || time.Since(began) < time.Second {
			t.Errorf("told %q after %v", o.Kind, time.Since(began))
		}
	case <-ctx.Done():
		t.Fatal("nobody is told that the node has stopped")
	}
	p.state.Store(providers.NodePending)
	go w.untilReady(ctx, p, providers.Features{}, &watch{row: activities.WatchRow{Name: "d", NumNodes: 1, Provisioning: true}})
	select {
	case o := <-h.told:
		t.Errorf("told %q of a node that is on its way", o.Kind)
	case <-time.After(3 * time.Second):
	}
}

// TestAwaitedNodeIsSilent: a machine falls silent while a launch waits for its node. Its infra lists the node as last known; the
// launch hears of it once the node has been silent for as long as one may be.
func TestAwaitedNodeIsSilent(t *testing.T) {
	h := hears{told: make(chan activities.Observed, 1)}
	w := &watcher{engine: h, log: slog.New(slog.DiscardHandler), stopSettle: time.Second, agentStart: 200 * time.Millisecond, limits: config.Health{LostAfter: 300 * time.Millisecond}}
	p := &mute{}
	p.state.Store(providers.NodeRunning)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	row := activities.WatchRow{Name: "c", NumNodes: 1, Provisioning: true}
	began := time.Now()
	go w.untilReady(ctx, p, providers.Features{}, &watch{row: row})
	select {
	case o := <-h.told:
		if o.Kind != activities.ObservedSilent || time.Since(began) < 500*time.Millisecond {
			t.Errorf("told %q after %v", o.Kind, time.Since(began))
		}
	case <-ctx.Done():
		t.Fatal("nobody is told that the node is silent")
	}
	// An infra that can confirm is believed.
	short, stop := context.WithTimeout(ctx, 2*time.Second)
	defer stop()
	w.untilReady(short, p, providers.Features{Confirms: true}, &watch{row: row})
	select {
	case o := <-h.told:
		t.Errorf("told %q of a node that its infra says is running", o.Kind)
	default:
	}
}

// mute is an infra whose nodes can't be reached.
type mute struct{ listed }

func (*mute) Transport(context.Context, providers.Node) (providers.Transport, error) {
	return nil, errors.New("no way there")
}

// TestSuspicionOutlivesItsServer: the server that told of a node's silence is gone when the node answers again. The next one
// tells that it does, until somebody hears it.
func TestSuspicionOutlivesItsServer(t *testing.T) {
	st, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "sky.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	put := func(seq int64, reason string) {
		row := api.Cluster{Name: "c", Hash: "h", Seq: seq, Status: api.ClusterUp, StatusReason: reason, Workspace: "default"}
		if err := st.Write(t.Context(), store.Batch{Clusters: []api.Cluster{row}}); err != nil {
			t.Fatal(err)
		}
	}
	put(1, cluster.SilentReason(cluster.Suspect, 1, "does not answer"))
	h := hears{told: make(chan activities.Observed, 9)}
	w := &watcher{engine: h, store: st, log: slog.New(slog.DiscardHandler)}
	one := func(hash string, jobs bool) *watch {
		r := activities.WatchRow{Name: "c", Jobs: jobs}
		r.Ref.Hash = hash
		return &watch{row: r}
	}
	for _, c := range []struct {
		why  string
		h    health
		want int
	}{
		{"it is shown as silent", health{one: one("h", false), rank: 1}, 1},
		{"another node is", health{one: one("h", false), rank: 0}, 0},
		{"an earlier incarnation was", health{one: one("i", false), rank: 1}, 0},
		{"its infra confirms", health{one: one("h", false), rank: 1, confirms: true}, 0},
	} {
		c.h.w = w
		if !c.h.answers(t.Context()) || !c.h.answers(t.Context()) || len(h.told) != c.want {
			t.Errorf("%s: told %d times", c.why, len(h.told))
		}
		for len(h.told) > 0 {
			if o := <-h.told; o.Kind != activities.ObservedAlive || o.Rank != 1 {
				t.Errorf("%s: told %q of node %d", c.why, o.Kind, o.Rank)
			}
		}
	}
	// Who can't be told is told the next time.
	w.engine = deaf{}
	late := &health{w: w, one: one("h", false), rank: 1}
	if late.answers(t.Context()) {
		t.Error("an engine that is away has taken the word")
	}
	w.engine = h
	if !late.answers(t.Context()) || len(h.told) != 1 {
		t.Errorf("told %d times", len(h.told))
	}
}

// deaf is an engine that is away.
type deaf struct{ client.Client }

func (deaf) SignalWorkflow(context.Context, string, string, string, any) error {
	return errors.New("no connection")
}
