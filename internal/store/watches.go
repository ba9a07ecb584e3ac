package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Watch is a cluster whose agents and infra some server observes. Exactly one server at a time holds its lease; Fence
// grows with each change of hands, so that a server that lost it without noticing can't move the cursor.
type Watch struct {
	Hash, Cluster string
	Data          json.RawMessage
	Cursor        int64 // of the agent's events that were passed on
	Fence         int64
	Owner         string
	Until         time.Time // by the database's clock
}

// PutWatch adds a watch, or replaces its data; cursor and lease of one that exists stay. A terminated incarnation is not
// watched again.
func (s *Store) PutWatch(ctx context.Context, w Watch) error {
	return s.Write(ctx, Batch{Watches: []Watch{w}})
}

// DeleteWatch removes a watch.
func (s *Store) DeleteWatch(ctx context.Context, hash string) error {
	return s.Write(ctx, Batch{Unwatches: []string{hash}})
}

func (t *txn) putWatch(w Watch) error {
	if w.Hash == "" {
		return errors.New("a watch needs the cluster's hash")
	}
	if len(w.Data) == 0 {
		w.Data = json.RawMessage("null")
	}
	ended, err := t.exists("SELECT 1 FROM cluster_history WHERE hash = ?", w.Hash)
	if err != nil || ended {
		return err
	}
	_, err = t.exec(`INSERT INTO watches (hash, cluster, data, seen, owner, fence, until_ms)
		VALUES (?, ?, ?, ?, '', 0, 0) ON CONFLICT (hash) DO UPDATE SET cluster = excluded.cluster, data = excluded.data`,
		w.Hash, w.Cluster, string(w.Data), w.Cursor)
	t.touch(WatchTopic)
	t.touch(watchTopic + w.Hash)
	return err
}

func (t *txn) deleteWatch(hash string) error {
	_, err := t.exec("DELETE FROM watches WHERE hash = ?", hash)
	t.touch(WatchTopic)
	t.touch(watchTopic + hash)
	return err
}

const watchColumns = "hash, cluster, data, seen, fence, owner, until_ms"

func scanWatch(r scanner) (w Watch, err error) {
	var data []byte
	var until int64
	err = r.Scan(&w.Hash, &w.Cluster, &data, &w.Cursor, &w.Fence, &w.Owner, &until)
	w.Data, w.Until = data, time.UnixMilli(until).UTC()
	return w, err
}

// Watch reads one watch.
func (s *Store) Watch(ctx context.Context, hash string) (Watch, error) {
	w, err := scanWatch(s.row(ctx, "SELECT "+watchColumns+" FROM watches WHERE hash = ?", hash))
	if errors.Is(err, sql.ErrNoRows) {
		return w, fmt.Errorf("watch of %s: %w", hash, ErrNotFound)
	}
	return w, s.wrap(err)
}

// EachWatch calls f with every watch, and ends at its first error.
func (s *Store) EachWatch(ctx context.Context, f func(Watch) error) error {
	return s.collect(ctx, "SELECT "+watchColumns+" FROM watches", nil, func(r scanner) error {
		w, err := scanWatch(r)
		if err != nil {
			return err
		}
		return f(w)
	})
}

// LeaseWatches takes up to max watches that nobody holds, or whose lease ran out, for ttl. It returns those newly taken.
func (s *Store) LeaseWatches(ctx context.Context, owner string, ttl time.Duration, max int) ([]Watch, error) {
	if owner == "" || max <= 0 {
		return nil, nil
	}
	// Most calls find nothing: a read spares the writer.
	var free int
	err := s.row(ctx, "SELECT 1 FROM watches WHERE until_ms <= {now} LIMIT 1").Scan(&free)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, s.wrap(err)
	}
	return s.leases(ctx, `UPDATE watches SET owner = ?, fence = fence + 1, until_ms = {now} + ?
		WHERE hash IN (SELECT hash FROM watches WHERE until_ms <= {now} ORDER BY until_ms LIMIT ?) RETURNING `+watchColumns, owner, ttl.Milliseconds(), max)
}

// RenewLeases prolongs what owner holds to ttl from now, and returns it. A watch that is missing was lost, even if its
// lease has not been taken by another yet: a lease that ran out is not renewed.
func (s *Store) RenewLeases(ctx context.Context, owner string, ttl time.Duration) ([]Watch, error) {
	return s.leases(ctx, "UPDATE watches SET until_ms = {now} + ? WHERE owner = ? AND until_ms > {now} RETURNING "+watchColumns, ttl.Milliseconds(), owner)
}

// ReleaseLeases gives up what owner holds, so that another server takes it at once.
func (s *Store) ReleaseLeases(ctx context.Context, owner string) error {
	return s.update(ctx, false, func(t *txn) error {
		n, err := t.exec("UPDATE watches SET owner = '', until_ms = 0 WHERE owner = ?", owner)
		if n > 0 {
			t.touch(WatchTopic)
		}
		return err
	})
}

func (s *Store) leases(ctx context.Context, q string, args ...any) (out []Watch, err error) {
	err = s.update(ctx, false, func(t *txn) error {
		out = out[:0]
		return t.collect(q, args, func(r scanner) error {
			w, err := scanWatch(r)
			out = append(out, w)
			return err
		})
	})
	return out, err
}

// AdvanceCursor records that the events up to seq were passed on. It never goes back. ErrFenced: the lease was lost, or
// the watch is gone.
func (s *Store) AdvanceCursor(ctx context.Context, hash string, fence, seq int64) error {
	return s.update(ctx, false, func(t *txn) error {
		n, err := t.exec("UPDATE watches SET seen = CASE WHEN seen < ? THEN ? ELSE seen END WHERE hash = ? AND fence = ?", seq, seq, hash, fence)
		if err == nil && n == 0 {
			return fmt.Errorf("watch of %s: %w", hash, ErrFenced)
		}
		return err
	})
}
