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

// taskRun is one task of a managed job: its row, its cluster, and where it stands.
type taskRun struct {
	Index int            `json:"index"`
	Row   api.ManagedJob `json:"row"`
	St    cluster.State  `json:"cluster"`
	JobID int64          `json:"job_id,omitempty"` // on the cluster
	// Round counts rounds without room since the last attempt; Lost those of the present recovery.
	Round int            `json:"round,omitempty"`
	Hops  int            `json:"hops,omitempty"`
	Old   recovery.Place `json:"old"`
	// TaskID is SKYPILOT_TASK_ID, the same over recoveries.
	TaskID string `json:"task_id,omitempty"`

	// Lane is set if this is one of the clusters of an array, and no task of its own.
	Lane *lane `json:"lane,omitempty"`

	m         *machine
	ended     *api.Job
	look      bool
	lost      string
	lostRanks []int
	early     *api.Job // it has ended, and its number is not known here yet
	up        bool     // its nodes are, of a group
	at        int      // where they are: the group's moves when their launch began
	alone     *taskRun // the task of the group that could not be launched
	aloneWhy  string
	auxiliary bool // ended since the primary tasks of its group are done
	halted    bool
	parked    bool // it waits, and nothing of it is under way
	busy      bool // a lane that gets a cluster
	stop      workflow.CancelFunc
}

// halt ends what the task waits for.
func (r *taskRun) halt() {
	r.halted = true
	if r.stop != nil {
		r.stop()
	}
}

// safetyLook is how often a running job is looked at although nothing was heard.
const safetyLook = 6 * time.Hour

// run carries a task on until it has ended, or the workflow must continue as new (only between two attempts).
func (j *job) run(root workflow.Context, r *taskRun) (again bool) {
	ctx, stop := workflow.WithCancel(root)
	r.stop = stop
	defer stop()
	if j.cancelled {
		r.halted = true
	}
	spec := j.state.Spec.Tasks[r.Index]
	r.St.Name = clusterName(spec.Name, j.in.ID, r.Index, len(j.state.Runs))
	r.m = &machine{st: &r.St, outer: j.outer, root: root, prefix: fmt.Sprintf("%s/%d", j.prefix, r.Index), halted: func() bool { return r.halted }, shared: &shared{under: map[string]bool{}},
		job: j.in.ID, owner: workflow.GetInfo(j.outer).WorkflowExecution.ID}
	if !spec.HasRun {
		j.finish(r, api.ManagedSucceeded, "nothing to run")
		return false
	}
	for {
		if r.halted {
			j.cancel(r)
			return false
		}
		if workflow.GetInfo(root).GetContinueAsNewSuggested() && len(j.state.Runs) == 1 {
			return true
		}
		if !j.admit(ctx, r) {
			continue
		}
		fail, retry := j.bringUp(ctx, r, spec)
		if fail != nil {
			if r.halted {
				continue
			}
			moved, retry := j.move(r, fail, retry)
			if moved {
				continue
			}
			if !retry {
				j.finish(r, api.ManagedFailedPrechecks, words(fail))
				if j.meets {
					j.neverMet(r, words(fail))
				}
				return false
			}
			j.backOff(ctx, r, fail)
			continue
		}
		if j.meets {
			fail := j.meet(ctx, r)
			if r.halted {
				continue
			}
			if fail != nil {
				j.takeDown(r, true)
				if !j.astray(r) {
					j.backOff(ctx, r, fail)
				}
				continue
			}
		}
		if fail, retry := j.submit(ctx, r, spec); fail != nil {
			if r.halted {
				continue
			}
			if !retry {
				j.takeDown(r, true)
				j.finish(r, api.ManagedFailed, words(fail))
				return false
			}
			j.recover(r, recovery.Decision{Move: recovery.Recover, Reason: words(fail)})
			continue
		}
		for !r.halted {
			d := j.watch(ctx, r, spec)
			if r.halted && d.Move != recovery.Finish {
				break
			}
			if d.Move == recovery.Finish {
				j.takeDown(r, true)
				j.finish(r, d.Status, d.Reason)
				return false
			}
			if d.Counts {
				r.Row.Restarts++
			}
			if d.Move == recovery.Recover || !j.resubmit(ctx, r, spec, d) {
				j.recover(r, d)
				break
			}
		}
	}
}

func words(e *api.Error) string {
	if len(e.Details) > 0 {
		return e.Message + "; " + e.Details[len(e.Details)-1]
	}
	return e.Message
}

// show writes the task's row, and says what happened.
func (j *job) show(r *taskRun, kind api.EventKind, format string, args ...any) {
	if r.Lane != nil {
		j.showLane(r, kind, fmt.Sprintf(format, args...))
		return
	}
	r.Row.Seq++
	ev := r.m.event(cluster.Op{Auto: true}, kind, "job", format, args...)
	ev.Attempt, ev.NextRetry = r.Row.Attempt, r.Row.NextRetry
	b := store.Batch{ManagedJobs: []api.ManagedJob{r.Row}, Events: []store.Event{ev}}
	if l := r.m.log; l != nil && r.Row.Status == api.ManagedRunning && l.ClusterJob != r.JobID { // another attempt on the same cluster
		r.m.log = &activities.WatchedLog{Job: j.in.ID, Task: r.Index, Attempt: r.Row.Attempt, ClusterJob: r.JobID}
		r.m.checkpoint = nil
		b.Watches = []store.Watch{r.m.watch(false)}
	}
	r.m.record("write the job's row", b)
	workflow.SetCurrentDetails(r.m.root, fmt.Sprintf("**%s** · attempt %d · recoveries %d\n\n%s", r.Row.Status, r.Row.Attempt, r.Row.Recoveries, ev.Message))
}

// admit waits until the job may bring up a cluster. Waiting costs nothing: the admission nudges.
func (j *job) admit(ctx workflow.Context, r *taskRun) bool {
	shown := false
	for {
		nudges := j.admitted
		in := activities.AdmitInput{JobID: r.admission(j.in.ID), Priority: r.Row.Priority, UserHash: r.Row.UserHash}
		var out activities.AdmitOutput
		if err := workflow.ExecuteLocalActivity(local(r.m.root, "ask for admission"), acts.Admit, in).Get(r.m.root, &out); err != nil {
			return false
		}
		if out.Granted {
			return true
		}
		if !shown {
			shown = true
			r.Row.Details = out.Why
			j.show(r, api.EventRetry, "waits for admission: %s", out.Why)
		}
		r.parked = true
		_, err := workflow.AwaitWithTimeout(ctx, time.Hour, func() bool { return j.admitted > nudges || r.halted })
		r.parked = false
		if err != nil || r.halted {
			return false
		}
	}
}

// backOff gives the launching slot back and waits before the next round.
func (j *job) backOff(ctx workflow.Context, r *taskRun, why *api.Error) {
	d, what := recovery.Backoff(j.in.ID, r.Round), "no room"
	if r.m.midway {
		d, what = recovery.Relaunch(j.in.ID, r.Round), "lost on the way"
	} else if why.Kind == api.ErrPrechecks {
		what = "refused"
	}
	r.Round++
	due := workflow.Now(r.m.root).Add(d)
	if r.Row.Recoveries == 0 {
		r.Row.Status = api.ManagedPending
	}
	r.Row.Details, r.Row.NextRetry = words(why), &due
	j.release(r, store.PhaseNone)
	j.show(r, api.EventRetry, "%s: %s; next try at %s", what, words(why), due.UTC().Format(time.TimeOnly+" MST"))
	r.parked = true
	_, _ = workflow.AwaitWithTimeout(ctx, d, func() bool { return r.halted || j.astray(r) })
	r.parked = false
}

func (j *job) release(r *taskRun, phase store.AdmissionPhase) {
	if err := workflow.ExecuteLocalActivity(local(r.m.root, "give the slot back"), acts.ReleaseAdmission, r.admission(j.in.ID), string(phase)).Get(r.m.root, nil); err != nil {
		workflow.GetLogger(r.m.root).Warn("slot not given back", "job", j.in.ID, "error", err)
	}
}

// watch waits until the attempt has ended one way or another, and has the next move decided. It waits for signals only.
func (j *job) watch(ctx workflow.Context, r *taskRun, spec activities.ManagedTaskSpec) recovery.Decision {
	for {
		heard, err := workflow.AwaitWithTimeout(ctx, safetyLook, func() bool { return r.ended != nil || r.look || r.lost != "" || r.halted })
		if r.halted && r.ended == nil || err != nil {
			return recovery.Decision{}
		}
		in := activities.JudgeInput{Policy: spec.Policy, Restarts: r.Row.Restarts, Ended: r.ended, Lost: r.lost, LostRanks: r.lostRanks,
			Outcome: activities.JobOutcomeInput{Nodes: r.m.nodes(cluster.Op{Auto: true}), JobID: r.JobID}}
		_ = heard
		r.look = false
		// A success needs no look at the infra, and so no activity of its own.
		var out activities.JudgeOutput
		if r.ended != nil && r.ended.Status == api.JobSucceeded {
			if err := workflow.ExecuteLocalActivity(local(r.m.root, "decide what follows"), acts.Judge, in).Get(r.m.root, &out); err != nil {
				continue
			}
		} else {
			actx := remote(r.m.root, activities.QueueMain, "see what became of the job", time.Minute, time.Hour)
			if err := workflow.ExecuteActivity(actx, acts.Judge, in).Get(actx, &out); err != nil {
				workflow.GetLogger(r.m.root).Warn("job not judged", "job", j.in.ID, "error", err)
				if serr := workflow.Sleep(ctx, time.Minute); serr != nil {
					return recovery.Decision{}
				}
				r.look = true
				continue
			}
		}
		if out.GoesOn {
			if r.lost != "" && r.lost == in.Lost && j.remembers() {
				r.lost, r.lostRanks = "", nil // it answers
			}
			continue
		}
		if len(out.ExitCodes) > 0 {
			r.Row.ExitCodes = out.ExitCodes
		}
		return out.Decision
	}
}

// resubmit restarts a task whose own code failed, on the cluster it has. False: that is not possible.
func (j *job) resubmit(ctx workflow.Context, r *taskRun, spec activities.ManagedTaskSpec, d recovery.Decision) bool {
	j.stopClock(r)
	r.Row.Status = api.ManagedRecovering
	j.show(r, api.EventRetry, "restarts on the same cluster: %s", d.Reason)
	j.keep(r)
	r.Row.Attempt++
	r.St.Epoch++
	fail, _ := j.submit(ctx, r, spec)
	return fail == nil
}
