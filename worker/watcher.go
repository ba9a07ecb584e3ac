package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/config"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
)

// watcher holds the agents' event streams of the clusters this server has leased, and tells a cluster's workflow of
// changes only. It keeps no truth: what it knows can be found again from the watch rows.
type watcher struct {
	store     *store.Store
	providers *providers.Registry
	engine    client.Client
	log       *slog.Logger
	owner     string
	ttl       time.Duration
	limits    config.Health
	// stopSettle is how long nodes that are awaited must be listed as stopped before that is believed: a listing may be older
	// than the start.
	stopSettle time.Duration
	saver      *saver // of checkpoints; nil: they are not saved

	mu      sync.Mutex
	running map[string]*watch // by cluster hash
	wg      sync.WaitGroup
	// nodes are told by providers that report changes themselves.
	gone map[string]bool
}

type watch struct {
	row    activities.WatchRow
	fence  int64
	cancel context.CancelFunc
	raw    string
	// notices tells when a node goes, to the one who saves checkpoints; nil: nobody does.
	notices chan time.Time
}

// leaseTTL is how long a dead server's watches stay with it.
const leaseTTL = 15 * time.Second

func newWatcher(s *store.Store, p *providers.Registry, c client.Client, log *slog.Logger, owner string, limits config.Health) *watcher {
	return &watcher{limits: limits, stopSettle: 5 * time.Second, store: s, providers: p, engine: c, log: log, owner: owner, ttl: leaseTTL, running: map[string]*watch{}, gone: map[string]bool{}}
}

// run leases watches and serves them until ctx ends.
func (w *watcher) run(ctx context.Context) {
	changed, stop := w.store.Subscribe(store.WatchTopic)
	defer stop()
	for _, name := range w.providers.Names() {
		p, err := w.providers.Get(name)
		if err != nil {
			continue
		}
		f := providers.FeaturesOf(p)
		w.wg.Add(1)
		go func() {
			defer w.wg.Done()
			w.watchInfra(ctx, p, f)
		}()
	}
	renew := time.NewTicker(w.ttl / 3)
	defer renew.Stop()
	for {
		w.lease(ctx)
		select {
		case <-ctx.Done():
			w.wg.Wait()
			rctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			if err := w.store.ReleaseLeases(rctx, w.owner); err != nil {
				w.log.Warn("watches not released", "error", err)
			}
			return
		case <-renew.C:
		case <-changed:
		}
	}
}

// lease takes free watches, keeps those held, and drops those lost or changed.
func (w *watcher) lease(ctx context.Context) {
	held, err := w.store.RenewLeases(ctx, w.owner, w.ttl)
	if err != nil {
		if ctx.Err() == nil {
			w.log.Warn("leases not renewed", "error", err)
		}
		return
	}
	taken, err := w.store.LeaseWatches(ctx, w.owner, w.ttl, 10_000)
	if err != nil && ctx.Err() == nil {
		w.log.Warn("watches not leased", "error", err)
	}
	want := map[string]store.Watch{}
	for _, r := range append(held, taken...) {
		want[r.Hash] = r
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for hash, r := range w.running {
		now, ok := want[hash]
		if ok && string(now.Data) == r.raw && now.Fence == r.fence {
			continue
		}
		r.cancel()
		delete(w.running, hash)
	}
	for hash, r := range want {
		if w.running[hash] != nil {
			continue
		}
		var row activities.WatchRow
		if err := json.Unmarshal(r.Data, &row); err != nil {
			w.log.Error("watch row", "cluster", r.Cluster, "error", err)
			continue
		}
		wctx, cancel := context.WithCancel(ctx)
		one := &watch{row: row, fence: r.Fence, cancel: cancel, raw: string(r.Data)}
		w.running[hash] = one
		w.wg.Add(1)
		go func() {
			defer w.wg.Done()
			w.serve(wctx, one, r.Cursor)
		}()
	}
}

// serve watches one cluster: until it is ready, then its head's events.
func (w *watcher) serve(ctx context.Context, one *watch, cursor int64) {
	p, err := w.providers.Get(one.row.Provider)
	if err != nil {
		w.log.Error("watch", "cluster", one.row.Name, "error", err)
		return
	}
	if one.row.Provisioning {
		w.untilReady(ctx, p, one)
		return
	}
	f := providers.FeaturesOf(p)
	var wg sync.WaitGroup
	if one.row.Checkpoint != nil && w.saver != nil {
		one.notices = make(chan time.Time, 1)
		wg.Add(1)
		go func() {
			defer wg.Done()
			w.saver.loop(ctx, one.row, one.notices)
		}()
	}
	for _, n := range one.row.Nodes {
		if n.Rank != 0 && f.Confirms && one.notices == nil {
			continue // the infra tells when it is gone
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			w.follow(ctx, p, f, one, n, cursor)
		}()
	}
	wg.Wait()
}

// follow holds one node's event stream. The head's events are carried on; those of the others only show that they live.
func (w *watcher) follow(ctx context.Context, p providers.Provider, f providers.Features, one *watch, n providers.Node, cursor int64) {
	beat := time.Duration(0)
	if !f.Confirms {
		beat = beatUnconfirmed
	}
	h := &health{w: w, one: one, rank: n.Rank, confirms: f.Confirms}
	if n.Rank != 0 {
		cursor = 0
	}
	for pause := 100 * time.Millisecond; ctx.Err() == nil; pause = min(pause*2, 5*time.Second) {
		c, err := activities.NodeClient(ctx, p, n)
		if err == nil {
			ictx, cancel := context.WithTimeout(ctx, 5*time.Second)
			var info agentapi.Info
			if info, err = c.Info(ictx); err == nil {
				h.answers(ctx)
				pause = 100 * time.Millisecond
				if n.Rank != 0 {
					cursor = info.LastEvent
				}
				err = c.EventsEvery(ctx, cursor, beat, func(ev agentapi.Event) error {
					if n.Rank != 0 {
						if ev.Type == agentapi.EventNotice {
							one.notify(ev)
						}
						cursor = ev.Seq
						return nil
					}
					if err := w.event(ctx, one, ev); err != nil {
						return err
					}
					cursor = ev.Seq
					if err := w.store.AdvanceCursor(ctx, one.row.Ref.Hash, one.fence, cursor); err != nil {
						return err
					}
					ackCtx, cancel := context.WithTimeout(ctx, 5*time.Second)
					defer cancel()
					return c.Ack(ackCtx, cursor)
				})
			}
			cancel()
			c.Close()
		}
		if ctx.Err() != nil || errors.Is(err, store.ErrFenced) {
			return
		}
		if agentapi.IsKind(err, agentapi.KindConflict) {
			cursor = 0 // the agent began anew
			continue
		}
		h.silent(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// health is what a watcher knows of one node's silence.
type health struct {
	w               *watcher
	one             *watch
	rank            int
	confirms        bool
	since, looked   time.Time
	suspected, lost bool
}

// beatUnconfirmed is how often an agent shows that it lives where only its silence can tell that it does not.
const beatUnconfirmed = 3 * time.Second

func (h *health) answers(ctx context.Context) {
	if h.suspected || h.lost {
		h.tell(ctx, activities.ObservedAlive, "answers again")
	}
	h.since, h.suspected, h.lost = time.Time{}, false, false
}

// silent draws the consequences of a node that does not answer: where the infra can confirm, it is asked; elsewhere the node is a
// suspect at first and lost after a while.
func (h *health) silent(ctx context.Context) {
	now := time.Now()
	if h.since.IsZero() {
		h.since = now
	}
	quiet := now.Sub(h.since)
	if h.confirms {
		if quiet > 2*time.Second && now.Sub(h.looked) > 15*time.Second {
			h.looked = now
			h.w.look(ctx, h.one.row)
		}
		return
	}
	if quiet >= h.w.limits.SuspectAfter && !h.suspected {
		h.suspected = h.tell(ctx, activities.ObservedSuspect, "does not answer")
	}
	if quiet >= h.w.limits.LostAfter && !h.lost {
		h.lost = h.tell(ctx, activities.ObservedLost, "has been silent for "+quiet.Round(time.Second).String())
	}
}

func (h *health) tell(ctx context.Context, kind activities.ObservedKind, what string) bool {
	err := h.w.signal(ctx, h.one.row, activities.Observed{Hash: h.one.row.Ref.Hash, Kind: kind, Rank: h.rank, Message: what})
	if err != nil && ctx.Err() == nil {
		h.w.log.Warn("workflow not told", "cluster", h.one.row.Name, "error", err)
	}
	return err == nil
}

// event carries one agent event further: into the mirror, or to the cluster's workflow.
func (w *watcher) event(ctx context.Context, one *watch, ev agentapi.Event) error {
	hash := one.row.Ref.Hash
	switch ev.Type {
	case agentapi.EventJob:
		if ev.Job == nil {
			return nil
		}
		job := *ev.Job
		job.Cluster, job.ClusterHash = one.row.Name, hash
		b := store.Batch{Jobs: []store.JobsUpdate{{Cluster: one.row.Name, Hash: hash, Jobs: []api.Job{job}}}}
		if job.Status.Terminal() && !one.row.Jobs {
			b.Events = []store.Event{jobEnded(one.row.Name, hash, job)}
		}
		if err := w.store.Write(ctx, b); err != nil || !one.row.Jobs || !job.Status.Terminal() {
			return err
		}
		return w.signal(ctx, one.row, activities.Observed{Hash: hash, Kind: activities.ObservedJob, Job: &job})
	case agentapi.EventAutostop:
		if ev.Autostop == nil {
			return nil
		}
		return w.signal(ctx, one.row, activities.Observed{Hash: hash, Kind: activities.ObservedAutostop, Autostop: ev.Autostop.Generation, Down: ev.Autostop.Down, Message: ev.Message})
	case agentapi.EventNotice:
		one.notify(ev)
		return w.store.AppendEvents(ctx, store.Event{Key: hash + "/agent/" + time.Now().Format(time.RFC3339Nano), Event: api.Event{Time: ev.Time, Cluster: one.row.Name, Hash: hash, Kind: api.EventStatus, Step: "notice", Message: ev.Message}})
	}
	return nil
}

// jobEnded is what a cluster's timeline shows of a job's end, once however often the agent tells of it.
func jobEnded(name, hash string, j api.Job) store.Event {
	ev := api.Event{Cluster: name, Hash: hash, Kind: api.EventStatus, Step: "job", Message: fmt.Sprintf("job %d ended: %s", j.ID, j.Status)}
	if j.EndAt != nil {
		ev.Time = *j.EndAt
	}
	if j.Reason != "" {
		ev.Message += " (" + j.Reason + ")"
	}
	return store.Event{Key: fmt.Sprintf("%s/job/%d/ended", hash, j.ID), Event: ev}
}

// signal tells a cluster's workflow; a workflow that is gone needs no telling.
func (w *watcher) signal(ctx context.Context, row activities.WatchRow, o activities.Observed) error {
	id := row.Workflow
	if id == "" {
		id = activities.ClusterWorkflowID(row.Name)
	}
	err := w.engine.SignalWorkflow(ctx, id, "", activities.SignalObserved, o)
	var missing *serviceerror.NotFound
	if errors.As(err, &missing) {
		return nil
	}
	return err
}

func (w *watcher) look(ctx context.Context, row activities.WatchRow) {
	if err := w.signal(ctx, row, activities.Observed{Hash: row.Ref.Hash, Kind: activities.ObservedNodes}); err != nil && ctx.Err() == nil {
		w.log.Warn("workflow not told", "cluster", row.Name, "error", err)
	}
}

// untilReady polls the infra and the agents until every node answers, then says so once.
func (w *watcher) untilReady(ctx context.Context, p providers.Provider, one *watch) {
	var stopped time.Time
	for pause := 200 * time.Millisecond; ctx.Err() == nil; pause = min(pause*3/2, 5*time.Second) {
		nodes, err := p.List(ctx, one.row.Ref.Tag())
		if err == nil {
			verdict, _ := cluster.Judge(nodes, one.row.NumNodes)
			switch {
			case verdict != cluster.VerdictStopped:
				stopped = time.Time{}
			case stopped.IsZero():
				stopped = time.Now()
			}
			switch {
			case verdict == cluster.VerdictUp && w.answer(ctx, p, nodes):
				if err := w.signal(ctx, one.row, activities.Observed{Hash: one.row.Ref.Hash, Kind: activities.ObservedReady}); err == nil {
					return
				}
			case len(nodes) > 0 && (verdict == cluster.VerdictGone || verdict == cluster.VerdictUnhealthy) || !stopped.IsZero() && time.Since(stopped) > w.stopSettle:
				// They went away before they were ready: configuring tells which, and the launch goes on elsewhere.
				if err := w.signal(ctx, one.row, activities.Observed{Hash: one.row.Ref.Hash, Kind: activities.ObservedReady}); err == nil {
					return
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// answer says that every node's agent answers.
func (w *watcher) answer(ctx context.Context, p providers.Provider, nodes []providers.Node) bool {
	for _, n := range nodes {
		c, err := activities.NodeClient(ctx, p, n)
		if err != nil {
			return false
		}
		ictx, cancel := context.WithTimeout(ctx, 3*time.Second)
		_, err = c.Info(ictx)
		cancel()
		c.Close()
		if err != nil {
			return false
		}
	}
	return true
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
	told := w.gone[n.ID]
	bad := n.State == providers.NodeGone || n.State == providers.NodeStopped
	if bad {
		w.gone[n.ID] = true
	} else {
		delete(w.gone, n.ID)
	}
	w.mu.Unlock()
	if one == nil || !bad || told {
		return
	}
	w.look(ctx, one.row)
}
