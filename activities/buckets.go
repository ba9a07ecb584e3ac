package activities

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"go.temporal.io/sdk/activity"
	"golang.org/x/sync/errgroup"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/bucket"
	"github.com/skyloom/skyloom/internal/bucket/ckpt"
	"github.com/skyloom/skyloom/internal/filesync"
	"github.com/skyloom/skyloom/providers"
)

// BucketError tells a user of trouble with a bucket that a field of a task names; nil if that is not what it is.
func BucketError(field string, err error) *api.Error {
	var e *bucket.Error
	if !errors.As(err, &e) {
		return nil
	}
	out := &api.Error{Kind: api.ErrInvalid, Message: field + ": " + e.Error(), Hint: e.Hint}
	switch e.Kind {
	case bucket.KindUnsupported:
		out.Kind = api.ErrNotSupported
	case bucket.KindUnreachable, bucket.KindBusy:
		out.Kind = api.ErrUnavailable
	}
	return out
}

// CheckBuckets tries the buckets that tasks save to, before anything is made that relies on them.
func (a *Activities) CheckBuckets(ctx context.Context, spec ManagedSpec) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, t := range spec.Tasks {
		if t.Checkpoint == nil || t.Checkpoint.To == "" {
			continue
		}
		g.Go(func() error {
			err := a.Buckets.Check(gctx, t.Checkpoint.To)
			if e := BucketError("checkpoint.to", err); e != nil {
				return e
			}
			return err
		})
	}
	return g.Wait()
}

// restoreFromBucket makes the folder on each node what its rank saved, with what the nodes get from the bucket themselves. Idempotent:
// what a node has it does not get again.
func (a *Activities) restoreFromBucket(ctx context.Context, in RestoreInput) (SyncOutput, error) {
	defer beat(ctx)()
	r := &restoring{a: a, in: in, attempt: int(activity.GetInfo(ctx).Attempt)}
	out, err := r.run(ctx)
	if err == nil {
		return out, nil
	}
	if e := r.lost(err); e != nil {
		return SyncOutput{Error: e}, nil
	}
	if fileErr := fileError(err, in.Path); fileErr != nil && !r.trouble(err) {
		return SyncOutput{Error: fileErr}, nil
	}
	if r.trouble(err) && r.attempt%20 == 1 { // it is tried for hours: somebody may have to put it in order
		r.say(ctx, api.EventError, "not restored yet: "+BucketTrouble(err)+"; it is tried again")
	}
	return SyncOutput{}, err
}

// restoring is one run of restoreFromBucket.
type restoring struct {
	a       *Activities
	in      RestoreInput
	attempt int
}

func (r *restoring) say(ctx context.Context, kind api.EventKind, text string) {
	r.a.say(ctx, fmt.Sprintf("%s/%d", r.in.EventKey, r.attempt), 0, api.Event{Cluster: r.in.Cluster, Hash: r.in.Ref.Hash, JobID: r.in.Checkpoint.JobID, Kind: kind, Step: "checkpoint", Message: text})
}

// trouble says that a store is to blame, and that it may go better later.
func (r *restoring) trouble(err error) bool {
	var e *bucket.Error
	return errors.As(err, &e) || agentapi.IsKind(err, agentapi.KindBucket)
}

// lost says that the checkpoint is not in the bucket any more, or damaged there.
func (r *restoring) lost(err error) *api.Error {
	if !bucket.Is(err, bucket.KindNotFound, bucket.KindInvalid, bucket.KindUnsupported) && !errors.Is(err, filesync.ErrInvalid) && !errors.Is(err, errBlobLost) {
		return nil
	}
	return &api.Error{Kind: api.ErrNotFound, Message: fmt.Sprintf("checkpoint %d is not whole any more in %s: %v", r.in.Checkpoint.N, r.in.Checkpoint.Where, err),
		Hint: "put back what was deleted or changed there, or launch the job anew: it then begins from the start"}
}

// errBlobLost is in the chain of the error about a blob that the bucket lacks, or has with other bytes.
var errBlobLost = errors.New("content is missing or damaged")

func (r *restoring) run(ctx context.Context) (SyncOutput, error) {
	var out SyncOutput
	p, err := r.a.provider(r.in.Provider)
	if err != nil {
		return out, err
	}
	folder, key, err := ckpt.OpenSaved(ctx, r.a.Buckets, r.in.Checkpoint.Where)
	if err != nil {
		return out, err
	}
	saved, err := folder.Read(ctx, key)
	if err != nil {
		return out, err
	}
	trees := make([]*filesync.Manifest, len(r.in.Checkpoint.Manifests))
	for _, n := range saved.Nodes {
		if n.Rank >= 0 && n.Rank < len(trees) && n.Manifest == r.in.Checkpoint.Manifests[n.Rank] {
			if trees[n.Rank], err = n.Tree(); err != nil {
				return out, err
			}
		}
	}
	results := make([]agentapi.FileResult, len(r.in.Nodes))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(plansAtOnce)
	for i, n := range r.in.Nodes {
		if n.Rank >= len(trees) {
			continue
		}
		if trees[n.Rank] == nil {
			return out, fmt.Errorf("%w: it has not what node %d saved", filesync.ErrInvalid, n.Rank)
		}
		g.Go(func() (err error) {
			results[i], err = r.node(gctx, p, folder, n, trees[n.Rank])
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return out, r.a.unreached(ctx, p, r.in.Ref, r.in.Nodes, err)
	}
	for _, got := range results {
		out.Written += got.Written
		out.Bytes += got.Bytes
	}
	return out, nil
}

// node brings one node's folder to a manifest.
func (r *restoring) node(ctx context.Context, p providers.Provider, folder *ckpt.Folder, n providers.Node, m *filesync.Manifest) (res agentapi.FileResult, err error) {
	c, err := NodeClient(ctx, p, n)
	if err != nil {
		return res, &nodeError{rank: n.Rank, err: err}
	}
	defer c.Close()
	for round := 1; ; round++ {
		if res, err = r.once(ctx, c, folder, m); err == nil {
			return res, nil
		}
		var be *bucket.Error
		if errors.As(err, &be) || errors.Is(err, errBlobLost) {
			return res, err
		}
		if round == syncRounds || ctx.Err() != nil || agentapi.IsKind(err, agentapi.KindBucket) || !again(err) {
			return res, &nodeError{rank: n.Rank, err: err}
		}
		select {
		case <-ctx.Done():
			return res, err
		case <-time.After(time.Duration(round*round) * 200 * time.Millisecond):
		}
	}
}

func (r *restoring) once(ctx context.Context, c *agentapi.Client, folder *ckpt.Folder, m *filesync.Manifest) (res agentapi.FileResult, err error) {
	to := agentapi.FileApply{Manifest: m.ID(), Dst: r.in.Path, Mirror: true, Now: true}
	encoded, err := m.Bytes()
	if err != nil {
		return res, err
	}
	plan, err := c.PlanFiles(ctx, to, bytes.NewReader(encoded))
	if err != nil {
		return res, err
	}
	if plan.Applied != nil {
		return *plan.Applied, nil
	}
	get := func(ctx context.Context, gets []agentapi.BlobGet) error {
		err := c.GetBlobs(ctx, agentapi.BlobsGet{Gets: gets})
		if agentapi.IsKind(err, agentapi.KindNotFound) || agentapi.IsKind(err, agentapi.KindInvalid) {
			return fmt.Errorf("%w: %w", errBlobLost, err)
		}
		return err
	}
	if err := folder.Fetch(ctx, m.InOrder(plan.Missing), m.Sizes(), get); err != nil {
		return res, err
	}
	return c.ApplyFiles(ctx, to)
}

// BucketTrouble is trouble with a store in words, with what to do about it.
func BucketTrouble(err error) string {
	var e *bucket.Error
	if errors.As(err, &e) && e.Hint != "" {
		return err.Error() + "; " + e.Hint
	}
	return err.Error()
}
