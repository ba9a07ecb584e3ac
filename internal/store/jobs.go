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

// JobsUpdate brings rows of one cluster's jobs, as its agent tells them.
type JobsUpdate struct {
	Cluster, Hash string
	Jobs          []api.Job
}

// EndJobs ends what is still open on an incarnation.
type EndJobs struct {
	Hash   string
	Status api.JobStatus // terminal
	Reason string
	At     time.Time // default: now
}

// JobFilter selects jobs; empty fields select all.
type JobFilter struct {
	Clusters   []string // names of live clusters
	Hash       string   // one incarnation, live or not
	UserHash   string
	IDs        []int64
	ActiveOnly bool
	Limit      int
}

// PutJobs writes job rows; a stale one is skipped: a lower sequence, a status that is behind, another end.
func (s *Store) PutJobs(ctx context.Context, cluster, hash string, jobs []api.Job) error {
	return s.Write(ctx, Batch{Jobs: []JobsUpdate{{cluster, hash, jobs}}})
}

// EndOpenJobs ends the jobs of an incarnation that are not terminal: its nodes are gone.
func (s *Store) EndOpenJobs(ctx context.Context, e EndJobs) error {
	return s.Write(ctx, Batch{EndJobs: []EndJobs{e}})
}

func (t *txn) putJobs(u JobsUpdate) error {
	if u.Hash == "" {
		return errors.New("a job row needs the cluster's hash")
	}
	for i := range u.Jobs {
		if err := t.putJob(u.Cluster, u.Hash, u.Jobs[i]); err != nil {
			return err
		}
	}
	return nil
}

func (t *txn) putJob(cluster, hash string, j api.Job) error {
	var seq int64
	var status string
	err := t.row("SELECT seq, status FROM jobs WHERE hash = ? AND job_id = ?", hash, j.ID).Scan(&seq, &status)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if err == nil {
		old := api.JobStatus(status)
		if j.Seq <= seq || (old.Terminal() && j.Status != old) || j.Status.Order() < old.Order() {
			return nil
		}
	}
	return t.storeJob(cluster, hash, j)
}

func (t *txn) storeJob(cluster, hash string, j api.Job) error {
	j.Cluster, j.ClusterHash = cluster, hash
	data, err := json.Marshal(j)
	if err != nil {
		return err
	}
	terminal := 0
	ended := microsPtr(j.EndAt).Int64
	if j.Status.Terminal() {
		terminal = 1
		if ended == 0 {
			ended = t.w.s.now().UnixMicro()
		}
	}
	_, err = t.exec(`INSERT INTO jobs (hash, job_id, cluster, seq, status, terminal, user_hash, ended, data)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (hash, job_id) DO UPDATE SET cluster = excluded.cluster,
		seq = excluded.seq, status = excluded.status, terminal = excluded.terminal, user_hash = excluded.user_hash, ended = excluded.ended, data = excluded.data`,
		hash, j.ID, cluster, j.Seq, string(j.Status), terminal, j.UserHash, ended, string(data))
	t.touch(ClusterTopic(cluster))
	return err
}

func (t *txn) endJobs(e EndJobs) error {
	if !e.Status.Terminal() {
		return fmt.Errorf("jobs can't be ended with status %s", e.Status)
	}
	var open []api.Job
	err := t.collect("SELECT data FROM jobs WHERE hash = ? AND terminal = 0 ORDER BY job_id", []any{e.Hash}, func(r scanner) error {
		var data []byte
		if err := r.Scan(&data); err != nil {
			return err
		}
		open = append(open, api.Job{})
		return json.Unmarshal(data, &open[len(open)-1])
	})
	if err != nil {
		return err
	}
	at := t.w.s.at(e.At).UTC()
	for _, j := range open {
		j.Status, j.EndAt = e.Status, &at
		if e.Reason != "" {
			j.Reason = e.Reason
		}
		if err := t.storeJob(j.Cluster, e.Hash, j); err != nil {
			return err
		}
	}
	return nil
}

// Jobs lists jobs, newest first within a cluster.
func (s *Store) Jobs(ctx context.Context, f JobFilter) ([]api.Job, error) {
	var where []string
	var args []any
	q := "SELECT j.data FROM jobs j"
	if f.Hash == "" {
		q += " JOIN clusters c ON c.hash = j.hash"
	} else {
		where, args = append(where, "j.hash = ?"), append(args, f.Hash)
	}
	if len(f.Clusters) > 0 {
		where, args = append(where, "j.cluster IN "+in(len(f.Clusters))), append(args, anys(f.Clusters)...)
	}
	if f.UserHash != "" {
		where, args = append(where, "j.user_hash = ?"), append(args, f.UserHash)
	}
	if len(f.IDs) > 0 {
		where, args = append(where, "j.job_id IN "+in(len(f.IDs))), append(args, anys(f.IDs)...)
	}
	if f.ActiveOnly {
		where = append(where, "j.terminal = 0")
	}
	if len(where) > 0 {
		q += " WHERE " + strings.Join(where, " AND ")
	}
	q += " ORDER BY j.cluster, j.job_id DESC"
	if f.Limit > 0 {
		q += fmt.Sprintf(" LIMIT %d", f.Limit)
	}
	out := []api.Job{}
	err := s.collect(ctx, q, args, func(r scanner) error {
		var data []byte
		if err := r.Scan(&data); err != nil {
			return err
		}
		out = append(out, api.Job{})
		return json.Unmarshal(data, &out[len(out)-1])
	})
	return out, err
}
