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

// recover takes the lost attempt down before a new one begins: its epoch must be over.
func (j *job) recover(r *taskRun, d recovery.Decision) {
	j.stopClock(r)
	r.Row.Status, r.Row.Details = api.ManagedRecovering, d.Reason
	r.Row.Recoveries++
	j.show(r, api.EventStatus, "RECOVERING: %s", d.Reason)
	r.Old = recovery.Place{Cloud: r.St.Provider, Region: r.St.Spec.Region}
	j.takeDown(r, true)
	j.release(r, store.PhaseNone)
}

// stopClock adds the time since the attempt ran to the task's, and what it cost.
func (j *job) stopClock(r *taskRun) {
	if r.Row.RunningSince == nil {
		return
	}
	d := workflow.Now(r.m.root).Sub(*r.Row.RunningSince)
	r.Row.RunSeconds += d.Seconds()
	r.Row.CostDollars += d.Hours() * r.St.Row.PricePerHour
	r.Row.RunningSince = nil
}

// takeDown keeps the attempt's log and deletes its cluster. It always ends with nothing left, unless it may give up on nodes that
// are silent for as long as a node may be before it is lost: those are the reaper's then.
func (j *job) takeDown(r *taskRun, giveUp bool) {
	if !r.St.Exists() {
		return
	}
	in := activities.EndInput{Nodes: r.m.nodes(cluster.Op{Auto: true}), JobID: r.JobID, Managed: j.in.ID, Task: r.Index, Attempt: r.Row.Attempt}
	in.Nodes.GiveUp, in.Nodes.Lost = giveUp, giveUp && r.lost != ""
	in.LostRanks = r.lostRanks
	if r.Row.Status == api.ManagedRecovering {
		in.Save = r.m.checkpoint
	}
	in.Stop = r.Row.Status == api.ManagedCancelling && r.ended == nil
	actx := remote(r.m.root, activities.QueueProvision, "keep the log and delete the nodes", time.Hour, forever)
	if err := workflow.ExecuteActivity(actx, acts.EndAttempt, in).Get(actx, nil); err != nil {
		workflow.GetLogger(r.m.root).Error("teardown gave up; the reaper goes on", "job", j.in.ID, "error", err)
	}
	hash := r.St.Row.Hash
	rec := activities.RecordInput{Batch: r.m.removal(fmt.Sprintf("attempt %d of managed job %d has ended", r.Row.Attempt, j.in.ID)), DropScope: activities.ClusterScope(hash)}
	if err := workflow.ExecuteLocalActivity(brief(r.m.root, "remove the cluster's row"), acts.Record, rec).Get(r.m.root, nil); err != nil {
		workflow.GetLogger(r.m.root).Warn("row not removed; the reaper does it", "error", err)
	}
	r.St.Forget()
	r.up = false
	r.JobID, r.ended, r.early, r.look, r.lost, r.lostRanks = 0, nil, nil, false, "", nil
}

// keep keeps the log of an attempt whose cluster goes on.
func (j *job) keep(r *taskRun) {
	in := activities.EndInput{Nodes: r.m.nodes(cluster.Op{Auto: true}), JobID: r.JobID, Managed: j.in.ID, Task: r.Index, Attempt: r.Row.Attempt, Keep: true, Save: r.m.checkpoint}
	actx := remote(r.m.root, activities.QueueMain, "keep the attempt's log", 10*time.Minute, 30*time.Minute)
	if err := workflow.ExecuteActivity(actx, acts.EndAttempt, in).Get(actx, nil); err != nil {
		workflow.GetLogger(r.m.root).Warn("log not kept", "job", j.in.ID, "error", err)
	}
}

// cancel ends a task for good: nothing of it runs when it is shown as cancelled.
func (j *job) cancel(r *taskRun) {
	r.Row.Status = api.ManagedCancelling
	j.show(r, api.EventStatus, "CANCELLING")
	j.takeDown(r, false)
	why := "cancelled"
	switch {
	case j.cancelled:
	case r.alone != nil:
		r.Row.EndedBy = r.alone.Row.TaskName
		why = fmt.Sprintf("task %s of the group could not be launched: %s", r.Row.EndedBy, r.aloneWhy)
	case r.auxiliary:
		why = "the primary tasks of the group are done"
	}
	j.finish(r, api.ManagedCancelled, why)
}

// idle lets a task that has not begun speak.
func (j *job) idle(r *taskRun) {
	if r.m == nil {
		r.m = &machine{st: &r.St, outer: j.outer, root: j.root, prefix: fmt.Sprintf("%s/%d", j.prefix, r.Index), halted: func() bool { return true }, shared: &shared{under: map[string]bool{}}, job: j.in.ID}
	}
}

// finish writes the end of a task.
func (j *job) finish(r *taskRun, status api.ManagedStatus, reason string) {
	j.idle(r)
	j.stopClock(r)
	now := workflow.Now(r.m.root)
	r.Row.Status, r.Row.EndAt, r.Row.NextRetry, r.Row.Details = status, &now, nil, ""
	r.Row.Cluster = ""
	if status != api.ManagedSucceeded {
		r.Row.FailureReason = reason
	}
	j.release(r, store.PhaseNone)
	j.show(r, api.EventStatus, "%s: %s", status, reason)
}
