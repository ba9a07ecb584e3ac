package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skyloom/skyloom/api"
)

// noticeSchema holds who is told of the states of managed jobs, and what is still to be told. A stream is the notices of one
// job for one address: they go out in order, and what delays one stream delays no other.
const noticeSchema = `
CREATE TABLE notice_streams (
  job_id BIGINT NOT NULL, n BIGINT NOT NULL, task_id BIGINT NOT NULL, url TEXT NOT NULL, host TEXT NOT NULL, states TEXT NOT NULL, secret_ref TEXT NOT NULL,
  pending BIGINT NOT NULL, tries BIGINT NOT NULL, next_at BIGINT NOT NULL, failing BIGINT NOT NULL, owner TEXT NOT NULL, lease BIGINT NOT NULL, dropped BIGINT NOT NULL,
  PRIMARY KEY (job_id, n));
CREATE INDEX notice_streams_due ON notice_streams (next_at) WHERE pending > 0;
CREATE TABLE notices (id {serial}, job_id BIGINT NOT NULL, n BIGINT NOT NULL, at BIGINT NOT NULL, data TEXT NOT NULL);
CREATE INDEX notices_stream ON notices (job_id, n, id);
`

// NoticeStream is an address that is told of a job's states.
type NoticeStream struct {
	JobID     int64
	N         int      // index within the job
	TaskID    int      // only of this task; -1: of all
	URL       string   // http or https, without a password
	Host      string   // of the URL: how many posts run at once is bounded by host
	States    []string // in lower case; empty: all
	SecretRef string   // of what signs; empty: the installation's secret
}

// Notice is the oldest one of a stream that is not delivered.
type Notice struct {
	ID     int64 // grows within a stream
	Stream NoticeStream
	At     time.Time // of the change of state
	Data   []byte    // JSON
	Tries  int       // in vain, of this notice
}

// Dropped counts notices that were given up.
type Dropped struct {
	Count, Total int // now, and in all of the stream
}

func (t *txn) putStream(s NoticeStream) error {
	_, err := t.exec(`INSERT INTO notice_streams (job_id, n, task_id, url, host, states, secret_ref, pending, tries, next_at, failing, owner, lease, dropped)
		VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0, 0, 0, '', 0, 0) ON CONFLICT (job_id, n) DO NOTHING`, s.JobID, s.N, s.TaskID, s.URL, s.Host, strings.Join(s.States, ","), s.SecretRef)
	return err
}

// noticeData is what is told of a change of state.
type noticeData struct {
	Type string           `json:"type"` // job.running, …
	Time time.Time        `json:"timestamp"`
	Data noticeDataOfTask `json:"data"`
}

type noticeDataOfTask struct {
	api.ManagedJob
	Previous api.ManagedStatus `json:"previous_status,omitempty"`
	JobEnded bool              `json:"job_ended"` // this was the last task that ran
}

// notice puts a change of state into the streams of its job, in the transaction that writes it.
func (t *txn) notice(j api.ManagedJob, previous api.ManagedStatus) error {
	type target struct {
		n      int
		states string
	}
	var to []target
	err := t.collect("SELECT n, states FROM notice_streams WHERE job_id = ? AND (task_id < 0 OR task_id = ?) ORDER BY n", []any{j.ID, j.TaskID}, func(r scanner) error {
		var x target
		err := r.Scan(&x.n, &x.states)
		to = append(to, x)
		return err
	})
	if err != nil || len(to) == 0 {
		return err
	}
	now := t.w.s.now().UTC()
	word := strings.ToLower(string(j.Status))
	if previous == j.Status {
		previous = ""
	}
	note := noticeData{Type: "job." + word, Time: now, Data: noticeDataOfTask{ManagedJob: j, Previous: previous}}
	note.Data.UserYAML = ""
	if j.Status.Terminal() {
		var open int
		if err := t.row("SELECT count(*) FROM managed_jobs WHERE job_id = ? AND terminal = 0", j.ID).Scan(&open); err != nil {
			return err
		}
		note.Data.JobEnded = open == 0
	}
	data, err := json.Marshal(note)
	if err != nil {
		return err
	}
	for _, x := range to {
		if x.states != "" && !slices.Contains(strings.Split(x.states, ","), word) {
			continue
		}
		if _, err := t.exec("INSERT INTO notices (job_id, n, at, data) VALUES (?, ?, ?, ?)", j.ID, x.n, now.UnixMicro(), string(data)); err != nil {
			return err
		}
		if _, err := t.exec("UPDATE notice_streams SET pending = pending + 1 WHERE job_id = ? AND n = ?", j.ID, x.n); err != nil {
			return err
		}
		t.touch(NoticeTopic)
	}
	return nil
}

// DueNotices takes up to limit streams that have something to post now, with the first of each, none of them at one of the
// busy hosts and at most perHost at any other. They are the owner's until the lease is over, unless it tells earlier how the
// post went; an owner of the same name, which comes after one that died, need not wait for that. except are streams that
// this owner is posting.
func (s *Store) DueNotices(ctx context.Context, owner string, lease time.Duration, limit, perHost int, busy []string, except func(jobID int64, n int) bool) (out []Notice, err error) {
	err = s.update(ctx, false, func(t *txn) error {
		out = nil
		now := s.now()
		q := "SELECT job_id, n, task_id, url, host, states, secret_ref, tries FROM notice_streams WHERE pending > 0 AND next_at <= ? AND (lease <= ? OR owner = ?)"
		args := []any{now.UnixMicro(), now.UnixMicro(), owner}
		if len(busy) > 0 {
			q += " AND host NOT IN " + in(len(busy))
			args = append(args, anys(busy)...)
		}
		args = append(args, limit*4)
		at := map[string]int{}
		err := t.collect(q+" ORDER BY next_at, job_id, n LIMIT ?", args, func(r scanner) error {
			var x Notice
			var states string
			if err := r.Scan(&x.Stream.JobID, &x.Stream.N, &x.Stream.TaskID, &x.Stream.URL, &x.Stream.Host, &states, &x.Stream.SecretRef, &x.Tries); err != nil {
				return err
			}
			if len(out) >= limit || at[x.Stream.Host] >= perHost || except(x.Stream.JobID, x.Stream.N) {
				return nil
			}
			if states != "" {
				x.Stream.States = strings.Split(states, ",")
			}
			at[x.Stream.Host]++
			out = append(out, x)
			return nil
		})
		if err != nil {
			return err
		}
		taken := out[:0]
		for _, x := range out {
			var moment int64
			err := t.row("SELECT id, at, data FROM notices WHERE job_id = ? AND n = ? ORDER BY id LIMIT 1", x.Stream.JobID, x.Stream.N).Scan(&x.ID, &moment, &x.Data)
			if errors.Is(err, sql.ErrNoRows) { // a count that is off must hold up nobody
				_, err = t.exec("UPDATE notice_streams SET pending = 0 WHERE job_id = ? AND n = ?", x.Stream.JobID, x.Stream.N)
			} else if err == nil {
				x.At = time.UnixMicro(moment).UTC()
				taken = append(taken, x)
				_, err = t.exec("UPDATE notice_streams SET owner = ?, lease = ? WHERE job_id = ? AND n = ?", owner, now.Add(lease).UnixMicro(), x.Stream.JobID, x.Stream.N)
			}
			if err != nil {
				return err
			}
		}
		out = taken
		return nil
	})
	return out, err
}

// NextNotice is when the next stream has something to post, zero if none has.
func (s *Store) NextNotice(ctx context.Context) (time.Time, error) {
	var at *int64
	if err := s.row(ctx, "SELECT min(next_at) FROM notice_streams WHERE pending > 0").Scan(&at); err != nil || at == nil {
		return time.Time{}, s.wrap(err)
	}
	return time.UnixMicro(*at), nil
}

// NoticeDelivered removes a notice that was accepted. It may be repeated. The story of the job tells if those before were
// not.
func (s *Store) NoticeDelivered(ctx context.Context, n Notice) error {
	return s.update(ctx, false, func(t *txn) error {
		gone, err := t.exec("DELETE FROM notices WHERE id = ?", n.ID)
		if err != nil || gone == 0 {
			return err
		}
		var failing int64
		if err := t.row("SELECT failing FROM notice_streams WHERE job_id = ? AND n = ?", n.Stream.JobID, n.Stream.N).Scan(&failing); err != nil {
			return err
		}
		if failing > 0 {
			now := s.now()
			ev := api.Event{Time: now, JobID: n.Stream.JobID, Step: "notify", Kind: api.EventStep,
				Message: fmt.Sprintf("%s accepts notifications again, after %s", n.Stream.Host, now.Sub(time.UnixMicro(failing)).Round(time.Second))}
			if err := t.appendEvent(Event{Key: fmt.Sprintf("notice/%d/%d/%d/again", n.Stream.JobID, n.Stream.N, n.ID), Event: ev}); err != nil {
				return err
			}
		}
		_, err = t.exec("UPDATE notice_streams SET pending = pending - 1, delivered = delivered + 1, tries = 0, next_at = 0, failing = 0, owner = '', lease = 0 WHERE job_id = ? AND n = ?", n.Stream.JobID, n.Stream.N)
		return err
	})
}

// NoticeFailed notes that a notice was not accepted, and when it is tried again. Notices of the stream that are older than
// keep are dropped and counted. The story of the job tells of the first failure, and of what was dropped.
func (s *Store) NoticeFailed(ctx context.Context, n Notice, why string, next time.Time, keep time.Duration) (d Dropped, err error) {
	err = s.update(ctx, false, func(t *txn) error {
		d = Dropped{}
		now := s.now()
		var failing, pending int64
		err := t.row("SELECT failing, pending, dropped FROM notice_streams WHERE job_id = ? AND n = ?", n.Stream.JobID, n.Stream.N).Scan(&failing, &pending, &d.Total)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		dropped, err := t.exec("DELETE FROM notices WHERE job_id = ? AND n = ? AND at < ?", n.Stream.JobID, n.Stream.N, now.Add(-keep).UnixMicro())
		if err != nil {
			return err
		}
		d.Count, d.Total = int(dropped), d.Total+int(dropped)
		key := fmt.Sprintf("notice/%d/%d/%d", n.Stream.JobID, n.Stream.N, n.ID)
		tries := n.Tries + 1
		ev := api.Event{Time: now, JobID: n.Stream.JobID, Step: "notify"}
		switch {
		case dropped > 0:
			tries = 0
			key += "/dropped"
			ev.Kind, ev.Message = api.EventError, fmt.Sprintf("%d notification(s) to %s were dropped, %d so far: not accepted for %s (%s)", dropped, n.Stream.Host, d.Total, keep, why)
		case failing == 0:
			ev.Kind, ev.NextRetry = api.EventRetry, &next
			ev.Message = fmt.Sprintf("%s does not accept notifications: %s; they are kept for %s and sent again", n.Stream.Host, why, keep)
		}
		if failing == 0 {
			failing = now.UnixMicro()
		}
		if _, err := t.exec("UPDATE notice_streams SET pending = ?, tries = ?, next_at = ?, failing = ?, dropped = ?, owner = '', lease = 0 WHERE job_id = ? AND n = ?",
			pending-dropped, tries, next.UnixMicro(), failing, d.Total, n.Stream.JobID, n.Stream.N); err != nil {
			return err
		}
		if ev.Kind == "" {
			return nil
		}
		return t.appendEvent(Event{Key: key, Event: ev})
	})
	return d, err
}

// NoticesOpen tells of how many notices of a request's jobs, signed with secrets of their own, are not delivered yet.
func (s *Store) NoticesOpen(ctx context.Context, requestID string) (n int, err error) {
	err = s.row(ctx, `SELECT coalesce(sum(s.pending), 0) FROM notice_streams s WHERE s.secret_ref <> '' AND s.pending > 0
		AND s.job_id IN (SELECT job_id FROM managed_jobs WHERE request_id = ? AND request_id <> '')`, requestID).Scan(&n)
	return n, s.wrap(err)
}
