package workflows

import (
	"fmt"
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
	case activities.ObservedSilent:
		e.silent(o)
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
