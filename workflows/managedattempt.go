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
	"github.com/skyloom/skyloom/internal/store"
)

// bringUp makes the attempt's cluster.
func (j *job) bringUp(ctx workflow.Context, r *taskRun, spec activities.ManagedTaskSpec) (*api.Error, bool) {
	if r.Row.Recoveries == 0 && r.Row.Restarts == 0 {
		r.Row.Status = api.ManagedStarting
	}
	r.Row.Details, r.Row.NextRetry = "", nil
	r.m.midway = false
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
		Have: r.St.Have, Epoch: r.St.Epoch, Task: spec.Text, SecretRefs: spec.SecretRefs(j.in.Body.SecretRefs), Setup: true, User: j.in.Body.User, UserHash: j.in.Body.UserHash, GitCommit: j.in.Body.GitCommit,
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
	j.submitted(r, out.Job)
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

// submitted takes note of the job that the cluster has taken. What was heard meanwhile counts: it is told once.
func (j *job) submitted(r *taskRun, got *api.Job) {
	early := r.early
	r.JobID, r.ended, r.early = got.ID, nil, nil
	heard := early != nil && early.ID == got.ID
	switch {
	case got.Status.Terminal():
		r.ended = got
	case heard && j.remembers():
		r.ended = early
	}
	if (r.look || r.lost != "") && !j.remembers() {
		r.look, r.lost, r.lostRanks = false, "", nil
	}
}

// remembers says that what is heard of an attempt while it is submitted is not forgotten, and that a silent node which answers after
// all is no longer taken for lost. It is asked only where that makes a difference.
func (j *job) remembers() bool {
	return workflow.GetVersion(j.root, "heard while submitting", workflow.DefaultVersion, 1) > workflow.DefaultVersion
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
