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
