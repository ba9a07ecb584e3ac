package workflows

import (
	"encoding/json"
	"fmt"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/store"
)

// health draws the consequences of a node's silence, where the infra can't confirm that a node is gone: SUSPECT changes nothing
// but what is shown; LOST ends the jobs that had a rank there, and leaves the cluster INIT (unhealthy).
func (e *entity) health(op cluster.Op) (store.Batch, *api.Error) {
	var o activities.Observed
	if err := json.Unmarshal(op.Body, &o); err != nil {
		return store.Batch{}, &api.Error{Kind: api.ErrInternal, Message: err.Error()}
	}
	r := &e.st.Row
	if o.Hash != e.st.Ref.Hash || !e.st.Exists() || r.Status == api.ClusterStopped {
		return store.Batch{}, nil
	}
	node := fmt.Sprintf("node %d", o.Rank)
	switch o.Kind {
	case activities.ObservedSuspect:
		if r.Status == api.ClusterUp {
			r.StatusReason = cluster.SilentReason(cluster.Suspect, o.Rank, o.Message)
		}
		r.LastEvent = node + " is SUSPECT: it " + o.Message
	case activities.ObservedAlive:
		if r.Status == api.ClusterUp {
			r.StatusReason = ""
		}
		r.LastEvent = node + " " + o.Message
		if r.Status == api.ClusterInit {
			// It was given up before. Its jobs have ended; a start brings all nodes to one state again.
			r.StatusReason = fmt.Sprintf("%s answers again after it was LOST; `sky start %s` makes the cluster whole", node, e.st.Name)
		}
	case activities.ObservedLost:
		r.Status, r.InitKind = api.ClusterInit, "unhealthy"
		r.StatusReason = cluster.SilentReason(cluster.Lost, o.Rank, o.Message)
		r.LastEvent = r.StatusReason
		b := store.Batch{Clusters: []api.Cluster{e.row()}, Events: []store.Event{e.event(op, api.EventStatus, "", "INIT (unhealthy): %s", r.StatusReason)}}
		if o.Rank == 0 {
			e.endSides(r.StatusReason)
			b.EndJobs = []store.EndJobs{{Hash: e.st.Ref.Hash, Status: api.JobFailedDriver, Reason: "the head node was lost: it " + o.Message, At: workflow.Now(e.root)}}
			return b, nil
		}
		in := e.nodes(op)
		in.Rank = &o.Rank
		ctx := remote(e.root, activities.QueueMain, "tell the head that a peer is lost", 10*time.Second, time.Minute)
		if err := workflow.ExecuteActivity(ctx, acts.GiveUp, in).Get(ctx, nil); err != nil {
			workflow.GetLogger(e.root).Warn("head not told of a lost peer", "cluster", e.st.Name, "error", err)
		}
		return b, nil
	}
	return store.Batch{Clusters: []api.Cluster{e.row()}, Events: []store.Event{e.event(op, api.EventStep, "health", "%s", r.LastEvent)}}, nil
}
