package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/skyloom/skyloom/api"
)

// scheduleSchema holds schedules of managed jobs: what they submit. When they fire, the engine knows. One that was deleted
// stays as long as jobs of its firings run, since these need its files and secrets.
const scheduleSchema = `
CREATE TABLE job_schedules (
  schedule_id {serial}, request_id TEXT NOT NULL UNIQUE, user_hash TEXT NOT NULL, created BIGINT NOT NULL, deleted BIGINT NOT NULL,
  data TEXT NOT NULL, body {blob} NOT NULL);
CREATE TABLE schedule_firings (
  schedule_id BIGINT NOT NULL, at BIGINT NOT NULL, request_id TEXT NOT NULL, PRIMARY KEY (schedule_id, at));
CREATE INDEX schedule_firings_request ON schedule_firings (request_id);
`

// lastFirings is of how many firings a schedule tells.
const lastFirings = 5

// CreateSchedule stores a schedule under a number of its own, durably. row is what is known of it without the engine; body
// is the submission of each firing. The same request gives the same schedule, unless it was deleted: that is ErrNotFound.
func (s *Store) CreateSchedule(ctx context.Context, row api.JobSchedule, body []byte) (id int64, err error) {
	if row.RequestID == "" {
		return 0, errors.New("a schedule needs the id of its request")
	}
	err = s.update(ctx, true, func(t *txn) error {
		var deleted int64
		err := t.row("SELECT schedule_id, deleted FROM job_schedules WHERE request_id = ?", row.RequestID).Scan(&id, &deleted)
		if err == nil && deleted > 0 {
			return fmt.Errorf("schedule %d: %w: it was deleted", id, ErrNotFound)
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		row.CreatedAt = t.w.s.at(row.CreatedAt).UTC()
		row.Next, row.Last, row.ID = nil, nil, 0
		data, err := json.Marshal(row)
		if err != nil {
			return err
		}
		return t.row("INSERT INTO job_schedules (request_id, user_hash, created, deleted, data, body) VALUES (?, ?, ?, 0, ?, ?) RETURNING schedule_id",
			row.RequestID, row.UserHash, row.CreatedAt.UnixMicro(), string(data), body).Scan(&id)
	})
	return id, err
}

// Schedules lists schedules by number, with their last firings: those of a user unless userHash is empty, and only these
// numbers if any are given.
func (s *Store) Schedules(ctx context.Context, userHash string, ids ...int64) ([]api.JobSchedule, error) {
	var where conditions
	where.add("deleted = 0")
	if userHash != "" {
		where.add("user_hash = ?", userHash)
	}
	if len(ids) > 0 {
		where.add("schedule_id IN "+in(len(ids)), anys(ids)...)
	}
	out := []api.JobSchedule{}
	err := s.collect(ctx, "SELECT schedule_id, data FROM job_schedules"+where.where()+" ORDER BY schedule_id", where.args, func(r scanner) error {
		var id int64
		var data []byte
		if err := r.Scan(&id, &data); err != nil {
			return err
		}
		var row api.JobSchedule
		err := json.Unmarshal(data, &row)
		row.ID, row.Next, row.Last = id, []time.Time{}, []api.ScheduleFiring{}
		out = append(out, row)
		return err
	})
	for i := range out {
		if err != nil {
			break
		}
		err = s.collect(ctx, `SELECT f.at, n.job_id FROM (SELECT at, request_id FROM schedule_firings WHERE schedule_id = ? ORDER BY at DESC LIMIT ?) f
			JOIN job_numbers n ON n.request_id = f.request_id ORDER BY f.at DESC, n.n`, []any{out[i].ID, lastFirings}, func(r scanner) error {
			var at, job int64
			if err := r.Scan(&at, &job); err != nil {
				return err
			}
			due := time.UnixMicro(at).UTC()
			last := out[i].Last
			if len(last) == 0 || !last[len(last)-1].At.Equal(due) {
				last = append(last, api.ScheduleFiring{At: due})
			}
			f := &last[len(last)-1]
			f.JobIDs = append(f.JobIDs, job)
			out[i].Last = last
			return nil
		})
	}
	return out, err
}

// DeleteSchedule takes a schedule out of the lists: it fires no more. It may be repeated.
func (s *Store) DeleteSchedule(ctx context.Context, id int64) error {
	return s.update(ctx, true, func(t *txn) error {
		_, err := t.exec("UPDATE job_schedules SET deleted = ? WHERE schedule_id = ? AND deleted = 0", s.now().UnixMicro(), id)
		return err
	})
}

// Firing is what a firing of a schedule submits.
type Firing struct {
	Schedule api.JobSchedule
	Body     []byte
	JobIDs   []int64
}

// FireSchedule notes that a schedule has fired for a time that was due, under the id of a request of its own, and gives the
// jobs their numbers, durably. The same firing gives the same numbers. ErrNotFound: the schedule is gone.
func (s *Store) FireSchedule(ctx context.Context, id int64, due time.Time, requestID string) (f Firing, err error) {
	err = s.update(ctx, true, func(t *txn) error {
		f = Firing{}
		var data []byte
		var deleted int64
		err := t.row("SELECT data, body, deleted FROM job_schedules WHERE schedule_id = ?", id).Scan(&data, &f.Body, &deleted)
		if errors.Is(err, sql.ErrNoRows) || err == nil && deleted > 0 {
			return fmt.Errorf("schedule %d: %w", id, ErrNotFound)
		}
		if err != nil {
			return err
		}
		if err := json.Unmarshal(data, &f.Schedule); err != nil {
			return err
		}
		f.Schedule.ID = id
		if _, err := t.exec("INSERT INTO schedule_firings (schedule_id, at, request_id) VALUES (?, ?, ?) ON CONFLICT (schedule_id, at) DO NOTHING", id, due.UnixMicro(), requestID); err != nil {
			return err
		}
		if f.JobIDs, err = t.jobNumbers(requestID, max(f.Schedule.NumJobs, 1)); err != nil {
			return err
		}
		res, err := json.Marshal(api.JobsLaunchResult{RequestID: requestID, JobIDs: f.JobIDs})
		if err != nil {
			return err
		}
		r := api.Request{ID: requestID, Name: "sky.jobs.launch", Status: api.RequestPending, User: f.Schedule.User, UserHash: f.Schedule.UserHash,
			Command: fmt.Sprintf("schedule %d", id), CreatedAt: s.now().UTC()}
		return t.write(Batch{Creates: []NewRequest{{Request: r, Kind: "jobs.launch"}}, Requests: []RequestUpdate{{ID: requestID, Status: api.RequestSucceeded, Result: res}}})
	})
	return f, err
}

// EachScheduleBody calls f with what each schedule submits, also of those that were deleted while jobs of theirs run.
func (s *Store) EachScheduleBody(ctx context.Context, f func(body []byte)) error {
	return s.collect(ctx, "SELECT body FROM job_schedules", nil, func(r scanner) error {
		var body []byte
		err := r.Scan(&body)
		if err == nil {
			f(body)
		}
		return err
	})
}

// collectSchedules are the steps of Collect for schedules: those that were deleted, once no job of theirs runs, and firings
// whose jobs are listed no more, but for the last ones of a schedule.
func collectSchedules(r Retention, gone *int) []collectStep {
	return []collectStep{
		{r.Requests, gone, []string{`SELECT schedule_id FROM job_schedules WHERE deleted > 0 AND deleted < ? AND NOT EXISTS (SELECT 1 FROM schedule_firings f
			JOIN managed_jobs m ON m.request_id = f.request_id WHERE f.schedule_id = job_schedules.schedule_id AND m.request_id <> '' AND m.terminal = 0) LIMIT 500`,
			"DELETE FROM schedule_firings WHERE schedule_id = CAST(? AS BIGINT)", "DELETE FROM job_schedules WHERE schedule_id = CAST(? AS BIGINT)"}},
		{r.ManagedJobs, gone, []string{`SELECT request_id FROM schedule_firings f WHERE at < ? AND NOT EXISTS (SELECT 1 FROM job_numbers n WHERE n.request_id = f.request_id)
			AND (SELECT count(*) FROM schedule_firings g WHERE g.schedule_id = f.schedule_id AND g.at > f.at) >= 5 LIMIT 500`, "DELETE FROM schedule_firings WHERE request_id = ?"}},
	}
}
