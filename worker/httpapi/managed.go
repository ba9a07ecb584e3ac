package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

const managedTag = "managed jobs"

type managedQuery struct {
	IDs          string   `query:"ids" doc:"numbers and ranges: 1-3,7" maxLength:"30000"`
	Name         string   `query:"name" doc:"the exact name" maxLength:"200"`
	UserHash     string   `query:"user_hash" doc:"only jobs of this user; none: of all" maxLength:"200"`
	Statuses     []string `query:"status,explode" doc:"jobs with a task in one of these states"`
	SkipFinished bool     `query:"skip_finished" doc:"only jobs that have not ended"`
	Since        string   `query:"since" doc:"submitted then or later: 2026-01-02T15:04:05Z" maxLength:"100"`
	Before       string   `query:"before" doc:"submitted earlier than that" maxLength:"100"`
	Limit        int      `query:"limit" minimum:"0" doc:"so many jobs; 0: all"`
	Full         bool     `query:"full" doc:"with the tasks' YAML"`
}

func (s *Server) managedRoutes(h huma.API) {
	op := operation("GET", "/jobs/queue", "jobs-queue", managedTag, "Managed jobs, the newest first, each with its tasks in order")
	stream(h, op, s, "application/json", "managed jobs", s.managedQueue)
	h.OpenAPI().Paths[op.Path].Get.Responses["200"].Content["application/json"].Schema =
		h.OpenAPI().Components.Schemas.Schema(typeOf[api.ManagedList](), true, "ManagedList")

	op = operation("POST", "/jobs/cancel", "jobs-cancel", managedTag, "Cancel managed jobs", http.StatusNotFound, http.StatusServiceUnavailable)
	op.Description = "The cancel is durable when this answers; the jobs are CANCELLED once nothing of them runs."
	get(h, op, s, func(ctx context.Context, in *bodyIn[api.JobsCancelBody]) (api.JobsCancelReply, error) {
		return s.cancelManaged(ctx, in.Body)
	})

	op = operation("GET", "/jobs/{id}/logs", "managed-job-logs", managedTag, "The log of a managed job, over all its attempts", http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable)
	op.Description = "A framed stream as that of a cluster's job. While the job waits for its cluster nothing is shown; after a recovery the stream goes on " +
		"with the next attempt. A frame without bytes names the attempt that begins. The last one has end set, and the job's status. " +
		"Of an array it is what the server has of the output of its elements: by rising element, or with follow batch by batch as it comes; frames name the element."
	stream(h, op, s, api.LogMediaType, "log frames", s.managedLogs)

	s.elementRoutes(h)

	type eventsIn struct {
		ID int64 `path:"id" minimum:"1"`
		EventQuery
	}
	op = operation("GET", "/jobs/{id}/events", "managed-job-events", managedTag, "What happened to a managed job, and why", http.StatusNotFound)
	op.Description = "With follow=true: server-sent events without an end. Without: a JSON list, oldest first."
	eventRoute(h, op, s, func(w http.ResponseWriter, r *http.Request, in *eventsIn) error {
		if _, err := s.managedJob(r.Context(), in.ID); err != nil {
			return err
		}
		return s.events(w, r, store.EventFilter{JobID: in.ID}, in.EventQuery, false)
	})
}

// managedQueue passes the store's rows through as they are encoded there.
func (s *Server) managedQueue(w http.ResponseWriter, r *http.Request, in *managedQuery) error {
	f, err := in.filter()
	if err != nil {
		return err
	}
	rows, total, counts, err := s.o.Store.ManagedRows(r.Context(), f)
	if err != nil {
		return err
	}
	s.tellWaits(r.Context(), rows)
	byStatus, err := json.Marshal(counts)
	if err != nil {
		return fmt.Errorf("encode counts: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	b := bufio.NewWriterSize(w, 32<<10)
	b.WriteString(`{"jobs":[`)
	for i, row := range rows {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(row)
	}
	fmt.Fprintf(b, `],"total":%d,"counts":%s}`+"\n", total, byStatus)
	_ = b.Flush() // the reader going away is no error of ours
	return nil
}

// waitsTold is of how many waiting jobs a list tells what they wait for now; the rest keep what was noted when they asked.
const waitsTold = 100

// tellWaits brings up to date what the rows of waiting jobs say of the wait.
func (s *Server) tellWaits(ctx context.Context, rows []json.RawMessage) {
	at := map[int]api.ManagedJob{}
	var ids []int64
	for i, row := range rows {
		if len(ids) >= waitsTold {
			break
		}
		var j api.ManagedJob
		if !bytes.Contains(row, []byte(`"status":"PENDING"`)) || json.Unmarshal(row, &j) != nil || j.Status != api.ManagedPending || j.NextRetry != nil {
			continue
		}
		at[i], ids = j, append(ids, j.ID)
	}
	if len(ids) == 0 {
		return
	}
	why, err := s.be().WaitReasons(ctx, ids)
	if err != nil {
		s.log.Warn("what jobs wait for is not known", "err", err) // the list is worth more
		return
	}
	for i, j := range at {
		if j.Details = why[j.ID]; j.Details == "" {
			continue
		}
		if row, err := json.Marshal(j); err == nil {
			rows[i] = row
		}
	}
}

// statuses reads lists of states with commas; an unknown one is refused.
func statuses(lists []string, known []api.ManagedStatus) (out []api.ManagedStatus, err error) {
	for _, list := range lists {
		for name := range strings.SplitSeq(list, ",") {
			st := api.ManagedStatus(strings.ToUpper(strings.TrimSpace(name)))
			if !slices.Contains(known, st) {
				words := make([]string, len(known))
				for i, k := range known {
					words[i] = string(k)
				}
				return nil, failure(api.ErrInvalid, "There are "+strings.Join(words, ", ")+".", "there is no state %q", shorten(name))
			}
			out = append(out, st)
		}
	}
	return out, nil
}

func (q *managedQuery) filter() (store.ManagedFilter, error) {
	f := store.ManagedFilter{Name: q.Name, UserHash: q.UserHash, SkipFinished: q.SkipFinished, Limit: q.Limit, Full: q.Full}
	var err error
	if q.IDs != "" {
		if f.IDs, err = api.ParseIDs(q.IDs); err != nil {
			return f, failure(api.ErrInvalid, "", "ids: %s", err)
		}
	}
	if f.Statuses, err = statuses(q.Statuses, api.ManagedStatuses); err != nil {
		return f, err
	}
	for _, t := range []struct {
		name, text string
		to         **time.Time
	}{{"since", q.Since, &f.Since}, {"before", q.Before, &f.Before}} {
		if t.text == "" {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, t.text)
		if err != nil {
			return f, failure(api.ErrInvalid, "Write it as 2026-01-02T15:04:05Z.", "%s: %q is no time", t.name, shorten(t.text))
		}
		*t.to = &at
	}
	return f, nil
}

// managedJob reads a job's rows. There are none yet, and no error, of a job that was just submitted.
func (s *Server) managedJob(ctx context.Context, id int64) ([]api.ManagedJob, error) {
	rows, _, _, err := s.o.Store.ManagedJobs(ctx, store.ManagedFilter{IDs: []int64{id}})
	if err != nil || len(rows) > 0 {
		return rows, err
	}
	if ok, err := s.o.Store.JobNumbered(ctx, id); ok || err != nil {
		return nil, err
	}
	return nil, failure(api.ErrJobNotFound, "See: sky jobs queue", "there is no managed job %d", id)
}

func (s *Server) cancelManaged(ctx context.Context, b api.JobsCancelBody) (api.JobsCancelReply, error) {
	selectors := 0
	for _, set := range []bool{len(b.JobIDs) > 0, b.Name != "", b.All || b.AllUsers} {
		if set {
			selectors++
		}
	}
	switch {
	case selectors == 0:
		return api.JobsCancelReply{}, failure(api.ErrInvalid, "Name jobs by number or name, or say all.", "there is nothing to cancel")
	case selectors > 1:
		return api.JobsCancelReply{}, failure(api.ErrInvalid, "", "name jobs by number, by name, or say all: one of these")
	case b.All && !b.AllUsers && b.UserHash == "":
		return api.JobsCancelReply{}, failure(api.ErrInvalid, "Say all_users to cancel those of everyone.", "all needs user_hash: whose jobs")
	}
	// The client going away does not leave half of them running.
	reply, err := s.be().CancelManagedJobs(context.WithoutCancel(ctx), b)
	if reply.Cancelled == nil {
		reply.Cancelled = []int64{}
	}
	return reply, err
}

// completeJobs lists numbers or names of jobs that have not ended.
func (s *Server) completeJobs(ctx context.Context, names bool, incomplete string) ([]string, error) {
	rows, _, _, err := s.o.Store.ManagedJobs(ctx, store.ManagedFilter{SkipFinished: true, Limit: 1000})
	out := []string{}
	for _, r := range rows {
		v := strconv.FormatInt(r.ID, 10)
		if names {
			v = r.Name
		}
		if strings.HasPrefix(v, incomplete) && !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out, err
}

// pickTasks chooses the tasks that a reader named by index or name; all if it named none.
func pickTasks(rows []api.ManagedJob, task string) ([]api.ManagedJob, error) {
	if task == "" || len(rows) == 0 {
		return rows, nil
	}
	n, err := strconv.Atoi(task)
	for _, r := range rows {
		if (err == nil && r.TaskID == n) || (err != nil && r.TaskName == task) {
			return []api.ManagedJob{r}, nil
		}
	}
	var names []string
	for _, r := range rows {
		names = append(names, fmt.Sprintf("%d (%s)", r.TaskID, r.TaskName))
	}
	return nil, failure(api.ErrNotFound, "Its tasks are: "+strings.Join(names, ", "), "managed job %d has no task %s", rows[0].ID, shorten(task))
}
