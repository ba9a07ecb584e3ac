package activities

import (
	"context"
	"fmt"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/task"
)

// CheckpointRule says what is saved of a task, and when.
type CheckpointRule struct {
	Path      string        `json:"path"`
	Every     time.Duration `json:"every,omitempty"` // 0: only on notices and on demand
	Signal    string        `json:"signal,omitempty"`
	OnPreempt string        `json:"on_preempt,omitempty"`
	Keep      int           `json:"keep"`
	All       bool          `json:"all,omitempty"` // the folder of every node; else that of the head
	To        string        `json:"to,omitempty"`  // address of a bucket; empty: the server's own store
}

// WatchedCheckpoint is the rule for the attempt that a cluster runs.
type WatchedCheckpoint struct {
	CheckpointRule
	Job     int64 `json:"job"` // number of the managed job
	Task    int   `json:"task"`
	Attempt int   `json:"attempt"`
	// ClusterJob and Epoch are what the agents know the attempt by.
	ClusterJob int64 `json:"cluster_job"`
	Epoch      int64 `json:"epoch"`
}

// keepCheckpoints is how many complete checkpoints are kept where the task does not say.
const keepCheckpoints = 3

// checkpointRule draws the rule from a task; nil: nothing is saved.
func (a *Activities) checkpointRule(t *task.Task) (*CheckpointRule, *api.Error) {
	c := t.Checkpoint
	if c == nil {
		return nil, nil
	}
	if c.To != "" {
		if err := a.Buckets.Supported(c.To); err != nil {
			return nil, BucketError("checkpoint.to", err)
		}
	}
	r := &CheckpointRule{Path: c.Path, Every: c.Every, Signal: c.Signal, OnPreempt: c.OnPreempt, Keep: c.Keep, All: c.Scope == "all", To: c.To}
	if r.Keep == 0 {
		r.Keep = keepCheckpoints
	}
	return r, nil
}

// NewestCheckpoint is what an attempt starts from; nil: nothing was saved before it. It changes nothing.
func (a *Activities) NewestCheckpoint(ctx context.Context, job int64, task, attempt int) (*api.Checkpoint, error) {
	c, err := a.Store.NewestCheckpoint(ctx, job, task)
	if c != nil && c.Attempt >= attempt && attempt > 0 {
		return nil, err // the attempt has begun, and saved, before the server that submitted it died
	}
	return c, err
}

// RestoreInput brings a checkpoint to the nodes of an attempt.
type RestoreInput struct {
	Cluster    string               `json:"cluster"`
	Ref        providers.ClusterRef `json:"ref"`
	Provider   string               `json:"provider"`
	Nodes      []providers.Node     `json:"nodes"`
	Path       string               `json:"path"`
	Checkpoint api.Checkpoint       `json:"checkpoint"`
	EventKey   string               `json:"event_key"`
}

// RestoreCheckpoint makes the folder on each node what its rank saved; what else is there goes. Idempotent.
func (a *Activities) RestoreCheckpoint(ctx context.Context, in RestoreInput) (SyncOutput, error) {
	if in.Checkpoint.Where != "" {
		return a.restoreFromBucket(ctx, in)
	}
	var out SyncOutput
	for _, n := range in.Nodes {
		if n.Rank >= len(in.Checkpoint.Manifests) {
			continue
		}
		got, err := a.SyncFiles(ctx, SyncInput{Cluster: in.Cluster, Ref: in.Ref, Provider: in.Provider, Nodes: []providers.Node{n}, EventKey: fmt.Sprintf("%s/%d", in.EventKey, n.Rank),
			Files: []api.FileMount{{Source: fmt.Sprintf("checkpoint %d", in.Checkpoint.N), Dst: in.Path, Manifest: in.Checkpoint.Manifests[n.Rank], Mirror: true}}})
		if err != nil || got.Error != nil {
			return got, err
		}
		out.Written += got.Written
		out.Bytes += got.Bytes
	}
	return out, nil
}
