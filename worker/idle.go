package worker

import (
	"context"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

// idle ends the server once it has had nothing to do for a while; the next command starts it again.
func (s *server) idle(ctx context.Context, after time.Duration) {
	tick := time.NewTicker(min(max(after/4, time.Second), time.Minute))
	defer tick.Stop()
	busy := s.started // when it was last seen at work
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		open, last := s.api.Activity()
		if last.After(busy) {
			busy = last
		}
		if open == 0 && time.Since(busy) < after {
			continue
		}
		what, err := atWork(ctx, s.store)
		if err != nil && ctx.Err() == nil {
			s.log.Warn("whether there is something to do is not known", "error", err)
		}
		if open > 0 || what != "" || err != nil {
			busy = time.Now()
			continue
		}
		s.log.Info("there was nothing to do: the server ends, and the next command starts it again", "for", after)
		s.shutdown()
		return
	}
}

// atWork says what a server may not leave alone; empty: nothing.
func atWork(ctx context.Context, st *store.Store) (string, error) {
	requests, err := st.Requests(ctx, store.RequestFilter{ActiveOnly: true, Limit: 1})
	if err != nil || len(requests) > 0 {
		return "requests", err
	}
	// What is stopped costs nothing and needs nobody; all else is watched.
	clusters, err := st.Clusters(ctx, store.ClusterFilter{Status: []api.ClusterStatus{api.ClusterInit, api.ClusterUp, api.ClusterAutostopping}})
	if err != nil || len(clusters) > 0 {
		return "clusters", err
	}
	jobs, _, _, err := st.ManagedJobs(ctx, store.ManagedFilter{SkipFinished: true, Limit: 1})
	if err != nil || len(jobs) > 0 {
		return "managed jobs", err
	}
	schedules, err := st.Schedules(ctx, "")
	if err != nil || len(schedules) > 0 {
		return "schedules", err
	}
	next, err := st.NextNotice(ctx)
	if err != nil || !next.IsZero() {
		return "notifications", err
	}
	return "", nil
}
