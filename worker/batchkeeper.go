package worker

import (
	"bytes"
	"errors"
	"log/slog"
	"time"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/internal/batchlog"
)

// batchPeriodLeast is how often a node pushes what elements of an array have printed, with few of them: those who follow an array see
// it when it is kept.
const batchPeriodLeast = 2 * time.Second

// batchKeeper keeps what elements of an array print on one node while they run, so that a node which is lost takes little of it away,
// and those who follow the array need not ask the nodes.
type batchKeeper struct {
	job     int64
	dir     string
	rank    int
	every   time.Duration
	log     *slog.Logger
	writers map[int64]*batchlog.Writer // by batch
	failed  bool                       // and this was said
}

// batchesOf makes the keeper of a node's share of an array; nil for any other cluster.
func (w *watcher) batchesOf(one *watch, rank int) *batchKeeper {
	if one.row.Array == 0 || w.home == "" {
		return nil
	}
	w.mu.Lock()
	n := len(w.running)
	w.mu.Unlock()
	return &batchKeeper{job: one.row.Array, dir: activities.BatchLogs(w.home, one.row.Array), rank: rank, every: logPeriod(n) - logPeriodLeast + batchPeriodLeast, log: w.log,
		writers: map[int64]*batchlog.Writer{}}
}

// follow says what the node is to push.
func (k *batchKeeper) follow() agentapi.LogFollow {
	q := agentapi.LogFollow{Batches: true, Every: k.every}
	list, err := batchlog.List(k.dir)
	if err != nil {
		k.say(err)
		return q
	}
	var open []batchlog.ID
	for _, l := range list {
		if l.Rank == k.rank && !l.Whole {
			open = append(open, l.ID)
		}
	}
	if q.Kept, err = activities.KeptOutput(k.dir, open...); err != nil {
		k.say(err)
	}
	return q
}

// take keeps what came. What can't be kept now is fetched when the batch has ended, or lost with its node.
func (k *batchKeeper) take(b *agentapi.BatchBytes) {
	if k == nil || b == nil {
		return
	}
	w := k.writers[b.Batch]
	if w == nil {
		for n := range k.writers {
			if batchlog.IsWhole(k.dir, batchlog.ID{Batch: n, Rank: k.rank}) {
				delete(k.writers, n)
			}
		}
		w = batchlog.NewWriter(k.dir, batchlog.ID{Batch: b.Batch, Rank: k.rank})
		k.writers[b.Batch] = w
	}
	outputs := make([]batchlog.Output, len(b.Pieces))
	for i, p := range b.Pieces {
		if p.Element < 0 || p.Offset < 0 || p.Len < 0 {
			return // no agent says so
		}
		outputs[i] = batchlog.Output{Element: p.Element, Rank: p.Rank, Phase: agentapi.RunPhase, Offset: p.Offset, Len: p.Len}
	}
	if err := w.Append(outputs, bytes.NewReader(b.Data)); err != nil {
		k.say(err)
		return
	}
	k.failed = false
}

func (k *batchKeeper) say(err error) {
	if !k.failed && !errors.Is(err, batchlog.ErrWhole) {
		k.log.Warn("the output of an array's elements is not kept while they run", "job", k.job, "error", err)
		k.failed = true
	}
}
