package worker

import (
	"context"
	"slices"
	"time"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/providers"
)

// untilReady looks at the infra and the agents until every node answers, then says so once. Where the infra reports changes it looks
// when there is one: a thousand clusters that take ten minutes to come up ask nothing meanwhile.
func (w *watcher) untilReady(ctx context.Context, p providers.Provider, f providers.Features, one *watch) {
	var stopped, mute time.Time // since when
	for pause := 200 * time.Millisecond; ctx.Err() == nil; pause = min(pause*3/2, 5*time.Second) {
		wait := pause
		nodes, err := p.List(ctx, one.row.Ref.Tag())
		if err == nil {
			verdict, _ := cluster.Judge(nodes, one.row.NumNodes)
			silent, quiet := 0, verdict == cluster.VerdictUp
			if quiet {
				silent, quiet = w.silent(ctx, p, nodes)
			}
			switch {
			case !quiet:
				mute = time.Time{}
			case mute.IsZero():
				mute = time.Now()
			case !f.Confirms && time.Since(mute) > w.limits.LostAfter+w.agentStart:
				o := activities.Observed{Hash: one.row.Ref.Hash, Kind: activities.ObservedSilent, Rank: silent, Message: "has been silent for " + time.Since(mute).Round(time.Second).String()}
				if err := w.signal(ctx, one.row, o); err == nil {
					return
				}
			}
			switch {
			case verdict != cluster.VerdictStopped:
				stopped = time.Time{}
			case stopped.IsZero():
				stopped = time.Now()
			}
			switch {
			case verdict == cluster.VerdictUp && !quiet,
				len(nodes) > 0 && (verdict == cluster.VerdictGone || verdict == cluster.VerdictUnhealthy) || !stopped.IsZero() && time.Since(stopped) > w.stopSettle:
				// Or they went away before they were ready: configuring tells which, and the launch goes on elsewhere.
				if err := w.signal(ctx, one.row, activities.Observed{Hash: one.row.Ref.Hash, Kind: activities.ObservedReady}); err == nil {
					return
				}
			case verdict != cluster.VerdictUp && verdict != cluster.VerdictStopped && f.Watch != nil:
				wait = unreported
				pause = 200 * time.Millisecond // the agents come soon after the nodes
			}
		}
		select {
		case <-ctx.Done():
		case <-one.stirred:
		case <-time.After(wait):
		}
	}
}

// unreported is how often a cluster that is being provisioned is looked at although its infra reported nothing.
const unreported = 30 * time.Second

// silent finds a node whose agent does not answer. False: there is none.
func (w *watcher) silent(ctx context.Context, p providers.Provider, nodes []providers.Node) (rank int, quiet bool) {
	for _, n := range nodes {
		c, err := activities.NodeClient(ctx, p, n)
		if err != nil {
			return n.Rank, true
		}
		ictx, cancel := context.WithTimeout(ctx, 3*time.Second)
		_, err = c.Info(ictx)
		cancel()
		c.Close()
		if err != nil {
			return n.Rank, true
		}
	}
	return 0, false
}

// watchInfra hears of nodes from their infra: as events where it has them, else by asking in bulk.
func (w *watcher) watchInfra(ctx context.Context, p providers.Provider, f providers.Features) {
	tag := providers.Tag{Installation: w.store.Installation()}
	for ctx.Err() == nil {
		if f.Watch != nil {
			if err := f.Watch.WatchNodes(ctx, tag, func(n providers.Node) { w.node(ctx, n) }); err != nil && ctx.Err() == nil {
				w.log.Warn("infra events", "infra", p.Name(), "error", err)
			}
		} else if w.has(p.Name()) {
			nodes, err := p.List(ctx, tag)
			if err == nil {
				for _, n := range nodes {
					w.node(ctx, n)
				}
			}
		}
		wait := time.Second
		if f.Watch == nil {
			wait = 30 * time.Second
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// has says that a cluster on the infra is watched.
func (w *watcher) has(provider string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.running {
		if r.row.Provider == provider {
			return true
		}
	}
	return false
}

// node tells the owner of a node that is no longer what it was.
func (w *watcher) node(ctx context.Context, n providers.Node) {
	w.mu.Lock()
	one := w.running[n.Cluster.Hash]
	told := !w.gone[n.ID].IsZero()
	bad := n.State == providers.NodeGone || n.State == providers.NodeStopped
	if !bad {
		delete(w.gone, n.ID)
	} else if !told {
		w.gone[n.ID] = time.Now()
	}
	w.mu.Unlock()
	switch {
	case one == nil:
	case one.row.Provisioning:
		select {
		case one.stirred <- struct{}{}:
		default:
		}
	case bad && !told && one.row.Jobs:
		// Mostly it is its own workflow that takes the cluster down: a moment later nobody watches it any more. Nodes that go
		// together are told of once.
		if !one.looking.Swap(true) {
			time.AfterFunc(lookAfter, func() {
				one.looking.Store(false)
				if one.ctx.Err() == nil && !one.settled.Load() {
					w.look(one.ctx, one.row)
				}
			})
		}
	case bad && !told:
		w.look(ctx, one.row)
	}
}

// lookAfter is how long the going of a managed job's node is left alone.
const lookAfter = 250 * time.Millisecond

// missing says that the infra has reported that a node of a cluster is gone.
func (w *watcher) missing(one *watch) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(one.row.Nodes, func(n providers.Node) bool { return w.gone[n.ID].After(n.CreatedAt) })
}
