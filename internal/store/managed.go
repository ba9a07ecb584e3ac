package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/skyloom/skyloom/api"
)

// ManagedFilter selects managed jobs; empty fields select all. A job is listed whole if one of its tasks matches.
type ManagedFilter struct {
	IDs          []int64
	Name         string // exact
	UserHash     string
	Statuses     []api.ManagedStatus
	SkipFinished bool       // jobs with a task that has not ended
	Since        *time.Time // submitted then or later
	Before       *time.Time // submitted earlier
	Limit        int        // so many jobs; 0: all
	Full         bool       // with UserYAML
}

// ManagedFiles names the uploaded content that a managed job needs until it ends, by the ids of its manifests.
type ManagedFiles struct {
	JobID     int64
	Manifests []string
}

// JobNumbers gives count managed jobs of a request their numbers, from 1 upwards over all requests, durably: the same
// request and index get the same number each time.
func (s *Store) JobNumbers(ctx context.Context, requestID string, count int) (ids []int64, err error) {
	if requestID == "" || count < 1 {
		return nil, errors.New("job numbers need the request's id and a count from 1")
	}
	err = s.update(ctx, true, func(t *txn) error {
		ids, err = t.jobNumbers(requestID, count)
		return err
	})
	return ids, err
}

func (t *txn) jobNumbers(requestID string, count int) ([]int64, error) {
	ids := make([]int64, count)
	err := t.collect("SELECT n, job_id FROM job_numbers WHERE request_id = ? AND n < ?", []any{requestID, count}, func(r scanner) error {
		var n, id int64
		if err := r.Scan(&n, &id); err != nil {
			return err
		}
		ids[n] = id
		return nil
	})
	for n := 0; err == nil && n < count; n++ {
		if ids[n] == 0 {
			err = t.row("INSERT INTO job_numbers (request_id, n) VALUES (?, ?) RETURNING job_id", requestID, n).Scan(&ids[n])
		}
	}
	return ids, err
}

// JobNumbered says whether a number was given to a managed job, also if its rows were not written yet.
func (s *Store) JobNumbered(ctx context.Context, id int64) (bool, error) {
	var one int
	err := s.row(ctx, "SELECT 1 FROM job_numbers WHERE job_id = ?", id).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, s.wrap(err)
}

// PutManagedJobs writes rows of managed jobs; stale ones are skipped: a sequence that is not higher, or another status
// after the end.
func (s *Store) PutManagedJobs(ctx context.Context, rows ...api.ManagedJob) error {
	return s.Write(ctx, Batch{ManagedJobs: rows})
}

func (t *txn) putManaged(j api.ManagedJob) error {
	if j.ID <= 0 || j.TaskID < 0 || j.Status == "" {
		return errors.New("a managed job's row needs a number from 1, a task from 0 and a status")
	}
	var seq int64
	var status string
	err := t.row("SELECT seq, status FROM managed_jobs WHERE job_id = ? AND task_id = ?", j.ID, j.TaskID).Scan(&seq, &status)
	switch {
	case err == nil:
		if old := api.ManagedStatus(status); j.Seq <= seq || (old.Terminal() && j.Status != old) {
			return nil
		}
	case !errors.Is(err, sql.ErrNoRows):
		return err
	}
	if j.UserYAML != "" {
		if _, err := t.exec(`INSERT INTO managed_yaml (job_id, task_id, yaml) VALUES (?, ?, ?)
			ON CONFLICT (job_id, task_id) DO UPDATE SET yaml = excluded.yaml`, j.ID, j.TaskID, j.UserYAML); err != nil {
			return err
		}
		j.UserYAML = ""
	}
	j.Notices = nil // of whoever reads the row
	j.SubmittedAt = t.w.s.at(j.SubmittedAt).UTC()
	terminal, ended := 0, int64(0)
	if j.Status.Terminal() {
		terminal = 1
		if ended = microsPtr(j.EndAt).Int64; ended == 0 {
			ended = t.w.s.now().UnixMicro()
		}
	}
	data, err := json.Marshal(j)
	if err != nil {
		return err
	}
	// Who asked, and when, does not change: its indexes are left alone.
	_, err = t.exec(`INSERT INTO managed_jobs (job_id, task_id, seq, status, terminal, name, user_hash, request_id, priority, submitted, ended, data)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (job_id, task_id) DO UPDATE SET seq = excluded.seq, status = excluded.status,
		terminal = excluded.terminal, ended = excluded.ended, data = excluded.data`,
		j.ID, j.TaskID, j.Seq, string(j.Status), terminal, j.Name, j.UserHash, j.RequestID, j.Priority, j.SubmittedAt.UnixMicro(), ended, string(data))
	t.touch(ManagedTopic)
	t.touch(JobTopic(j.ID))
	if err != nil {
		return err
	}
	// What stands below a job's first own row, written for it when it was submitted, was no change of state.
	if j.Seq > 0 && (seq == 0 || string(j.Status) != status) {
		if err := t.notice(j, api.ManagedStatus(status)); err != nil {
			return err
		}
	}
	if terminal == 0 {
		return nil
	}
	if _, err = t.exec("DELETE FROM managed_files WHERE job_id = ? AND NOT EXISTS (SELECT 1 FROM managed_jobs WHERE job_id = ? AND terminal = 0)", j.ID, j.ID); err != nil {
		return err
	}
	return t.endWaits(j.ID)
}

func (t *txn) keepFiles(f ManagedFiles) error {
	for _, id := range f.Manifests {
		if _, err := t.exec(`INSERT INTO managed_files (job_id, manifest) SELECT ?, ? WHERE EXISTS
			(SELECT 1 FROM managed_jobs WHERE job_id = ? AND terminal = 0) ON CONFLICT (job_id, manifest) DO NOTHING`, f.JobID, id, f.JobID); err != nil {
			return err
		}
	}
	return nil
}

// EachManagedFile calls f with the manifests that jobs which have not ended need.
func (s *Store) EachManagedFile(ctx context.Context, f func(manifest string)) error {
	return s.collect(ctx, "SELECT DISTINCT manifest FROM managed_files", nil, func(r scanner) error {
		var id string
		err := r.Scan(&id)
		if err == nil {
			f(id)
		}
		return err
	})
}

// ManagedIDs calls f with the number of each job that is listed, ended or not.
func (s *Store) ManagedIDs(ctx context.Context, f func(id int64)) error {
	return s.collect(ctx, "SELECT DISTINCT job_id FROM managed_jobs", nil, func(r scanner) error {
		var id int64
		err := r.Scan(&id)
		if err == nil {
			f(id)
		}
		return err
	})
}

// ManagedJob reads all tasks of one job, in order, with all fields.
func (s *Store) ManagedJob(ctx context.Context, id int64) ([]api.ManagedJob, error) {
	rows, _, _, err := s.ManagedJobs(ctx, ManagedFilter{IDs: []int64{id}, Full: true})
	if err == nil && len(rows) == 0 {
		err = fmt.Errorf("managed job %d: %w", id, ErrNotFound)
	}
	return rows, err
}

// ManagedHead reads the row of a job's first task.
func (s *Store) ManagedHead(ctx context.Context, id int64) (row api.ManagedJob, err error) {
	var data []byte
	err = s.row(ctx, "SELECT data FROM managed_jobs WHERE job_id = ? AND task_id = 0", id).Scan(&data)
	if errors.Is(err, sql.ErrNoRows) {
		return row, fmt.Errorf("managed job %d: %w", id, ErrNotFound)
	}
	if err != nil {
		return row, s.wrap(err)
	}
	return row, json.Unmarshal(data, &row)
}

// ManagedOpen lists the jobs of a request (of all, if it is empty) that have not ended, by number.
func (s *Store) ManagedOpen(ctx context.Context, requestID string) (ids []int64, err error) {
	q, args := "SELECT DISTINCT job_id FROM managed_jobs WHERE terminal = 0 ORDER BY job_id", []any(nil)
	if requestID != "" {
		q, args = "SELECT DISTINCT job_id FROM managed_jobs WHERE request_id = ? AND request_id <> '' AND terminal = 0 ORDER BY job_id", []any{requestID}
	}
	err = s.collect(ctx, q, args, func(r scanner) error {
		var id int64
		err := r.Scan(&id)
		ids = append(ids, id)
		return err
	})
	return ids, err
}

// ManagedJobs lists managed jobs, the newest first, each with its tasks in order. total counts the jobs that match,
// whatever the limit; counts are of tasks by status, whatever the filter says of status and limit.
func (s *Store) ManagedJobs(ctx context.Context, f ManagedFilter) (rows []api.ManagedJob, total int, counts map[api.ManagedStatus]int, err error) {
	rows = []api.ManagedJob{}
	total, counts, err = s.eachManaged(ctx, f, func(data []byte, yaml string) error {
		rows = append(rows, api.ManagedJob{})
		j := &rows[len(rows)-1]
		err := json.Unmarshal(data, j)
		j.UserYAML = yaml
		return err
	})
	if err == nil {
		err = errors.Join(s.countElements(ctx, rows), s.countNotices(ctx, rows))
	}
	return rows, total, counts, err
}

// ManagedRows is ManagedJobs with encoded api.ManagedJob objects, for passing on without decoding.
func (s *Store) ManagedRows(ctx context.Context, f ManagedFilter) (rows []json.RawMessage, total int, counts map[api.ManagedStatus]int, err error) {
	rows = []json.RawMessage{}
	total, counts, err = s.eachManaged(ctx, f, func(data []byte, yaml string) error {
		if yaml != "" {
			text, err := json.Marshal(yaml)
			if err != nil {
				return err
			}
			// What is stored is an object that has no such field, since it is left out when empty.
			data = append(append(append(data[:len(data)-1:len(data)-1], `,"user_yaml":`...), text...), '}')
		}
		rows = append(rows, data)
		return nil
	})
	if err == nil {
		err = errors.Join(s.countRowElements(ctx, rows), s.countRowNotices(ctx, rows))
	}
	return rows, total, counts, err
}

func (s *Store) eachManaged(ctx context.Context, f ManagedFilter, each func(data []byte, yaml string) error) (total int, counts map[api.ManagedStatus]int, err error) {
	base, all := f.conditions()
	counts = map[api.ManagedStatus]int{}
	err = s.collect(ctx, "SELECT status, count(*) FROM managed_jobs"+base.where()+" GROUP BY status", base.args, func(r scanner) error {
		var status string
		var n int
		err := r.Scan(&status, &n)
		counts[api.ManagedStatus(status)] = n
		return err
	})
	if err != nil {
		return 0, nil, err
	}
	err = s.collect(ctx, "SELECT count(DISTINCT job_id) FROM managed_jobs"+all.where(), all.args, func(r scanner) error { return r.Scan(&total) })
	if err != nil || total == 0 {
		return total, counts, err
	}
	q := "SELECT m.data, '' FROM managed_jobs m"
	if f.Full {
		q = "SELECT m.data, coalesce(y.yaml, '') FROM managed_jobs m LEFT JOIN managed_yaml y ON y.job_id = m.job_id AND y.task_id = m.task_id"
	}
	if len(all.conds) > 0 || f.Limit > 0 {
		q += " WHERE m.job_id IN (SELECT DISTINCT job_id FROM managed_jobs" + all.where()
		if f.Limit > 0 {
			q += " ORDER BY job_id DESC LIMIT " + strconv.Itoa(f.Limit)
		}
		q += ")"
	}
	err = s.collect(ctx, q+" ORDER BY m.job_id DESC, m.task_id", all.args, func(r scanner) error {
		var data []byte
		var yaml string
		if err := r.Scan(&data, &yaml); err != nil {
			return err
		}
		return each(data, yaml)
	})
	return total, counts, err
}

// conditions of a query, with their arguments.
type conditions struct {
	conds []string
	args  []any
}

func (c *conditions) add(cond string, args ...any) {
	c.conds, c.args = append(c.conds, cond), append(c.args, args...)
}

func (c conditions) where() string {
	if len(c.conds) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(c.conds, " AND ")
}

// conditions of a filter: without what it says of status, and with it.
func (f ManagedFilter) conditions() (base, all conditions) {
	if len(f.IDs) > 0 {
		// As text: there may be more of them than a query may have parameters.
		ids := make([]string, len(f.IDs))
		for i, id := range f.IDs {
			ids[i] = strconv.FormatInt(id, 10)
		}
		base.add("job_id IN (" + strings.Join(ids, ",") + ")")
	}
	if f.Name != "" {
		base.add("name = ?", f.Name)
	}
	if f.UserHash != "" {
		base.add("user_hash = ?", f.UserHash)
	}
	if f.Since != nil {
		base.add("submitted >= ?", f.Since.UnixMicro())
	}
	if f.Before != nil {
		base.add("submitted < ?", f.Before.UnixMicro())
	}
	all = conditions{append([]string(nil), base.conds...), append([]any(nil), base.args...)}
	if f.SkipFinished {
		all.add("terminal = 0")
	}
	if len(f.Statuses) > 0 {
		all.add("status IN "+in(len(f.Statuses)), anys(f.Statuses)...)
		for i := range f.Statuses {
			all.args[len(all.args)-len(f.Statuses)+i] = string(f.Statuses[i])
		}
	}
	return base, all
}
