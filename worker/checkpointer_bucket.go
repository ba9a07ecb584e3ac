package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/bucket"
	"github.com/skyloom/skyloom/internal/bucket/ckpt"
	"github.com/skyloom/skyloom/internal/config"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/internal/filesync"
	"github.com/skyloom/skyloom/internal/store"
)

var fpSaveManifest = failpoint.Register("checkpoint.before-manifest")

// bucketSave is a save whose content goes from the nodes into a bucket. The order is: content, which is looked at; the checkpoint's own
// object; the row that makes it known; then the deleting of what only dropped ones needed. Only one has a task's folder at a time.
type bucketSave struct {
	s       *saver
	rule    *activities.WatchedCheckpoint
	release func()

	mu      sync.Mutex
	folder  *ckpt.Folder
	listing *ckpt.Listing
	trees   []*filesync.Manifest // by rank
}

// toBucket begins a save into a bucket; the bucket itself is not asked anything before there is something to save. close ends it.
func (s *saver) toBucket(ctx context.Context, rule *activities.WatchedCheckpoint, ranks int) (*bucketSave, error) {
	// An attempt that is given up may still be saving when the next one begins to.
	release, err := s.lock(ctx, fmt.Sprintf("bucket/%d/%d", rule.Job, rule.Task))
	if err != nil {
		return nil, err
	}
	return &bucketSave{s: s, rule: rule, release: release, trees: make([]*filesync.Manifest, ranks)}, nil
}

func (b *bucketSave) close() {
	if b != nil {
		b.release()
	}
}

// look opens the folder and lists it, once.
func (b *bucketSave) look(ctx context.Context) (*ckpt.Folder, *ckpt.Listing, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.listing != nil {
		return b.folder, b.listing, nil
	}
	f, err := ckpt.Open(ctx, b.s.buckets, b.rule.To, b.s.store.Installation(), b.rule.Job, b.rule.Task)
	if err != nil {
		return nil, nil, err
	}
	if b.s.tune != nil {
		b.s.tune(f)
	}
	l, err := f.List(ctx)
	if err != nil {
		return nil, nil, err
	}
	b.folder, b.listing = f, l
	return f, l, nil
}

// bring has a node send what the folder lacks of its picture.
func (b *bucketSave) bring(ctx context.Context, c *agentapi.Client, rank int, spec agentapi.CheckpointSpec, id string, m *filesync.Manifest) error {
	f, l, err := b.look(ctx)
	if err != nil {
		return err
	}
	put := func(ctx context.Context, puts []agentapi.BlobPut) error {
		return c.PutBlobs(ctx, agentapi.BlobsPut{JobID: spec.JobID, Epoch: spec.Epoch, Ended: spec.Ended, Manifest: id, Puts: puts})
	}
	if err := f.Send(ctx, m, l.Missing(m), put); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trees[rank] = m
	return nil
}

// commit writes the checkpoint's object, unless the newest one has the same content and is still there.
func (b *bucketSave) commit(ctx context.Context, c *api.Checkpoint) error {
	if err := failpoint.Hit(fpSaveManifest); err != nil {
		return err
	}
	saved := ckpt.Saved{Job: c.JobID, Task: c.TaskID, Attempt: c.Attempt, SavedAt: c.SavedAt, Why: c.Why, Path: b.rule.Path}
	at := ""
	last, err := b.s.store.NewestCheckpoint(ctx, c.JobID, c.TaskID)
	if err != nil {
		return err
	}
	if last != nil && last.Where != "" && slices.Equal(last.Manifests, c.Manifests) {
		if b.listing.Has(b.folder, last.Where) {
			c.Where = last.Where
			return nil
		}
		at, saved.SavedAt, saved.Attempt, saved.Why = last.Where, last.SavedAt, last.Attempt, last.Why
	}
	c.Where, err = b.folder.Commit(ctx, saved, b.trees, at)
	return err
}

// settle clears up after the row was written, or refused; out is what stands now. Its own trouble is nobody's: what is left over is
// deleted with the next save.
func (b *bucketSave) settle(ctx context.Context, c, out api.Checkpoint, fresh bool, err error, why string) {
	trouble := error(nil)
	switch {
	case errors.Is(err, store.ErrStale), err == nil && !fresh && out.Where != c.Where:
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		trouble = b.folder.Forget(cctx, c.Where)
	case err != nil, !fresh, why == whyNotice, why == whyEnd: // no time is lost before an end
	case b.rule.Keep > pruneKeep && out.N%(b.rule.Keep/pruneKeep) != 0:
	default:
		trouble = b.prune(ctx)
	}
	if trouble != nil && ctx.Err() == nil {
		b.s.log.Warn("a bucket was not cleared up", "job", b.rule.Job, "error", trouble)
	}
}

// pruneKeep is how many checkpoints may be kept for every save to look through all of them; with more it is every second, third, …
const pruneKeep = 10

func (b *bucketSave) prune(ctx context.Context) error {
	list, err := b.s.store.Checkpoints(ctx, b.rule.Job)
	if err != nil {
		return err
	}
	var wheres []string
	for _, c := range list {
		if c.TaskID == b.rule.Task && c.Where != "" {
			wheres = append(wheres, c.Where)
		}
	}
	_, err = b.folder.Prune(ctx, wheres)
	return err
}

// openBuckets makes what reaches the buckets that the configuration describes; those of AWS need no describing.
func openBuckets(c *config.Config) (*bucket.Registry, error) {
	described, err := c.Buckets()
	if err != nil {
		return nil, err
	}
	settings := map[string]bucket.Settings{}
	for name, b := range described {
		settings[name] = bucket.Settings{Endpoint: b.Endpoint, Region: b.Region, Profile: b.Profile, CredentialsFile: b.CredentialsFile, PathStyle: b.PathStyle}
	}
	return bucket.New(settings), nil
}

// ofBucket says that an object store is to blame.
func ofBucket(err error) bool {
	var e *bucket.Error
	return errors.As(err, &e) || agentapi.IsKind(err, agentapi.KindBucket)
}
