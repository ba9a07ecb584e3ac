package workflows

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/google/uuid"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/store"
)

// Launch brings up a cluster if need be and submits the task to it. It may be started as a child workflow from any
// language with plain JSON: {"task": "<yaml>", "cluster_name": "…"}.
func Launch(ctx workflow.Context, in api.LaunchBody) (api.LaunchResult, error) {
	var out api.LaunchResult
	err := ask(ctx, cluster.OpLaunch, "sky.launch", &in.Base, &in.Cluster, &in, &out)
	return out, err
}

// Exec submits a task to a cluster that is UP.
func Exec(ctx workflow.Context, in api.ExecBody) (api.LaunchResult, error) {
	var out api.LaunchResult
	err := ask(ctx, cluster.OpExec, "sky.exec", &in.Base, &in.Cluster, &in, &out)
	return out, err
}

// Start brings a stopped cluster back.
func Start(ctx workflow.Context, in api.StartBody) (api.OpResult, error) {
	var out api.OpResult
	err := ask(ctx, cluster.OpStart, "sky.start", &in.Base, &in.Cluster, &in, &out)
	return out, err
}

// Stop ends a cluster's nodes and keeps their files.
func Stop(ctx workflow.Context, in api.StopOrDownBody) (api.OpResult, error) {
	var out api.OpResult
	err := ask(ctx, cluster.OpStop, "sky.stop", &in.Base, &in.Cluster, &in, &out)
	return out, err
}

// Down removes a cluster.
func Down(ctx workflow.Context, in api.StopOrDownBody) (api.OpResult, error) {
	var out api.OpResult
	err := ask(ctx, cluster.OpDown, "sky.down", &in.Base, &in.Cluster, &in, &out)
	return out, err
}

// Autostop sets a cluster's idle rule.
func Autostop(ctx workflow.Context, in api.AutostopBody) (api.OpResult, error) {
	var out api.OpResult
	err := ask(ctx, cluster.OpAutostop, "sky.autostop", &in.Base, &in.Cluster, &in, &out)
	return out, err
}

// CancelJobs cancels jobs on a cluster. It ends once their processes are gone.
func CancelJobs(ctx workflow.Context, in api.CancelBody) (api.OpResult, error) {
	var out api.OpResult
	err := ask(ctx, cluster.OpCancel, "sky.cancel", &in.Base, &in.Cluster, &in, &out)
	return out, err
}

// Preempt takes spot nodes away as their infra would.
func Preempt(ctx workflow.Context, in api.PreemptBody) (api.OpResult, error) {
	var out api.OpResult
	err := ask(ctx, cluster.OpPreempt, "sky.preempt", &in.Base, &in.Cluster, &in, &out)
	return out, err
}

// requestID is the request's id: the one the client chose, else one that follows from the workflow's identity.
func requestID(ctx workflow.Context, given string) string {
	if given != "" {
		return given
	}
	info := workflow.GetInfo(ctx)
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte(info.Namespace+"/"+info.WorkflowExecution.ID+"/"+info.FirstRunID)).String()
}

// ask hands an operation to the cluster's workflow and waits for the outcome.
func ask(ctx workflow.Context, kind cluster.OpKind, name string, base *api.Base, clusterName *string, body, out any) error {
	base.RequestID = requestID(ctx, base.RequestID)
	root, _ := workflow.NewDisconnectedContext(ctx)
	info := workflow.GetInfo(ctx)
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	in := activities.DeliverInput{
		Cluster: *clusterName, Workspace: base.Workspace,
		Op: cluster.Op{Key: base.RequestID, Kind: kind, Body: raw, ReplyTo: info.WorkflowExecution.ID, User: base.User, Command: base.Command},
		Request: api.Request{ID: base.RequestID, Name: name, Status: api.RequestRunning, Cluster: *clusterName, User: base.User, UserHash: base.UserHash,
			Command: base.Command, CreatedAt: info.WorkflowStartTime},
	}
	if dry, ok := body.(*api.LaunchBody); ok && dry.Dryrun {
		return dryrun(ctx, root, in, dry, out)
	}
	replies := workflow.GetSignalChannel(ctx, activities.SignalReply)
	cancelled := false
	patience := workflow.Now(ctx).Add(time.Hour)
	for pause := 100 * time.Millisecond; ; pause = min(pause*2, 2*time.Second) {
		var d activities.DeliverOutput
		if err := workflow.ExecuteLocalActivity(local(root, "hand over to the cluster"), acts.Deliver, in).Get(root, &d); err != nil {
			return fail(root, base.RequestID, asError(err))
		}
		switch {
		case d.Error != nil:
			return fail(root, base.RequestID, d.Error)
		case d.Outcome != nil: // carried out before
			return answer(ctx, *d.Outcome, out)
		case d.Delivery == activities.TryAgain && workflow.Now(ctx).Before(patience):
			if err := workflow.Sleep(ctx, pause); err != nil {
				return fail(root, base.RequestID, cluster.Cancelled("the request was cancelled"))
			}
			continue
		case d.Delivery != activities.Delivered:
			return fail(root, base.RequestID, cluster.NoCluster(in.Cluster))
		}
		in.Cluster = d.Cluster
		workflow.SetCurrentDetails(ctx, "handed over to workflow `"+activities.ClusterWorkflowID(d.Cluster)+"`; waiting for its outcome")

		timer, stop := workflow.WithCancel(root)
		wait := workflow.NewTimer(timer, redeliver)
		var outcome *cluster.Outcome
		asked := false
		for outcome == nil && !wait.IsReady() {
			sel := workflow.NewSelector(root)
			sel.AddReceive(replies, func(c workflow.ReceiveChannel, _ bool) {
				var o cluster.Outcome
				c.Receive(root, &o)
				if o.Key == base.RequestID {
					outcome = &o
				}
			})
			sel.AddFuture(wait, func(workflow.Future) {})
			if !cancelled { // a closed channel is ready for ever
				sel.AddReceive(ctx.Done(), func(workflow.ReceiveChannel, bool) { cancelled = true })
			}
			sel.Select(root)
			if cancelled && !asked {
				asked = true
				var d activities.DeliverOutput
				if err := workflow.ExecuteLocalActivity(local(root, "ask the cluster to cancel"), acts.CancelOp, in.Cluster, base.RequestID).Get(root, &d); err == nil && d.Outcome != nil {
					stop()
					return answer(ctx, *d.Outcome, out)
				} else if err != nil || d.Delivery != activities.Delivered {
					stop()
					return fail(root, base.RequestID, cluster.Cancelled("the request was cancelled"))
				}
			}
		}
		stop()
		if outcome != nil {
			return answer(ctx, *outcome, out)
		}
	}
}

// dryrun answers what a launch would choose; it touches no cluster.
func dryrun(ctx, root workflow.Context, in activities.DeliverInput, body *api.LaunchBody, out any) error {
	var p activities.PlanOutput
	if err := workflow.ExecuteLocalActivity(local(root, "choose a place"), acts.PlanDry, in, *body).Get(root, &p); err != nil {
		return fail(root, in.Op.Key, asError(err))
	}
	if p.Error != nil {
		return fail(root, in.Op.Key, p.Error)
	}
	res, err := json.Marshal(api.LaunchResult{RequestID: in.Op.Key, Cluster: body.Cluster, NumNodes: p.Plan.NumNodes, Plan: &p.Plan})
	if err != nil {
		return err
	}
	rec := activities.RecordInput{Batch: store.Batch{Requests: []store.RequestUpdate{{ID: in.Op.Key, Status: api.RequestSucceeded, Result: res}}}}
	if err := workflow.ExecuteLocalActivity(local(root, "write the result"), acts.Record, rec).Get(root, nil); err != nil {
		return err
	}
	return json.Unmarshal(res, out)
}

// answer turns an outcome into the workflow's result. Its row stands already.
func answer(ctx workflow.Context, o cluster.Outcome, out any) error {
	if o.Cancelled {
		return temporal.NewCanceledError(*o.Error)
	}
	if o.Error != nil {
		return failure(o.Error)
	}
	return json.Unmarshal(o.Result, out)
}

// fail writes the end of a request that never reached its cluster, then ends the workflow.
func fail(ctx workflow.Context, id string, e *api.Error) error {
	status := api.RequestFailed
	if e.Kind == api.ErrCancelled {
		status = api.RequestCancelled
	}
	rec := activities.RecordInput{Batch: store.Batch{Requests: []store.RequestUpdate{{ID: id, Status: status, Error: e}}}, DropScope: activities.RequestScope(id)}
	if err := workflow.ExecuteLocalActivity(local(ctx, "write the error"), acts.Record, rec).Get(ctx, nil); err != nil {
		return err
	}
	if status == api.RequestCancelled {
		return temporal.NewCanceledError(*e)
	}
	return failure(e)
}

func failure(e *api.Error) error {
	return temporal.NewApplicationErrorWithOptions(e.Message, e.Kind, temporal.ApplicationErrorOptions{NonRetryable: true, Details: []any{*e}})
}

// asError keeps what an activity said, in the form a user sees.
func asError(err error) *api.Error {
	var app *temporal.ApplicationError
	if errors.As(err, &app) {
		var e api.Error
		if app.HasDetails() && app.Details(&e) == nil && e.Kind != "" {
			return &e
		}
		return &api.Error{Kind: api.ErrInternal, Message: app.Message()}
	}
	return &api.Error{Kind: api.ErrInternal, Message: err.Error()}
}
