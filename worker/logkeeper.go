package worker

import (
	"errors"
	"log/slog"
	"time"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/agent/agentapi"
)

// Periods in which a node pushes what its job has printed: with few jobs, and with very many.
const (
	logPeriodLeast = 10 * time.Second
	logPeriodMost  = time.Minute
)

// logPeriod bounds the pushes of all jobs to about 170 a second.
func logPeriod(watched int) time.Duration {
	return min(logPeriodLeast+time.Duration(watched)*5*time.Millisecond, logPeriodMost)
}

// nodeLog keeps one node's log of an attempt of a managed job while it runs, so that a node which is lost takes little of it away.
// How far it is stands in the kept files alone.
type nodeLog struct {
	rule   activities.WatchedLog
	dir    string
	rank   int
	every  time.Duration
	log    *slog.Logger
	gap    bool // the node goes on behind what is kept: nothing is taken until it is asked anew
	failed bool // and this was said
}

// follow says what the node is to push; nothing if nothing is to be kept.
func (l *nodeLog) follow() agentapi.LogFollow {
	if l == nil {
		return agentapi.LogFollow{}
	}
	have, err := activities.KeptUpTo(l.dir, l.rank)
	if err != nil {
		l.say(err)
		return agentapi.LogFollow{}
	}
	l.gap = false
	return agentapi.LogFollow{JobID: l.rule.ClusterJob, Every: l.every, Offsets: have}
}

// take keeps what came. What can't be kept now is fetched when the attempt ends, or lost with its node.
func (l *nodeLog) take(b *agentapi.LogBytes) {
	if l == nil || b == nil || b.JobID != l.rule.ClusterJob || l.gap {
		return
	}
	if err := activities.KeepLog(l.dir, l.rank, b.Phase, b.Offset, b.Data); err != nil {
		l.gap = true
		l.say(err)
		return
	}
	l.failed = false
}

func (l *nodeLog) say(err error) {
	if !l.failed && !errors.Is(err, activities.ErrLogGap) {
		l.log.Warn("a job's log is not kept while it runs", "job", l.rule.Job, "error", err)
	}
	l.failed = true
}

// logOf makes the keeper of a node's log; nil: nothing is to be kept.
func (w *watcher) logOf(one *watch, rank int) *nodeLog {
	rule := one.row.Log
	if rule == nil || w.home == "" {
		return nil
	}
	w.mu.Lock()
	n := len(w.running)
	w.mu.Unlock()
	return &nodeLog{rule: *rule, dir: activities.LogDir(w.home, rule.Job, rule.Task, rule.Attempt), rank: rank, every: logPeriod(n), log: w.log}
}
