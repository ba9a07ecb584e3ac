package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/skyloom/skyloom/api"
)

// NewRequest is a request as accepted. Body holds no secret in clear; BodyHash tells a repetition from another request
// under the same id, and should be a keyed hash where the body could be guessed.
type NewRequest struct {
	Request  api.Request
	Kind     string // what the reconciler starts it as
	Body     []byte
	BodyHash string
}

// OpenRequest is a request that has not ended, with what it takes to start it again.
type OpenRequest struct {
	api.Request
	Kind     string
	Body     []byte
	BodyHash string
}

// RequestUpdate moves a request on. An empty Status keeps the one there is. A terminal one ends the request: Result and
// Error are stored then.
type RequestUpdate struct {
	ID        string
	Status    api.RequestStatus
	Msg       string
	NextRetry *time.Time
	Result    json.RawMessage
	Error     *api.Error
	At        time.Time // of the end; default: now
	Cluster   string    // set if it is known only now
}

// RequestFilter selects requests; empty fields select all.
type RequestFilter struct {
	ActiveOnly bool
	Cluster    string
	UserHash   string
	Name       string
	IDs        []string
	Limit      int
	// Full adds the results.
	Full bool
}

const minPrefix = 4 // characters of a request id

// CreateRequest records an accepted request, durably. The same id with the same BodyHash gives the row that exists; with
// another it is an ErrConflict.
func (s *Store) CreateRequest(ctx context.Context, n NewRequest) (row api.Request, existed bool, err error) {
	err = s.update(ctx, true, func(t *txn) error {
		made, err := t.createRequest(n)
		if err != nil {
			return err
		}
		existed = !made
		var hash string
		if row, hash, err = scanRequest(t.row("SELECT "+requestColumns+", result, body_hash FROM requests WHERE id = ?", n.Request.ID)); err != nil {
			return err
		}
		if hash != n.BodyHash {
			return fmt.Errorf("request id %s was used for another request (%s): %w; use a new id", n.Request.ID, row.Name, ErrConflict)
		}
		return nil
	})
	if err != nil {
		return api.Request{}, false, err
	}
	return row, existed, nil
}

func (t *txn) createRequest(n NewRequest) (made bool, err error) {
	r := n.Request
	if r.ID == "" {
		return false, errors.New("a request needs an id")
	}
	if r.Status == "" {
		r.Status = api.RequestPending
	}
	var body any
	if n.Body != nil {
		body = n.Body
	}
	k, err := t.exec(`INSERT INTO requests (id, name, kind, status, terminal, msg, cluster, user_name, user_hash, command, created, finished, next_retry, result, error, body, body_hash)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?, NULL, NULL, ?, ?) ON CONFLICT (id) DO NOTHING`,
		r.ID, r.Name, n.Kind, string(r.Status), 0, r.StatusMsg, r.Cluster, r.User, r.UserHash, r.Command, t.w.s.at(r.CreatedAt).UnixMicro(),
		microsPtr(r.NextRetry), body, n.BodyHash)
	if k > 0 {
		t.touch(RequestTopic(r.ID))
	}
	return k > 0, err
}

// SetRequest moves a request that has not ended: it may go between WAITING and RUNNING, never back to PENDING.
func (s *Store) SetRequest(ctx context.Context, id string, status api.RequestStatus, msg string, nextRetry *time.Time) error {
	return s.Write(ctx, Batch{Requests: []RequestUpdate{{ID: id, Status: status, Msg: msg, NextRetry: nextRetry}}})
}

// FinishRequest ends a request. The first end stands. The body is dropped.
func (s *Store) FinishRequest(ctx context.Context, id string, status api.RequestStatus, result json.RawMessage, e *api.Error) error {
	if !status.Terminal() {
		return fmt.Errorf("a request can't end with status %s", status)
	}
	return s.Write(ctx, Batch{Requests: []RequestUpdate{{ID: id, Status: status, Result: result, Error: e}}})
}

func (t *txn) setRequest(u RequestUpdate) error {
	t.touch(RequestTopic(u.ID))
	if !u.Status.Terminal() {
		st := string(u.Status)
		_, err := t.exec(`UPDATE requests SET status = CASE WHEN ? = '' THEN status ELSE ? END, msg = ?, next_retry = ?,
			cluster = CASE WHEN ? = '' THEN cluster ELSE ? END
			WHERE id = ? AND terminal = 0 AND (? <> 'PENDING' OR status = 'PENDING')`,
			st, st, u.Msg, microsPtr(u.NextRetry), u.Cluster, u.Cluster, u.ID, st)
		return err
	}
	var result, failure any
	if len(u.Result) > 0 {
		if !json.Valid(u.Result) {
			return fmt.Errorf("the result of request %s is not JSON", u.ID)
		}
		result = string(u.Result)
	}
	if u.Error != nil {
		data, err := json.Marshal(u.Error)
		if err != nil {
			return err
		}
		failure = string(data)
	}
	_, err := t.exec(`UPDATE requests SET status = ?, terminal = 1, msg = ?, next_retry = NULL, finished = ?, result = ?, error = ?, body = NULL,
		cluster = CASE WHEN ? = '' THEN cluster ELSE ? END WHERE id = ? AND terminal = 0`,
		string(u.Status), u.Msg, t.w.s.at(u.At).UnixMicro(), result, failure, u.Cluster, u.Cluster, u.ID)
	return err
}

const requestColumns = "id, name, status, msg, cluster, user_name, user_hash, command, created, finished, next_retry, error"

// scanRequest reads requestColumns, the result and one more text.
func scanRequest(r scanner) (q api.Request, extra string, err error) {
	var status string
	var created int64
	var finished, retry sql.NullInt64
	var failure, result sql.NullString
	err = r.Scan(&q.ID, &q.Name, &status, &q.StatusMsg, &q.Cluster, &q.User, &q.UserHash, &q.Command, &created, &finished, &retry, &failure, &result, &extra)
	if err != nil {
		return q, "", err
	}
	q.Status, q.CreatedAt = api.RequestStatus(status), time.UnixMicro(created).UTC()
	q.FinishedAt, q.NextRetry = timePtr(finished), timePtr(retry)
	if result.Valid {
		q.Result = json.RawMessage(result.String)
	}
	if failure.Valid {
		q.Error = &api.Error{}
		err = json.Unmarshal([]byte(failure.String), q.Error)
	}
	return q, extra, err
}

// Request reads a request by its id or a prefix of it that is at least 4 characters long and means one request only
// (else *AmbiguousError).
func (s *Store) Request(ctx context.Context, id string) (api.Request, error) {
	q, _, err := scanRequest(s.row(ctx, "SELECT "+requestColumns+", result, '' FROM requests WHERE id = ?", id))
	if !errors.Is(err, sql.ErrNoRows) {
		return q, s.wrap(err)
	}
	missing := fmt.Errorf("request %q: %w", id, ErrNotFound)
	if len(id) < minPrefix {
		return q, missing
	}
	var found []api.Request
	err = s.collect(ctx, "SELECT "+requestColumns+", result, '' FROM requests WHERE id >= ? AND id < ? ORDER BY id LIMIT 11",
		[]any{id, id + "\U0010ffff"}, func(r scanner) error {
			q, _, err := scanRequest(r)
			found = append(found, q)
			return err
		})
	switch {
	case err != nil:
		return q, err
	case len(found) == 0:
		return q, missing
	case len(found) == 1:
		return found[0], nil
	}
	amb := &AmbiguousError{Prefix: id}
	for _, q := range found[:min(len(found), 10)] {
		amb.IDs = append(amb.IDs, q.ID)
	}
	return q, amb
}

// Requests lists requests, newest first.
func (s *Store) Requests(ctx context.Context, f RequestFilter) ([]api.Request, error) {
	var where []string
	var args []any
	if f.ActiveOnly {
		where = append(where, "terminal = 0")
	}
	for _, c := range []struct{ col, val string }{{"cluster", f.Cluster}, {"user_hash", f.UserHash}, {"name", f.Name}} {
		if c.val != "" {
			where, args = append(where, c.col+" = ?"), append(args, c.val)
		}
	}
	if len(f.IDs) > 0 {
		where, args = append(where, "id IN "+in(len(f.IDs))), append(args, anys(f.IDs)...)
	}
	result := "NULL"
	if f.Full {
		result = "result"
	}
	q := "SELECT " + requestColumns + ", " + result + ", '' FROM requests"
	if len(where) > 0 {
		q += " WHERE " + strings.Join(where, " AND ")
	}
	q += " ORDER BY created DESC, id"
	if f.Limit > 0 {
		q += fmt.Sprintf(" LIMIT %d", f.Limit)
	}
	out := []api.Request{}
	err := s.collect(ctx, q, args, func(r scanner) error {
		q, _, err := scanRequest(r)
		out = append(out, q)
		return err
	})
	return out, err
}

// OpenRequests lists the requests that have not ended, oldest first, with their bodies; of the given kinds, or all.
func (s *Store) OpenRequests(ctx context.Context, kinds ...string) ([]OpenRequest, error) {
	q := "SELECT " + requestColumns + ", result, kind, body, body_hash FROM requests WHERE terminal = 0"
	if len(kinds) > 0 {
		q += " AND kind IN " + in(len(kinds))
	}
	out := []OpenRequest{}
	err := s.collect(ctx, q+" ORDER BY created, id", anys(kinds), func(r scanner) error {
		var o OpenRequest
		var err error
		o.Request, o.Kind, err = scanRequest(wider{r, []any{&o.Body, &o.BodyHash}})
		out = append(out, o)
		return err
	})
	return out, err
}

// wider scans more columns after those that a scan function asks for.
type wider struct {
	scanner
	more []any
}

func (w wider) Scan(dest ...any) error {
	return w.scanner.Scan(append(dest[:len(dest):len(dest)], w.more...)...)
}
