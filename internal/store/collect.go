package store

import (
	"context"
	"time"
)

// Retention says how long ended things are kept, counted from their end. Zero keeps them.
type Retention struct {
	Requests, Events, Jobs time.Duration
	// Clusters is for the history, and with it the cost report.
	Clusters time.Duration
	// ManagedJobs counts from the end of a job's last task.
	ManagedJobs time.Duration
}

// Collected counts what was removed.
type Collected struct {
	Requests, Events, Jobs, Clusters, ManagedJobs int
}

const collectBatch = 500

// collectStep removes rows by key: the first query selects the keys of a batch, the others take one key each, and the last
// one counts.
type collectStep struct {
	keep    time.Duration
	count   *int
	queries []string
}

// Collect removes what has outlived its retention, in batches that keep other writes waiting for a few milliseconds.
// Secrets go with the request, cluster or managed jobs that they are bound to.
func (s *Store) Collect(ctx context.Context, r Retention) (c Collected, err error) {
	now := s.now()
	var secrets, schedules int
	for _, st := range append(collectSchedules(r, &schedules), []collectStep{
		{r.Requests, &c.Requests, []string{"SELECT id FROM requests WHERE terminal = 1 AND finished < ? LIMIT 500",
			"DELETE FROM secrets WHERE scope = 'request/' || ?", "DELETE FROM requests WHERE id = ?"}},
		// A crash between storing secrets and accepting their request leaves them to nobody.
		{r.Requests, &secrets, []string{`SELECT id FROM secrets WHERE created < ? AND scope LIKE 'request/%'
			AND NOT EXISTS (SELECT 1 FROM requests WHERE scope = 'request/' || requests.id) LIMIT 500`, "DELETE FROM secrets WHERE id = ?"}},
		{r.ManagedJobs, &c.ManagedJobs, []string{`SELECT job_id FROM managed_jobs m WHERE terminal = 1 AND NOT EXISTS
			(SELECT 1 FROM managed_jobs o WHERE o.job_id = m.job_id AND o.terminal = 0) GROUP BY job_id HAVING max(ended) < ? LIMIT 500`,
			"DELETE FROM managed_jobs WHERE job_id = CAST(? AS BIGINT)", "DELETE FROM managed_yaml WHERE job_id = CAST(? AS BIGINT)", "DELETE FROM managed_files WHERE job_id = CAST(? AS BIGINT)",
			"DELETE FROM checkpoints WHERE job_id = CAST(? AS BIGINT)",
			"DELETE FROM array_elements WHERE job_id = CAST(? AS BIGINT)", "DELETE FROM array_counts WHERE job_id = CAST(? AS BIGINT)", "DELETE FROM array_batches WHERE job_id = CAST(? AS BIGINT)",
			"DELETE FROM notices WHERE job_id = CAST(? AS BIGINT)", "DELETE FROM notice_streams WHERE job_id = CAST(? AS BIGINT)", "DELETE FROM job_numbers WHERE job_id = CAST(? AS BIGINT)"}},
		// Those of managed jobs stay as long as one of the request's jobs is listed, or the schedule it made is there.
		{r.Requests, &secrets, []string{`SELECT id FROM secrets WHERE created < ? AND scope LIKE 'jobs/%'
			AND NOT EXISTS (SELECT 1 FROM requests WHERE requests.id = substr(scope, 6))
			AND NOT EXISTS (SELECT 1 FROM job_schedules WHERE job_schedules.request_id = substr(scope, 6))
			AND NOT EXISTS (SELECT 1 FROM managed_jobs WHERE request_id = substr(scope, 6) AND request_id <> '') LIMIT 500`, "DELETE FROM secrets WHERE id = ?"}},
		{r.Jobs, &c.Jobs, []string{"SELECT DISTINCT h.hash FROM cluster_history h JOIN jobs j ON j.hash = h.hash WHERE h.removed < ? LIMIT 20",
			"DELETE FROM jobs WHERE hash = ?"}},
		{r.Clusters, &c.Clusters, []string{"SELECT hash FROM cluster_history WHERE removed < ? LIMIT 500", "DELETE FROM usage_intervals WHERE hash = ?",
			"DELETE FROM secrets WHERE scope = 'cluster/' || ?", "DELETE FROM cluster_history WHERE hash = ?"}},
	}...) {
		if st.keep <= 0 {
			continue
		}
		if err := s.collectKeys(ctx, now.Add(-st.keep).UnixMicro(), st); err != nil {
			return c, err
		}
	}
	if r.Events > 0 {
		c.Events, err = s.collectEvents(ctx, now.Add(-r.Events).UnixMicro())
	}
	return c, err
}

func (s *Store) collectKeys(ctx context.Context, cutoff int64, st collectStep) error {
	for {
		var keys []string
		var removed int64
		err := s.update(ctx, false, func(t *txn) error {
			keys, removed = keys[:0], 0
			err := t.collect(st.queries[0], []any{cutoff}, func(r scanner) error {
				var k string
				err := r.Scan(&k)
				keys = append(keys, k)
				return err
			})
			if err != nil {
				return err
			}
			for _, k := range keys {
				var n int64
				for _, q := range st.queries[1:] {
					if n, err = t.exec(q, k); err != nil {
						return err
					}
				}
				removed += n
			}
			return nil
		})
		if err != nil || len(keys) == 0 {
			return err
		}
		*st.count += int(removed)
	}
}

// collectEvents walks from the oldest id; ids and times grow together, near enough for a retention.
func (s *Store) collectEvents(ctx context.Context, cutoff int64) (total int, err error) {
	for {
		var removed int64
		err := s.update(ctx, false, func(t *txn) error {
			var last int64
			err := t.collect("SELECT id, at FROM events ORDER BY id LIMIT 500", nil, func(r scanner) error {
				var id, at int64
				if err := r.Scan(&id, &at); err != nil {
					return err
				}
				if at < cutoff {
					last = id
				}
				return nil
			})
			if err != nil || last == 0 {
				removed = 0
				return err
			}
			removed, err = t.exec("DELETE FROM events WHERE id <= ? AND at < ?", last, cutoff)
			return err
		})
		total += int(removed)
		if err != nil || removed < collectBatch {
			return total, err
		}
	}
}
