package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/arrays"
)

// An element has a row once it was handed to a cluster; before that it is PENDING without one. Collect removes the rows with
// their job. array_counts sums the rows by status, so that a list of jobs reads a few rows and not all.
const arraySchema = `
CREATE TABLE array_elements (
  job_id BIGINT NOT NULL, idx BIGINT NOT NULL, batch BIGINT NOT NULL, status TEXT NOT NULL, tries BIGINT NOT NULL, restarts BIGINT NOT NULL,
  returns BIGINT NOT NULL, codes TEXT NOT NULL, reason TEXT NOT NULL, started BIGINT NOT NULL, ended BIGINT NOT NULL, cluster TEXT NOT NULL,
  hash TEXT NOT NULL, cluster_job BIGINT NOT NULL, past TEXT NOT NULL,
  PRIMARY KEY (job_id, idx));
CREATE TABLE array_counts (job_id BIGINT NOT NULL, status TEXT NOT NULL, n BIGINT NOT NULL, PRIMARY KEY (job_id, status));
CREATE TABLE array_batches (job_id BIGINT NOT NULL, batch BIGINT NOT NULL, outcome TEXT NOT NULL, PRIMARY KEY (job_id, batch));
`

// ElementRow is an element of an array that was handed to a cluster at least once.
type ElementRow struct {
	api.ArrayElement
	// Returns is how often an intact cluster could not run it. Past are the batches of earlier attempts, oldest first.
	Returns int
	Past    []int64
}

// BatchOutcome is what became of the elements of a batch.
type BatchOutcome struct {
	Succeeded int `json:"succeeded,omitempty"`
	Failed    int `json:"failed,omitempty"`
	Cancelled int `json:"cancelled,omitempty"`
	// Again are those to be run again; Bad the first few that failed.
	Again arrays.Set `json:"again,omitempty"`
	Bad   []int      `json:"bad,omitempty"`
	// Seconds is how long those that ended took, Timed how many they are.
	Seconds float64 `json:"seconds,omitempty"`
	Timed   int     `json:"timed,omitempty"`
}

const elementColumns = "SELECT idx, batch, status, tries, restarts, returns, codes, reason, started, ended, cluster, hash, cluster_job, past FROM array_elements WHERE job_id = ?"

func scanElement(r scanner) (e ElementRow, err error) {
	var status, codes, past string
	var started, ended int64
	if err := r.Scan(&e.Index, &e.Batch, &status, &e.Attempt, &e.Restarts, &e.Returns, &codes, &e.Reason, &started, &ended, &e.Cluster, &e.ClusterHash, &e.ClusterJobID, &past); err != nil {
		return e, err
	}
	e.Status = api.ManagedStatus(status)
	for _, t := range []struct {
		at int64
		to **time.Time
	}{{started, &e.StartAt}, {ended, &e.EndAt}} {
		if t.at != 0 {
			at := time.UnixMicro(t.at).UTC()
			*t.to = &at
		}
	}
	for _, c := range strings.Fields(codes) {
		n, err := strconv.Atoi(c)
		if err != nil {
			return e, err
		}
		e.ExitCodes = append(e.ExitCodes, n)
	}
	for _, p := range strings.Fields(past) {
		n, err := strconv.ParseInt(p, 10, 64)
		if err != nil {
			return e, err
		}
		e.Past = append(e.Past, n)
	}
	return e, nil
}

// PutElements takes in what was heard of running elements of an array: each names its batch. What is told of a batch that was
// settled, of an earlier one than the element's own, or of an attempt that has ended changes nothing. Repeatable.
func (s *Store) PutElements(ctx context.Context, job int64, told []api.ArrayElement) error {
	return s.update(ctx, false, func(t *txn) error {
		settled := map[int64]bool{}
		counts := map[api.ManagedStatus]int{}
		for _, e := range told {
			over, ok := settled[e.Batch]
			if !ok {
				var err error
				if over, err = t.settled(job, e.Batch); err != nil {
					return err
				}
				settled[e.Batch] = over
			}
			if over {
				continue
			}
			old, had, err := t.element(job, e.Index)
			if err != nil {
				return err
			}
			// A run that has ended and not succeeded is RUNNING with an end: what follows is for the settling to say.
			same := old.Status == e.Status && (e.EndAt == nil || old.EndAt != nil)
			if had && (e.Batch < old.Batch || e.Batch == old.Batch && (same || old.Status.Terminal())) {
				continue
			}
			row := old
			row.ArrayElement = e
			row.Attempt, row.Restarts = old.Attempt, old.Restarts
			if e.Batch > old.Batch {
				row.begin(old)
			}
			if row.StartAt == nil {
				row.StartAt = old.StartAt
			}
			if had {
				counts[old.Status]--
			}
			counts[row.Status]++
			if err := t.putElement(job, row); err != nil {
				return err
			}
		}
		return t.addCounts(job, counts)
	})
}

// begin counts a new attempt.
func (e *ElementRow) begin(old ElementRow) {
	e.Attempt = old.Attempt + 1
	if old.Batch > 0 {
		e.Past = append(e.Past, old.Batch)
	}
}

func (t *txn) settled(job, batch int64) (bool, error) {
	var one int
	err := t.row("SELECT 1 FROM array_batches WHERE job_id = ? AND batch = ?", job, batch).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

func (t *txn) element(job int64, idx int) (e ElementRow, had bool, err error) {
	e, err = scanElement(t.row(elementColumns+" AND idx = ?", job, idx))
	if errors.Is(err, sql.ErrNoRows) {
		return ElementRow{}, false, nil
	}
	return e, err == nil, err
}

func words[T any](list []T) string { return strings.Trim(fmt.Sprint(list), "[]") }

func (t *txn) putElement(job int64, e ElementRow) error {
	_, err := t.exec(`INSERT INTO array_elements (job_id, idx, batch, status, tries, restarts, returns, codes, reason, started, ended, cluster, hash, cluster_job, past)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (job_id, idx) DO UPDATE SET batch = excluded.batch, status = excluded.status,
		tries = excluded.tries, restarts = excluded.restarts, returns = excluded.returns, codes = excluded.codes, reason = excluded.reason, started = excluded.started,
		ended = excluded.ended, cluster = excluded.cluster, hash = excluded.hash, cluster_job = excluded.cluster_job, past = excluded.past`,
		job, e.Index, e.Batch, string(e.Status), e.Attempt, e.Restarts, e.Returns, words(e.ExitCodes), e.Reason, microsPtr(e.StartAt).Int64, microsPtr(e.EndAt).Int64,
		e.Cluster, e.ClusterHash, e.ClusterJobID, words(e.Past))
	return err
}

func (t *txn) addCounts(job int64, counts map[api.ManagedStatus]int) error {
	changed := false
	for status, n := range counts {
		if n == 0 {
			continue
		}
		changed = true
		if _, err := t.exec(`INSERT INTO array_counts (job_id, status, n) VALUES (?, ?, ?)
			ON CONFLICT (job_id, status) DO UPDATE SET n = array_counts.n + excluded.n`, job, string(status), n); err != nil {
			return err
		}
	}
	if changed {
		t.touch(JobTopic(job))
	}
	return nil
}

// SettleBatch ends a batch of an array, once: what was decided then is given again. ended tells how the runs of its elements
// ended, as their cluster says; of an element that it leaves out the row holds what was heard last. decide is asked for each element, and
// gives the row with what follows: PENDING, or a terminal state. Nothing that is told of the batch later is taken.
func (s *Store) SettleBatch(ctx context.Context, job, batch int64, elements arrays.Set, ended map[int]api.ArrayElement,
	decide func(row ElementRow, heard bool) ElementRow) (out BatchOutcome, err error) {
	err = s.update(ctx, true, func(t *txn) error {
		out = BatchOutcome{}
		var data string
		err := t.row("SELECT outcome FROM array_batches WHERE job_id = ? AND batch = ?", job, batch).Scan(&data)
		if err == nil {
			return json.Unmarshal([]byte(data), &out)
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		counts := map[api.ManagedStatus]int{}
		var again []int
		var failed error
		elements.All(func(i int) bool {
			failed = func() error {
				old, had, err := t.element(job, i)
				if err != nil {
					return err
				}
				row := old
				row.Index = i
				if e, ok := ended[i]; ok && (old.Batch < batch || !old.Status.Terminal()) {
					row.ArrayElement = e
					row.Attempt, row.Restarts = old.Attempt, old.Restarts
					if row.StartAt == nil {
						row.StartAt = old.StartAt
					}
				}
				heard := row.Batch == batch
				if heard && old.Batch < batch {
					row.begin(old)
				}
				row = decide(row, heard)
				if row.StartAt != nil && row.EndAt != nil && heard {
					out.Seconds += max(0, row.EndAt.Sub(*row.StartAt).Seconds())
					out.Timed++
				}
				switch row.Status {
				case api.ManagedSucceeded:
					out.Succeeded++
				case api.ManagedFailed:
					out.Failed++
					if len(out.Bad) < 10 {
						out.Bad = append(out.Bad, i)
					}
				case api.ManagedCancelled:
					out.Cancelled++
				default:
					again = append(again, i)
					if !had && !heard {
						return nil // it never began: still without a row
					}
				}
				if had {
					counts[old.Status]--
				}
				counts[row.Status]++
				return t.putElement(job, row)
			}()
			return failed == nil
		})
		if failed != nil {
			return failed
		}
		out.Again = arrays.Of(again...)
		if err := t.addCounts(job, counts); err != nil {
			return err
		}
		b, err := json.Marshal(out)
		if err != nil {
			return err
		}
		_, err = t.exec("INSERT INTO array_batches (job_id, batch, outcome) VALUES (?, ?, ?)", job, batch, string(b))
		return err
	})
	return out, err
}

// EachElement calls f with the rows of an array's elements from..to, by rising index, until it says false. Elements without a row
// never began.
func (s *Store) EachElement(ctx context.Context, job int64, from, to int, f func(ElementRow) bool) error {
	stop := errors.New("enough")
	err := s.collect(ctx, elementColumns+" AND idx >= ? AND idx <= ? ORDER BY idx", []any{job, from, to}, func(r scanner) error {
		e, err := scanElement(r)
		if err == nil && !f(e) {
			return stop
		}
		return err
	})
	if errors.Is(err, stop) {
		return nil
	}
	return s.wrap(err)
}

// Element gives the row of one element; nil if it never began.
func (s *Store) Element(ctx context.Context, job int64, idx int) (out *ElementRow, err error) {
	err = s.EachElement(ctx, job, idx, idx, func(e ElementRow) bool { out = &e; return true })
	return out, err
}

// ArrayCounts gives the elements of arrays by state, by job; of all arrays if none is named. Elements that never began are not counted.
func (s *Store) ArrayCounts(ctx context.Context, jobs ...int64) (map[int64]map[api.ManagedStatus]int, error) {
	q := "SELECT job_id, status, n FROM array_counts WHERE n > 0"
	if len(jobs) > 0 {
		ids := make([]string, len(jobs))
		for i, id := range jobs {
			ids[i] = strconv.FormatInt(id, 10)
		}
		q += " AND job_id IN (" + strings.Join(ids, ",") + ")"
	}
	out := map[int64]map[api.ManagedStatus]int{}
	err := s.collect(ctx, q, nil, func(r scanner) error {
		var id int64
		var status string
		var n int
		err := r.Scan(&id, &status, &n)
		if out[id] == nil {
			out[id] = map[api.ManagedStatus]int{}
		}
		out[id][api.ManagedStatus(status)] = n
		return err
	})
	return out, s.wrap(err)
}

// countElements brings up to date what the rows of arrays tell of their elements.
func (s *Store) countElements(ctx context.Context, rows []api.ManagedJob) error {
	var ids []int64
	for _, r := range rows {
		if r.Array != nil {
			ids = append(ids, r.ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	counts, err := s.ArrayCounts(ctx, ids...)
	if err != nil {
		return err
	}
	for _, r := range rows {
		if r.Array != nil {
			r.Array.Counts = elementCounts(r, counts[r.ID])
		}
	}
	return nil
}

// elementCounts completes the counts of elements with a row by those that never began.
func elementCounts(r api.ManagedJob, rows map[api.ManagedStatus]int) map[api.ManagedStatus]int {
	out := map[api.ManagedStatus]int{}
	left := r.Array.Count
	for status, n := range rows {
		out[NeverBegan(r.Status, status)] += n
		left -= n
	}
	if left > 0 {
		out[NeverBegan(r.Status, api.ManagedPending)] += left
	}
	return out
}

// NeverBegan is the state of an element as an array's reader sees it: once the array has ended, what waited is cancelled.
func NeverBegan(array, element api.ManagedStatus) api.ManagedStatus {
	if array.Terminal() && !element.Terminal() {
		return api.ManagedCancelled
	}
	return element
}

// countRowElements is countElements for encoded rows. Only those of arrays are decoded.
func (s *Store) countRowElements(ctx context.Context, rows []json.RawMessage) error {
	var jobs []api.ManagedJob
	var at []int
	for i, row := range rows {
		if !bytes.Contains(row, []byte(`"array":{`)) {
			continue
		}
		var j api.ManagedJob
		if err := json.Unmarshal(row, &j); err != nil {
			return err
		}
		if j.Array != nil {
			jobs, at = append(jobs, j), append(at, i)
		}
	}
	if err := s.countElements(ctx, jobs); err != nil {
		return err
	}
	for k, j := range jobs {
		b, err := json.Marshal(j)
		if err != nil {
			return err
		}
		rows[at[k]] = b
	}
	return nil
}
