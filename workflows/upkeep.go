package workflows

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/store"
)

// Reaper runs on a schedule: what the infra holds under our tags against what workflows own, both ways.
func Reaper(ctx workflow.Context) (activities.ReapOutput, error) {
	var out activities.ReapOutput
	actx := remote(ctx, activities.QueueProvision, "compare the infra with what is owned", 4*time.Minute, 4*time.Minute)
	err := workflow.ExecuteActivity(actx, acts.Reap).Get(actx, &out)
	return out, err
}

// Check asks every infra whether it can be used.
func Check(ctx workflow.Context, in api.CheckBody) (api.CheckResult, error) {
	var out api.CheckResult
	in.RequestID = requestID(ctx, in.RequestID)
	if err := open(ctx, in.Base, "sky.check", "check"); err != nil {
		return out, err
	}
	actx := remote(ctx, activities.QueueProvision, "check the infra", 5*time.Minute, 10*time.Minute)
	if err := workflow.ExecuteActivity(actx, acts.Check, in).Get(actx, &out); err != nil {
		return out, ended(ctx, in.RequestID, err)
	}
	return out, closeRequest(ctx, in.RequestID, out)
}

// Refresh asks the infra about clusters and waits until each has drawn its conclusion (`sky status -r`).
func Refresh(ctx workflow.Context, in api.RefreshBody) (api.OpResult, error) {
	out := api.OpResult{}
	in.RequestID = requestID(ctx, in.RequestID)
	out.RequestID = in.RequestID
	if err := open(ctx, in.Base, "sky.status", "refresh"); err != nil {
		return out, err
	}
	var names []string
	if err := workflow.ExecuteLocalActivity(local(ctx, "whom to ask"), acts.Targets, in).Get(ctx, &names); err != nil {
		return out, ended(ctx, in.RequestID, err)
	}
	waiting := map[string]string{}
	info := workflow.GetInfo(ctx)
	for _, name := range names {
		key := in.RequestID + "/" + name
		d := activities.DeliverInput{Cluster: name, Op: cluster.Op{Key: key, Kind: cluster.OpRefresh, Body: []byte("{}"), ReplyTo: info.WorkflowExecution.ID, User: in.User, Quiet: true}}
		var got activities.DeliverOutput
		if err := workflow.ExecuteLocalActivity(local(ctx, "ask "+name), acts.Ask, d).Get(ctx, &got); err != nil {
			return out, ended(ctx, in.RequestID, err)
		}
		if got.Delivery == activities.Delivered {
			waiting[key] = name
		}
	}
	replies := workflow.GetSignalChannel(ctx, activities.SignalReply)
	deadline := workflow.NewTimer(ctx, 5*time.Minute)
	expired := false
	sel := workflow.NewSelector(ctx)
	sel.AddReceive(replies, func(c workflow.ReceiveChannel, _ bool) {
		var o cluster.Outcome
		c.Receive(ctx, &o)
		if name, ok := waiting[o.Key]; ok {
			delete(waiting, o.Key)
			if o.Error != nil {
				out.Warnings = append(out.Warnings, fmt.Sprintf("%s: %s", name, o.Error.Message))
			}
		}
	})
	sel.AddFuture(deadline, func(workflow.Future) { expired = true })
	for len(waiting) > 0 && !expired {
		sel.Select(ctx)
		if ctx.Err() != nil {
			return out, ended(ctx, in.RequestID, ctx.Err())
		}
	}
	for _, name := range names {
		if _, ok := waiting[in.RequestID+"/"+name]; ok {
			out.Warnings = append(out.Warnings, name+": no answer yet; its state may be old")
		}
	}
	out.Message = fmt.Sprintf("%d cluster(s) refreshed", len(names)-len(waiting))
	return out, closeRequest(ctx, in.RequestID, out)
}

// open writes the request's row. Like closeRequest it is done even if the request is cancelled meanwhile.
// PreemptOwned takes spot nodes away from a cluster that a managed job owns: the job hears of it from its watcher, as it would of
// any other loss.
func PreemptOwned(ctx workflow.Context, in api.PreemptBody) (api.OpResult, error) {
	in.RequestID = requestID(ctx, in.RequestID)
	out := api.OpResult{RequestID: in.RequestID, Cluster: in.Cluster}
	if err := open(ctx, in.Base, "sky.preempt", "preempt"); err != nil {
		return out, err
	}
	notice := time.Duration(in.NoticeSeconds) * time.Second
	actx := remote(ctx, activities.QueueProvision, "preempt", notice+time.Minute, notice+10*time.Minute)
	var done activities.NodesOutput
	if err := workflow.ExecuteActivity(actx, acts.PreemptOwned, in).Get(actx, &done); err != nil {
		return out, ended(ctx, in.RequestID, err)
	}
	if done.Error != nil {
		return out, fail(ctx, in.RequestID, done.Error)
	}
	out.Message = fmt.Sprintf("preempted node(s) %v of cluster %s", done.Ranks, in.Cluster)
	return out, closeRequest(ctx, in.RequestID, out)
}

func open(ctx workflow.Context, b api.Base, name, kind string) error {
	ctx, _ = workflow.NewDisconnectedContext(ctx)
	r := api.Request{ID: b.RequestID, Name: name, Status: api.RequestRunning, User: b.User, UserHash: b.UserHash, Command: b.Command, CreatedAt: workflow.GetInfo(ctx).WorkflowStartTime}
	return workflow.ExecuteLocalActivity(local(ctx, "write the request's row"), acts.Open, r, kind).Get(ctx, nil)
}

func closeRequest(ctx workflow.Context, id string, result any) error {
	ctx, _ = workflow.NewDisconnectedContext(ctx)
	rec := activities.RecordInput{Batch: store.Batch{Requests: []store.RequestUpdate{{ID: id, Status: api.RequestSucceeded, Result: encode(result)}}}}
	return workflow.ExecuteLocalActivity(local(ctx, "write the result"), acts.Record, rec).Get(ctx, nil)
}

// ended writes how a request of its own failed or was cancelled.
func ended(ctx workflow.Context, id string, err error) error {
	root, _ := workflow.NewDisconnectedContext(ctx)
	if temporal.IsCanceledError(err) || ctx.Err() != nil {
		return fail(root, id, cluster.Cancelled("the request was cancelled"))
	}
	return fail(root, id, asError(err))
}
