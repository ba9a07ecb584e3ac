package worker

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/skyloom/skyloom/activities"
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
