package workflows

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/recovery"
	"github.com/skyloom/skyloom/internal/store"
)

// lane keeps a cluster of an array at work for as long as there are elements: it brings it up, hands it batches, settles those
// that have ended, and replaces the cluster when it is lost. A lane without a cluster waits for elements that come back.
func (j *job) lane(root workflow.Context, r *taskRun, spec activities.ManagedTaskSpec) {
	ctx, stop := workflow.WithCancel(root)
	defer stop()
	a := j.state.Array
	r.stop = stop
	r.halted = j.cancelled
	r.St.Name = fmt.Sprintf("%s-%d", clusterName(spec.Name, j.in.ID, 0, 1), r.Lane.N)
	r.m = &machine{st: &r.St, outer: j.outer, root: root, prefix: fmt.Sprintf("%s/0/%d", j.prefix, r.Lane.N), halted: func() bool { return r.halted }, shared: &shared{under: map[string]bool{}},
		job: j.in.ID, owner: workflow.GetInfo(j.outer).WorkflowExecution.ID, array: true}
	for !r.halted {
		if !r.Lane.Up {
			r.parked, r.busy = true, false
			_ = workflow.Await(ctx, func() bool { return r.halted || a.wants(r) })
			r.parked, r.busy = false, true
			if r.halted || !j.admit(ctx, r) || !j.laneUp(ctx, r, spec) {
				continue
			}
		}
		j.feed(ctx, r, spec)
	}
	j.endLane(r, spec)
}

// laneUp brings up the lane's cluster, and readies it for elements.
func (j *job) laneUp(ctx workflow.Context, r *taskRun, spec activities.ManagedTaskSpec) bool {
	a := j.state.Array
	r.Row.Attempt = a.Attempts // of the whole array: raised by what follows
	a.Attempts++
	if fail, retry := j.bringUp(ctx, r, spec); fail != nil {
		switch {
		case r.halted:
		case retry:
			j.backOff(ctx, r, fail)
			r.Row.NextRetry = nil
		case j.othersUp(r):
			r.Lane.Retired = true
			j.release(r, store.PhaseNone)
			j.show(r, api.EventError, "gives up: %s", words(fail))
		default:
			j.fail(api.ManagedFailedPrechecks, words(fail))
		}
		return false
	}
	if fail, retry := j.syncFiles(ctx, r); fail != nil {
		return j.laneFailed(r, spec, fail, retry)
	}
	if spec.HasSetup && !j.setUp(ctx, r, spec) {
		return false
	}
	now := workflow.Now(r.m.root)
	r.Lane.Up, r.ended = true, nil
	if (r.look || r.lost != "") && !j.remembers() {
		r.look, r.lost, r.lostRanks = false, "", nil
	}
	r.Row.Status, r.Row.RunningSince, r.Row.Details = api.ManagedRunning, &now, ""
	j.release(r, store.PhaseRunning)
	j.show(r, api.EventStatus, "runs elements on %s (%s)", r.Row.Infra, r.St.Name)
	return true
}

// laneFailed replaces a cluster that could not be readied, or ends the array.
func (j *job) laneFailed(r *taskRun, spec activities.ManagedTaskSpec, fail *api.Error, retry bool) bool {
	switch {
	case r.halted:
	case retry:
		j.loseLane(r, spec, words(fail))
	default:
		j.fail(api.ManagedFailed, words(fail))
	}
	return false
}

// setUp runs the task's setup on the lane's cluster, as a job of its own.
func (j *job) setUp(ctx workflow.Context, r *taskRun, spec activities.ManagedTaskSpec) bool {
	for n := 1; ; n++ {
		in := j.laneSubmit(r, spec)
		in.RequestID = fmt.Sprintf("managed/%d/setup/%d/%d", j.in.ID, r.Row.Attempt, n)
		in.Setup, in.SetupOnly = true, true
		var out activities.SubmitOutput
		if err := workflow.ExecuteLocalActivity(brief(r.m.root, "submit the setup"), acts.Submit, in).Get(r.m.root, &out); err != nil {
			actx := remote(ctx, activities.QueueMain, "submit the setup, with patience", 10*time.Second, 3*time.Minute)
			if err := workflow.ExecuteActivity(actx, acts.Submit, in).Get(actx, &out); err != nil {
				return j.laneFailed(r, spec, asError(err), true)
			}
		}
		if out.Error != nil {
			return j.laneFailed(r, spec, out.Error, out.Error.Kind == api.ErrAutostopping)
		}
		j.submitted(r, out.Job)
		d := j.watch(ctx, r, spec)
		switch {
		case r.halted && d.Move != recovery.Finish:
			return false
		case d.Move == recovery.Finish && d.Status == api.ManagedSucceeded:
			r.JobID, r.ended = 0, nil
			return true
		case d.Move == recovery.Finish:
			j.fail(api.ManagedFailedSetup, fmt.Sprintf("the setup failed on %s: %s", r.St.Name, d.Reason))
			return false
		case d.Move == recovery.Recover:
			j.loseLane(r, spec, d.Reason)
			return false
		}
		if d.Counts {
			r.Row.Restarts++
		}
		j.show(r, api.EventRetry, "the setup is run again: %s", d.Reason)
	}
}

// laneSubmit is what the jobs of a lane have in common.
func (j *job) laneSubmit(r *taskRun, spec activities.ManagedTaskSpec) activities.SubmitInput {
	return activities.SubmitInput{Ref: r.St.Ref, Provider: r.St.Provider, Nodes: r.St.Nodes, NumNodes: r.St.NumNodes, Have: r.St.Have, Epoch: r.St.Epoch, Task: spec.Text,
		SecretRefs: j.in.Body.SecretRefs, User: j.in.Body.User, UserHash: j.in.Body.UserHash, GitCommit: j.in.Body.GitCommit, TaskID: j.taskID(0), Envs: j.envs(r, spec)}
}

// troubleLook is how soon a cluster is asked again that did not answer.
const troubleLook = 15 * time.Second

// laneLook is how often a cluster with batches is looked at although nothing was heard.
const laneLook = 30 * time.Minute

// feed gives the lane's cluster batches until there is nothing left for it, or it is lost.
func (j *job) feed(ctx workflow.Context, r *taskRun, spec activities.ManagedTaskSpec) {
	l := r.Lane
	for !r.halted {
		lost, answers := j.turn(ctx, r, spec)
		switch {
		case r.halted:
			return
		case lost != "":
			j.loseLane(r, spec, lost)
			return
		case answers && len(l.Inflight) == 0:
			j.idleLane(r)
			return
		}
		wait := laneLook
		if !answers {
			wait = troubleLook
		}
		r.parked = true
		heard, err := workflow.AwaitWithTimeout(ctx, wait, func() bool {
			return r.halted || r.look || r.lost != "" || answers && (l.first(hasEnded) != nil || j.hungry(r))
		})
		r.parked = false
		if err != nil || r.halted {
			return
		}
		if r.look || r.lost != "" || !heard {
			if lost := j.lookAtLane(r); lost != "" {
				j.loseLane(r, spec, lost)
				return
			}
		}
	}
}

// turn settles the batches that have ended, and hands out the next ones. It tells why the cluster must be given up, and whether it
// answers.
func (j *job) turn(ctx workflow.Context, r *taskRun, spec activities.ManagedTaskSpec) (lost string, answers bool) {
	l := r.Lane
	for b := l.first(hasEnded); b != nil && !r.halted; b = l.first(hasEnded) {
		if lost, answers := j.settle(ctx, r, spec, *b, activities.SettleInput{}); lost != "" || !answers {
			return lost, answers
		}
	}
	for !r.halted && (l.first(isUnsure) != nil || j.hungry(r)) {
		if l.first(isUnsure) == nil {
			a := j.state.Array
			a.Batches++
			b := inflight{Batch: a.Batches, Unsure: true}
			b.Elements, a.Todo = a.Todo.Take(a.size())
			l.Inflight = append(l.Inflight, b)
		}
		if lost, answers := j.handOut(ctx, r, spec, *l.first(isUnsure)); lost != "" || !answers {
			return lost, answers
		}
	}
	return "", true
}

// hungry says that the lane should get another batch: when it has none, or to have the next at hand while there is enough for everyone.
func (j *job) hungry(r *taskRun) bool {
	a, n := j.state.Array, len(r.Lane.Inflight)
	left := a.Todo.Len()
	return left > 0 && (n == 0 || n == 1 && left > a.Slots*len(a.Lanes))
}

// handOut gives the lane's cluster a batch. Nothing is given twice: the cluster takes a batch's number once.
func (j *job) handOut(ctx workflow.Context, r *taskRun, spec activities.ManagedTaskSpec, b inflight) (lost string, answers bool) {
	a := j.state.Array
	in := activities.HandInput{Job: j.in.ID, Batch: b.Batch, Count: spec.Array.Count, Elements: b.Elements, Submit: j.laneSubmit(r, spec)}
	var out activities.HandOutput
	// Not a local activity: which elements a number stands for must be in the history before a cluster is told, since a workflow task that
	// is lost and carried out anew may divide them otherwise.
	actx := remote(ctx, activities.QueueMain, "hand out elements", 10*time.Second, 30*time.Second)
	if err := workflow.ExecuteActivity(actx, acts.HandOut, in).Get(actx, &out); err != nil {
		return "", false
	}
	if e := out.Error; e != nil {
		r.Lane.drop(b.Batch)
		a.Todo = a.Todo.Union(b.Elements)
		if e.Kind == api.ErrAutostopping {
			return words(e), true
		}
		j.fail(api.ManagedFailed, words(e))
		return "", true
	}
	if b := r.Lane.batch(b.Batch); b != nil {
		b.Unsure = false
	}
	a.Slots = max(a.Slots, out.Slots)
	return "", true
}

// settle ends a batch, and takes back what is to be run again. It tells why the cluster must be given up, and whether it answers.
func (j *job) settle(ctx workflow.Context, r *taskRun, spec activities.ManagedTaskSpec, b inflight, in activities.SettleInput) (lost string, answers bool) {
	a := j.state.Array
	in.Job, in.Batch, in.Elements, in.Policy, in.Nodes = j.in.ID, b.Batch, b.Elements, spec.Policy, r.m.nodes(cluster.Op{Auto: true})
	var out activities.SettleOutput
	err := workflow.ExecuteLocalActivity(brief(r.m.root, "settle elements"), acts.Settle, in).Get(r.m.root, &out)
	if err != nil || out.Doubt {
		in.Look = true
		actx := remote(ctx, activities.QueueMain, "settle elements, with patience", 10*time.Minute, 15*time.Minute)
		if in.Lost != "" { // only the store is asked
			actx = remote(ctx, activities.QueueMain, "settle the elements of a lost cluster", time.Minute, forever)
		}
		out = activities.SettleOutput{}
		if err := workflow.ExecuteActivity(actx, acts.Settle, in).Get(actx, &out); err != nil {
			return "", false
		}
	}
	if out.Silent {
		return "", false
	}
	if out.Open {
		if b := r.Lane.batch(b.Batch); b != nil {
			b.Ended = false
		}
		return "", true
	}
	r.Lane.drop(b.Batch)
	a.Todo = a.Todo.Union(out.Again)
	a.Done += out.Succeeded
	a.Failed += out.Failed
	a.Seconds += out.Seconds
	a.Timed += out.Timed
	for _, e := range out.Bad {
		if len(a.Bad) < 10 {
			a.Bad = append(a.Bad, e)
		}
	}
	return out.LostWith, true
}

// lookAtLane asks how the lane's cluster stands. It tells why it must be given up, or nothing.
func (j *job) lookAtLane(r *taskRun) (lost string) {
	in := activities.LookInput{Nodes: r.m.nodes(cluster.Op{Auto: true}), Lost: r.lost, LostRanks: r.lostRanks}
	for _, b := range r.Lane.Inflight {
		in.Batches = append(in.Batches, b.Batch)
	}
	r.look, r.lost, r.lostRanks = false, "", nil
	actx := remote(r.m.root, activities.QueueMain, "see how the cluster stands", time.Minute, time.Hour)
	var out activities.LookOutput
	if err := workflow.ExecuteActivity(actx, acts.LookAtLane, in).Get(actx, &out); err != nil {
		return words(asError(err))
	}
	for _, n := range out.Ended {
		r.Lane.heard(n)
	}
	if out.Lost != "" {
		r.lost = in.Lost // tells the teardown that its nodes may never be heard of again
	}
	return out.Lost
}

// loseLane takes down a cluster that can't be used any more, and takes back the elements that had not ended there. Its nodes are gone
// before an element runs elsewhere.
func (j *job) loseLane(r *taskRun, spec activities.ManagedTaskSpec, why string) {
	r.Lane.Up = false
	j.recover(r, recovery.Decision{Move: recovery.Recover, Reason: why})
	j.takeBack(r, spec, why, false)
}

// takeBack settles what a cluster that is gone had in hand.
func (j *job) takeBack(r *taskRun, spec activities.ManagedTaskSpec, why string, cancel bool) {
	for len(r.Lane.Inflight) > 0 {
		j.settle(r.m.root, r, spec, r.Lane.Inflight[0], activities.SettleInput{Lost: why, Cancel: cancel})
	}
}

// idleLane takes down a cluster for which there is nothing left to do.
func (j *job) idleLane(r *taskRun) {
	r.Lane.Up = false
	j.stopClock(r)
	r.Row.Status = api.ManagedPending
	j.takeDown(r, true)
	j.release(r, store.PhaseNone)
	j.show(r, api.EventStatus, "nothing is left for it")
}

// endLane ends a lane for good: what it runs is cancelled, and the cluster goes.
func (j *job) endLane(r *taskRun, spec activities.ManagedTaskSpec) {
	if r.St.Exists() {
		for _, b := range append([]inflight(nil), r.Lane.Inflight...) {
			if _, answers := j.settle(r.m.root, r, spec, b, activities.SettleInput{Cancel: true}); !answers {
				break // what was heard of it counts
			}
		}
	}
	up := r.Lane.Up
	r.Lane.Up = false
	j.stopClock(r)
	j.takeDown(r, !j.cancelled)
	j.takeBack(r, spec, "the array has ended", true)
	j.release(r, store.PhaseNone)
	if up {
		j.show(r, api.EventStatus, "its cluster is gone")
	}
}

// fail ends the whole array.
func (j *job) fail(status api.ManagedStatus, reason string) {
	a := j.state.Array
	if a.Fatal == "" {
		a.Fatal, a.Reason = status, reason
	}
	for _, r := range a.Lanes {
		r.halt()
	}
}

// othersUp says that another lane has a cluster.
func (j *job) othersUp(r *taskRun) bool {
	for _, o := range j.state.Array.Lanes {
		if o != r && o.St.Exists() {
			return true
		}
	}
	return false
}
