package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/artifact"
	"github.com/skyloom/skyloom/internal/bucket"
	"github.com/skyloom/skyloom/internal/bucket/ckpt"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/internal/filesync"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
)

var (
	fpSaveBefore = failpoint.Register("checkpoint.before-content")
	fpSaveMiddle = failpoint.Register("checkpoint.before-row")
)

// Why a checkpoint was saved.
const (
	whyInterval = "interval"
	whyNotice   = "notice"
	whyDemand   = "demand"
	whyEnd      = "end"
)

// saver fetches checkpoints from the nodes into the artifact store. The row that makes one known comes last: one that was
// broken off leaves nothing but content that nobody names. It leaves no trace in any workflow's history.
type saver struct {
	store     *store.Store
	artifacts *artifact.Store
	buckets   *bucket.Registry
	tune      func(*ckpt.Folder) // for tests
	dial      func(ctx context.Context, provider string, n providers.Node) (*agentapi.Client, error)
	log       *slog.Logger

	mu   sync.Mutex
	busy map[string]*turn // one save at a time for each cluster
}

// turn is held by who saves; users are those who hold it or wait for it.
type turn struct {
	held  chan struct{}
	users int
}

func newSaver(s *store.Store, a *artifact.Store, b *bucket.Registry, p *providers.Registry, log *slog.Logger) *saver {
	dial := func(ctx context.Context, provider string, n providers.Node) (*agentapi.Client, error) {
		infra, err := p.Get(provider)
		if err != nil {
			return nil, err
		}
		return activities.NodeClient(ctx, infra, n)
	}
	return &saver{store: s, artifacts: a, buckets: b, dial: dial, log: log, busy: map[string]*turn{}}
}

// Errors of a save that are not worth a word.
var (
	errNothingYet  = errors.New("there is nothing to save yet")
	errAttemptOver = errors.New("the attempt is over")
)

// saveTries is how often a save begins anew because files changed while they were sent.
const saveTries = 5

// saveTime bounds what a node may take for one picture, noticeTime is that of a notice which names none, and endTime is for an attempt
// whose end holds the next one up; in seconds.
const (
	saveTime   = 60
	noticeTime = 30
	endTime    = 10
)

// lock keeps other saves of a cluster out.
func (s *saver) lock(ctx context.Context, hash string) (unlock func(), err error) {
	s.mu.Lock()
	t := s.busy[hash]
	if t == nil {
		t = &turn{held: make(chan struct{}, 1)}
		s.busy[hash] = t
	}
	t.users++
	s.mu.Unlock()
	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(s.busy, hash)
		}
	}
	select {
	case t.held <- struct{}{}:
		return func() { <-t.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// save makes a checkpoint of the attempt that a cluster runs, with all its ranks or not at all. fresh is false if the newest
// one has the same content.
func (s *saver) save(ctx context.Context, row activities.WatchRow, why string, seconds int) (c api.Checkpoint, fresh bool, err error) {
	rule := row.Checkpoint
	unlock, err := s.lock(ctx, row.Ref.Hash)
	if err != nil {
		return c, false, err
	}
	defer unlock()
	nodes := slices.Clone(row.Nodes)
	slices.SortFunc(nodes, func(a, b providers.Node) int { return a.Rank - b.Rank })
	if !rule.All {
		nodes = nodes[:min(1, len(nodes))]
	}
	if len(nodes) == 0 {
		return c, false, errNothingYet
	}
	spec := agentapi.CheckpointSpec{JobID: rule.ClusterJob, Epoch: rule.Epoch, Path: rule.Path, Signal: rule.Signal, Seconds: saveTime}
	if why == whyNotice {
		spec.Command, spec.Seconds = rule.OnPreempt, max(seconds-1, 1) // the last second is for sending
	}
	if why == whyEnd {
		spec.Ended, spec.Seconds = true, endTime
	}
	var to *bucketSave
	if rule.To != "" {
		if to, err = s.toBucket(ctx, rule, len(nodes)); err != nil {
			return c, false, err
		}
		defer to.close()
	}
	got := make([]agentapi.CheckpointReply, len(nodes))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i, n := range nodes {
		g.Go(func() error {
			var err error
			if got[i], err = s.fetch(gctx, row.Provider, n, i, spec, to); err != nil && !ofBucket(err) { // which says who had trouble
				return fmt.Errorf("node %d: %w", n.Rank, err)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return c, false, err
	}
	c = api.Checkpoint{JobID: rule.Job, TaskID: rule.Task, Attempt: rule.Attempt, Why: why, SavedAt: time.Now()}
	for i, r := range got {
		c.Files += r.Files
		c.Bytes += r.Bytes
		c.Manifests = append(c.Manifests, r.ID)
		for _, w := range r.Warnings {
			c.Warnings = append(c.Warnings, fmt.Sprintf("node %d: %s", nodes[i].Rank, w))
		}
	}
	c.Taken = got[0].Taken
	if c.Files == 0 {
		return c, false, errNothingYet
	}
	if to != nil {
		if err := to.commit(ctx, &c); err != nil {
			return c, false, err
		}
	}
	if err := failpoint.Hit(fpSaveMiddle); err != nil {
		return c, false, err
	}
	mine := c
	c, fresh, err = s.store.AddCheckpoint(ctx, c, rule.Keep)
	c.Warnings = mine.Warnings
	if to != nil {
		to.settle(ctx, mine, c, fresh, err, why)
	}
	if errors.Is(err, store.ErrStale) {
		err = errAttemptOver
	}
	return c, fresh, err
}

// saveLast makes a checkpoint of an attempt that is given up, where the nodes that have it are still there: of one that lost another
// node, or one that failed and begins anew.
func (s *saver) saveLast(ctx context.Context, in activities.NodesInput, rule activities.WatchedCheckpoint) {
	ctx, cancel := context.WithTimeout(ctx, 3*endTime*time.Second)
	defer cancel()
	row := activities.WatchRow{Name: in.Ref.Name, Ref: in.Ref, Provider: in.Provider, Nodes: in.Nodes, Checkpoint: &rule}
	c, fresh, err := s.save(ctx, row, whyEnd, 0)
	if err != nil {
		s.log.Info("an attempt that has ended was not saved", "job", rule.Job, "attempt", rule.Attempt, "error", err)
		return
	}
	if fresh {
		s.tell(ctx, row, whyEnd, c, fresh, nil, "")
	}
}

// fetch takes a picture on one node and brings what is new of it into the artifact store, durably, or has the node put it into a bucket.
func (s *saver) fetch(ctx context.Context, provider string, n providers.Node, rank int, spec agentapi.CheckpointSpec, to *bucketSave) (agentapi.CheckpointReply, error) {
	c, err := s.dial(ctx, provider, n)
	if err != nil {
		return agentapi.CheckpointReply{}, err
	}
	defer c.Close()
	for try := 1; ; try++ {
		r, err := c.Checkpoint(ctx, spec)
		switch {
		case agentapi.IsKind(err, agentapi.KindNotFound):
			return r, fmt.Errorf("%w: %v", errNothingYet, err)
		case agentapi.IsKind(err, agentapi.KindStaleEpoch), agentapi.IsKind(err, agentapi.KindEnded):
			return r, fmt.Errorf("%w: %v", errAttemptOver, err)
		case err != nil:
			return r, err
		}
		for _, w := range r.Warnings {
			s.log.Info("checkpoint", "node", n.ID, "warning", w)
		}
		if err = s.bring(ctx, c, rank, spec, r, to); err == nil {
			return r, nil
		}
		if try == saveTries || ctx.Err() != nil || errors.Is(err, artifact.ErrFull) || ofBucket(err) {
			return r, err
		}
		spec.Command = "" // it has run
	}
}

// bring reads what the artifact store, or the bucket, lacks of a picture.
func (s *saver) bring(ctx context.Context, c *agentapi.Client, rank int, spec agentapi.CheckpointSpec, r agentapi.CheckpointReply, to *bucketSave) error {
	m, err := filesync.Decode(bytes.NewReader(r.Manifest), filesync.Limits{})
	if err != nil {
		return err
	}
	if m.ID() != r.ID {
		return fmt.Errorf("manifest %.12s came as %.12s", r.ID, m.ID())
	}
	if err := failpoint.Hit(fpSaveBefore); err != nil {
		return err
	}
	if to != nil {
		return to.bring(ctx, c, rank, spec, r.ID, m)
	}
	missing, err := s.artifacts.Missing(ctx, m)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		body, err := c.ReadBlobs(ctx, agentapi.BlobsRead{Manifest: r.ID, Hashes: missing})
		if err != nil {
			return err
		}
		_, err = s.artifacts.PutPack(ctx, body, filesync.PackLimits{})
		body.Close()
		if err != nil {
			return err
		}
	}
	_, missing, err = s.artifacts.PutManifest(ctx, m)
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("%d files did not arrive", len(missing))
	}
	return err
}

// loop saves an attempt at its interval and at spot notices, until ctx ends. A notice breaks into what is under way.
func (s *saver) loop(ctx context.Context, row activities.WatchRow, notices <-chan time.Time) {
	rule := row.Checkpoint
	next := (<-chan time.Time)(nil)
	var timer *time.Timer
	if rule.Every > 0 {
		timer = time.NewTimer(rule.Every/2 + rand.N(rule.Every/2+1)) // servers that start do not save all at once
		defer timer.Stop()
		next = timer.C
	}
	var last string
	for {
		var gone time.Time // when the node goes; zero: nobody said so
		select {
		case <-ctx.Done():
			return
		case <-next:
		case gone = <-notices:
		}
		for again := true; again; {
			again = false
			why, seconds := whyInterval, 0
			cctx, cancel := context.WithCancel(ctx)
			if !gone.IsZero() {
				why, seconds = whyNotice, int(time.Until(gone).Seconds())
				cancel()
				cctx, cancel = context.WithDeadline(ctx, gone)
			}
			done := make(chan struct{})
			var c api.Checkpoint
			var fresh bool
			var err error
			go func() {
				defer close(done)
				c, fresh, err = s.save(cctx, row, why, seconds)
			}()
			select {
			case <-done:
			case at := <-notices:
				if gone.IsZero() {
					cancel()
					gone, again = at, true
				}
				<-done
			}
			cancel()
			if !again && ctx.Err() == nil {
				last = s.tell(ctx, row, why, c, fresh, err, last)
			}
		}
		if timer != nil {
			timer.Reset(rule.Every)
		}
	}
}

// onceSilent stands for a failure in which the node had no say.
const onceSilent = "silent"

// tell makes events of what is worth one: a save after a notice, and the first of the failures in a row.
func (s *saver) tell(ctx context.Context, row activities.WatchRow, why string, c api.Checkpoint, fresh bool, err error, last string) string {
	ev := api.Event{Time: time.Now(), Cluster: row.Name, Hash: row.Ref.Hash, JobID: row.Checkpoint.Job, Step: "checkpoint", Attempt: row.Checkpoint.Attempt}
	text := ""
	var said *agentapi.Error
	switch {
	case err == nil && (why == whyNotice || why == whyEnd):
		ev.Kind, ev.Message = api.EventStep, savedText(c, fresh)
	case err == nil, errors.Is(err, errAttemptOver), errors.Is(err, errNothingYet) && why != whyNotice:
		return ""
	case err.Error() == last:
		return last
	case why != whyNotice && !errors.As(err, &said) && !errors.Is(err, artifact.ErrFull) && !ofBucket(err) && last != onceSilent:
		return onceSilent // it may just be on its way out, of which others tell
	default:
		text = err.Error()
		ev.Kind, ev.Message = api.EventError, "not saved: "+activities.BucketTrouble(err)
		s.log.Warn("checkpoint", "job", row.Checkpoint.Job, "error", err)
	}
	key := fmt.Sprintf("%s/checkpoint/%d", row.Ref.Hash, ev.Time.UnixNano())
	if err := s.store.AppendEvents(ctx, store.Event{Key: key, Event: ev}); err != nil && ctx.Err() == nil {
		s.log.Warn("event not written", "error", err)
	}
	return text
}

func savedText(c api.Checkpoint, fresh bool) string {
	text := fmt.Sprintf("checkpoint %d is saved (%d files, %d bytes)", c.N, c.Files, c.Bytes)
	if !fresh {
		text = fmt.Sprintf("nothing has changed since checkpoint %d", c.N)
	}
	for _, w := range c.Warnings {
		text += "; " + w
	}
	return text
}

// Checkpoint saves the running tasks of a managed job now.
func (b *backend) Checkpoint(ctx context.Context, id int64) ([]api.Checkpoint, error) {
	rows, err := b.store.ManagedJob(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		var just bool // submitted, and without rows yet
		if just, err = b.store.JobNumbered(ctx, id); err == nil && !just {
			err = store.ErrNotFound
		}
	}
	if errors.Is(err, store.ErrNotFound) {
		return nil, &api.Error{Kind: api.ErrJobNotFound, Message: fmt.Sprintf("there is no managed job %d", id), Hint: "see: sky jobs queue"}
	} else if err != nil {
		return nil, err
	}
	saved, open := []api.Checkpoint{}, len(rows) == 0
	for _, r := range rows {
		open = open || !r.Status.Terminal()
		if r.Status != api.ManagedRunning || r.ClusterHash == "" {
			continue
		}
		w, err := b.store.Watch(ctx, r.ClusterHash)
		if errors.Is(err, store.ErrNotFound) {
			continue
		} else if err != nil {
			return saved, err
		}
		var row activities.WatchRow
		if err := json.Unmarshal(w.Data, &row); err != nil {
			return saved, err
		}
		if row.Checkpoint == nil {
			continue
		}
		c, _, err := b.saver.save(ctx, row, whyDemand, 0)
		if err != nil {
			return saved, demandError(id, err)
		}
		saved = append(saved, c)
	}
	if len(saved) > 0 {
		return saved, nil
	}
	e := &api.Error{Kind: api.ErrInvalid, Message: fmt.Sprintf("managed job %d has no running task with a checkpoint rule", id), Hint: "give the task a `checkpoint` field, and wait until it is RUNNING"}
	if !open {
		e.Message, e.Hint = fmt.Sprintf("managed job %d has ended", id), fmt.Sprintf("see what was saved: sky jobs checkpoints %d", id)
	}
	return nil, e
}

func demandError(id int64, err error) error {
	e := &api.Error{Kind: api.ErrUnavailable, Message: fmt.Sprintf("managed job %d was not saved: %v", id, err), Hint: "try again"}
	var said *agentapi.Error
	var there *bucket.Error
	switch {
	case errors.As(err, &there) && there.Hint != "":
		e.Hint = there.Hint
	case errors.Is(err, errNothingYet):
		e.Kind, e.Hint = api.ErrInvalid, "the program has to write to the folder first; it finds its path in SKYPILOT_CHECKPOINT_DIR"
	case errors.Is(err, errAttemptOver):
		e.Hint = "the job has ended, or another attempt begins: if so, try again once it is RUNNING"
	case errors.As(err, &said) && said.Kind == agentapi.KindInvalid:
		e.Kind, e.Hint = api.ErrInvalid, "change the checkpoint rule of the task and launch it again"
	}
	return e
}

// noticeOf tells when the node of a notice goes, by this server's clock.
func noticeOf(ev agentapi.Event) time.Time {
	left := time.Duration(ev.Seconds) * time.Second
	if left <= 0 {
		left = noticeTime * time.Second
	}
	return time.Now().Add(left)
}

// notify hands a notice to the one who saves; a second one changes nothing.
func (one *watch) notify(ev agentapi.Event) {
	if one.notices == nil {
		return
	}
	select {
	case one.notices <- noticeOf(ev):
	default:
	}
}
