package workflows

import (
	"encoding/json"
	"fmt"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/store"
)

// launch carries out a launch: the cluster is made or reused, files are brought, the job is submitted. waits says that
// the launch found no room and tries again later; there is no outcome yet.
func (e *entity) launch(ctx workflow.Context, op cluster.Op) (res any, b store.Batch, fail *api.Error, waits bool) {
	var body api.LaunchBody
	if err := json.Unmarshal(op.Body, &body); err != nil {
		return nil, b, &api.Error{Kind: api.ErrInvalid, Message: "launch: " + err.Error()}, false
	}
	in := activities.PlanInput{RequestID: op.Key, Body: body, CheckHash: op.Attempt == 0, Round: op.Attempt}
	if e.st.Exists() && e.st.Row.EverUp {
		in.Existing = &activities.ExistingCluster{Row: e.st.Row, Have: e.st.Have, NumNodes: e.st.NumNodes}
	} else {
		in.Mint = !e.st.Exists()
	}
	var plan activities.PlanOutput
	if err := workflow.ExecuteLocalActivity(local(e.root, "choose a place"), acts.Plan, in).Get(e.root, &plan); err != nil {
		e.giveUp(op, "the launch failed")
		return nil, b, asError(err), false
	}
	if plan.Error != nil && !(plan.Retry && body.RetryUntilUp) {
		e.giveUp(op, "the launch failed: "+plan.Error.Message)
		return nil, b, plan.Error, false
	}
	if e.cur.cancelled {
		e.giveUp(op, "the launch was cancelled")
		return nil, b, cluster.Cancelled(e.cur.why), false
	}
	created := false
	switch {
	case in.Existing == nil:
		e.begin(op, body, plan)
		if fail, again := e.firstUp(ctx, op, body, in, plan); fail != nil {
			if again && body.RetryUntilUp && !e.cur.cancelled {
				e.waitForRoom(op, fail)
				return nil, b, nil, true
			}
			e.giveUp(op, "the launch failed: "+fail.Message)
			return nil, b, fail, false
		}
		created = true
		b = e.up(op, fmt.Sprintf("UP on %s", e.st.Row.Cloud))
	case e.st.Row.Status == api.ClusterStopped, e.st.Row.Status == api.ClusterInit && e.repairs():
		if fail := e.restart(ctx, op, plan.Task); fail != nil {
			if fail.Kind == api.ErrResourcesUnavailable && body.RetryUntilUp && !e.cur.cancelled {
				e.waitForRoom(op, fail)
				return nil, b, nil, true
			}
			return nil, b, fail, false
		}
		b = e.up(op, "UP again")
	case e.st.Row.Status != api.ClusterUp:
		return nil, b, cluster.NotUp(e.st.Row), false
	}
	if body.Resize && !created && plan.Task.NumNodes != e.st.NumNodes {
		if len(b.Clusters) > 0 {
			e.record("cluster is UP", b)
			b = store.Batch{}
		}
		if fail := e.resize(ctx, op, plan.Task); fail != nil {
			return nil, b, fail, false
		}
		b = e.up(op, fmt.Sprintf("UP with %d node(s)", e.st.NumNodes))
	}
	e.note(op, body, plan)
	if len(b.Clusters) > 0 {
		b.Clusters = []api.Cluster{e.row()}
		e.record("cluster is UP", b) // seen at once; the job may take a while to be submitted
		b = store.Batch{}
	}
	if fail := e.bringFiles(ctx, op, body.FileMounts); fail != nil {
		return nil, b, fail, false
	}
	result := api.LaunchResult{RequestID: op.Key, Cluster: e.st.Name, Hash: e.st.Ref.Hash, NumNodes: e.st.NumNodes, Created: created}
	setup := plan.Task.HasSetup && !body.NoSetup && !(body.Fast && !created && e.sameConfig(plan.Task))
	e.st.Row.ConfigHash = plan.Task.ConfigHash
	var idle *agentapi.Autostop
	if !created && plan.Task.Hooks == nil && len(e.st.Autostop.Hooks) > 0 {
		plan.Task.Hooks = []agentapi.Hook{} // a relaunch without hooks clears them
	}
	if !created && (plan.Task.Autostop != nil || plan.Task.Hooks != nil) {
		idle = e.autostopFor(plan.Task)
	}
	if plan.Task.HasRun || setup {
		job, rows, fail := e.submit(ctx, op, activities.SubmitInput{Task: body.Task, SecretRefs: body.SecretRefs, Setup: setup, UserHash: body.UserHash, GitCommit: body.GitCommit, Autostop: idle})
		if fail != nil && fail.Kind == api.ErrAutostopping && !e.cur.cancelled {
			e.waitForAutostop(op, fail)
			return nil, b, nil, true
		}
		if fail != nil {
			return nil, rows, fail, false
		}
		b, result.JobID = rows, job.ID
	} else {
		if idle != nil {
			if fail := e.giveAutostop(*idle, false); fail != nil {
				return nil, b, fail, false
			}
		}
		b.Events = append(b.Events, e.event(op, api.EventOutput, "submit", "nothing to run: the task has no run command"))
	}
	b.Clusters = []api.Cluster{e.row()}
	return result, b, nil, false
}

// giveUp removes a cluster that a launch has not brought up, unless it was up before.
func (e *entity) giveUp(op cluster.Op, why string) {
	if e.st.Exists() && !e.st.Row.EverUp {
		e.remove(op, why)
	}
}

// begin takes down who asked for the cluster, at its creation.
func (e *entity) begin(op cluster.Op, body api.LaunchBody, plan activities.PlanOutput) {
	if plan.Hash != "" {
		now := workflow.Now(e.root)
		seq := e.st.Row.Seq
		e.st.Row = api.Cluster{Name: e.st.Name, Hash: plan.Hash, Seq: seq, Status: api.ClusterInit, InitKind: "launching", LaunchedAt: &now, AutostopMinutes: -1,
			UserName: body.User, UserHash: body.UserHash, Workspace: body.Workspace}
		if e.st.Row.Workspace == "" {
			e.st.Row.Workspace = "default"
		}
		e.st.Ref.Installation, e.st.Ref.Name, e.st.Ref.Hash = plan.Installation, e.st.Name, plan.Hash
		e.st.SecretRef, e.st.Gen, e.st.Epoch = plan.SecretRef, 0, 0
	}
	e.note(op, body, plan)
}

// note keeps the command and task that used the cluster last.
func (e *entity) note(op cluster.Op, body api.LaunchBody, plan activities.PlanOutput) {
	e.st.Row.LastUse, e.st.Row.LastCommand, e.st.Row.LastTaskYAML = op.Command, op.Command, plan.Task.Redacted
}

// firstUp brings a cluster up that was never up before.
func (e *entity) firstUp(ctx workflow.Context, op cluster.Op, body api.LaunchBody, in activities.PlanInput, plan activities.PlanOutput) (*api.Error, bool) {
	if plan.Error != nil {
		return plan.Error, plan.Retry
	}
	fail, again := e.bringUp(ctx, op, in, plan)
	if fail != nil && fail.Kind == api.ErrCancelled && e.cur.why != "" {
		fail = cluster.Cancelled(e.cur.why)
	}
	return fail, again
}

// waitForRoom parks a launch or start until its next round. It holds nothing, and the cluster is free for others.
func (e *entity) waitForRoom(op cluster.Op, why *api.Error) {
	op.Attempt++
	due := workflow.Now(e.root).Add(cluster.RetryDelay(op.Attempt))
	e.st.Waiting = append(e.st.Waiting, cluster.WaitingOp{Op: op, Due: due})
	r := &e.st.Row
	if !r.EverUp {
		r.Status, r.InitKind = api.ClusterInit, "launching"
	}
	r.Step, r.LastError, r.NextRetry = "wait for capacity", firstLine(why), &due
	ev := e.event(op, api.EventRetry, "provision", "round %d found no room; next try at %s", op.Attempt, due.UTC().Format(time.TimeOnly+" MST"))
	ev.NextRetry = &due
	e.record("wait for room", store.Batch{Clusters: []api.Cluster{e.row()}, Events: []store.Event{ev},
		Requests: []store.RequestUpdate{{ID: op.Key, Status: api.RequestWaiting, Msg: firstLine(why), NextRetry: &due, Cluster: e.st.Name}}})
	e.describe()
}

// waitForAutostop parks a launch whose cluster is stopping itself: it goes on once that is over.
func (e *entity) waitForAutostop(op cluster.Op, why *api.Error) {
	due := workflow.Now(e.root).Add(time.Second)
	e.st.Waiting = append(e.st.Waiting, cluster.WaitingOp{Op: op, Due: due})
	e.record("wait for the autostop", store.Batch{Events: []store.Event{e.event(op, api.EventRetry, "submit", "%s; the launch goes on afterwards", why.Message)},
		Requests: []store.RequestUpdate{{ID: op.Key, Status: api.RequestWaiting, Msg: why.Message, NextRetry: &due, Cluster: e.st.Name}}})
}

func firstLine(e *api.Error) string {
	s := e.Message
	if len(e.Details) > 0 {
		s = e.Details[len(e.Details)-1]
	}
	if len(s) > 200 {
		s = s[:200]
	}
	return s
}

// sameConfig says that the cluster was set up for the same task configuration.
func (e *entity) sameConfig(t activities.TaskSummary) bool {
	return e.st.Row.ConfigHash != "" && e.st.Row.ConfigHash == t.ConfigHash
}

// bringFiles syncs workdir and file mounts to every node.
func (e *entity) bringFiles(ctx workflow.Context, op cluster.Op, files []api.FileMount) *api.Error {
	if len(files) == 0 {
		return nil
	}
	in := activities.SyncInput{RequestID: op.Key, Cluster: e.st.Name, Ref: e.st.Ref, Provider: e.st.Provider, Nodes: e.st.Nodes, Files: files, EventKey: e.key("sync")}
	var out activities.SyncOutput
	actx := remote(ctx, activities.QueueFiles, fmt.Sprintf("sync %d file mount(s)", len(files)), 6*time.Hour, 24*time.Hour)
	if err := workflow.ExecuteActivity(actx, acts.SyncFiles, in).Get(actx, &out); err != nil {
		if e.cur.cancelled {
			return cluster.Cancelled(e.cur.why)
		}
		return asError(err)
	}
	return out.Error
}

// submit hands the job to the head node's agent: at once if it answers, else with patience.
func (e *entity) submit(ctx workflow.Context, op cluster.Op, in activities.SubmitInput) (*api.Job, store.Batch, *api.Error) {
	var b store.Batch
	if e.cur.cancelled {
		return nil, b, cluster.Cancelled(e.cur.why)
	}
	in.RequestID, in.Ref, in.Provider, in.Nodes, in.NumNodes, in.Have, in.Epoch, in.User = op.Key, e.st.Ref, e.st.Provider, e.st.Nodes, e.st.NumNodes, e.st.Have, e.st.Epoch, op.User
	var out activities.SubmitOutput
	if err := workflow.ExecuteLocalActivity(brief(e.root, "submit the job"), acts.Submit, in).Get(e.root, &out); err != nil {
		if e.cur.cancelled {
			e.unsure = true
			return nil, b, cluster.Cancelled(e.cur.why)
		}
		actx := remote(ctx, activities.QueueMain, "submit the job, with patience", 10*time.Second, 3*time.Minute)
		if err := workflow.ExecuteActivity(actx, acts.Submit, in).Get(actx, &out); err != nil {
			e.unsure = true
			if e.cur.cancelled {
				return nil, b, cluster.Cancelled(e.cur.why)
			}
			return nil, b, &api.Error{Kind: api.ErrClusterNotUp, Message: fmt.Sprintf("the head node of cluster %q does not answer: %s", e.st.Name, asError(err).Message),
				Hint: fmt.Sprintf("look again in a minute: sky status -r %s", e.st.Name)}
		}
	}
	if out.Error != nil {
		return nil, b, out.Error
	}
	e.st.Row.LastEvent = fmt.Sprintf("job %d submitted", out.Job.ID)
	b.Jobs = []store.JobsUpdate{{Cluster: e.st.Name, Hash: e.st.Ref.Hash, Jobs: []api.Job{*out.Job}}}
	b.Events = []store.Event{e.event(op, api.EventStep, "submit", "job %d submitted", out.Job.ID)}
	return out.Job, b, nil
}

// exec submits a job to a cluster that is UP.
func (e *entity) exec(ctx workflow.Context, op cluster.Op) (any, store.Batch, *api.Error) {
	var body api.ExecBody
	if err := json.Unmarshal(op.Body, &body); err != nil {
		return nil, store.Batch{}, &api.Error{Kind: api.ErrInvalid, Message: "exec: " + err.Error()}
	}
	if fail := e.st.Admit(op, true, true); fail != nil {
		return nil, store.Batch{}, fail
	}
	if fail := e.bringFiles(ctx, op, body.FileMounts); fail != nil {
		return nil, store.Batch{}, fail
	}
	job, b, fail := e.submit(ctx, op, activities.SubmitInput{Task: body.Task, SecretRefs: body.SecretRefs, Exec: true, UserHash: body.UserHash, GitCommit: body.GitCommit})
	if fail != nil {
		return nil, b, fail
	}
	e.st.Row.LastUse = op.Command
	b.Clusters = []api.Cluster{e.row()}
	return api.LaunchResult{RequestID: op.Key, Cluster: e.st.Name, Hash: e.st.Ref.Hash, JobID: job.ID, NumNodes: job.NumNodes}, b, nil
}
