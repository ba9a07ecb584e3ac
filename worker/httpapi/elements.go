package httpapi

import (
	"context"
	"io"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/task"
)

// ElementLogs is a Backend that keeps the output of arrays.
type ElementLogs interface {
	// BatchLogs is the folder with the output of an array's elements, as internal/batchlog keeps it.
	BatchLogs(jobID int64) string
	// StoredAttempts lists the attempts of a task of whose log something was kept: of an array, those of its setup.
	StoredAttempts(ctx context.Context, jobID int64, taskID int) ([]int, error)
}

type elementsIn struct {
	ID       int64    `path:"id" minimum:"1"`
	Statuses []string `query:"status,explode" doc:"only elements in one of these states"`
	First    int      `query:"first" minimum:"0" doc:"from this index on"`
	Last     int      `query:"last" minimum:"-1" default:"-1" doc:"up to this index; -1: to the end"`
	Limit    int      `query:"limit" minimum:"0" doc:"so many elements; 0: all"`
}

var elementStatuses = []api.ManagedStatus{api.ManagedPending, api.ManagedRunning, api.ManagedSucceeded, api.ManagedFailed, api.ManagedCancelled}

func (s *Server) elementRoutes(h huma.API) {
	op := operation("GET", "/jobs/{id}/elements", "jobs-elements", managedTag, "The elements of an array, by rising index", http.StatusNotFound)
	op.Description = "An element is RUNNING from when its cluster begins it until it was settled: until its log is kept, and what follows is decided. " +
		"One whose run has failed has end_at, exit_codes and reason before that."
	get(h, op, s, func(ctx context.Context, in *elementsIn) (api.ElementList, error) { return s.elements(ctx, in) })
}

// arrayJob reads the row of an array, with its task.
func (s *Server) arrayJob(ctx context.Context, id int64) (api.ManagedJob, error) {
	rows, _, _, err := s.o.Store.ManagedJobs(ctx, store.ManagedFilter{IDs: []int64{id}, Full: true})
	if err != nil {
		return api.ManagedJob{}, err
	}
	if len(rows) == 0 {
		if _, err := s.managedJob(ctx, id); err != nil {
			return api.ManagedJob{}, err
		}
		return api.ManagedJob{}, failure(api.ErrNotFound, "Ask again in a moment.", "managed job %d was just submitted; nothing is known of it yet", id)
	}
	if rows[0].Array == nil {
		return api.ManagedJob{}, failure(api.ErrInvalid, "Its state: sky jobs queue", "managed job %d is no array and has no elements", id)
	}
	return rows[0], nil
}

func (s *Server) elements(ctx context.Context, in *elementsIn) (api.ElementList, error) {
	want, err := statuses(in.Statuses, elementStatuses)
	if err != nil {
		return api.ElementList{}, err
	}
	row, err := s.arrayJob(ctx, in.ID)
	if err != nil {
		return api.ElementList{}, err
	}
	last := row.Array.Count - 1
	if in.Last >= 0 {
		last = min(last, in.Last)
	}
	values := valuesOf(row)
	out := api.ElementList{Elements: []api.ArrayElement{}, Counts: row.Array.Counts}
	next := in.First
	full := func() bool {
		if in.Limit == 0 || len(out.Elements) < in.Limit {
			return false
		}
		if out.Next == nil && next <= last {
			n := next
			out.Next = &n
		}
		return true
	}
	add := func(e api.ArrayElement) {
		next = e.Index + 1
		if e.Status = store.NeverBegan(row.Status, e.Status); len(want) > 0 && !slices.Contains(want, e.Status) {
			return
		}
		e.Values = values(e.Index)
		out.Elements = append(out.Elements, e)
	}
	// Elements without a row stand between those that have one.
	waiting := func(before int) {
		for next < before && !full() {
			add(api.ArrayElement{Index: next, Status: api.ManagedPending})
		}
	}
	err = s.o.Store.EachElement(ctx, in.ID, in.First, last, func(r store.ElementRow) bool {
		waiting(r.Index)
		if full() {
			return false
		}
		add(r.ArrayElement)
		return true
	})
	if err != nil {
		return api.ElementList{}, err
	}
	waiting(last + 1)
	full()
	return out, nil
}

// valuesOf gives the environment of each element of an array; nil if it has none.
func valuesOf(row api.ManagedJob) func(int) map[string]string {
	none := func(int) map[string]string { return nil }
	f, err := task.Parse("task", []byte(row.UserYAML), task.ParseOptions{})
	if err != nil || len(f.Tasks) == 0 || f.Tasks[0].Array == nil || len(f.Tasks[0].Array.Values) == 0 {
		return none
	}
	return f.Tasks[0].Array.Element
}

// elementLog is where the log of one element of an array is read from.
type elementLog struct {
	index   int
	batches []int64 // by attempt
	status  api.ManagedStatus
	reason  string
}

// elementRow shows an element as the row of a task, by which logs are read: it runs as long as its output is with its cluster alone.
func (s *Server) elementRow(ctx context.Context, job int64, e *elementLog) (api.ManagedJob, error) {
	array, err := s.arrayJob(ctx, job)
	if err != nil {
		return array, err
	}
	if e.index >= array.Array.Count {
		return array, failure(api.ErrNotFound, "", "managed job %d has %d elements, from 0 to %d", job, array.Array.Count, array.Array.Count-1)
	}
	row := api.ManagedJob{ID: job, Name: array.Name, TaskName: array.TaskName, NumTasks: 1, Status: store.NeverBegan(array.Status, api.ManagedPending)}
	r, err := s.o.Store.Element(ctx, job, e.index)
	if err != nil {
		return row, err
	}
	e.batches, e.reason = nil, ""
	if r != nil {
		e.batches, e.reason = append(r.Past, r.Batch), r.Reason
		row.Status = store.NeverBegan(array.Status, r.Status)
		row.Attempt, row.Cluster, row.ClusterHash, row.ClusterJobID = r.Attempt, r.Cluster, r.ClusterHash, r.ClusterJobID
	}
	e.status = row.Status
	if r == nil || row.Status == api.ManagedPending {
		return row, nil
	}
	if _, kept, err := s.elementKept(job, e, len(e.batches)); err != nil || kept {
		return row, err
	}
	if c, err := s.o.Store.Cluster(ctx, row.Cluster); err == nil && c.Hash == row.ClusterHash {
		row.Status = api.ManagedRunning
	}
	return row, nil
}

// elementKept gives what is kept of the output of one attempt; kept says that no more will be.
func (s *Server) elementKept(job int64, e *elementLog, attempt int) (logs []StoredLog, kept bool, err error) {
	b, ok := s.be().(ElementLogs)
	if !ok || attempt < 1 || attempt > len(e.batches) {
		return nil, false, nil
	}
	x := &batchIndexes{dir: b.BatchLogs(job), only: func(i int) bool { return i == e.index }}
	batch, err := x.batch(e.batches[attempt-1])
	if err != nil {
		return nil, false, err
	}
	logs = x.logs(batch, e.index)
	for i, l := range logs {
		if l.Open == nil {
			continue
		}
		logs[i].Open = func() (io.ReadSeekCloser, error) {
			r, err := l.Open()
			if err != nil {
				return nil, err
			}
			return closing{r, x.close}, nil
		}
	}
	return logs, batch.whole, nil
}

// closing is a log whose file is closed with it.
type closing struct {
	io.ReadSeeker
	close func()
}

func (c closing) Close() error {
	c.close()
	return nil
}

// sendElement sends the log of one element: of all its attempts, and what comes.
func (s *Server) sendElement(ctx context.Context, in *managedLogQuery, out *frameWriter, cursor map[int]*taskPlace) error {
	e := &elementLog{index: in.Element}
	t := &taskLog{s: s, job: in.ID, jobName: out.first.JobName, follow: in.Follow, tail: in.Tail, out: out, element: e}
	if p := cursor[0]; p != nil {
		t.attempt, t.at, t.announced = p.attempt, p.at, true
	}
	if err := t.run(ctx); err != nil {
		return err
	}
	if _, err := s.elementRow(ctx, in.ID, e); err != nil {
		return err
	}
	return out.frame(api.LogFrame{End: true, JobID: in.ID, JobName: out.first.JobName, Status: api.JobStatus(e.status), Reason: e.reason}, nil)
}
