package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/skyloom/skyloom/api"
)

// ErrStale: another attempt of the task has begun, or it has ended; what an earlier one saves is not taken.
var ErrStale = errors.New("the attempt is over")

// Collect removes rows of checkpoints with their job.
const checkpointSchema = `
CREATE TABLE checkpoints (
  job_id BIGINT NOT NULL, task_id BIGINT NOT NULL, n BIGINT NOT NULL, attempt BIGINT NOT NULL, saved BIGINT NOT NULL, why TEXT NOT NULL,
  files BIGINT NOT NULL, bytes BIGINT NOT NULL, manifests TEXT NOT NULL,
  PRIMARY KEY (job_id, task_id, n));
`

// AddCheckpoint makes a checkpoint known, durably: from then on it is what a later attempt starts from. All its content must
// be durable before. It gets the next number; those beyond the newest keep are dropped. One with the content of the newest adds
// nothing: that one is given back, and fresh is false; so does one whose picture was taken before that of the newest, whichever
// server brings it. ErrStale: the row of the task speaks of another attempt, or of its end.
func (s *Store) AddCheckpoint(ctx context.Context, c api.Checkpoint, keep int) (out api.Checkpoint, fresh bool, err error) {
	if c.JobID <= 0 || len(c.Manifests) == 0 || keep < 1 {
		return c, false, errors.New("a checkpoint needs the job's number, a manifest per rank, and a count of those to keep")
	}
	err = s.update(ctx, true, func(t *txn) error {
		out, fresh = c, false
		var data string
		if err := t.row("SELECT data FROM managed_jobs WHERE job_id = ? AND task_id = ?", c.JobID, c.TaskID).Scan(&data); err != nil {
			return fmt.Errorf("task %d of managed job %d: %w", c.TaskID, c.JobID, ErrNotFound)
		}
		var row api.ManagedJob
		if err := json.Unmarshal([]byte(data), &row); err != nil {
			return err
		}
		if row.Attempt != c.Attempt || row.Status.Terminal() {
			return fmt.Errorf("attempt %d of task %d of managed job %d: %w", c.Attempt, c.TaskID, c.JobID, ErrStale)
		}
		manifests, err := json.Marshal(c.Manifests)
		if err != nil {
			return err
		}
		last, err := t.checkpoints("job_id = ? AND task_id = ? ORDER BY n DESC LIMIT 1", c.JobID, c.TaskID)
		if err != nil {
			return err
		}
		out.N, out.SavedAt, out.Ranks = 1, t.w.s.at(c.SavedAt).UTC(), len(c.Manifests)
		if len(last) > 0 {
			same, _ := json.Marshal(last[0].Manifests)
			if string(same) == string(manifests) || last[0].Attempt == c.Attempt && c.Taken < last[0].Taken {
				out = last[0]
				return nil
			}
			out.N = last[0].N + 1
		}
		fresh = true
		if _, err := t.exec("INSERT INTO checkpoints (job_id, task_id, n, attempt, saved, why, files, bytes, manifests, taken, place) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
			c.JobID, c.TaskID, out.N, c.Attempt, out.SavedAt.UnixMicro(), c.Why, c.Files, c.Bytes, string(manifests), c.Taken, c.Where); err != nil {
			return err
		}
		_, err = t.exec("DELETE FROM checkpoints WHERE job_id = ? AND task_id = ? AND n <= ?", c.JobID, c.TaskID, out.N-keep)
		t.touch(JobTopic(c.JobID))
		return err
	})
	return out, fresh, err
}

const checkpointColumns = "SELECT job_id, task_id, n, attempt, saved, why, files, bytes, manifests, taken, place FROM checkpoints"

func scanCheckpoint(r scanner) (c api.Checkpoint, err error) {
	var saved int64
	var manifests string
	if err := r.Scan(&c.JobID, &c.TaskID, &c.N, &c.Attempt, &saved, &c.Why, &c.Files, &c.Bytes, &manifests, &c.Taken, &c.Where); err != nil {
		return c, err
	}
	c.SavedAt = time.UnixMicro(saved).UTC()
	err = json.Unmarshal([]byte(manifests), &c.Manifests)
	c.Ranks = len(c.Manifests)
	return c, err
}

func (t *txn) checkpoints(where string, args ...any) (out []api.Checkpoint, err error) {
	err = t.collect(checkpointColumns+" WHERE "+where, args, func(r scanner) error {
		c, err := scanCheckpoint(r)
		out = append(out, c)
		return err
	})
	return out, err
}

// Checkpoints lists what was saved of a managed job: by task, the newest first.
func (s *Store) Checkpoints(ctx context.Context, job int64) (out []api.Checkpoint, err error) {
	err = s.collect(ctx, checkpointColumns+" WHERE job_id = ? ORDER BY task_id, n DESC", []any{job}, func(r scanner) error {
		c, err := scanCheckpoint(r)
		out = append(out, c)
		return err
	})
	return out, s.wrap(err)
}

// NewestCheckpoint is what an attempt of a task starts from; nil: nothing was saved yet.
func (s *Store) NewestCheckpoint(ctx context.Context, job int64, task int) (*api.Checkpoint, error) {
	var out *api.Checkpoint
	err := s.collect(ctx, checkpointColumns+" WHERE job_id = ? AND task_id = ? ORDER BY n DESC LIMIT 1", []any{job, task}, func(r scanner) error {
		c, err := scanCheckpoint(r)
		out = &c
		return err
	})
	return out, s.wrap(err)
}

// EachCheckpoint hands fn every checkpoint there is, for those who must keep their content.
func (s *Store) EachCheckpoint(ctx context.Context, fn func(api.Checkpoint)) error {
	err := s.collect(ctx, checkpointColumns, nil, func(r scanner) error {
		c, err := scanCheckpoint(r)
		if err == nil {
			fn(c)
		}
		return err
	})
	return s.wrap(err)
}
