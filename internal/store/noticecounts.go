package store

import (
	"bytes"
	"context"
	"encoding/json"
	"strconv"

	"github.com/skyloom/skyloom/api"
)

// noticeCounts sums what became of the notices of jobs, by job; jobs without addresses that are told are left out. Notices of before
// the counting began are not among those delivered.
func (s *Store) noticeCounts(ctx context.Context, from, to int64) (map[int64]*api.NoticeCounts, error) {
	out := map[int64]*api.NoticeCounts{}
	err := s.collect(ctx, "SELECT job_id, sum(delivered), sum(dropped), sum(pending) FROM notice_streams WHERE job_id >= ? AND job_id <= ? GROUP BY job_id", []any{from, to}, func(r scanner) error {
		var id int64
		c := &api.NoticeCounts{}
		err := r.Scan(&id, &c.Delivered, &c.Dropped, &c.Waiting)
		out[id] = c
		return err
	})
	return out, s.wrap(err)
}

// countNotices tells in the rows of jobs what became of their notices.
func (s *Store) countNotices(ctx context.Context, rows []api.ManagedJob) error {
	if len(rows) == 0 {
		return nil
	}
	from, to := rows[0].ID, rows[0].ID
	for _, r := range rows {
		from, to = min(from, r.ID), max(to, r.ID)
	}
	counts, err := s.noticeCounts(ctx, from, to)
	for i := range rows {
		rows[i].Notices = counts[rows[i].ID]
	}
	return err
}

// countRowNotices is countNotices for encoded rows.
func (s *Store) countRowNotices(ctx context.Context, rows []json.RawMessage) error {
	if len(rows) == 0 {
		return nil
	}
	// The newest come first.
	counts, err := s.noticeCounts(ctx, rowID(rows[len(rows)-1]), rowID(rows[0]))
	if err != nil || len(counts) == 0 {
		return err
	}
	for i, row := range rows {
		c := counts[rowID(row)]
		if c == nil {
			continue
		}
		text, err := json.Marshal(c)
		if err != nil {
			return err
		}
		// What is stored is an object that has no such field.
		rows[i] = append(append(append(row[:len(row)-1:len(row)-1], `,"notices":`...), text...), '}')
	}
	return nil
}

// rowID reads the number of a job from its encoded row, in which it comes first.
func rowID(row json.RawMessage) int64 {
	rest, _ := bytes.CutPrefix(row, []byte(`{"job_id":`))
	digits, _, _ := bytes.Cut(rest, []byte(","))
	id, _ := strconv.ParseInt(string(digits), 10, 64)
	return id
}
