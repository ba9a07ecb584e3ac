package follow

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/console"
	"github.com/skyloom/skyloom/cli/joblog"
	"github.com/skyloom/skyloom/cli/session"
)

// How long a log must be silent before it is asked why, and how often it is asked again: while the job waits, and while it
// has nothing to say.
const (
	lullFirst   = time.Second
	lullWaiting = 2 * time.Second
	lullSilent  = 10 * time.Second
)

// Lull tells what the job of a followed log waits for while nothing of the log comes: on a terminal in one moving line,
// else in a plain line whenever it changes. It asks on connections of its own, which are given up at once when something
// is wrong with them: the log itself tells of that. Its methods may be called from any goroutine.
type Lull struct {
	s    *session.Session
	p    *joblog.Printer
	look func(context.Context, *api.Client) (string, error)

	mu     sync.Mutex
	pieces int // of the log, so far
	live   *console.Live
	told   string
	cancel context.CancelFunc
	done   chan struct{}
}

// NewLull begins to watch a log that p prints. look says what its job waits for, "" for nothing.
func NewLull(ctx context.Context, s *session.Session, p *joblog.Printer, look func(context.Context, *api.Client) (string, error)) *Lull {
	l := &Lull{s: s, p: p, look: look, done: make(chan struct{})}
	ctx, l.cancel = context.WithCancel(ctx)
	go l.run(ctx)
	return l
}

// Piece is called around the printing of a piece of the log.
func (l *Lull) Piece(print func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pieces++
	if l.live != nil {
		l.live.Drop()
	}
	return print()
}

// Close ends the watching.
func (l *Lull) Close() {
	l.cancel()
	<-l.done
	if l.live != nil {
		l.live.Close()
		l.live = nil
	}
}

func (l *Lull) run(ctx context.Context) {
	defer close(l.done)
	t := time.NewTimer(lullFirst)
	defer t.Stop()
	var c *api.Client
	seen := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		l.mu.Lock()
		silent := l.pieces == seen
		seen = l.pieces
		l.mu.Unlock()
		if silent || seen == 1 { // the first piece only names the job
			if c == nil {
				c, _ = l.s.Running(ctx)
			}
			if c != nil && l.ask(ctx, c, seen) != nil {
				c = nil
			}
		}
		next := lullSilent
		if l.told != "" || c == nil {
			next = lullWaiting
		}
		t.Reset(next)
	}
}

func (l *Lull) ask(ctx context.Context, c *api.Client, before int) error {
	text, err := l.look(ctx, c)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil || ctx.Err() != nil || l.pieces != before { // it is out of date
		return err
	}
	switch {
	case text == "":
		if l.live != nil {
			l.live.Drop()
		}
	case !l.s.IO.Moving:
		if text != l.told {
			_ = l.p.Close() // a half line
			l.s.IO.Notef("%s", text)
		}
	default:
		_ = l.p.Close()
		if l.live == nil {
			l.live = l.s.IO.StartLive(l.s.Now)
		}
		l.live.Update(text, false)
	}
	l.told = text
	return nil
}

// jobWaits says what a job of a cluster waits for; id 0 means the latest.
func jobWaits(cluster string, id int64) func(context.Context, *api.Client) (string, error) {
	return func(ctx context.Context, c *api.Client) (string, error) {
		lists, err := c.Jobs(ctx, api.JobFilter{Clusters: []string{cluster}, SkipFinished: true, AllUsers: true})
		if err != nil {
			return "", err
		}
		var job *api.Job
		jobs := lists.Clusters[cluster]
		for i, j := range jobs {
			if j.ID == id || id == 0 && (job == nil || j.ID > job.ID) {
				job = &jobs[i]
			}
		}
		if job == nil || job.Status != api.JobInit && job.Status != api.JobPending {
			return "", nil
		}
		text := fmt.Sprintf("Job %d is %s", job.ID, job.Status)
		var before []int64
		for _, j := range jobs {
			if j.ID < job.ID {
				before = append(before, j.ID)
			}
		}
		switch {
		case job.Reason != "":
			text += ": " + job.Reason
		case len(before) == 1:
			text += fmt.Sprintf(": job %d comes before it", before[0])
		case len(before) > 1:
			text += fmt.Sprintf(": jobs %s come before it", api.FormatIDs(before))
		}
		return text, nil
	}
}
