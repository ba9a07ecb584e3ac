package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

type managedLogQuery struct {
	ID      int64  `path:"id" minimum:"1"`
	Element int    `query:"element" minimum:"-1" default:"-1" doc:"of an array: only this element"`
	First   int    `query:"first" minimum:"-1" default:"-1" doc:"of an array: only elements from this one on"`
	Last    int    `query:"last" minimum:"-1" default:"-1" doc:"of an array: only elements up to this one"`
	Task    string `query:"task" doc:"index or name of a task; none: all tasks, those of a pipeline in order" maxLength:"200"`
	Follow  bool   `query:"follow" doc:"go on until the job has ended"`
	Tail    int    `query:"tail" minimum:"0" maximum:"10000000" doc:"only the last lines of each node, of the latest attempt; 0: everything"`
	Cursor  string `query:"cursor" doc:"where to read on: TASK.ATTEMPT@RANK/PHASE:OFFSET,…; of an array that is not followed, with the element for the task" maxLength:"30000"`
	Batches string `query:"batches" doc:"where to read on, of an array that is followed: NODE:BATCHES;BATCH.NODE@OFFSET;…" maxLength:"100000"`
}

// taskPlace is how far the log of one task was read.
type taskPlace struct {
	attempt int // 0: nothing yet
	at      map[int]offsets
}

// parseManagedCursor reads "task.attempt@rank/phase:offset,…"; "task.attempt@" alone says that no byte of it was read.
func parseManagedCursor(s string) (map[int]*taskPlace, error) {
	out := map[int]*taskPlace{}
	if s == "" {
		return out, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		place, rest, ok1 := strings.Cut(part, "@")
		t, a, ok2 := strings.Cut(place, ".")
		task, err1 := strconv.Atoi(t)
		attempt, err2 := strconv.Atoi(a)
		if !ok1 || !ok2 || err1 != nil || err2 != nil || task < 0 || attempt < 1 {
			return nil, failure(api.ErrInvalid, "It reads TASK.ATTEMPT@RANK/PHASE:OFFSET,… such as 0.2@0/run:4096", "the cursor %q is wrong", shorten(part))
		}
		p := out[task]
		if p == nil || p.attempt < attempt {
			p = &taskPlace{attempt: attempt, at: map[int]offsets{}}
			out[task] = p
		}
		at, err := parseCursor(rest)
		if err != nil {
			return nil, err
		}
		if p.attempt > attempt {
			continue // an older attempt is past
		}
		for rank, o := range at {
			if p.at[rank] == nil {
				p.at[rank] = offsets{}
			}
			for phase, n := range o {
				p.at[rank][phase] = n
			}
		}
	}
	return out, nil
}

// managedLogs sends the log of a managed job: of its tasks in turn, or, of a group that is followed, of all at once.
func (s *Server) managedLogs(w http.ResponseWriter, r *http.Request, in *managedLogQuery) error {
	cursor, err := parseManagedCursor(in.Cursor)
	if err != nil {
		return err
	}
	ctx, cancel := s.streamContext(r.Context())
	defer cancel()
	told, stop := s.o.Store.Subscribe(store.JobTopic(in.ID))
	defer stop()
	rows, err := s.managedJob(ctx, in.ID)
	if err != nil {
		return err
	}
	out := newFrameWriter(w, api.LogFrame{JobID: in.ID})
	if len(rows) > 0 {
		out.first.JobName = rows[0].Name
		if rows, err = pickTasks(rows, in.Task); err != nil {
			return err
		}
	}
	if (in.First >= 0 || in.Last >= 0) && len(rows) > 0 {
		if err := s.elementRange(rows, in); err != nil {
			return err
		}
	}
	if in.Element >= 0 && len(rows) > 0 {
		if _, err := s.elementRow(ctx, in.ID, &elementLog{index: in.Element}); err != nil {
			return err
		}
	}
	if in.Follow {
		if err := out.begin(); err != nil {
			return nil
		}
	}
	go out.keepAlive(ctx, keepAlive)
	err = s.sendManaged(ctx, in, out, rows, cursor, told)
	cancel() // the connection is ours alone again
	if err != nil && out.hasBegun() {
		if ctx.Err() == nil || r.Context().Err() == nil {
			s.log.Info("a log stream was cut", "managed job", in.ID, "err", err)
		}
		return nil // no End frame: the reader knows, and resumes
	}
	return err
}

func (s *Server) sendManaged(ctx context.Context, in *managedLogQuery, out *frameWriter, rows []api.ManagedJob, cursor map[int]*taskPlace, told <-chan struct{}) error {
	for in.Follow && len(rows) == 0 {
		if err := s.heard(ctx, told, pollEvery); err != nil {
			return err
		}
		var err error
		if rows, err = s.managedJob(ctx, in.ID); err != nil {
			return err
		}
		if rows, err = pickTasks(rows, in.Task); err != nil {
			return err
		}
	}
	if len(rows) == 0 {
		return out.frame(api.LogFrame{End: true, JobID: in.ID, Status: api.JobStatus(api.ManagedPending)}, nil)
	}
	if in.Element >= 0 {
		return s.sendElement(ctx, in, out, cursor)
	}
	if err := s.elementRange(rows, in); err != nil {
		return err
	}
	if rows[0].Array != nil {
		return s.sendArray(ctx, in, out, rows[0], cursor, told)
	}
	past := -1 // tasks of a pipeline before the one that is read are done with
	for task := range cursor {
		past = max(past, task)
	}
	group := rows[0].Group
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for _, row := range rows {
		if !group && in.Task == "" && row.TaskID < past {
			continue
		}
		t := &taskLog{s: s, job: in.ID, jobName: row.Name, task: row.TaskID, name: row.TaskName, many: row.NumTasks > 1, follow: in.Follow, tail: in.Tail, out: out}
		if p := cursor[row.TaskID]; p != nil {
			t.attempt, t.at, t.announced = p.attempt, p.at, true
		}
		one := func() {
			if err := t.run(ctx); err != nil {
				cancel(err)
			}
		}
		if group && in.Follow {
			wg.Go(one)
		} else {
			one()
		}
		if ctx.Err() != nil {
			break
		}
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	rows, err := s.managedJob(ctx, in.ID)
	if err == nil {
		rows, err = pickTasks(rows, in.Task)
	}
	if err != nil {
		return err
	}
	status, decisive := api.ManagedState(rows)
	if in.Task != "" {
		status, decisive = rows[0].Status, rows[0]
	}
	reason := decisive.FailureReason
	if reason == "" {
		reason = decisive.Details
	}
	return out.frame(api.LogFrame{End: true, JobID: in.ID, JobName: decisive.Name, Status: api.JobStatus(status), Reason: reason}, nil)
}

// heard waits until something was told, or the time is over.
func (s *Server) heard(ctx context.Context, told <-chan struct{}, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-told:
		return nil
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// taskLog sends the log of one task, attempt after attempt: of those that are over what was kept, of the present one what
// its nodes have. How far each node was read is counted, so that what was kept goes on where a lost node's log broke off.
type taskLog struct {
	s       *Server
	job     int64
	jobName string
	task    int
	name    string
	many    bool // the job has other tasks
	follow  bool
	tail    int // of the attempt that is read first
	out     *frameWriter

	element *elementLog // of an array, instead of the task itself

	attempt   int // that is read; 0: not begun
	at        map[int]offsets
	announced bool
	cuts      map[int]bool // ranks of which was said that their log is cut
	ended     int64        // job on the cluster whose log was read to its end, of this attempt
}

func (t *taskLog) run(ctx context.Context) error {
	told, stop := t.s.o.Store.Subscribe(store.JobTopic(t.job))
	defer stop()
	for tries := 0; ; tries++ {
		row, err := t.row(ctx)
		if err != nil {
			return err
		}
		if t.attempt == 0 {
			t.attempt, t.at = 1, map[int]offsets{}
			if t.tail > 0 {
				t.attempt = max(1, row.Attempt)
			}
		}
		over := row.Status.Terminal()
		for t.attempt < row.Attempt || (over && t.attempt == row.Attempt) {
			if err := t.kept(ctx); err != nil {
				return err
			}
			t.attempt, t.at, t.announced, t.ended, t.tail, tries, t.cuts = t.attempt+1, map[int]offsets{}, false, 0, 0, 0, nil
		}
		if over {
			return nil
		}
		live := row.Status == api.ManagedRunning && row.Attempt == t.attempt && row.ClusterJobID > 0 && row.ClusterJobID != t.ended
		switch {
		case live:
			err = t.live(ctx, row)
		case row.Attempt == t.attempt && row.Status != api.ManagedRunning: // it may be over, and the next one not begun
			err = t.kept(ctx)
		}
		if err != nil {
			return err
		}
		if !t.follow {
			return nil
		}
		wait := pollEvery
		if live && t.ended != row.ClusterJobID { // its nodes can't be reached now
			wait = min(100*time.Millisecond<<min(tries, 10), pollEvery)
		}
		if err := t.s.heard(ctx, told, wait); err != nil {
			return err
		}
	}
}

func (t *taskLog) row(ctx context.Context) (api.ManagedJob, error) {
	if t.element != nil {
		return t.s.elementRow(ctx, t.job, t.element)
	}
	rows, err := t.s.managedJob(ctx, t.job)
	if err != nil {
		return api.ManagedJob{}, err
	}
	for _, r := range rows {
		if r.TaskID == t.task {
			return r, nil
		}
	}
	return api.ManagedJob{}, failure(api.ErrNotFound, "", "managed job %d has no task %d", t.job, t.task)
}

// announce says that bytes of another attempt follow.
func (t *taskLog) announce(nodes int) error {
	if t.announced {
		return nil
	}
	t.announced = true
	f := api.LogFrame{JobID: t.job, JobName: t.jobName, Task: t.task, Attempt: t.attempt, Nodes: nodes}
	if t.many {
		f.TaskName = t.name
	}
	return t.out.frame(f, nil)
}

// live forwards what the nodes of the present attempt have, and while following what they write, until the attempt is
// over. Nodes that can't be reached are no error while following.
func (t *taskLog) live(ctx context.Context, row api.ManagedJob) error {
	c, err := t.s.o.Store.Cluster(ctx, row.Cluster)
	if errors.Is(err, store.ErrNotFound) || (err == nil && row.ClusterHash != "" && c.Hash != row.ClusterHash) {
		return nil // it is gone: the row will say so
	}
	if err != nil {
		return err
	}
	nodes, err := t.s.nodes(ctx, c)
	if err != nil {
		if t.follow {
			return nil
		}
		return err
	}
	defer closeClients(nodes)
	if err := t.announce(len(nodes)); err != nil {
		return err
	}
	m := &logMerge{s: t.s, cluster: c, job: api.Job{ID: row.ClusterJobID, Name: row.TaskName}, follow: t.follow, tail: t.tail, out: t.out,
		task: t.task, attempt: t.attempt, headDone: make(chan struct{})}
	mctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if t.follow {
		go t.endWithAttempt(mctx, cancel, row)
	}
	err = m.merge(mctx, nodes, t.at)
	var p *Problem
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case t.out.gone() != nil:
		return t.out.gone()
	case err == nil:
		t.ended = row.ClusterJobID
		if t.follow { // what is kept of a lost node follows with the attempt's end
			return nil
		}
		for _, r := range m.missing {
			if err := t.out.frame(api.LogFrame{Rank: r.rank, Node: r.node, Task: t.task, Attempt: t.attempt, Cut: cutSince}, nil); err != nil {
				return err
			}
		}
		return nil
	case t.follow, errors.As(err, &p) && p.Type == api.ErrJobNotFound:
		return nil // the row tells how it goes on
	}
	return err
}

// endWithAttempt ends the reading of nodes once the attempt is over: at once if it was lost, a little later if it has
// ended, so that its last words are read.
func (t *taskLog) endWithAttempt(ctx context.Context, cancel context.CancelFunc, row api.ManagedJob) {
	told, stop := t.s.o.Store.Subscribe(store.JobTopic(t.job))
	defer stop()
	for {
		now, err := t.row(ctx)
		switch {
		case err != nil:
		case now.Status.Terminal():
			_ = t.s.heard(ctx, nil, lastWords)
			cancel()
			return
		case now.Attempt != row.Attempt, now.ClusterJobID != row.ClusterJobID, now.Status != api.ManagedRunning && now.Status != api.ManagedCancelling:
			cancel()
			return
		}
		if t.s.heard(ctx, told, pollEvery) != nil {
			return
		}
	}
}

// kept sends what was kept of the attempt's log, after what was sent of it before.
func (t *taskLog) kept(ctx context.Context) error {
	var logs []StoredLog
	var err error
	if t.element != nil {
		logs, _, err = t.s.elementKept(t.job, t.element, t.attempt)
	} else {
		logs, err = t.s.be().StoredLog(ctx, t.job, t.task, t.attempt)
	}
	if err != nil {
		return fmt.Errorf("read the kept log of attempt %d: %w", t.attempt, err)
	}
	sort.Slice(logs, func(i, k int) bool {
		a, b := logs[i], logs[k]
		return a.Rank < b.Rank || (a.Rank == b.Rank && phases[a.Phase] < phases[b.Phase])
	})
	var tails map[int]string // by rank, the phase that last lines are taken of
	if t.tail > 0 && !t.began() {
		tails = map[int]string{}
		for _, l := range logs {
			if l.Cut == "" {
				tails[l.Rank] = l.Phase
			}
		}
	}
	nodes := 0
	for _, l := range logs {
		nodes = max(nodes, l.Rank+1)
	}
	for _, l := range logs {
		if l.Cut != "" {
			continue
		}
		at := t.at[l.Rank]
		if at == nil {
			at = offsets{}
			t.at[l.Rank] = at
		}
		from, _, wanted := at.wants(l.Phase)
		if !wanted || (tails != nil && tails[l.Rank] != l.Phase) {
			continue
		}
		if err := t.keptFile(ctx, l, at, from, nodes, tails != nil); err != nil {
			return err
		}
	}
	for _, l := range logs {
		if l.Cut == "" || t.cuts[l.Rank] {
			continue
		}
		if err := t.announce(nodes); err != nil {
			return err
		}
		if err := t.out.frame(api.LogFrame{Rank: l.Rank, Node: api.NodeName(l.Rank), Task: t.task, Attempt: t.attempt, Cut: l.Cut}, nil); err != nil {
			return err
		}
		if t.cuts == nil {
			t.cuts = map[int]bool{}
		}
		t.cuts[l.Rank] = true
	}
	return nil
}

// began says that bytes of the attempt were sent.
func (t *taskLog) began() bool {
	for _, at := range t.at {
		if len(at) > 0 {
			return true
		}
	}
	return false
}

func (t *taskLog) keptFile(ctx context.Context, l StoredLog, at offsets, from int64, nodes int, tail bool) error {
	f, err := l.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	if tail {
		if err := seekTail(f, t.tail); err != nil {
			return err
		}
		if from, err = f.Seek(0, io.SeekCurrent); err != nil {
			return err
		}
	} else if _, err := f.Seek(from, io.SeekStart); err != nil {
		return err
	}
	node := api.NodeName(l.Rank)
	buf := make([]byte, 64<<10)
	for ctx.Err() == nil {
		n, err := f.Read(buf)
		if n > 0 {
			if err := t.announce(nodes); err != nil {
				return err
			}
			if err := t.out.frame(api.LogFrame{Rank: l.Rank, Node: node, Phase: l.Phase, Offset: from, Task: t.task, Attempt: t.attempt}, buf[:n]); err != nil {
				return err
			}
			from += int64(n)
			at[l.Phase] = from
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}
