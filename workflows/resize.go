package workflows

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/store"
)

// repairs says that a launch brings an unhealthy cluster back. Workflows that began with an older program refused it.
func (e *entity) repairs() bool {
	return workflow.GetVersion(e.root, "launch repairs", workflow.DefaultVersion, 1) > workflow.DefaultVersion
}

// resize gives a cluster that is UP another number of nodes. The nodes of the first ranks stay, and when it grows so do
// their jobs. On failure the cluster is as it was.
func (e *entity) resize(ctx workflow.Context, op cluster.Op, t activities.TaskSummary) *api.Error {
	want, before := t.NumNodes, e.st.NumNodes
	row := e.st.Row
	size := func(n int) {
		e.st.NumNodes = n
		e.st.Row = cluster.RowFor(e.st.Row, e.st.Provider, e.st.Spec, n)
	}
	switch {
	case want == before:
		return nil
	case want > before:
		if !e.can().Extend {
			return &api.Error{Kind: api.ErrNotSupported, Message: fmt.Sprintf("a cluster on %s can't get more nodes", e.st.Provider), Hint: "make a new cluster of the size you need"}
		}
		size(want)
		if fail := e.restart(ctx, op, activities.TaskSummary{}); fail != nil {
			size(before)
			e.st.Row.Status, e.st.Row.InitKind = row.Status, row.InitKind
			e.record("not resized", store.Batch{Clusters: []api.Cluster{e.row()}, Watches: []store.Watch{e.watch(false)}})
			if fail.Kind != api.ErrCancelled {
				fail.Message, fail.Hint = fmt.Sprintf("cluster %q could not grow from %d to %d nodes: %s", e.st.Name, before, want, fail.Message), fmt.Sprintf("it has %d nodes as before", before)
			}
			return fail
		}
		return nil
	}
	var idle activities.NodesOutput
	actx := remote(e.root, activities.QueueProvision, "ask whether jobs run", 20*time.Second, time.Minute)
	if err := workflow.ExecuteActivity(actx, acts.Idle, e.nodes(op)).Get(actx, &idle); err != nil {
		return asError(err)
	}
	if idle.Error != nil {
		return idle.Error
	}
	e.st.Epoch++
	size(want)
	e.st.Row.Step = "shrink"
	in := e.provisionInput(op)
	in.Row, in.EventKey, in.Nodes, in.Autostop = e.row(), e.key("shrink"), e.st.Nodes, e.idleRule()
	in.Events = []store.Event{e.event(op, api.EventStep, "resize", "removing %d of %d node(s)", before-want, before)}
	var out activities.ProvisionOutput
	actx = remote(e.root, activities.QueueProvision, "remove nodes", 3*time.Minute, forever)
	if err := workflow.ExecuteActivity(actx, acts.Shrink, in).Get(actx, &out); err != nil {
		return asError(err)
	}
	e.st.Nodes = out.Nodes
	return nil
}
