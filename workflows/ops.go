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
	"github.com/skyloom/skyloom/providers"
)

// can asks what the cluster's infra is able to do.
func (e *entity) can() activities.Abilities {
	var a activities.Abilities
	if e.st.Provider == "" {
		return a
	}
	if err := workflow.ExecuteLocalActivity(local(e.root, "what the infra can do"), acts.Abilities, e.st.Provider).Get(e.root, &a); err != nil {
		workflow.GetLogger(e.root).Warn("abilities unknown", "provider", e.st.Provider, "error", err)
	}
	return a
}

// admit refuses an operation that the cluster's state or infra does not allow.
func (e *entity) admit(op cluster.Op) *api.Error {
	a := e.can()
	return e.st.Admit(op, a.Stop, a.SpotStop)
}

// restart brings stopped nodes back, and gives the cluster nodes in place of those it has lost. Jobs on nodes that run go
// on. On failure the cluster stays as it was.
func (e *entity) restart(ctx workflow.Context, op cluster.Op, t activities.TaskSummary) *api.Error {
	before := e.st.Row
	if can := e.can(); !can.Stop && !(can.Extend && before.Status != api.ClusterStopped) {
		return cluster.NotUp(before)
	}
	what := "starting %d node(s)"
	switch before.Status {
	case api.ClusterInit:
		what = "bringing the cluster back to %d node(s)"
	case api.ClusterUp:
		what = "growing to %d node(s)"
	}
	r := &e.st.Row
	r.Step, r.Attempt, r.LastError = "start", 1, ""
	e.st.Epoch++
	e.st.Gen++
	e.ready = false
	out := e.provision(op, e.event(op, api.EventStep, "start", what, e.st.NumNodes), t, true)
	if out.Failure == nil && !out.Ready {
		out = e.awaitReady(ctx, op, t, out, true)
	}
	if out.Failure != nil || e.cur.cancelled {
		r.Status, r.InitKind, r.Step, r.Attempt = before.Status, before.InitKind, "", 0
		why := e.cur.why
		if out.Failure != nil {
			why = out.Failure.Message
			r.LastError = why
		}
		// What did start is stopped again, so that the state shown is the state there is.
		if before.Status == api.ClusterStopped {
			actx := remote(e.root, activities.QueueProvision, "stop what had started", 2*time.Minute, time.Hour)
			if err := workflow.ExecuteActivity(actx, acts.StopNodes, e.nodes(op)).Get(actx, nil); err != nil {
				workflow.GetLogger(e.root).Warn("stop after a failed start", "error", err)
			}
		}
		e.record("start failed", store.Batch{Clusters: []api.Cluster{e.row()}, Events: []store.Event{e.event(op, api.EventError, "start", "start failed: %s", why)}})
		if e.cur.cancelled {
			return cluster.Cancelled(e.cur.why)
		}
		if !mayMend(out.Failure.Kind) {
			return &api.Error{Kind: api.ErrClusterNotUp, Message: fmt.Sprintf("cluster %q can't be started: %s", e.st.Name, why),
				Hint: fmt.Sprintf("remove it and launch again: sky down %s", e.st.Name)}
		}
		return &api.Error{Kind: api.ErrResourcesUnavailable, Message: fmt.Sprintf("cluster %q could not be started: %s", e.st.Name, why),
			Hint: fmt.Sprintf("it is %s as before; try again later: sky start %s", before.Status, e.st.Name)}
	}
	e.st.Nodes = out.Nodes
	return nil
}

// mayMend says that what failed for this reason may succeed later.
func mayMend(k providers.Kind) bool {
	switch k {
	case providers.NoCapacity, providers.QuotaExceeded, providers.RateLimited, providers.UnknownOutcome, providers.Internal:
		return true
	}
	return false
}

// start brings a stopped or unhealthy cluster back. waits says that it found no room and tries again later.
func (e *entity) start(ctx workflow.Context, op cluster.Op) (_ any, _ store.Batch, fail *api.Error, waits bool) {
	var body api.StartBody
	if err := json.Unmarshal(op.Body, &body); err != nil {
		return nil, store.Batch{}, &api.Error{Kind: api.ErrInvalid, Message: "start: " + err.Error()}, false
	}
	if fail := e.admit(op); fail != nil {
		return nil, store.Batch{}, fail, false
	}
	if !e.st.Row.EverUp {
		return nil, store.Batch{}, cluster.NotUp(e.st.Row), false
	}
	res := api.OpResult{RequestID: op.Key, Cluster: e.st.Name}
	if e.st.Row.Status == api.ClusterUp {
		if !body.Force || op.Attempt > 0 {
			res.Message = fmt.Sprintf("cluster %s already has status UP", e.st.Name)
			return res, store.Batch{}, nil, false
		}
		if fail := e.halt(op, ""); fail != nil {
			e.look()
			return nil, store.Batch{}, fail, false
		}
		e.st.Row.Status = api.ClusterStopped
	}
	t := activities.TaskSummary{}
	if body.IdleMinutes != nil {
		if fail := e.idleAllowed(body.Down); fail != nil {
			return nil, store.Batch{}, fail, false
		}
		t.Autostop = &agentapi.Autostop{IdleMinutes: max(*body.IdleMinutes, 1), Down: body.Down, WaitFor: body.WaitFor, Hooks: e.st.Autostop.Hooks}
		if *body.IdleMinutes < 0 {
			t.Autostop.IdleMinutes = -1
		}
	}
	if fail := e.restart(ctx, op, t); fail != nil {
		if body.RetryUntilUp && fail.Kind == api.ErrResourcesUnavailable && !e.cur.cancelled {
			e.waitForRoom(op, fail)
			return nil, store.Batch{}, nil, true
		}
		return nil, store.Batch{}, fail, false
	}
	res.Message = fmt.Sprintf("cluster %s is UP", e.st.Name)
	return res, e.up(op, "UP again"), nil, false
}

// halt stops the nodes and keeps their files.
func (e *entity) halt(op cluster.Op, event string) *api.Error {
	in := e.nodes(op)
	in.HookEvent = event
	ctx := remote(e.root, activities.QueueProvision, "stop the nodes", 90*time.Minute, forever)
	var out activities.NodesOutput
	if err := workflow.ExecuteActivity(ctx, acts.StopNodes, in).Get(ctx, &out); err != nil {
		return asError(err)
	}
	if out.Error != nil {
		return out.Error
	}
	if len(out.Nodes) == 0 {
		return &api.Error{Kind: api.ErrClusterNotUp, Message: fmt.Sprintf("cluster %q has no nodes any more that could be stopped", e.st.Name), Hint: "remove it: sky down " + e.st.Name}
	}
	e.st.Nodes = out.Nodes
	return nil
}

func (e *entity) stop(ctx workflow.Context, op cluster.Op) (any, store.Batch, *api.Error) {
	var body api.StopOrDownBody
	if err := json.Unmarshal(op.Body, &body); err != nil {
		return nil, store.Batch{}, &api.Error{Kind: api.ErrInvalid, Message: "stop: " + err.Error()}
	}
	if op.Auto && !e.stillDue(op) {
		return nil, store.Batch{}, nil
	}
	res := api.OpResult{RequestID: op.Key, Cluster: e.st.Name}
	if e.st.Exists() && !e.st.Row.EverUp { // its launch was cancelled as the stop came in
		e.remove(op, "stopped before it was ever UP")
		res.Message = fmt.Sprintf("cluster %s was never UP: its launch is cancelled, and it is removed", e.st.Name)
		return res, store.Batch{}, nil
	}
	if fail := e.admit(op); fail != nil {
		return nil, store.Batch{}, fail
	}
	if e.st.Row.Status == api.ClusterStopped {
		res.Message = fmt.Sprintf("cluster %s is STOPPED already", e.st.Name)
		return res, store.Batch{}, nil
	}
	e.ending(op, "stop")
	e.graceful(op, body)
	if fail := e.halt(op, "stop"); fail != nil {
		e.st.Row.Step, e.st.Row.LastError = "", fail.Message
		if e.st.Row.Status == api.ClusterAutostopping {
			e.st.Row.Status = api.ClusterUp
		}
		e.look()
		return nil, store.Batch{Clusters: []api.Cluster{e.row()}}, fail
	}
	b := e.stopped("stopped")
	res.Message = fmt.Sprintf("cluster %s is STOPPED", e.st.Name)
	return res, b, nil
}

// stopped makes the rows of a cluster whose nodes have ended and whose files are kept.
func (e *entity) stopped(why string) store.Batch {
	now := workflow.Now(e.root)
	r := &e.st.Row
	r.Status, r.InitKind, r.StatusReason, r.Step, r.HeadIP, r.NodeIPs = api.ClusterStopped, "", "", "", "", nil
	r.LastEvent = why
	e.st.Autostop = agentapi.Autostop{Generation: e.st.Autostop.Generation, IdleMinutes: -1, Hooks: e.st.Autostop.Hooks}
	e.showAutostop()
	return store.Batch{
		Clusters:  []api.Cluster{e.row()},
		EndJobs:   []store.EndJobs{{Hash: e.st.Ref.Hash, Status: api.JobFailed, Reason: "the cluster was stopped", At: now}},
		UsageEnds: []store.UsageEnd{{Hash: e.st.Ref.Hash, At: now}},
		Unwatches: []string{e.st.Ref.Hash},
		Events:    []store.Event{e.event(cluster.Op{Auto: true}, api.EventStatus, "", "STOPPED: %s", why)},
	}
}

// stillDue says that the autostop the agent asks for is the one that is set; else the agent is told to go on.
func (e *entity) stillDue(op cluster.Op) bool {
	if e.st.Exists() && op.Gen == e.st.Autostop.Generation && (e.st.Row.Status == api.ClusterUp || e.st.Row.Status == api.ClusterAutostopping) {
		return true
	}
	if e.st.Exists() && e.st.Row.Status == api.ClusterUp {
		if fail := e.giveAutostop(agentapi.Autostop{Generation: op.Gen}, true); fail != nil {
			workflow.GetLogger(e.root).Warn("undrain", "error", fail.Message)
		}
		if op.Gen > e.st.Autostop.Generation { // a rule that never came to be: ours must stand above it
			if e.st.Autostop.Generation == 0 {
				e.st.Autostop.IdleMinutes = -1
			}
			e.st.Autostop.Generation = op.Gen + 1
			if fail := e.giveAutostop(e.st.Autostop, false); fail != nil {
				workflow.GetLogger(e.root).Warn("idle rule", "error", fail.Message)
			}
		}
	}
	return false
}

// ending shows that a teardown has begun.
func (e *entity) ending(op cluster.Op, step string) {
	r := &e.st.Row
	r.Step, r.LastError, r.NextRetry = step, "", nil
	what := step + " asked by " + op.User
	if op.User == "" {
		what = step
	}
	if op.Auto {
		r.Status = api.ClusterAutostopping
		what = fmt.Sprintf("idle for %d min: auto%s", r.AutostopMinutes, step)
	}
	e.endSides(fmt.Sprintf("cancelled by a %s of cluster %s", step, e.st.Name))
	e.write(brief(e.root, "say that it ends"), store.Batch{Clusters: []api.Cluster{e.row()}, Events: []store.Event{e.event(op, api.EventStep, step, "%s", what)}})
	e.describe()
}

// graceful cancels running jobs first, if asked to.
func (e *entity) graceful(op cluster.Op, body api.StopOrDownBody) {
	if !body.Graceful || e.st.Row.Status != api.ClusterUp {
		return
	}
	limit := time.Hour
	if body.GracefulTimeout != nil {
		limit = time.Duration(*body.GracefulTimeout) * time.Second
	}
	in := activities.CancelInput{Ref: e.st.Ref, Provider: e.st.Provider, Nodes: e.st.Nodes, Body: api.CancelBody{All: true, AllUsers: true}}
	ctx := remote(e.root, activities.QueueMain, "cancel the running jobs first", limit, limit)
	if err := workflow.ExecuteActivity(ctx, acts.CancelJobs, in).Get(ctx, nil); err != nil {
		e.write(brief(e.root, "say so"), store.Batch{Events: []store.Event{e.event(op, api.EventError, "graceful", "jobs could not be cancelled first: %s", asError(err).Message)}})
	}
}

func (e *entity) down(ctx workflow.Context, op cluster.Op) (any, store.Batch, *api.Error) {
	var body api.StopOrDownBody
	if err := json.Unmarshal(op.Body, &body); err != nil {
		return nil, store.Batch{}, &api.Error{Kind: api.ErrInvalid, Message: "down: " + err.Error()}
	}
	if op.Auto && !e.stillDue(op) {
		return nil, store.Batch{}, nil
	}
	res := api.OpResult{RequestID: op.Key, Cluster: e.st.Name, Message: fmt.Sprintf("cluster %s is terminated", e.st.Name)}
	if !e.st.Exists() {
		if e.gone || e.removed { // the launch that it cancelled, for one, took the cluster along
			return res, store.Batch{}, nil
		}
		return nil, store.Batch{}, cluster.NoCluster(e.st.Name)
	}
	wasUp := e.st.Row.Status == api.ClusterUp || e.st.Row.Status == api.ClusterAutostopping
	e.ending(op, "down")
	e.graceful(op, body)
	in := e.nodes(op)
	in.Purge = body.Purge
	if wasUp {
		in.HookEvent = "down"
	}
	actx := remote(e.root, activities.QueueProvision, "delete the nodes", 90*time.Minute, forever)
	var out activities.NodesOutput
	if e.st.Provider != "" { // else no infra was asked yet
		if err := workflow.ExecuteActivity(actx, acts.Deprovision, in).Get(actx, &out); err != nil {
			e.st.Row.LastError = asError(err).Message
			return nil, store.Batch{Clusters: []api.Cluster{e.row()}}, asError(err)
		}
	}
	res.Warnings = out.Warnings
	why := "down"
	if op.Auto {
		why = "autodown"
	}
	hash := e.st.Row.Hash
	b := e.removal(why)
	actx = brief(e.root, "drop the cluster's secrets")
	if err := workflow.ExecuteLocalActivity(actx, acts.Record, activities.RecordInput{DropScope: activities.ClusterScope(hash)}).Get(actx, nil); err != nil {
		workflow.GetLogger(e.root).Warn("secrets not dropped; the reaper does it", "error", err)
	}
	e.st.Forget()
	e.gone = true
	return res, b, nil
}

// idleAllowed refuses an idle rule that the infra can't carry out.
func (e *entity) idleAllowed(down bool) *api.Error {
	if down {
		return nil
	}
	a := e.can()
	return e.st.Admit(cluster.Op{Kind: cluster.OpStop}, a.Stop, a.SpotStop)
}

func (e *entity) autostop(ctx workflow.Context, op cluster.Op) (any, store.Batch, *api.Error) {
	var body api.AutostopBody
	if err := json.Unmarshal(op.Body, &body); err != nil {
		return nil, store.Batch{}, &api.Error{Kind: api.ErrInvalid, Message: "autostop: " + err.Error()}
	}
	if fail := e.admit(op); fail != nil {
		return nil, store.Batch{}, fail
	}
	if e.st.Row.Status != api.ClusterUp {
		return nil, store.Batch{}, cluster.NotUp(e.st.Row)
	}
	minutes := body.IdleMinutes
	if minutes >= 0 {
		if fail := e.idleAllowed(body.Down); fail != nil {
			fail.Hint = "an idle cluster can be removed instead: sky autostop --down " + e.st.Name
			return nil, store.Batch{}, fail
		}
		minutes = max(minutes, 1)
	} else {
		minutes = -1
	}
	set := agentapi.Autostop{Generation: e.st.Autostop.Generation + 1, IdleMinutes: minutes, Down: body.Down && minutes > 0, WaitFor: body.WaitFor, Hooks: e.st.Autostop.Hooks}
	if fail := e.giveAutostop(set, false); fail != nil {
		return nil, store.Batch{}, fail
	}
	e.st.Autostop = set
	e.showAutostop()
	msg := fmt.Sprintf("autostop of cluster %s is off", e.st.Name)
	if minutes > 0 {
		verb := "stops"
		if body.Down {
			verb = "goes down"
		}
		msg = fmt.Sprintf("cluster %s %s after %d idle minute(s)", e.st.Name, verb, minutes)
	}
	return api.OpResult{RequestID: op.Key, Cluster: e.st.Name, Message: msg},
		store.Batch{Clusters: []api.Cluster{e.row()}, Events: []store.Event{e.event(op, api.EventStep, "autostop", "%s", msg)}}, nil
}

// giveAutostop hands the idle rule to the head node's agent.
func (e *entity) giveAutostop(a agentapi.Autostop, undrain bool) *api.Error {
	in := activities.AutostopInput{Ref: e.st.Ref, Provider: e.st.Provider, Nodes: e.st.Nodes, Autostop: a, Undrain: undrain}
	if err := workflow.ExecuteLocalActivity(brief(e.root, "give the idle rule to the node"), acts.SetAutostop, in).Get(e.root, nil); err == nil {
		return nil
	}
	ctx := remote(e.root, activities.QueueMain, "give the idle rule to the node", 10*time.Second, 2*time.Minute)
	if err := workflow.ExecuteActivity(ctx, acts.SetAutostop, in).Get(ctx, nil); err != nil {
		return asError(err)
	}
	return nil
}

func (e *entity) cancelJobs(ctx workflow.Context, op cluster.Op) (any, store.Batch, *api.Error) {
	var body api.CancelBody
	if err := json.Unmarshal(op.Body, &body); err != nil {
		return nil, store.Batch{}, &api.Error{Kind: api.ErrInvalid, Message: "cancel: " + err.Error()}
	}
	if fail := e.st.Admit(op, true, true); fail != nil {
		return nil, store.Batch{}, fail
	}
	in := activities.CancelInput{Ref: e.st.Ref, Provider: e.st.Provider, Nodes: e.st.Nodes, Body: body}
	var out activities.CancelOutput
	actx := remote(ctx, activities.QueueMain, "cancel jobs", 2*time.Minute, 15*time.Minute)
	if err := workflow.ExecuteActivity(actx, acts.CancelJobs, in).Get(actx, &out); err != nil {
		if fail := e.cancelledNow(op); fail != nil {
			return nil, store.Batch{}, fail
		}
		return nil, store.Batch{}, asError(err)
	}
	if out.Error != nil {
		return nil, store.Batch{}, out.Error
	}
	var b store.Batch
	for _, id := range out.JobIDs {
		b.Events = append(b.Events, e.event(op, api.EventStep, "cancel", "job %d cancelled", id))
	}
	return api.OpResult{RequestID: op.Key, Cluster: e.st.Name, JobIDs: out.JobIDs, Warnings: out.Warnings}, b, nil
}

func (e *entity) preempt(ctx workflow.Context, op cluster.Op) (any, store.Batch, *api.Error) {
	var body api.PreemptBody
	if err := json.Unmarshal(op.Body, &body); err != nil {
		return nil, store.Batch{}, &api.Error{Kind: api.ErrInvalid, Message: "preempt: " + err.Error()}
	}
	if fail := e.st.Admit(op, true, true); fail != nil {
		return nil, store.Batch{}, fail
	}
	if e.st.Row.Status != api.ClusterUp {
		return nil, store.Batch{}, cluster.NotUp(e.st.Row)
	}
	in := e.nodes(op)
	in.Rank, in.Notice = body.Node, time.Duration(body.NoticeSeconds)*time.Second
	actx := remote(ctx, activities.QueueProvision, "preempt", in.Notice+time.Minute, in.Notice+10*time.Minute)
	var out activities.NodesOutput
	if err := workflow.ExecuteActivity(actx, acts.PreemptNodes, in).Get(actx, &out); err != nil {
		if fail := e.cancelledNow(op); fail != nil {
			return nil, store.Batch{}, fail
		}
		return nil, store.Batch{}, asError(err)
	}
	if out.Error != nil {
		return nil, store.Batch{}, out.Error
	}
	e.observe(activities.Observed{Hash: e.st.Ref.Hash, Kind: activities.ObservedNodes})
	return api.OpResult{RequestID: op.Key, Cluster: e.st.Name, Message: fmt.Sprintf("preempted node(s) %v of cluster %s", out.Ranks, e.st.Name)},
		store.Batch{Events: []store.Event{e.event(op, api.EventStep, "preempt", "node(s) %v preempted with %s notice", out.Ranks, in.Notice)}}, nil
}

// refresh asks the infra what the nodes do, and draws the consequences.
func (e *entity) refresh(ctx workflow.Context, op cluster.Op) (any, store.Batch, *api.Error) {
	res := api.OpResult{RequestID: op.Key, Cluster: e.st.Name}
	if !e.st.Exists() || (e.st.Row.Status == api.ClusterInit && !e.st.Row.EverUp) {
		return res, store.Batch{}, nil
	}
	actx := remote(ctx, activities.QueueMain, "look at the nodes", 30*time.Second, 10*time.Minute)
	in := e.nodes(op)
	in.Ask = e.st.Row.Status != api.ClusterUp
	var out activities.NodesOutput
	if err := workflow.ExecuteActivity(actx, acts.Inspect, in).Get(actx, &out); err != nil {
		if fail := e.cancelledNow(op); fail != nil {
			return nil, store.Batch{}, fail
		}
		return nil, store.Batch{}, asError(err)
	}
	r := &e.st.Row
	switch out.Verdict {
	case cluster.VerdictUp:
		if !out.Silent && (r.Status == api.ClusterInit || r.Status == api.ClusterStopped) {
			e.st.Nodes = out.Nodes
			return res, e.up(op, "healthy again"), nil
		}
	case cluster.VerdictStopped:
		if r.Status != api.ClusterStopped {
			e.endSides("its nodes were found stopped")
			return res, e.stopped("its nodes were found stopped"), nil
		}
	case cluster.VerdictUnhealthy, cluster.VerdictPending:
		if out.Reason == "" {
			out.Reason = "some nodes do not run"
		}
		if r.Status == api.ClusterInit && r.StatusReason == out.Reason {
			return res, store.Batch{}, nil
		}
		r.Status, r.InitKind, r.StatusReason, r.LastEvent = api.ClusterInit, "unhealthy", out.Reason, out.Reason
		b := store.Batch{Clusters: []api.Cluster{e.row()}, Events: []store.Event{e.event(op, api.EventStatus, "", "INIT (unhealthy): %s", out.Reason)}}
		if out.HeadLost {
			e.endSides("the head node was lost: " + out.Reason)
			b.EndJobs = []store.EndJobs{{Hash: e.st.Ref.Hash, Status: api.JobFailedDriver, Reason: "the head node was lost: " + out.Reason, At: workflow.Now(e.root)}}
		}
		return res, b, nil
	case cluster.VerdictGone:
		if r.Status == api.ClusterStopped && !out.Confirmed {
			return res, store.Batch{}, nil
		}
		e.endSides(out.Reason)
		e.cleanUp(op)
		hash := r.Hash
		b := e.removal(out.Reason)
		if err := workflow.ExecuteLocalActivity(brief(e.root, "drop secrets"), acts.Record, activities.RecordInput{DropScope: activities.ClusterScope(hash)}).Get(e.root, nil); err != nil {
			workflow.GetLogger(e.root).Warn("secrets not dropped", "error", err)
		}
		e.st.Forget()
		e.gone = true
		return res, b, nil
	}
	return res, store.Batch{}, nil
}
