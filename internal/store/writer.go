package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// writer runs all writes on one connection, several waiting ones in one transaction: each keeps its own savepoint, so
// that one that fails undoes only itself, and all share the cost of the commit.
type writer struct {
	s       *Store
	conn    *sql.Conn
	stmts   map[string]*sql.Stmt
	full    bool // the connection's synchronous mode is FULL
	jobs    chan *writeJob
	stop    chan struct{}
	done    chan struct{}
	started bool
	once    sync.Once
}

// writeJob is one update. state goes from waiting to taken (by the writer) or dropped (by a caller that gave up).
type writeJob struct {
	fn      func(*txn) error
	durable bool
	topics  map[string]struct{}
	state   atomic.Int32
	err     error
	done    chan struct{}
}

const (
	jobTaken   = 1
	jobDropped = 2
	// maxGroup bounds how long the first of a group waits for the rest.
	maxGroup = 64
)

var errClosed = errors.New("the store is closed")

// update runs fn in a transaction. fn may run again if the commit of a group fails, and must not use the store.
func (s *Store) update(ctx context.Context, durable bool, fn func(*txn) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	j := &writeJob{fn: fn, durable: durable, done: make(chan struct{})}
	select {
	case <-s.w.stop:
		return errClosed
	default:
	}
	select {
	case s.w.jobs <- j:
	case <-s.w.stop:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-j.done:
	case <-ctx.Done():
		if j.state.CompareAndSwap(0, jobDropped) {
			return ctx.Err()
		}
		<-j.done // it is being written: its outcome is known in a moment
	case <-s.w.done:
		select {
		case <-j.done:
		default:
			return errClosed
		}
	}
	return s.wrap(j.err)
}

func (w *writer) close() {
	w.once.Do(func() { close(w.stop) })
	if w.started {
		<-w.done
	}
	for _, st := range w.stmts {
		_ = st.Close()
	}
}

func (w *writer) run() {
	defer close(w.done)
	group := make([]*writeJob, 0, maxGroup)
	for {
		group = group[:0]
		select {
		case j := <-w.jobs:
			group = w.take(group, j)
		case <-w.stop:
			for { // what was handed over before the stop is still written
				select {
				case j := <-w.jobs:
					if g := w.take(group[:0], j); len(g) > 0 {
						w.commit(g)
					}
				default:
					return
				}
			}
		}
	more:
		for len(group) < maxGroup {
			select {
			case j := <-w.jobs:
				group = w.take(group, j)
			default:
				break more
			}
		}
		if len(group) > 0 {
			w.commit(group)
		}
	}
}

func (w *writer) take(group []*writeJob, j *writeJob) []*writeJob {
	if j.state.CompareAndSwap(0, jobTaken) {
		return append(group, j)
	}
	return group
}

// commit runs a group and tells its callers.
func (w *writer) commit(group []*writeJob) {
	durable := false
	for _, j := range group {
		durable = durable || j.durable
	}
	err := w.transact(durable, group)
	if err != nil && len(group) > 1 {
		// One by one, so that a group's failure is not everyone's.
		for _, j := range group {
			j.err = w.transact(j.durable, []*writeJob{j})
		}
	} else if err != nil {
		group[0].err = err
	}
	for _, j := range group {
		if j.err == nil {
			w.s.hub.publish(j.topics)
		}
		close(j.done)
	}
}

func (w *writer) transact(durable bool, group []*writeJob) (err error) {
	if durable != w.full {
		mode := "NORMAL"
		if durable {
			mode = "FULL"
		}
		if err := w.do("PRAGMA synchronous = " + mode); err != nil {
			return err
		}
		w.full = durable
	}
	if err := w.do("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = w.do("ROLLBACK")
		}
	}()
	for _, j := range group {
		t := &txn{w: w}
		if len(group) == 1 {
			if err := w.call(j, t); err != nil {
				return err
			}
			j.topics, j.err = t.topics, nil
			break
		}
		if err := w.do("SAVEPOINT one"); err != nil {
			return err
		}
		j.err = w.call(j, t)
		if j.err != nil {
			if err := w.do("ROLLBACK TO one"); err != nil {
				return err
			}
		}
		if err := w.do("RELEASE one"); err != nil {
			return err
		}
		j.topics = t.topics
	}
	return w.do("COMMIT")
}

// call keeps a panic of one update from ending the process with a transaction open.
func (w *writer) call(j *writeJob, t *txn) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in an update: %v", p)
		}
	}()
	return j.fn(t)
}

func (w *writer) do(q string) error {
	st, err := w.stmt(q)
	if err == nil {
		_, err = st.Exec()
	}
	return err
}

func (w *writer) stmt(q string) (*sql.Stmt, error) {
	if st := w.stmts[q]; st != nil {
		return st, nil
	}
	st, err := w.conn.PrepareContext(context.Background(), w.s.d.rebind(w.s.d.expand(q)))
	if err == nil {
		w.stmts[q] = st
	}
	return st, err
}

// txn is what an update writes through. Its queries are fixed texts: each is prepared once.
type txn struct {
	w      *writer
	topics map[string]struct{}
}

func (t *txn) exec(q string, args ...any) (affected int64, err error) {
	st, err := t.w.stmt(q)
	if err != nil {
		return 0, err
	}
	res, err := st.Exec(args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (t *txn) row(q string, args ...any) scanner {
	st, err := t.w.stmt(q)
	if err != nil {
		return errRow{err}
	}
	return st.QueryRow(args...)
}

// collect scans all rows before it returns: the connection is busy until then.
func (t *txn) collect(q string, args []any, scan func(scanner) error) error {
	st, err := t.w.stmt(q)
	if err != nil {
		return err
	}
	rows, err := st.Query(args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (t *txn) touch(topic string) {
	if t.topics == nil {
		t.topics = map[string]struct{}{}
	}
	t.topics[topic] = struct{}{}
}
