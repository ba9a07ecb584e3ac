package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/skyloom/skyloom/api"
)

// afterSchema holds what managed jobs wait for of other jobs. due: the waiting job's workflow is to be told.
const afterSchema = `
CREATE TABLE managed_waits (
  job_id BIGINT NOT NULL, on_job BIGINT NOT NULL, want TEXT NOT NULL, state TEXT NOT NULL, due BIGINT NOT NULL, workflow TEXT NOT NULL,
  PRIMARY KEY (job_id, on_job));
CREATE INDEX managed_waits_on ON managed_waits (on_job);
CREATE INDEX managed_waits_due ON managed_waits (job_id) WHERE due = 1;
`

// WaitState says how a condition on another job stands.
type WaitState string

// States of a condition.
const (
	WaitOpen  WaitState = "open"
	WaitMet   WaitState = "met"
	WaitNever WaitState = "never" // can no longer come true
)

// JobWait is one condition that a managed job waits for.
type JobWait struct {
	JobID  int64 // that waits
	On     api.AfterJob
	State  WaitState
	Status api.ManagedStatus // of the job waited for; empty: it is not known (yet)
	Reason string            // why that one ended as it did
	Gone   bool              // there is no such job
}

// WaitForJobs notes that a job, carried by a workflow, waits, and tells how each of its conditions stands now. Once none is open, or one can no
// longer come true, nothing stays noted: the wait is over. Until then DueWaits names the job as soon as that changes. It
// may be repeated.
func (s *Store) WaitForJobs(ctx context.Context, jobID int64, workflow string, on []api.AfterJob) (out []JobWait, err error) {
	if jobID <= 0 {
		return nil, errors.New("a wait needs the job's number")
	}
	err = s.update(ctx, true, func(t *txn) error {
		out = out[:0]
		if _, err := t.exec("DELETE FROM managed_waits WHERE job_id = ?", jobID); err != nil {
			return err
		}
		open, never := false, false
		for _, a := range on {
			w, err := judgeWait(t, JobWait{JobID: jobID, On: a})
			if err != nil {
				return err
			}
			open, never = open || w.State == WaitOpen, never || w.State == WaitNever
			out = append(out, w)
		}
		if never || !open {
			return nil
		}
		for _, w := range out {
			if _, err := t.exec("INSERT INTO managed_waits (job_id, on_job, want, state, due, workflow) VALUES (?, ?, ?, ?, 0, ?)", jobID, w.On.JobID, want(w.On), string(w.State), workflow); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

func want(a api.AfterJob) string {
	if a.Any {
		return "any"
	}
	return "ok"
}

// judgeWait fills in how a condition stands.
func judgeWait(q querier, w JobWait) (JobWait, error) {
	rows := []api.ManagedJob{}
	open := 0
	err := q.collect("SELECT data FROM managed_jobs WHERE job_id = ? ORDER BY task_id", []any{w.On.JobID}, func(r scanner) error {
		var data []byte
		if err := r.Scan(&data); err != nil {
			return err
		}
		var j api.ManagedJob
		err := json.Unmarshal(data, &j)
		rows = append(rows, j)
		if !j.Status.Terminal() {
			open++
		}
		return err
	})
	if err != nil {
		return w, err
	}
	var decisive api.ManagedJob
	w.Status, decisive = api.ManagedState(rows)
	w.Reason = decisive.FailureReason
	switch {
	case len(rows) == 0:
		var known int
		if err := q.row("SELECT count(*) FROM job_numbers WHERE job_id = ?", w.On.JobID).Scan(&known); err != nil {
			return w, err
		}
		if w.State = WaitOpen; known == 0 || w.On.JobID >= w.JobID {
			w.State, w.Gone = WaitNever, true // a job can only wait for older ones: nothing waits in a circle
		}
	case open > 0:
		w.State = WaitOpen
	case w.On.Any || w.Status == api.ManagedSucceeded:
		w.State = WaitMet
	default:
		w.State = WaitNever
	}
	return w, nil
}

// endWaits is told of a job whose last task has ended: it waits no more, and those that wait for it may go on.
func (t *txn) endWaits(jobID int64) error {
	var ours, theirs int
	err := t.row("SELECT (SELECT count(*) FROM managed_waits WHERE job_id = ?), (SELECT count(*) FROM managed_waits WHERE on_job = ?)", jobID, jobID).Scan(&ours, &theirs)
	if err != nil || ours+theirs == 0 {
		return err
	}
	var open int
	if err := t.row("SELECT count(*) FROM managed_jobs WHERE job_id = ? AND terminal = 0", jobID).Scan(&open); err != nil || open > 0 {
		return err
	}
	if ours > 0 {
		if _, err := t.exec("DELETE FROM managed_waits WHERE job_id = ?", jobID); err != nil {
			return err
		}
	}
	if theirs == 0 {
		return nil
	}
	for _, a := range []api.AfterJob{{JobID: jobID}, {JobID: jobID, Any: true}} {
		w, err := judgeWait(t, JobWait{JobID: jobID + 1, On: a})
		if err != nil {
			return err
		}
		if _, err := t.exec("UPDATE managed_waits SET state = ? WHERE on_job = ? AND want = ?", string(w.State), jobID, want(a)); err != nil {
			return err
		}
	}
	// Each is told once, when its last condition came true or the first one became impossible.
	n, err := t.exec(`UPDATE managed_waits SET due = 1 WHERE on_job = ? AND (state = 'never' OR NOT EXISTS
		(SELECT 1 FROM managed_waits o WHERE o.job_id = managed_waits.job_id AND o.state = 'open'))`, jobID)
	if n > 0 {
		t.touch(WaitTopic)
	}
	return err
}

// DueWait is a job whose wait is over.
type DueWait struct {
	JobID    int64
	Workflow string // id of the workflow to tell
}

// DueWaits lists jobs whose wait is over and that were not told, the oldest first, up to a thousand.
func (s *Store) DueWaits(ctx context.Context) (out []DueWait, err error) {
	err = s.collect(ctx, "SELECT DISTINCT job_id, workflow FROM managed_waits WHERE due = 1 ORDER BY job_id LIMIT 1000", nil, func(r scanner) error {
		var w DueWait
		err := r.Scan(&w.JobID, &w.Workflow)
		out = append(out, w)
		return err
	})
	return out, err
}

// WaitTold notes that a job which was due has the word: DueWaits stops naming it. The wait itself stays noted until the
// job has asked.
func (s *Store) WaitTold(ctx context.Context, jobID int64) error {
	return s.update(ctx, false, func(t *txn) error {
		_, err := t.exec("UPDATE managed_waits SET due = 0 WHERE job_id = ?", jobID)
		return err
	})
}

// ForgetWait removes the wait of a job that is no more.
func (s *Store) ForgetWait(ctx context.Context, jobID int64) error {
	return s.update(ctx, false, func(t *txn) error {
		_, err := t.exec("DELETE FROM managed_waits WHERE job_id = ?", jobID)
		return err
	})
}

// JobWaits tells what jobs wait for now, by their number.
func (s *Store) JobWaits(ctx context.Context, ids ...int64) (map[int64][]JobWait, error) {
	out := map[int64][]JobWait{}
	if len(ids) == 0 {
		return out, nil
	}
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = strconv.FormatInt(id, 10)
	}
	var waits []JobWait
	err := s.collect(ctx, "SELECT job_id, on_job, want FROM managed_waits WHERE job_id IN ("+strings.Join(list, ",")+") ORDER BY job_id, on_job", nil, func(r scanner) error {
		var w JobWait
		var want string
		err := r.Scan(&w.JobID, &w.On.JobID, &want)
		w.On.Any = want == "any"
		waits = append(waits, w)
		return err
	})
	for _, w := range waits {
		if w, err = judgeWait(plainReader{s, ctx}, w); err != nil {
			return nil, err
		}
		out[w.JobID] = append(out[w.JobID], w)
	}
	return out, err
}

// UnknownJobs lists those of the jobs to wait for that do not exist. A request that has its numbers was accepted before,
// and is not judged again.
func (s *Store) UnknownJobs(ctx context.Context, requestID string, on []api.AfterJob) (ids []int64, err error) {
	var n int
	if err := s.row(ctx, "SELECT count(*) FROM job_numbers WHERE request_id = ?", requestID).Scan(&n); err != nil || n > 0 {
		return nil, s.wrap(err)
	}
	for _, a := range on {
		if ok, err := s.JobNumbered(ctx, a.JobID); err != nil {
			return nil, err
		} else if !ok {
			ids = append(ids, a.JobID)
		}
	}
	return ids, nil
}

// waitWords is of how many jobs the reason of a wait speaks.
const waitWords = 3

// WaitWords says in words what is still waited for; empty if nothing is.
func WaitWords(waits []JobWait) string {
	var words []string
	more := 0
	for _, w := range waits {
		if w.State != WaitOpen {
			continue
		}
		if len(words) == waitWords {
			more++
			continue
		}
		text := fmt.Sprintf("job %d to succeed", w.On.JobID)
		if w.On.Any {
			text = fmt.Sprintf("job %d to end", w.On.JobID)
		}
		if w.Status != "" {
			text += fmt.Sprintf(" (now %s)", w.Status)
		}
		words = append(words, text)
	}
	if len(words) == 0 {
		return ""
	}
	if more > 0 {
		words = append(words, fmt.Sprintf("%d more", more))
	}
	return "waits for " + strings.Join(words, ", ")
}

// NeverWords says why a wait can no longer end well; empty if it can.
func NeverWords(waits []JobWait) string {
	i := slices.IndexFunc(waits, func(w JobWait) bool { return w.State == WaitNever })
	if i < 0 {
		return ""
	}
	w := waits[i]
	if w.Gone {
		return fmt.Sprintf("there is no managed job %d to wait for (--after %s)", w.On.JobID, w.On)
	}
	text := fmt.Sprintf("job %d, which had to succeed first (--after %s), ended %s", w.On.JobID, w.On, w.Status)
	if w.Reason != "" {
		text += ": " + w.Reason
	}
	return text
}
