package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/skyloom/skyloom/api"
)

// Event is a line of the timeline with the key that makes writing it idempotent, for example "<request>/<step>/<attempt>/1".
// Without a key it is written each time.
type Event struct {
	Key string
	api.Event
}

// EventFilter selects events; empty fields select all.
type EventFilter struct {
	RequestID, Cluster, Hash string
	JobID                    int64 // managed job
	Kinds                    []api.EventKind
	After                    int64 // ids above
	Limit                    int   // the first so many
	Tail                     int   // the last so many, instead
}

// AppendEvents writes events whose keys are new. Ids grow in the order of commits.
func (s *Store) AppendEvents(ctx context.Context, events ...Event) error {
	return s.Write(ctx, Batch{Events: events})
}

func (t *txn) appendEvent(e Event) error {
	if e.Key == "" {
		e.Key = uuid.NewString()
	}
	e.Time = t.w.s.at(e.Time).UTC()
	e.ID = 0
	data, err := json.Marshal(e.Event)
	if err != nil {
		return err
	}
	n, err := t.exec("INSERT INTO events (key, at, cluster, hash, request_id, job_id, kind, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
		e.Key, e.Time.UnixMicro(), e.Cluster, e.Hash, e.RequestID, e.JobID, string(e.Kind), string(data))
	if err != nil || n == 0 {
		return err
	}
	if e.RequestID != "" {
		t.touch(RequestTopic(e.RequestID))
	}
	if e.Cluster != "" {
		t.touch(ClusterTopic(e.Cluster))
	}
	if e.JobID != 0 {
		t.touch(JobTopic(e.JobID))
	}
	return nil
}

// Events lists events, oldest first. Read on after the last id.
func (s *Store) Events(ctx context.Context, f EventFilter) ([]api.Event, error) {
	where := []string{"id > ?"}
	args := []any{f.After}
	for _, c := range []struct{ col, val string }{{"request_id", f.RequestID}, {"cluster", f.Cluster}, {"hash", f.Hash}} {
		if c.val != "" {
			// The second condition lets the partial index be used.
			where, args = append(where, c.col+" = ?", c.col+" <> ''"), append(args, c.val)
		}
	}
	if f.JobID != 0 {
		where, args = append(where, "job_id = ?", "job_id <> 0"), append(args, f.JobID)
	}
	if len(f.Kinds) > 0 {
		where = append(where, "kind IN "+in(len(f.Kinds)))
		for _, k := range f.Kinds {
			args = append(args, string(k))
		}
	}
	q := "SELECT id, data FROM events WHERE " + strings.Join(where, " AND ") + " ORDER BY id"
	switch {
	case f.Tail > 0:
		q += fmt.Sprintf(" DESC LIMIT %d", f.Tail)
	case f.Limit > 0:
		q += fmt.Sprintf(" LIMIT %d", f.Limit)
	}
	out := []api.Event{}
	err := s.collect(ctx, q, args, func(r scanner) error {
		var id int64
		var data []byte
		if err := r.Scan(&id, &data); err != nil {
			return err
		}
		out = append(out, api.Event{})
		e := &out[len(out)-1]
		err := json.Unmarshal(data, e)
		e.ID = id
		return err
	})
	if f.Tail > 0 {
		slices.Reverse(out)
	}
	return out, err
}
