package local

import (
	"context"
	"math"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/providers"
)

// ReasonPreempted is why a preempted node is gone.
const ReasonPreempted = "preempted"

// Preempt takes a spot node away as a cloud would: at once, or after a notice that its agent hears of. The end is
// written down, so that it comes also if this process does not live to see it.
func (p *Provider) Preempt(ctx context.Context, ref providers.ClusterRef, nodeID string, notice time.Duration) error {
	var told *record
	err := p.change(ctx, ref, []string{nodeID}, func(ctx context.Context, recs []*record) error {
		r := recs[0]
		if !r.Spec.Spot {
			return &providers.Error{Kind: providers.Invalid, Scope: providers.ScopeCloud, Msg: "local: node " + nodeID + " is not a spot node",
				Hint: "only spot nodes are preempted; launch with --use-spot"}
		}
		if st, _ := p.state(r, newTable()); st == providers.NodeGone || st == providers.NodeStopped {
			return nil
		}
		if notice <= 0 {
			return p.preemptNow(ctx, r)
		}
		if at := time.Now().Add(notice).UTC(); r.PreemptAt.IsZero() || at.Before(r.PreemptAt) {
			r.PreemptAt = at
			if err := r.save(); err != nil {
				return err
			}
		}
		told = r
		return nil
	})
	if err != nil || told == nil {
		return err
	}
	p.arm(told)
	c := agentapi.NewUnix(told.Socket)
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := c.Notice(ctx, int(math.Ceil(notice.Seconds()))); err != nil {
		p.log.Warn("local: the agent did not hear of its end", "node", nodeID, "err", err)
	}
	return nil
}

// preemptNow ends a node. The caller holds the cluster's lock.
func (p *Provider) preemptNow(ctx context.Context, r *record) error {
	r.Want, r.Reason = wantGone, ReasonPreempted
	if err := r.save(); err != nil {
		return err
	}
	return p.end(ctx, r, 0)
}

// arm sets the timer of a notice that runs; one per node.
func (p *Provider) arm(r *record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.closed:
		return
	default:
	}
	if t := p.timers[r.ID]; t != nil {
		t.Reset(time.Until(r.PreemptAt))
		return
	}
	ref, id := r.Cluster, r.ID
	p.timers[id] = time.AfterFunc(time.Until(r.PreemptAt), func() {
		p.disarm(id)
		err := p.change(context.Background(), ref, []string{id}, func(ctx context.Context, recs []*record) error {
			r := recs[0]
			if r.Want != wantRunning || r.PreemptAt.IsZero() || r.PreemptAt.After(time.Now()) {
				return nil // stopped, or started anew, meanwhile
			}
			return p.preemptNow(ctx, r)
		})
		if err != nil && !providers.Is(err, providers.NotFound) {
			p.log.Warn("local: preempt", "node", id, "err", err)
		}
	})
}

func (p *Provider) disarm(nodeID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.timers[nodeID]; t != nil {
		t.Stop()
		delete(p.timers, nodeID)
	}
}
