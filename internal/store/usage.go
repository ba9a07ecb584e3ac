package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"sort"
	"time"

	"github.com/skyloom/skyloom/api"
)

// UsageStart begins an interval in which a cluster's nodes are up and billed. N numbers the intervals of an incarnation
// from 1: the same (Hash, N) is recorded once.
type UsageStart struct {
	Hash         string
	N            int
	Name         string
	User         string
	UserHash     string
	Nodes        int
	PricePerHour float64 // US dollars, all nodes
	Resources    map[string]any
	ResourcesStr string
	At           time.Time // default: now
}

// UsageEnd ends interval N, or all open ones of the incarnation if N is 0.
type UsageEnd struct {
	Hash string
	N    int
	At   time.Time // default: now
}

// UsageStart records that nodes came up. An earlier interval that is still open ends there.
func (s *Store) UsageStart(ctx context.Context, u UsageStart) error {
	return s.Write(ctx, Batch{UsageStarts: []UsageStart{u}})
}

// UsageEnd records that nodes went.
func (s *Store) UsageEnd(ctx context.Context, u UsageEnd) error {
	return s.Write(ctx, Batch{UsageEnds: []UsageEnd{u}})
}

func (t *txn) usageStart(u UsageStart) error {
	if u.Hash == "" || u.N <= 0 {
		return errors.New("a usage interval needs the cluster's hash and a number from 1")
	}
	at := t.w.s.at(u.At).UnixMicro()
	var removed, ended sql.NullInt64
	err := t.row("SELECT removed FROM cluster_history WHERE hash = ?", u.Hash).Scan(&removed)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if removed.Valid { // a late start of a cluster that is gone must not count for ever
		ended = sql.NullInt64{Int64: max(at, removed.Int64), Valid: true}
	}
	res, err := json.Marshal(u.Resources)
	if err != nil {
		return err
	}
	n, err := t.exec(`INSERT INTO usage_intervals (hash, n, name, user_name, user_hash, nodes, price, resources, resources_str, started, ended)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (hash, n) DO NOTHING`,
		u.Hash, u.N, u.Name, u.User, u.UserHash, u.Nodes, u.PricePerHour, string(res), u.ResourcesStr, at, ended)
	if err != nil || n == 0 {
		return err
	}
	_, err = t.exec("UPDATE usage_intervals SET ended = CASE WHEN started > ? THEN started ELSE ? END WHERE hash = ? AND n < ? AND ended IS NULL", at, at, u.Hash, u.N)
	return err
}

func (t *txn) usageEnd(u UsageEnd) error {
	at := t.w.s.at(u.At).UnixMicro()
	_, err := t.exec("UPDATE usage_intervals SET ended = CASE WHEN started > ? THEN started ELSE ? END WHERE hash = ? AND (n = ? OR ? = 0) AND ended IS NULL", at, at, u.Hash, u.N, u.N)
	return err
}

// CostReport lists what clusters have cost: live ones first, newest first. With days > 0 it leaves out those that were
// not up in the last days. Durations and costs count the intervals in which nodes were up.
func (s *Store) CostReport(ctx context.Context, days int) ([]api.CostRow, error) {
	now := s.now()
	rows := map[string]*api.CostRow{}
	last := map[string]int64{}
	err := s.collect(ctx, "SELECT hash, name, user_name, nodes, price, resources, resources_str, started, ended FROM usage_intervals ORDER BY hash, n", nil, func(r scanner) error {
		var hash, name, user, res, resStr string
		var nodes int
		var price float64
		var started int64
		var ended sql.NullInt64
		if err := r.Scan(&hash, &name, &user, &nodes, &price, &res, &resStr, &started, &ended); err != nil {
			return err
		}
		c := rows[hash]
		if c == nil {
			c = &api.CostRow{Name: name, Hash: hash, LaunchedAt: time.UnixMicro(started).UTC(), Status: string(api.ClusterTerminated)}
			rows[hash] = c
		}
		end := now.UnixMicro()
		if ended.Valid {
			end = ended.Int64
		}
		sec := float64(max(0, end-started)) / 1e6
		c.DurationSec += sec
		c.TotalCost += sec / 3600 * price
		c.NumNodes, c.PricePerHour, c.ResourcesStr, c.User = nodes, price, resStr, user
		last[hash] = max(last[hash], end)
		c.Resources = nil
		return json.Unmarshal([]byte(res), &c.Resources)
	})
	if err != nil {
		return nil, err
	}
	live := map[string]bool{}
	err = s.collect(ctx, "SELECT hash, status FROM clusters", nil, func(r scanner) error {
		var hash, status string
		if err := r.Scan(&hash, &status); err != nil {
			return err
		}
		if c := rows[hash]; c != nil {
			c.Status, live[hash] = status, true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := make([]api.CostRow, 0, len(rows))
	for hash, c := range rows {
		if days <= 0 || live[hash] || now.UnixMicro()-last[hash] <= int64(days)*24*3600*1e6 {
			out = append(out, *c)
		}
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := &out[i], &out[j]
		if live[a.Hash] != live[b.Hash] {
			return live[a.Hash]
		}
		if !a.LaunchedAt.Equal(b.LaunchedAt) {
			return a.LaunchedAt.After(b.LaunchedAt)
		}
		return a.Hash < b.Hash
	})
	return out, nil
}
