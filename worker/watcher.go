package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
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
	// agentStart is what an agent may take to answer on a node that runs, beside the silence that is borne with one that did.
	agentStart time.Duration
	saver      *saver // of checkpoints; nil: they are not saved
	home       string // where logs of managed jobs are kept while they run; empty: they are not

	mu      sync.Mutex
	running map[string]*watch // by cluster hash
	wg      sync.WaitGroup
	// gone are the nodes that their infra reported as gone or stopped, and when.
	gone map[string]time.Time
}

type watch struct {
	row    activities.WatchRow
	fence  int64
	cancel context.CancelFunc
	sum    uint64 // of the row as it is stored
	// stirred rings when the infra told something of a cluster that is being provisioned.
	stirred chan struct{}
	// settled says that the last thing heard of a managed job's cluster is that its job has ended: the workflow looks at the nodes
	// itself, and then takes them down, so that their going is no news.
	settled atomic.Bool
	looking atomic.Bool     // soon the workflow is told to look at the nodes
	ctx     context.Context // of the watch
	// notices tells when a node goes, to the one who saves checkpoints; nil: nobody does.
	notices chan time.Time
}

const (
	// leaseTTL is how long a dead server's watches stay with it.
	leaseTTL = 15 * time.Second
	// soleTTL is that of a server that shares its watches with no other, and takes them up again after a crash.
	soleTTL = 10 * time.Minute
	// goneKept is how long a node is known to be gone, for watches that begin a moment later.
	goneKept = 15 * time.Minute
)

// rowSeed makes sums of stored rows.
var rowSeed = maphash.MakeSeed()

func newWatcher(s *store.Store, p *providers.Registry, c client.Client, log *slog.Logger, owner string, limits config.Health) *watcher {
	return &watcher{limits: limits, stopSettle: 5 * time.Second, agentStart: 45 * time.Second, store: s, providers: p, engine: c, log: log, owner: owner, ttl: leaseTTL, running: map[string]*watch{}, gone: map[string]time.Time{}}
}

// run leases watches and serves them until ctx ends.
func (w *watcher) run(ctx context.Context) {
	changes, stop := w.store.WatchChanges()
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
	w.lease(ctx)
	for {
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
			w.lease(ctx)
		case <-changes.C:
			w.change(ctx, changes.Take())
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
	for hash := range w.running {
		if _, ok := want[hash]; !ok {
			w.drop(hash)
		}
	}
	for _, r := range want {
		w.hold(ctx, r)
	}
	for id, at := range w.gone {
		if time.Since(at) > goneKept {
			delete(w.gone, id)
		}
	}
}

// change takes up what became of single watches, without reading the others.
func (w *watcher) change(ctx context.Context, hashes []string) {
	taken, err := w.store.LeaseWatches(ctx, w.owner, w.ttl, 10_000)
	if err != nil && ctx.Err() == nil {
		w.log.Warn("watches not leased", "error", err)
	}
	fresh := map[string]store.Watch{}
	for _, r := range taken {
		fresh[r.Hash] = r
	}
	for _, hash := range hashes {
		if _, ok := fresh[hash]; ok {
			continue
		}
		r, err := w.store.Watch(ctx, hash)
		switch {
		case errors.Is(err, store.ErrNotFound):
			w.mu.Lock()
			w.drop(hash)
			w.mu.Unlock()
		case err != nil:
			if ctx.Err() == nil {
				w.log.Warn("watch not read", "error", err) // the next renewal sees it
			}
		case r.Owner == w.owner:
			fresh[hash] = r
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range fresh {
		w.hold(ctx, r)
	}
}

// drop ends a watch. The caller holds the lock.
func (w *watcher) drop(hash string) {
	if r := w.running[hash]; r != nil {
		r.cancel()
		delete(w.running, hash)
	}
}

// hold serves a watch as its row says now. The caller holds the lock.
func (w *watcher) hold(ctx context.Context, r store.Watch) {
	sum := maphash.Bytes(rowSeed, r.Data)
	if was := w.running[r.Hash]; was != nil {
		if was.sum == sum && was.fence == r.Fence {
			return
		}
		w.drop(r.Hash)
	}
	one := &watch{fence: r.Fence, sum: sum, stirred: make(chan struct{}, 1)}
	if err := json.Unmarshal(r.Data, &one.row); err != nil {
		w.log.Error("watch row", "cluster", r.Cluster, "error", err)
		return
	}
	one.ctx, one.cancel = context.WithCancel(ctx)
	w.running[r.Hash] = one
	w.wg.Add(1)
	go func() {
		defer w.wg.Done()
		w.serve(one.ctx, one, r.Cursor)
	}()
}

// serve watches one cluster: until it is ready, then its head's events.
func (w *watcher) serve(ctx context.Context, one *watch, cursor int64) {
	p, err := w.providers.Get(one.row.Provider)
	if err != nil {
		w.log.Error("watch", "cluster", one.row.Name, "error", err)
		return
	}
	f := providers.FeaturesOf(p)
	if one.row.Provisioning {
		w.untilReady(ctx, p, f, one)
		return
	}
	if w.missing(one) {
		w.look(ctx, one.row)
	}
	var wg sync.WaitGroup
	if one.row.Checkpoint != nil && w.saver != nil {
		one.notices = make(chan time.Time, 1)
		wg.Add(1)
		go func() {
			defer wg.Done()
			w.saver.loop(ctx, one.row, one.notices)
		}()
	}
	var followed []providers.Node
	for _, n := range one.row.Nodes {
		if n.Rank != 0 && f.Confirms && one.notices == nil && one.row.Log == nil && one.row.Array == 0 {
			continue // the infra tells when it is gone
		}
		followed = append(followed, n)
	}
	if len(followed) == 1 && one.notices == nil {
		w.follow(ctx, p, f, one, followed[0], cursor) // most have one: it needs no goroutine of its own
		return
	}
	for _, n := range followed {
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
	beat := beatConfirmed
	if !f.Confirms {
		beat = beatUnconfirmed
	}
	h := &health{w: w, one: one, rank: n.Rank, confirms: f.Confirms}
	kept, batches := w.logOf(one, n.Rank), w.batchesOf(one, n.Rank)
	if n.Rank != 0 {
		cursor = 0
	}
	for pause := 100 * time.Millisecond; ctx.Err() == nil; pause = min(pause*2, 5*time.Second) {
		c, err := activities.NodeClient(ctx, p, n)
		if err == nil {
			ictx, cancel := context.WithTimeout(ctx, 5*time.Second)
			var info agentapi.Info
			if info, err = c.Info(ictx); err == nil && h.answers(ctx) {
				pause = 100 * time.Millisecond
				if n.Rank != 0 {
					cursor = info.LastEvent
				}
				c.Close() // the stream has a connection of its own
				elements := w.elements(ctx, c, one, n.Rank, cursor)
				output := kept.follow()
				if batches != nil {
					output = batches.follow()
				}
				err = c.EventsAndLog(ctx, cursor, beat, output, func(ev agentapi.Event) error {
					if ev.Type == agentapi.EventLog {
						kept.take(ev.Log)
						batches.take(ev.Output)
						return nil
					}
					if elements != nil {
						return elements.take(ctx, ev)
					}
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
				cursor = elements.close(cursor)
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
	told            time.Time // that it is lost
	recalled        bool
}

const (
	// beatUnconfirmed is how often an agent shows that it lives where only its silence can tell that it does not.
	beatUnconfirmed = 3 * time.Second
	// beatConfirmed is how often it does where the infra tells; with thousands of agents each beat counts.
	beatConfirmed = time.Minute
)

// answers takes note that the node answers. False: whoever took it for silent could not be told, and is to be told again.
func (h *health) answers(ctx context.Context) bool {
	h.since = time.Time{}
	h.recall(ctx)
	if (h.suspected || h.lost) && !h.tell(ctx, activities.ObservedAlive, "answers again") {
		return false
	}
	h.suspected, h.lost = false, false
	return true
}

// recall finds out once whether a watcher before this one, of a server that has died say, has told that the node is silent.
func (h *health) recall(ctx context.Context) {
	if h.recalled || h.confirms || h.one.row.Jobs {
		h.recalled = true // nobody was told, or nobody shows it
		return
	}
	row, err := h.w.store.Cluster(ctx, h.one.row.Name)
	if err != nil {
		h.recalled = errors.Is(err, store.ErrNotFound)
		return
	}
	h.recalled = true
	if row.Hash == h.one.row.Ref.Hash && cluster.ShownSilent(row.StatusReason, h.rank) {
		h.suspected = true
	}
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
	// A managed job's workflow looks for itself, and may find that it answers just then: it is told again if it does not.
	if quiet >= h.w.limits.LostAfter && (!h.lost || h.one.row.Jobs && now.Sub(h.told) >= h.w.limits.LostAfter) {
		h.lost, h.told = h.tell(ctx, activities.ObservedLost, "has been silent for "+quiet.Round(time.Second).String()), now
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
		ended := one.row.Jobs && job.Status.Terminal()
		if one.settled.Swap(ended) && !ended && w.missing(one) {
			w.look(ctx, one.row) // a restarted job, on nodes that went just before
		}
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
