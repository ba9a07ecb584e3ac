package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// LaunchJobs submits managed jobs. It returns as soon as the request is accepted, and fills in RequestID if it is empty.
func (c *Client) LaunchJobs(ctx context.Context, b *JobsLaunchBody) (*Ref, error) {
	return c.submit(ctx, "jobs/launch", &b.Base, b)
}

// CancelManagedJobs cancels managed jobs. It returns once the cancels are accepted; the jobs are CANCELLED a little later.
func (c *Client) CancelManagedJobs(ctx context.Context, b *JobsCancelBody) (*JobsCancelReply, error) {
	if b.RequestID == "" {
		b.RequestID = NewRequestID()
	}
	out := &JobsCancelReply{}
	return out, c.call(ctx, "POST", prefix+"/jobs/cancel", nil, b, out)
}

// ManagedFilter selects rows of `sky jobs queue`; empty fields select all.
type ManagedFilter struct {
	IDs          []int64
	Name         string
	UserHash     string
	Statuses     []ManagedStatus
	SkipFinished bool
	Since        *time.Time // submitted then or later
	Before       *time.Time // submitted earlier
	Limit        int        // so many jobs; 0: all
	Full         bool       // with the task's YAML
}

// ManagedJobs lists managed jobs, the newest first, each with its tasks in order.
func (c *Client) ManagedJobs(ctx context.Context, f ManagedFilter) (*ManagedList, error) {
	q := url.Values{}
	setString(q, "ids", FormatIDs(f.IDs))
	setString(q, "name", f.Name)
	setString(q, "user_hash", f.UserHash)
	for _, s := range f.Statuses {
		q.Add("status", string(s))
	}
	setBool(q, "skip_finished", f.SkipFinished)
	if f.Since != nil {
		q.Set("since", f.Since.UTC().Format(time.RFC3339Nano))
	}
	if f.Before != nil {
		q.Set("before", f.Before.UTC().Format(time.RFC3339Nano))
	}
	if f.Limit > 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	setBool(q, "full", f.Full)
	out := &ManagedList{}
	return out, c.call(ctx, "GET", prefix+"/jobs/queue", q, nil, out)
}

// ManagedJob reads the tasks of one managed job, with all fields. An unknown one is an *Error of kind ErrJobNotFound.
func (c *Client) ManagedJob(ctx context.Context, id int64) ([]ManagedJob, error) {
	l, err := c.ManagedJobs(ctx, ManagedFilter{IDs: []int64{id}, Full: true})
	if err == nil && len(l.Jobs) == 0 {
		err = &Error{Kind: ErrJobNotFound, Message: fmt.Sprintf("there is no managed job %d", id), Hint: "See: sky jobs queue"}
	}
	if err != nil {
		return nil, err
	}
	return l.Jobs, nil
}

// ManagedEvents lists what happened to a managed job, oldest first; limit is that of EventFilter.
func (c *Client) ManagedEvents(ctx context.Context, id, after int64, limit int) ([]Event, error) {
	if limit == 0 {
		limit = maxEvents
	}
	out := struct {
		Events []Event `json:"events"`
	}{}
	err := c.call(ctx, "GET", managedPath(id, "events"), EventFilter{After: after, Limit: limit}.query(), nil, &out)
	return out.Events, err
}

// FollowManagedEvents hands fn each event of a managed job as it comes, as FollowEvents does.
func (c *Client) FollowManagedEvents(ctx context.Context, id, after int64, limit int, fn func(Event) error) error {
	q := EventFilter{After: after, Limit: limit}.query()
	q.Set("follow", "true")
	return c.followSSE(ctx, managedPath(id, "events"), q, after, fn)
}

func managedPath(id int64, what string) string {
	return prefix + "/jobs/" + strconv.FormatInt(id, 10) + "/" + what
}

// ManagedLogFilter selects the log of a managed job.
type ManagedLogFilter struct {
	Task   string // index or name; empty: all tasks
	Follow bool
	Tail   int // lines per node of the latest attempt; 0: everything, of all attempts
	// Element is one of an array's; nil: the job's own log, of an array that of all its elements.
	Element *int
	// Elements are those of an array from the first to the last; a last below 0: to the end. Nil: all.
	Elements *[2]int
}

// ManagedLogEnd tells how a managed job stood when its log ended.
type ManagedLogEnd struct {
	JobID  int64
	Status ManagedStatus // of the task, if one was named
	Reason string
}

// ManagedLogs hands fn the log of a managed job, piece by piece, over all its attempts, and returns when the server says
// that it is complete (Follow: the job has ended). Calls without data name the job (the first one), or the attempt that
// begins. When the connection is cut it asks again from where it was, so that no byte is repeated or lost.
func (c *Client) ManagedLogs(ctx context.Context, id int64, f ManagedLogFilter, fn func(LogChunk) error) (*ManagedLogEnd, error) {
	s := &logReader{fn: fn, at: map[string]int64{}, attempts: map[int]int{}, cuts: map[string]bool{}, end: &LogEnd{JobID: id}}
	w := c.newWait()
	s.progress = w.reset
	for {
		q := url.Values{}
		setString(q, "task", f.Task)
		if f.Element != nil {
			q.Set("element", strconv.Itoa(*f.Element))
		}
		if f.Elements != nil {
			q.Set("first", strconv.Itoa(f.Elements[0]))
			q.Set("last", strconv.Itoa(f.Elements[1]))
		}
		setBool(q, "follow", f.Follow)
		cur := s.cursor()
		setString(q, "cursor", cur)
		setString(q, "batches", s.array.batches())
		if f.Tail > 0 && (cur == "" || s.array != nil) { // of an array it counts for each element
			q.Set("tail", strconv.Itoa(f.Tail))
		}
		done, err := c.readLog(ctx, managedPath(id, "logs"), q, s)
		if done {
			return &ManagedLogEnd{JobID: id, Status: ManagedStatus(s.end.Status), Reason: s.end.Reason}, nil
		}
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		if err := w.next(ctx, err); err != nil {
			return &ManagedLogEnd{JobID: id}, err
		}
	}
}

// readLog reads one connection's share of a log.
func (c *Client) readLog(ctx context.Context, path string, q url.Values, s *logReader) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := c.try(ctx, "GET", path, q, nil, LogMediaType)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if ct := resp.Header.Get("Content-Type"); !strings.HasPrefix(ct, LogMediaType) {
		return false, &finalError{fmt.Errorf("the server sent the log as %q instead of %q", ct, LogMediaType)}
	}
	body, stop := c.guard(resp, cancel)
	defer stop()
	return s.read(bufio.NewReaderSize(body, 64<<10))
}

// place is the part of a cursor's key that says to which task and attempt a frame belongs. A new attempt of a task makes
// what was read of the ones before past.
func (s *logReader) place(f LogFrame) (key string, fresh bool) {
	if s.attempts == nil || f.Attempt == 0 || f.Element != nil {
		return "", false
	}
	key = fmt.Sprintf("%d.%d@", f.Task, f.Attempt)
	if s.attempts[f.Task] != f.Attempt {
		s.attempts[f.Task], fresh = f.Attempt, true
		old := strconv.Itoa(f.Task) + "."
		for k := range s.at {
			if strings.HasPrefix(k, old) {
				delete(s.at, k)
			}
		}
	}
	return key, fresh
}

// UnmarshalJSON keeps the maps and lists of an answer non-nil.
func (l *ManagedList) UnmarshalJSON(data []byte) error {
	type plain ManagedList
	p := plain{Jobs: []ManagedJob{}, Counts: map[ManagedStatus]int{}}
	if err := json.Unmarshal(data, &p); err != nil {
		return err
	}
	*l = ManagedList(p)
	return nil
}
