package workflows

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

// restore brings the newest complete checkpoint to the nodes before the attempt is submitted. The row says first which
// attempt it is: from then on an earlier one can't save any more, so that what is newest stays so.
func (j *job) restore(ctx workflow.Context, r *taskRun, spec activities.ManagedTaskSpec) (fail *api.Error, retry bool) {
	r.Row.Seq++
	r.m.record("nothing earlier may save any more", store.Batch{ManagedJobs: []api.ManagedJob{r.Row}})
	var newest *api.Checkpoint
	if err := workflow.ExecuteLocalActivity(local(r.m.root, "find the newest checkpoint"), acts.NewestCheckpoint, j.in.ID, r.Index, r.Row.Attempt).Get(r.m.root, &newest); err != nil {
		return asError(err), true
	}
	if newest == nil {
		return nil, false
	}
	j.show(r, api.EventStep, "restores checkpoint %d, which attempt %d saved at %s", newest.N, newest.Attempt, newest.SavedAt.UTC().Format(time.TimeOnly+" MST"))
	in := activities.RestoreInput{Cluster: r.St.Name, Ref: r.St.Ref, Provider: r.St.Provider, Nodes: r.St.Nodes, Path: spec.Checkpoint.Path, Checkpoint: *newest, EventKey: r.m.key("restore")}
	var out activities.SyncOutput
	actx := remote(ctx, activities.QueueFiles, "restore the newest checkpoint", 6*time.Hour, 24*time.Hour)
	if err := workflow.ExecuteActivity(actx, acts.RestoreCheckpoint, in).Get(actx, &out); err != nil {
		return asError(err), true
	}
	return out.Error, false
}

// watchCheckpoints tells the watcher which attempt it is to save.
func (j *job) watchCheckpoints(r *taskRun, spec activities.ManagedTaskSpec) {
	r.m.checkpoint = &activities.WatchedCheckpoint{CheckpointRule: *spec.Checkpoint, Job: j.in.ID, Task: r.Index, Attempt: r.Row.Attempt, ClusterJob: r.JobID, Epoch: r.St.Epoch}
	r.m.record("save the job's folder from now on", store.Batch{Watches: []store.Watch{r.m.watch(false)}})
}
