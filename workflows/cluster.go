package workflows

import (
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/store"
)

// Cluster owns a cluster name: it carries out one operation at a time, hears of what happens to the nodes, and ends
// once the cluster is down and nobody asks for more.
func Cluster(ctx workflow.Context, st cluster.State) error {
	e := newEntity(ctx, st)
	return e.run()
}

// entity is the workflow's memory while it runs; what outlives it is in machine.st. Each coroutine has a view of its
// own (see in): blocking calls must be made with the context of the coroutine they are made in.
type entity struct {
	machine
	*desk
	// unsure says that the view's operation ended without knowing whether its job was submitted.
	unsure bool
}

// desk is what all views of an entity share.
type desk struct {
	queue []cluster.Op
	cur   *running
	// side counts what runs beside the current operation; sides are the operations among it: cancelling jobs, preempting.
	side  int
	sides []*running
	done  workflow.Channel
	// gate lets signals in one by one, in their order.
	gate workflow.Mutex
	// lookAgain says that a node changed while an operation ran.
	lookAgain bool
	// gone says that the cluster ended while this workflow ran, so that a second down has nothing to complain of.
	gone bool
}

// running is the operation that holds the cluster, or one beside it.
type running struct {
	op        cluster.Op
	cancelled bool
	why       string
	cancel    workflow.CancelFunc
}

// ends says that the operation takes the nodes away.
func (r *running) ends() bool { return r.op.Kind == cluster.OpDown || r.op.Kind == cluster.OpStop }

func newEntity(ctx workflow.Context, st cluster.State) *entity {
	root, _ := workflow.NewDisconnectedContext(ctx)
	e := &entity{machine: machine{st: &st, outer: ctx, root: root, prefix: workflow.GetInfo(ctx).FirstRunID, shared: &shared{under: map[string]bool{}}}, desk: &desk{}}
	e.queue, st.Queue = st.Queue, nil
	e.done, e.gate = workflow.NewBufferedChannel(root, 16), workflow.NewMutex(root)
	if st.Born.IsZero() {
		st.Born = workflow.Now(ctx)
	}
	e.machine.halted = func() bool { return e.cur != nil && e.cur.cancelled }
	if st.Row.Name == "" {
		st.Row.Name = st.Name
	}
	return e
}

// in is the entity as seen from the coroutine that ctx belongs to.
func (e *entity) in(ctx workflow.Context) *entity {
	v := *e
	v.root, _ = workflow.NewDisconnectedContext(ctx)
	return &v
}

func (e *entity) run() error {
	err := workflow.SetQueryHandler(e.root, activities.QueryState, func() (activities.Owned, error) {
		return activities.Owned{Hash: e.st.Ref.Hash, Token: e.st.Token, Status: e.st.Row.Status, Provider: e.st.Provider, Nodes: e.st.Nodes, Row: e.st.Row}, nil
	})
	if err != nil {
		return err
	}
	ops := workflow.GetSignalChannel(e.outer, activities.SignalOp)
	cancels := workflow.GetSignalChannel(e.outer, activities.SignalCancel)
	seen := workflow.GetSignalChannel(e.outer, activities.SignalObserved)
	sel := workflow.NewSelector(e.root)
	sel.AddReceive(ops, func(c workflow.ReceiveChannel, _ bool) {
		var op cluster.Op
		c.Receive(e.root, &op)
		e.later("accept "+string(op.Kind), func(e *entity) {
			if !e.stale(op) {
				e.accept(op)
			}
		})
	})
	sel.AddReceive(cancels, func(c workflow.ReceiveChannel, _ bool) {
		var key string
		c.Receive(e.root, &key)
		e.later("cancel", func(e *entity) { e.cancelOp(key, "the request was cancelled") })
	})
	sel.AddReceive(seen, func(c workflow.ReceiveChannel, _ bool) {
		var o activities.Observed
		c.Receive(e.root, &o)
		e.later("observed "+string(o.Kind), func(e *entity) { e.observe(o) })
	})
	sel.AddReceive(e.done, func(c workflow.ReceiveChannel, _ bool) { c.Receive(e.root, nil) })
	killed := workflow.NewBufferedChannel(e.root, 1)
	workflow.GoNamed(e.root, "cancelled", func(ctx workflow.Context) {
		e.outer.Done().Receive(ctx, nil)
		killed.SendAsync(nil)
	})
	sel.AddReceive(killed, func(c workflow.ReceiveChannel, _ bool) {
		c.Receive(e.root, nil) // somebody cancelled the workflow itself: take the cluster down, in order
		e.accept(cluster.Op{Key: e.key("cancelled"), Kind: cluster.OpDown, Body: []byte("{}"), Quiet: true})
	})
	var alarm workflow.CancelFunc
	var alarmAt time.Time
	for {
		e.wake()
		e.next()
		if e.cur == nil && e.side == 0 && len(e.queue) == 0 {
			if sel.HasPending() {
				sel.Select(e.root)
				continue
			}
			if !e.st.Exists() && len(e.st.Waiting) == 0 {
				return nil
			}
			if e.full() {
				return workflow.NewContinueAsNewError(e.outer, Cluster, *e.st)
			}
		}
		// One timer for the next waiting launch.
		if due := e.due(); !due.Equal(alarmAt) {
			if alarm != nil {
				alarm()
				alarm = nil
			}
			alarmAt = due
			if !due.IsZero() {
				tctx, stop := workflow.WithCancel(e.root)
				alarm = stop
				f := workflow.NewTimerWithOptions(tctx, due.Sub(workflow.Now(e.root)), workflow.TimerOptions{Summary: "next try of a waiting launch"})
				sel.AddFuture(f, func(workflow.Future) {})
			}
		}
		sel.Select(e.root)
	}
}

// full says that the history has grown enough to begin a new one.
func (e *entity) full() bool {
	info := workflow.GetInfo(e.root)
	return info.GetContinueAsNewSuggested() || info.GetCurrentHistoryLength() > HistoryLimit
}

// due is when the first waiting launch tries again; zero: none waits.
func (e *entity) due() time.Time {
	var t time.Time
	for _, w := range e.st.Waiting {
		if t.IsZero() || w.Due.Before(t) {
			t = w.Due
		}
	}
	return t
}

// wake queues the waiting launches whose time has come.
func (e *entity) wake() {
	now := workflow.Now(e.root)
	var rest []cluster.WaitingOp
	for _, w := range e.st.Waiting {
		if w.Due.After(now) {
			rest = append(rest, w)
			continue
		}
		e.queue = append(e.queue, w.Op)
	}
	e.st.Waiting = rest
}

// accept takes an operation in: at once, to the front, or to the end of the queue.
func (e *entity) accept(op cluster.Op) {
	if o, ok := e.st.Outcome(op.Key); ok {
		e.beside("reply again", func(e *entity, _ workflow.Context) { e.reply(op, o, store.Batch{}) })
		return
	}
	if e.knows(op.Key) {
		return
	}
	switch op.Kind {
	case cluster.OpCancel, cluster.OpPreempt:
		if e.cur == nil || e.st.Row.Status == api.ClusterUp && !e.cur.ends() {
			e.aside(op)
			return
		}
		e.queue = append(e.queue, op)
	case cluster.OpDown, cluster.OpStop:
		if op.Auto && op.Gen > e.st.Autostop.Generation {
			// The rule it goes by is on its way to us: the task that gave it to the agent was lost, and is carried out anew.
			e.queue = append(e.queue, op)
			return
		}
		if !op.Auto {
			e.cancelOthers(op)
		}
		e.queue = append([]cluster.Op{op}, e.queue...)
	case cluster.OpAutostop:
		e.queue = append([]cluster.Op{op}, e.queue...)
	default:
		e.queue = append(e.queue, op)
	}
}

// knows says that the operation is under way already.
func (e *entity) knows(key string) bool {
	if e.cur != nil && e.cur.op.Key == key {
		return true
	}
	for _, q := range e.queue {
		if q.Key == key {
			return true
		}
	}
	for _, w := range e.st.Waiting {
		if w.Op.Key == key {
			return true
		}
	}
	return e.under[key]
}

// cancelOthers ends the cluster's other requests: a stop or down stands above them.
func (e *entity) cancelOthers(by cluster.Op) {
	why := fmt.Sprintf("cancelled by a later `sky %s %s`", by.Kind, e.st.Name)
	var keys []string
	for _, q := range e.queue {
		if q.Kind != cluster.OpDown && q.Kind != cluster.OpStop && q.Kind != cluster.OpRefresh {
			keys = append(keys, q.Key)
		}
	}
	for _, w := range e.st.Waiting {
		keys = append(keys, w.Op.Key)
	}
	if e.cur != nil && !e.cur.ends() {
		keys = append(keys, e.cur.op.Key)
	}
	for _, k := range keys {
		e.cancelOp(k, why)
	}
}

// cancelOp ends one operation: at once if it has not begun, else at its next step.
func (e *entity) cancelOp(key, why string) {
	if r := e.running(key); r != nil {
		if !r.ends() { // a teardown that has begun is finished
			r.cancelled, r.why = true, why
			r.cancel()
		}
		return
	}
	drop := func(op cluster.Op) {
		o := cluster.Outcome{Key: op.Key, Kind: op.Kind, Error: cluster.Cancelled(why), Cancelled: true}
		e.beside("reply", func(e *entity, _ workflow.Context) { e.reply(op, o, store.Batch{}) })
		if e.abandoned() {
			// A first launch that waits has nodes nowhere: its cluster goes with it, in its turn.
			e.queue = append([]cluster.Op{{Key: e.key("forget"), Kind: cluster.OpForget, Body: []byte("{}"), Auto: true}}, e.queue...)
		}
	}
	for i, q := range e.queue {
		if q.Key == key {
			e.queue = append(append([]cluster.Op(nil), e.queue[:i]...), e.queue[i+1:]...)
			drop(q)
			return
		}
	}
	for i, w := range e.st.Waiting {
		if w.Op.Key == key {
			e.st.Waiting = append(append([]cluster.WaitingOp(nil), e.st.Waiting[:i]...), e.st.Waiting[i+1:]...)
			drop(w.Op)
			return
		}
	}
	if o, ok := e.st.Outcome(key); ok {
		op := cluster.Op{Key: key, Kind: o.Kind, ReplyTo: activities.RequestWorkflowID(key)}
		e.beside("reply again", func(e *entity, _ workflow.Context) { e.reply(op, o, store.Batch{}) })
	}
}

// running finds an operation that has begun; nil: it has not, or has ended.
func (e *entity) running(key string) *running {
	if e.cur != nil && e.cur.op.Key == key {
		return e.cur
	}
	for _, r := range e.sides {
		if r.op.Key == key {
			return r
		}
	}
	return nil
}

// cancelledNow is the error of an operation that was cancelled as it ran, else nil.
func (e *entity) cancelledNow(op cluster.Op) *api.Error {
	if r := e.running(op.Key); r != nil && r.cancelled {
		return cluster.Cancelled(r.why)
	}
	return nil
}

// endSides cancels what runs beside the current operation: it speaks to nodes that are about to go, or gone.
func (e *entity) endSides(why string) {
	for _, r := range e.sides {
		r.cancelled, r.why = true, why
		r.cancel()
	}
}

// launching says that a launch is queued or waits.
func (e *entity) launching() bool {
	for _, q := range e.queue {
		if q.Kind == cluster.OpLaunch {
			return true
		}
	}
	return len(e.st.Waiting) > 0
}

// abandoned says that there is an incarnation that was never up, and nobody launches it any more.
func (e *entity) abandoned() bool {
	return e.st.Exists() && !e.st.Row.EverUp && !e.launching() && (e.cur == nil || e.cur.op.Kind != cluster.OpLaunch)
}

// observe turns what a watcher saw into an operation of our own.
func (e *entity) observe(o activities.Observed) {
	if o.Hash != e.st.Ref.Hash || !e.st.Exists() {
		return
	}
	switch o.Kind {
	case activities.ObservedReady:
		e.ready = true
	case activities.ObservedNodes:
		if e.cur != nil {
			e.lookAgain = true
			return
		}
		e.look()
	case activities.ObservedSuspect, activities.ObservedAlive, activities.ObservedLost:
		e.queue = append(e.queue, cluster.Op{Key: e.key("health"), Kind: cluster.OpHealth, Body: encode(o), Auto: true})
	case activities.ObservedAutostop:
		kind := cluster.OpStop
		if o.Down {
			kind = cluster.OpDown
		}
		op := cluster.Op{Key: fmt.Sprintf("autostop/%s/%d/%d", o.Hash, o.Autostop, e.st.Epoch), Kind: kind, Body: []byte("{}"), Auto: true, Gen: o.Autostop}
		if !e.knows(op.Key) {
			e.accept(op)
		}
	}
}

// look queues a look at the nodes.
func (e *entity) look() {
	for _, q := range e.queue {
		if q.Kind == cluster.OpRefresh && q.Auto {
			return
		}
	}
	e.queue = append([]cluster.Op{{Key: e.key("look"), Kind: cluster.OpRefresh, Body: []byte("{}"), Auto: true}}, e.queue...)
}

// next begins the first operation of the queue if none runs.
func (e *entity) next() {
	if e.cur != nil || len(e.queue) == 0 {
		return
	}
	op := e.queue[0]
	e.queue = e.queue[1:]
	ctx, cancel := workflow.WithCancel(e.root)
	e.cur = &running{op: op, cancel: cancel}
	workflow.GoNamed(ctx, string(op.Kind), func(ctx workflow.Context) {
		e.in(ctx).carryOut(ctx, op)
		cancel()
		e.cur = nil
		if e.lookAgain {
			e.lookAgain = false
			if e.st.Exists() && e.st.Row.Status == api.ClusterUp {
				e.look()
			}
		}
		e.done.SendAsync(nil)
	})
}

// aside carries out an operation next to the current one, until something takes the nodes away.
func (e *entity) aside(op cluster.Op) {
	ctx, cancel := workflow.WithCancel(e.root)
	r := &running{op: op, cancel: cancel}
	e.sides = append(e.sides, r)
	e.side++
	workflow.GoNamed(ctx, string(op.Kind), func(ctx workflow.Context) {
		e.in(ctx).carryOut(ctx, op)
		cancel()
		e.sides = slices.DeleteFunc(e.sides, func(s *running) bool { return s == r })
		e.side--
		e.done.SendAsync(nil)
	})
}

// beside runs f next to the current operation.
func (e *entity) beside(name string, f func(e *entity, ctx workflow.Context)) {
	e.side++
	workflow.GoNamed(e.root, name, func(ctx workflow.Context) {
		f(e.in(ctx), ctx)
		e.side--
		e.done.SendAsync(nil)
	})
}

// later takes a signal in after the operations under way have gone as far as they can. A workflow task that is lost with
// its server is carried out anew, together with signals that came after it: they must not change what the lost one may
// have told the world already, such as a cluster that is UP and was then asked to stop.
func (e *entity) later(name string, f func(e *entity)) {
	e.beside(name, func(e *entity, _ workflow.Context) {
		if err := e.gate.Lock(e.root); err != nil {
			workflow.GetLogger(e.root).Error("gate", "error", err)
			return
		}
		defer e.gate.Unlock()
		f(e)
	})
}

// youth is how long after its start an entity may get operations that an earlier one has carried out: by attempts to
// deliver them that were believed dead.
const youth = 2 * time.Minute

// stale says that the operation was carried out by an earlier workflow of the name. A later one knows its own keys.
func (e *entity) stale(op cluster.Op) bool {
	if op.Auto || op.Quiet || workflow.Now(e.root).Sub(e.st.Born) > youth {
		return false
	}
	if _, ok := e.st.Outcome(op.Key); ok || e.knows(op.Key) {
		return false
	}
	var o *cluster.Outcome
	if err := workflow.ExecuteLocalActivity(local(e.root, "whether it was done before"), acts.Ended, op.Key, op.Kind).Get(e.root, &o); err != nil {
		workflow.GetLogger(e.root).Warn("not known whether an operation is new", "request", op.Key, "error", err)
	}
	return o != nil
}

// carryOut does one operation and replies, unless it is a launch that goes on waiting.
func (e *entity) carryOut(ctx workflow.Context, op cluster.Op) {
	e.under[op.Key] = true
	defer func() {
		if !e.unsure {
			delete(e.under, op.Key)
		}
	}()
	var res any
	var fail *api.Error
	var b store.Batch
	switch op.Kind {
	case cluster.OpLaunch:
		var waits bool
		if res, b, fail, waits = e.launch(ctx, op); waits {
			return
		}
	case cluster.OpExec:
		res, b, fail = e.exec(ctx, op)
	case cluster.OpStart:
		var waits bool
		if res, b, fail, waits = e.start(ctx, op); waits {
			return
		}
	case cluster.OpStop:
		res, b, fail = e.stop(ctx, op)
	case cluster.OpDown:
		res, b, fail = e.down(ctx, op)
	case cluster.OpAutostop:
		res, b, fail = e.autostop(ctx, op)
	case cluster.OpCancel:
		res, b, fail = e.cancelJobs(ctx, op)
	case cluster.OpPreempt:
		res, b, fail = e.preempt(ctx, op)
	case cluster.OpRefresh:
		res, b, fail = e.refresh(ctx, op)
	case cluster.OpHealth:
		b, fail = e.health(op)
	case cluster.OpForget:
		if e.abandoned() {
			e.remove(op, "the launch was cancelled")
		}
	default:
		fail = &api.Error{Kind: api.ErrNotSupported, Message: fmt.Sprintf("unknown operation %q", op.Kind), Hint: "the server is older than the client: restart it with sky api stop"}
	}
	o := cluster.Outcome{Key: op.Key, Kind: op.Kind, Error: fail}
	if fail != nil {
		o.Cancelled = fail.Kind == api.ErrCancelled
	} else {
		o.Result = encode(res)
	}
	if e.unsure {
		e.withdraw(op, o, b)
		return
	}
	e.reply(op, o, b)
}

// withdraw makes sure that a job does not run whose submission has an unknown outcome, and replies then: what is shown
// as cancelled must not start afterwards. It holds nobody up.
func (e *entity) withdraw(op cluster.Op, o cluster.Outcome, b store.Batch) {
	in := activities.WithdrawInput{Key: op.Key, Ref: e.st.Ref, Provider: e.st.Provider, Nodes: e.st.Nodes}
	e.beside("withdraw the job", func(e *entity, _ workflow.Context) {
		ctx := remote(e.root, activities.QueueMain, "make sure that the job does not run", time.Minute, forever)
		if err := workflow.ExecuteActivity(ctx, acts.Withdraw, in).Get(ctx, nil); err != nil {
			workflow.GetLogger(e.root).Warn("job not withdrawn", "request", op.Key, "error", err)
		}
		delete(e.under, op.Key)
		e.reply(op, o, b)
	})
}

// reply writes how an operation ended and tells who waits. It never fails for good.
func (e *entity) reply(op cluster.Op, o cluster.Outcome, b store.Batch) {
	own := !op.Auto && !op.Quiet
	if _, ok := e.st.Outcome(o.Key); !ok && own {
		e.st.Remember(o)
	}
	if own {
		status := api.RequestSucceeded
		switch {
		case o.Cancelled:
			status = api.RequestCancelled
		case o.Error != nil:
			status = api.RequestFailed
		}
		b.Requests = append(b.Requests, store.RequestUpdate{ID: o.Key, Status: status, Result: o.Result, Error: o.Error})
	}
	in := activities.ReplyInput{Outcome: o, ReplyTo: op.ReplyTo, Record: activities.RecordInput{Batch: b}}
	again := func(e *entity, _ workflow.Context) {
		ctx := local(e.root, "write the outcome and reply")
		if err := workflow.ExecuteLocalActivity(ctx, acts.Reply, in).Get(ctx, nil); err != nil {
			workflow.GetLogger(e.root).Warn("outcome not written", "request", o.Key, "error", err)
		}
	}
	if own {
		in.Record.DropScope = activities.RequestScope(o.Key)
	}
	if op.Kind == cluster.OpDown {
		// A row that can't be written must not hold up what follows a teardown: it is tried on beside that.
		ctx := brief(e.root, "write the outcome and reply")
		if err := workflow.ExecuteLocalActivity(ctx, acts.Reply, in).Get(ctx, nil); err != nil {
			e.beside("reply", again)
		}
	} else {
		again(e, e.root)
	}
	e.describe()
}
