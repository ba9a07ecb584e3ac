package workflows

import (
	"fmt"
	"strings"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/agent/agentapi"
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

// bringUp makes the attempt's cluster.
func (j *job) bringUp(ctx workflow.Context, r *taskRun, spec activities.ManagedTaskSpec) (*api.Error, bool) {
	if r.Row.Recoveries == 0 && r.Row.Restarts == 0 {
		r.Row.Status = api.ManagedStarting
	}
	r.Row.Details, r.Row.NextRetry = "", nil
	r.Row.Attempt++
	j.show(r, api.EventStatus, "%s: attempt %d", r.Row.Status, r.Row.Attempt)
	idle := 10
	body := api.LaunchBody{Base: j.in.Body.Base, Task: spec.Text, Cluster: r.St.Name, IdleMinutes: &idle, Down: true, WaitFor: "jobs", FileMounts: j.in.Body.FileMounts[r.Index], SecretRefs: j.in.Body.SecretRefs}
	// Each attempt is an incarnation of its own.
	in := activities.PlanInput{RequestID: fmt.Sprintf("managed/%d/%d/%d", j.in.ID, r.Index, r.Row.Attempt), Body: body, Mint: true, Home: j.hint(r)}
	if r.Old.Cloud != "" {
		in.Recover = &activities.RecoverHint{Strategy: spec.Policy.Strategy, Round: r.Hops, Old: r.Old}
	}
	var plan activities.PlanOutput
	if err := workflow.ExecuteLocalActivity(local(r.m.root, "choose a place"), acts.Plan, in).Get(r.m.root, &plan); err != nil {
		return asError(err), true
	}
	if plan.Error != nil {
		return plan.Error, plan.Retry
	}
	now := workflow.Now(r.m.root)
	r.St.Row = api.Cluster{Name: r.St.Name, Hash: plan.Hash, Seq: r.St.Row.Seq, Status: api.ClusterInit, InitKind: "launching", LaunchedAt: &now, AutostopMinutes: -1, Managed: true, Owner: r.m.owner,
		UserName: j.in.Body.User, UserHash: j.in.Body.UserHash, Workspace: r.Row.Workspace, LastUse: j.in.Body.Command, LastCommand: j.in.Body.Command}
	if r.St.Row.Workspace == "" {
		r.St.Row.Workspace = "default"
	}
	r.St.Ref.Installation, r.St.Ref.Name, r.St.Ref.Hash = plan.Installation, r.St.Name, plan.Hash
	r.St.SecretRef = plan.SecretRef
	// The epoch rises over all attempts of the job: agents and stores refuse those of a stale one.
	r.St.Epoch = int64(r.Row.Attempt) << 16
	r.m.checkpoint = nil
	// The first job on a cluster has the number 1. That its log is to be kept is known before it begins.
	if r.Lane == nil {
		r.m.log = &activities.WatchedLog{Job: j.in.ID, Task: r.Index, Attempt: r.Row.Attempt, ClusterJob: 1}
	}
	op := cluster.Op{Key: j.in.Body.RequestID, Auto: true}
	fail, again := r.m.bringUp(ctx, op, in, plan)
	if fail != nil {
		if r.St.Exists() {
			r.m.remove(op, "the attempt failed: "+fail.Message)
		}
		r.Hops++
		return fail, again
	}
	r.Hops, r.Round = 0, 0
	row := &r.Row
	row.Cluster, row.ClusterHash, row.Cloud, row.Region, row.Zone, row.ClusterRes = r.St.Name, r.St.Ref.Hash, r.St.Provider, r.St.Spec.Region, r.St.Spec.Zone, r.St.Row.ResourcesFull
	row.Infra = r.St.Provider
	if place := r.St.Spec.Zone; place != "" {
		row.Infra += " (" + place + ")"
	} else if r.St.Spec.Region != "" {
		row.Infra += " (" + r.St.Spec.Region + ")"
	}
	r.m.record("the job's cluster is up", r.m.up(op, fmt.Sprintf("UP on %s for managed job %d", row.Infra, j.in.ID)))
	j.away(r)
	return nil, false
}

// backOff gives the launching slot back and waits before the next round.
func (j *job) backOff(ctx workflow.Context, r *taskRun, why *api.Error) {
	d := recovery.Backoff(j.in.ID, r.Round)
	r.Round++
	due := workflow.Now(r.m.root).Add(d)
	if r.Row.Recoveries == 0 {
		r.Row.Status = api.ManagedPending
	}
	r.Row.Details, r.Row.NextRetry = words(why), &due
	j.release(r, store.PhaseNone)
	j.show(r, api.EventRetry, "no room: %s; next try at %s", words(why), due.UTC().Format(time.TimeOnly+" MST"))
	r.parked = true
	_, _ = workflow.AwaitWithTimeout(ctx, d, func() bool { return r.halted || j.astray(r) })
	r.parked = false
}

func (j *job) release(r *taskRun, phase store.AdmissionPhase) {
	if err := workflow.ExecuteLocalActivity(local(r.m.root, "give the slot back"), acts.ReleaseAdmission, r.admission(j.in.ID), string(phase)).Get(r.m.root, nil); err != nil {
		workflow.GetLogger(r.m.root).Warn("slot not given back", "job", j.in.ID, "error", err)
	}
}

// submit brings files and the task to the cluster. retry says that the infra is to blame.
func (j *job) submit(ctx workflow.Context, r *taskRun, spec activities.ManagedTaskSpec) (fail *api.Error, retry bool) {
	if fail, retry := j.syncFiles(ctx, r); fail != nil {
		return fail, retry
	}
	if spec.Checkpoint != nil {
		if fail, retry := j.restore(ctx, r, spec); fail != nil {
			return fail, retry
		}
	}
	now := workflow.Now(r.m.root)
	r.TaskID = j.taskID(r.Index)
	in := activities.SubmitInput{RequestID: fmt.Sprintf("managed/%d/%d/%d", j.in.ID, r.Index, r.Row.Attempt), Ref: r.St.Ref, Provider: r.St.Provider, Nodes: r.St.Nodes, NumNodes: r.St.NumNodes,
		Have: r.St.Have, Epoch: r.St.Epoch, Task: spec.Text, SecretRefs: j.in.Body.SecretRefs, Setup: true, User: j.in.Body.User, UserHash: j.in.Body.UserHash, GitCommit: j.in.Body.GitCommit,
		TaskID: r.TaskID, Envs: j.envs(r, spec)}
	var out activities.SubmitOutput
	if err := workflow.ExecuteLocalActivity(brief(r.m.root, "submit the job"), acts.Submit, in).Get(r.m.root, &out); err != nil {
		actx := remote(ctx, activities.QueueMain, "submit the job, with patience", 10*time.Second, 3*time.Minute)
		if err := workflow.ExecuteActivity(actx, acts.Submit, in).Get(actx, &out); err != nil {
			return asError(err), true
		}
	}
	if out.Error != nil {
		return out.Error, out.Error.Kind == api.ErrAutostopping || out.Error.Kind == api.ErrClusterNotUp // the infra's doing
	}
	r.JobID, r.ended, r.look, r.lost = out.Job.ID, nil, false, ""
	if out.Job.Status.Terminal() {
		r.ended = out.Job
	}
	j.release(r, store.PhaseRunning)
	r.Row.Status, r.Row.ClusterJobID, r.Row.RunningSince, r.Row.Details = api.ManagedRunning, out.Job.ID, &now, ""
	if r.Row.StartAt == nil {
		r.Row.StartAt = &now
	}
	j.show(r, api.EventStatus, "RUNNING on %s (cluster %s, attempt %d)", r.Row.Infra, r.St.Name, r.Row.Attempt)
	if spec.Checkpoint != nil {
		j.watchCheckpoints(r, spec)
	}
	return nil, false
}

// taskID is SKYPILOT_TASK_ID of a task.
func (j *job) taskID(index int) string {
	name := j.state.Spec.Name
	if len(j.state.Runs) > 1 {
		name += "_" + j.state.Spec.Tasks[index].Name
	}
	return fmt.Sprintf("sky-managed-%s_%s_%d-%d", j.state.Began.UTC().Format("2006-01-02-15-04-05-000000"), name, j.in.ID, index)
}

// syncFiles brings the task's files to the cluster. retry says that the infra is to blame.
func (j *job) syncFiles(ctx workflow.Context, r *taskRun) (fail *api.Error, retry bool) {
	files := j.in.Body.FileMounts[r.Index]
	if len(files) == 0 {
		return nil, false
	}
	in := activities.SyncInput{RequestID: j.in.Body.RequestID, Cluster: r.St.Name, Ref: r.St.Ref, Provider: r.St.Provider, Nodes: r.St.Nodes, Files: files, EventKey: r.m.key("sync")}
	var out activities.SyncOutput
	actx := remote(ctx, activities.QueueFiles, "sync files", 6*time.Hour, 24*time.Hour)
	if err := workflow.ExecuteActivity(actx, acts.SyncFiles, in).Get(actx, &out); err != nil {
		return asError(err), true
	}
	if out.Error != nil {
		return out.Error, false
	}
	return nil, false
}

// envs are the variables that tell a task who it is.
func (j *job) envs(r *taskRun, spec activities.ManagedTaskSpec) map[string]string {
	var ids []string
	for i := range j.state.Runs {
		ids = append(ids, j.taskID(i))
	}
	e := map[string]string{
		"SKYPILOT_MANAGED_JOB_ID": fmt.Sprint(j.in.ID), "SKYPILOT_TASK_IDS": strings.Join(ids, "\n"), "SKYPILOT_JOB_RANK": fmt.Sprint(j.in.Rank), "SKYPILOT_NUM_JOBS": fmt.Sprint(max(j.in.NumJobs, 1)),
		"SKYPILOT_ATTEMPT": fmt.Sprint(r.Row.Attempt),
	}
	if spec.Checkpoint != nil {
		e["SKYPILOT_CHECKPOINT_DIR"] = spec.Checkpoint.Path // the node makes it absolute
	}
	if r.Row.Group {
		e["SKYPILOT_JOBGROUP_NAME"] = j.state.Spec.Name
		if j.meets {
			e["SKYPILOT_JOBGROUP_HOSTS"] = agentapi.HostsFile // the node makes it absolute
		}
	}
	return e
}

// watch waits until the attempt has ended one way or another, and has the next move decided. It waits for signals only.
func (j *job) watch(ctx workflow.Context, r *taskRun, spec activities.ManagedTaskSpec) recovery.Decision {
	for {
		heard, err := workflow.AwaitWithTimeout(ctx, safetyLook, func() bool { return r.ended != nil || r.look || r.lost != "" || r.halted })
		if r.halted && r.ended == nil || err != nil {
			return recovery.Decision{}
		}
		in := activities.JudgeInput{Policy: spec.Policy, Restarts: r.Row.Restarts, Ended: r.ended, Lost: r.lost,
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
	r.JobID, r.ended, r.look, r.lost = 0, nil, false, ""
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
