package local

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/skyloom/skyloom/agent/proctree"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/providers"
)

// stopGrace is what jobs get between SIGTERM and SIGKILL when a node stops: the agent's own grace and a little more.
const stopGrace = 6 * time.Second

// List returns every node under the tag. On the way it takes up what a killed process left half done.
func (p *Provider) List(ctx context.Context, tag providers.Tag) ([]providers.Node, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	recs, err := p.tagged(tag)
	if err != nil {
		return nil, err
	}
	return p.observe(recs, newTable()), nil
}

// tagged gives the records of an installation's nodes, or of one of its clusters.
func (p *Provider) tagged(tag providers.Tag) ([]*record, error) {
	recs, err := p.records(tag.ClusterHash)
	return slices.DeleteFunc(recs, func(r *record) bool { return r.Cluster.Installation != tag.Installation }), err
}

// observe says how nodes are, and goes on with what was begun with them.
func (p *Provider) observe(recs []*record, procs *table) []providers.Node {
	out := []providers.Node{}
	for _, r := range recs {
		st, reason := p.state(r, procs)
		out = append(out, r.node(st, reason))
		switch {
		case st == providers.NodeStopping:
			p.background(r.Cluster)
		case !r.PreemptAt.IsZero() && st == providers.NodeRunning:
			p.arm(r)
		}
	}
	return out
}

// Delete ends nodes for good and removes their files. It answers once their processes are gone.
func (p *Provider) Delete(ctx context.Context, ref providers.ClusterRef, nodeIDs []string) error {
	return p.change(ctx, ref, nodeIDs, func(ctx context.Context, recs []*record) error {
		err := each(recs, func(r *record) error { return p.remove(ctx, r) })
		if !exists(p.clusterDir(ref)) {
			os.Remove(filepath.Join(p.root, "locks", lockName(ref)))
		}
		p.forgetSockets(ctx)
		return err
	})
}

// Stop ends the nodes' processes and keeps their files; GPUs are given back.
func (p *Provider) Stop(ctx context.Context, ref providers.ClusterRef, nodeIDs []string) error {
	return p.change(ctx, ref, nodeIDs, func(ctx context.Context, recs []*record) error {
		procs := newTable()
		var stop []*record
		for _, r := range recs {
			if st, _ := p.state(r, procs); st == providers.NodeGone {
				continue
			}
			r.Want = wantStopped
			if err := r.save(); err != nil {
				return err
			}
			stop = append(stop, r)
		}
		if err := failpoint.Hit(fpStopping); err != nil {
			return internal(err, "stop %s", ref.NameOnCloud())
		}
		return each(stop, func(r *record) error { return p.end(ctx, r, stopGrace) })
	})
}

// Start brings the stopped nodes back under the same ids; running ones stay.
func (p *Provider) Start(ctx context.Context, ref providers.ClusterRef, token string, src providers.AgentSource) ([]providers.Node, error) {
	var out []providers.Node
	err := p.change(ctx, ref, nil, func(ctx context.Context, recs []*record) error {
		procs := newTable()
		var start []*record
		for _, r := range recs {
			switch st, reason := p.state(r, procs); st {
			case providers.NodeGone:
				return &providers.Error{Kind: providers.Conflict, Scope: providers.ScopeCloud, Msg: "local: node " + r.ID + " is gone (" + reason + ") and cannot be started",
					Hint: "take the cluster down and launch it again"}
			case providers.NodeStopping, providers.NodeStopped, providers.NodePending:
				start = append(start, r)
			case providers.NodeRunning:
				if err := p.adopt(r, procs); err != nil {
					return err
				}
			}
		}
		if len(start) > 0 {
			agent, err := p.program(src)
			if err != nil {
				return err
			}
			if err := each(start, func(r *record) error { return p.end(ctx, r, stopGrace) }); err != nil {
				return err
			}
			if err := p.reserve(ctx, start, token); err != nil {
				return err
			}
			if err := failpoint.Hit(fpStarting); err != nil {
				return internal(err, "start %s", ref.NameOnCloud())
			}
			for _, r := range start {
				if err := p.spawn(r, agent); err != nil {
					for _, s := range start { // all or none
						s.Want = wantStopped
						s.save()
						p.end(ctx, s, 0)
					}
					return err
				}
			}
		}
		out = p.tell(recs, newTable())
		return nil
	})
	return out, err
}

// adopt writes down the process of a node whose starter was killed before it could.
func (p *Provider) adopt(r *record, procs *table) error {
	proc := p.findInit(r, procs)
	if proc == nil || r.Init.PID != 0 && r.StartingAt.IsZero() {
		return nil
	}
	r.Init, r.StartingAt = *proc, time.Time{}
	return r.save()
}

// reserve takes GPUs for nodes that come back, and writes down that they shall run.
func (p *Provider) reserve(ctx context.Context, recs []*record, token string) error {
	unlock, err := p.lock(ctx, "root")
	if err != nil {
		return err
	}
	defer unlock()
	all, err := p.records("")
	if err != nil {
		return err
	}
	gpus, held, err := p.pick(ctx, p.hardware(ctx), all, len(recs), recs[0].Spec)
	if err != nil {
		return err
	}
	defer held.close()
	for i, r := range recs {
		r.Want, r.Reason, r.StartToken, r.Devices, r.PreemptAt, r.StartingAt = wantRunning, "", token, gpus[i], time.Time{}, time.Now().UTC()
		if err := r.save(); err != nil {
			return err
		}
	}
	return held.put(proctree.Self(), recs...)
}

// change runs f on nodes of a cluster under its lock. It goes on if the caller gives up: what was begun must end.
func (p *Provider) change(ctx context.Context, ref providers.ClusterRef, ids []string, f func(context.Context, []*record) error) error {
	if err := checkRef(ref); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := p.members(ref, ids); err != nil { // without making a lock for nothing
		return err
	}
	unlock, err := p.lock(ctx, lockName(ref))
	if err != nil {
		return err
	}
	recs, err := p.members(ref, ids)
	if err != nil {
		unlock()
		return err
	}
	done := make(chan error, 1)
	go func() {
		err := f(context.WithoutCancel(ctx), recs)
		unlock()
		p.notify()
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return &providers.Error{Kind: providers.UnknownOutcome, Scope: providers.ScopeCloud, Msg: "local: the operation on " + ref.NameOnCloud() + " goes on", Err: ctx.Err()}
	}
}

// each runs f for all records at once and gives the first error.
func each(recs []*record, f func(*record) error) error {
	errs := make(chan error, len(recs))
	for _, r := range recs {
		go func() { errs <- f(r) }()
	}
	var first error
	for range recs {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// background finishes what a killed process began: nodes that shall not run and still do. It also ends what outlived the
// init of a plain process tree, so that "gone" means that nothing of the node runs.
func (p *Provider) background(ref providers.ClusterRef) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.closed:
		return
	default:
	}
	if p.busy[ref.NameOnCloud()] {
		return
	}
	p.busy[ref.NameOnCloud()] = true
	go func() {
		err := p.change(context.Background(), ref, nil, func(ctx context.Context, recs []*record) error {
			return each(recs, func(r *record) error {
				switch {
				case r.Want == wantStopped && p.findInit(r, newTable()) != nil:
					return p.end(ctx, r, stopGrace)
				case r.Want == wantGone && p.findInit(r, newTable()) != nil:
					return p.end(ctx, r, 0)
				}
				if st, _ := p.state(r, newTable()); st != providers.NodeStopping {
					return nil
				}
				if err := p.end(ctx, r, 0); err != nil {
					return err
				}
				r.Buried = true
				return r.save()
			})
		})
		if err != nil && !providers.Is(err, providers.NotFound) {
			p.log.Warn("local: finish what was begun", "cluster", ref.NameOnCloud(), "err", err)
		}
		p.mu.Lock()
		delete(p.busy, ref.NameOnCloud())
		p.mu.Unlock()
	}()
}
