package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/skyloom/skyloom/api"
)

// ClusterFilter selects clusters; empty fields select all.
type ClusterFilter struct {
	Names     []string // globs allowed
	UserHash  string
	Workspace string
	Status    []api.ClusterStatus
	// Full adds the fields that lists leave out (LastTaskYAML).
	Full bool
	// SkipManaged leaves out live clusters of managed jobs.
	SkipManaged bool
}

// Removal takes a cluster out of the live rows.
type Removal struct {
	Name, Hash string
	Seq        int64
	At         time.Time // default: now
}

// PutCluster writes a cluster's row; a stale one is skipped. A row with status TERMINATED is a removal.
func (s *Store) PutCluster(ctx context.Context, c api.Cluster) error {
	return s.Write(ctx, Batch{Clusters: []api.Cluster{c}})
}

// RemoveCluster moves a cluster to the history, releases its name and ends its usage. The incarnation never comes back.
func (s *Store) RemoveCluster(ctx context.Context, r Removal) error {
	return s.Write(ctx, Batch{Removals: []Removal{r}})
}

// putCluster also says whether the row was written.
func (t *txn) putCluster(c api.Cluster) error {
	if c.Name == "" || c.Hash == "" {
		return errors.New("a cluster row needs a name and a hash")
	}
	if c.Status == api.ClusterTerminated {
		return t.removeCluster(Removal{Name: c.Name, Hash: c.Hash, Seq: c.Seq, At: t.w.s.at(c.StatusUpdatedAt)}, &c)
	}
	var hash string
	var seq int64
	err := t.row("SELECT hash, seq FROM clusters WHERE name = ?", c.Name).Scan(&hash, &seq)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		hash = ""
	case err != nil:
		return err
	}
	if hash == c.Hash && seq >= c.Seq {
		return nil
	}
	if hash != c.Hash {
		ended, err := t.exists("SELECT 1 FROM cluster_history WHERE hash = ?", c.Hash)
		if err != nil || ended {
			return err
		}
		var holder string
		err = t.row("SELECT hash FROM cluster_names WHERE name = ?", c.Name).Scan(&holder)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if holder != "" && holder != c.Hash {
			return nil // a late row of an incarnation that lost the name
		}
		if hash != "" {
			if err := t.removeCluster(Removal{Name: c.Name, Hash: hash, At: t.w.s.now()}, nil); err != nil {
				return err
			}
		}
	}
	yaml := c.LastTaskYAML
	c.LastTaskYAML = ""
	summary, err := json.Marshal(c)
	if err != nil {
		return err
	}
	launched := microsPtr(c.LaunchedAt).Int64
	managed := 0
	if c.Managed {
		managed = 1
	}
	_, err = t.exec(`INSERT INTO clusters (name, hash, seq, status, user_hash, workspace, launched, summary, task_yaml, managed)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET
		hash = excluded.hash, seq = excluded.seq, status = excluded.status, user_hash = excluded.user_hash, workspace = excluded.workspace,
		launched = excluded.launched, summary = excluded.summary, task_yaml = excluded.task_yaml, managed = excluded.managed`,
		c.Name, c.Hash, c.Seq, string(c.Status), c.UserHash, c.Workspace, launched, string(summary), yaml, managed)
	t.touch(ClusterTopic(c.Name))
	return err
}

// removeCluster archives an incarnation. last is its final row if the caller has one newer than what is stored.
func (t *txn) removeCluster(r Removal, last *api.Cluster) error {
	if r.Hash == "" {
		return errors.New("a removal needs the cluster's hash")
	}
	at := t.w.s.at(r.At)
	var summary, yaml string
	c := api.Cluster{Name: r.Name, Hash: r.Hash, Seq: r.Seq, StatusUpdatedAt: at}
	err := t.row("SELECT summary, task_yaml FROM clusters WHERE hash = ?", r.Hash).Scan(&summary, &yaml)
	switch {
	case err == nil:
		if err := json.Unmarshal([]byte(summary), &c); err != nil {
			return err
		}
	case !errors.Is(err, sql.ErrNoRows):
		return err
	}
	if last != nil && last.Seq >= c.Seq {
		c = *last
		if c.LastTaskYAML != "" {
			yaml = c.LastTaskYAML
		}
		c.LastTaskYAML = ""
	}
	c.Status, c.StatusUpdatedAt, c.Seq = api.ClusterTerminated, at, max(c.Seq, r.Seq)
	c.InitKind, c.StatusReason, c.Step, c.NextRetry = "", "", "", nil
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	n, err := t.exec(`INSERT INTO cluster_history (hash, name, seq, removed, user_hash, workspace, launched, summary, task_yaml)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (hash) DO NOTHING`,
		c.Hash, c.Name, c.Seq, at.UnixMicro(), c.UserHash, c.Workspace, microsPtr(c.LaunchedAt).Int64, string(data), yaml)
	if err != nil || n == 0 {
		return err
	}
	for _, q := range []string{"DELETE FROM clusters WHERE hash = ?", "DELETE FROM cluster_names WHERE hash = ?", "DELETE FROM watches WHERE hash = ?"} {
		if _, err := t.exec(q, r.Hash); err != nil {
			return err
		}
	}
	t.touch(ClusterTopic(c.Name))
	return t.usageEnd(UsageEnd{Hash: r.Hash, At: at})
}

func (t *txn) exists(q string, args ...any) (bool, error) {
	var one int
	err := t.row(q, args...).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// Cluster reads a live cluster, all fields.
func (s *Store) Cluster(ctx context.Context, name string) (api.Cluster, error) {
	return s.oneCluster(ctx, fmt.Sprintf("cluster %q", name), "SELECT summary, task_yaml FROM clusters WHERE name = ?", name)
}

// ClusterByHash reads one incarnation, live or ended.
func (s *Store) ClusterByHash(ctx context.Context, hash string) (c api.Cluster, live bool, err error) {
	what := fmt.Sprintf("cluster incarnation %q", hash)
	c, err = s.oneCluster(ctx, what, "SELECT summary, task_yaml FROM clusters WHERE hash = ?", hash)
	if !errors.Is(err, ErrNotFound) {
		return c, err == nil, err
	}
	c, err = s.oneCluster(ctx, what, "SELECT summary, task_yaml FROM cluster_history WHERE hash = ?", hash)
	return c, false, err
}

func (s *Store) oneCluster(ctx context.Context, what, q, arg string) (c api.Cluster, err error) {
	var summary, yaml string
	err = s.row(ctx, q, arg).Scan(&summary, &yaml)
	if errors.Is(err, sql.ErrNoRows) {
		return c, fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	if err == nil {
		err = json.Unmarshal([]byte(summary), &c)
		c.LastTaskYAML = yaml
	}
	return c, s.wrap(err)
}

// Clusters lists live clusters by name.
func (s *Store) Clusters(ctx context.Context, f ClusterFilter) ([]api.Cluster, error) {
	return s.listClusters(ctx, "clusters", f, "ORDER BY name")
}

// History lists ended incarnations, newest first. limit 0: all.
func (s *Store) History(ctx context.Context, f ClusterFilter, limit int) ([]api.Cluster, error) {
	order := "ORDER BY removed DESC, hash"
	if limit > 0 {
		order += fmt.Sprintf(" LIMIT %d", limit)
	}
	return s.listClusters(ctx, "cluster_history", f, order)
}

func (s *Store) listClusters(ctx context.Context, table string, f ClusterFilter, order string) ([]api.Cluster, error) {
	out := []api.Cluster{}
	err := s.eachCluster(ctx, table, f, order, func(summary []byte, yaml string) error {
		out = append(out, api.Cluster{LastTaskYAML: yaml})
		return json.Unmarshal(summary, &out[len(out)-1])
	})
	return out, err
}

// ClusterRows lists live clusters as encoded api.Cluster objects, for passing on without decoding.
func (s *Store) ClusterRows(ctx context.Context, f ClusterFilter) ([]json.RawMessage, error) {
	out := []json.RawMessage{}
	err := s.eachCluster(ctx, "clusters", f, "ORDER BY name", func(summary []byte, yaml string) error {
		if yaml != "" {
			text, err := json.Marshal(yaml)
			if err != nil {
				return err
			}
			// The summary is an object that has no such field, since it is left out when empty.
			summary = append(append(append(summary[:len(summary)-1:len(summary)-1], `,"last_creation_yaml":`...), text...), '}')
		}
		out = append(out, summary)
		return nil
	})
	return out, err
}

func (s *Store) eachCluster(ctx context.Context, table string, f ClusterFilter, order string, each func(summary []byte, yaml string) error) error {
	var where []string
	var args []any
	var globs []string
	exact := true
	for _, n := range f.Names {
		if strings.ContainsAny(n, `*?[\`) {
			exact = false
		}
	}
	switch {
	case len(f.Names) > 0 && exact:
		where = append(where, "name IN "+in(len(f.Names)))
		args = append(args, anys(f.Names)...)
	case len(f.Names) > 0:
		globs = f.Names
	}
	if f.UserHash != "" {
		where, args = append(where, "user_hash = ?"), append(args, f.UserHash)
	}
	if f.Workspace != "" {
		where, args = append(where, "workspace = ?"), append(args, f.Workspace)
	}
	if f.SkipManaged && table == "clusters" {
		where = append(where, "managed = 0")
	}
	if len(f.Status) > 0 && table == "clusters" {
		where = append(where, "status IN "+in(len(f.Status)))
		for _, st := range f.Status {
			args = append(args, string(st))
		}
	}
	yaml := "''"
	if f.Full {
		yaml = "task_yaml"
	}
	q := "SELECT name, summary, " + yaml + " FROM " + table
	if len(where) > 0 {
		q += " WHERE " + strings.Join(where, " AND ")
	}
	return s.collect(ctx, q+" "+order, args, func(r scanner) error {
		var name, yaml string
		var summary []byte
		if err := r.Scan(&name, &summary, &yaml); err != nil {
			return err
		}
		if globs != nil && !matchAny(globs, name) {
			return nil
		}
		return each(summary, yaml)
	})
}

func matchAny(globs []string, name string) bool {
	for _, g := range globs {
		if ok, err := path.Match(g, name); g == name || (ok && err == nil) {
			return true
		}
	}
	return false
}

// ClaimName takes a cluster name for an incarnation, durably. It returns the incarnation that holds it: hash itself if the
// claim stands, now or from before.
func (s *Store) ClaimName(ctx context.Context, name, hash, requestID string) (holder string, err error) {
	err = s.update(ctx, true, func(t *txn) error {
		var live string
		err := t.row("SELECT hash FROM clusters WHERE name = ?", name).Scan(&live)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if live != "" && live != hash {
			holder = live
			return nil
		}
		ended, err := t.exists("SELECT 1 FROM cluster_history WHERE hash = ?", hash)
		if err != nil {
			return err
		}
		if ended {
			return fmt.Errorf("cluster incarnation %s has ended: %w", hash, ErrConflict)
		}
		if _, err := t.exec(`INSERT INTO cluster_names (name, hash, request_id, claimed)
		VALUES (?, ?, ?, ?) ON CONFLICT (name) DO NOTHING`, name, hash, requestID, s.now().UnixMicro()); err != nil {
			return err
		}
		return t.row("SELECT hash FROM cluster_names WHERE name = ?", name).Scan(&holder)
	})
	return holder, err
}

// ReleaseName gives a name back that an incarnation claimed; a claim of another stays.
func (s *Store) ReleaseName(ctx context.Context, name, hash string) error {
	return s.update(ctx, false, func(t *txn) error {
		_, err := t.exec("DELETE FROM cluster_names WHERE name = ? AND hash = ?", name, hash)
		return err
	})
}
