// Package follow waits for requests and shows what they do.
//
// Interrupting the wait never cancels the request: the person is told how to follow and how to cancel it.
package follow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/joblog"
	"github.com/skyloom/skyloom/cli/session"
)

// ExitInterrupted is the exit code after Ctrl-C.
const ExitInterrupted = 130

// Hints prints, on Out or Err, the three ways to go on with a request.
func Hints(c *api.Client, id string, printf func(string, ...any)) {
	short := Short(id)
	printf("  To see its log:    sky api logs %s\n", short)
	printf("  To stream it:      %s/api/v1/requests/%s/events\n", c.Endpoint(), short)
	printf("  To cancel it:      sky api cancel %s\n", short)
}

// Short is the part of a request id that people see.
func Short(id string) string { return id[:min(8, len(id))] }

// Submitted tells of a request that nobody waits for.
func Submitted(s *session.Session, c *api.Client, ref *api.Ref) {
	s.IO.Printf("Submitted %s request: %s\n", ref.Name, ref.RequestID)
	Hints(c, ref.RequestID, s.IO.Printf)
}

// Interrupted tells of a request whose waiting was interrupted, and returns what to exit with.
func Interrupted(s *session.Session, c *api.Client, ref *api.Ref) error {
	s.IO.Notef("")
	s.IO.Warnf("The %s request goes on: %s", ref.Name, ref.RequestID)
	Hints(c, ref.RequestID, func(f string, a ...any) { s.IO.Notef(f, a...) })
	return session.Exit(ExitInterrupted)
}

// Options say how a request is shown.
type Options struct {
	// Quiet shows nothing but warnings; used when several requests are followed at once.
	Quiet bool
	// ShownPlan is the hash of a plan that the person has seen already.
	ShownPlan string
	// Plan shows a plan that came as an event.
	Plan func(*api.Plan)
}

// Wait follows a request to its end, shows its events, and returns it. A failed or cancelled request comes back with
// its *api.Error. After an interruption the hints are printed.
func Wait(ctx context.Context, s *session.Session, c *api.Client, ref *api.Ref, o Options) (*api.Request, error) {
	p := &progress{s: s, o: o}
	if !o.Quiet {
		p.live = s.IO.StartLive(s.Now)
		defer p.live.Close()
		p.live.Update(fmt.Sprintf("Request %s (%s)", Short(ref.RequestID), ref.Name), false)
	}
	r, err := c.FollowRequest(ctx, ref.RequestID, 0, p.event)
	if err != nil {
		if ctx.Err() != nil {
			if p.live != nil {
				p.live.Close()
			}
			if o.Quiet {
				return nil, ctx.Err()
			}
			return nil, Interrupted(s, c, ref)
		}
		var gone *api.Unreachable
		if errors.As(err, &gone) {
			return nil, fmt.Errorf("%w\nThe request %s is not lost; follow it later: sky api logs %s", err, Short(ref.RequestID), Short(ref.RequestID))
		}
		return nil, err
	}
	if p.live != nil {
		if !p.began {
			p.live.Drop()
		}
		if r.Status == api.RequestSucceeded {
			p.live.Done("")
		} else {
			p.live.Fail()
		}
	}
	return r, Outcome(r)
}

// Outcome is the error of a request that has ended, nil if it succeeded.
func Outcome(r *api.Request) error {
	if r.Status == api.RequestSucceeded {
		return nil
	}
	if r.Error != nil {
		return r.Error
	}
	if r.Status == api.RequestCancelled {
		return &api.Error{Kind: api.ErrCancelled, Message: fmt.Sprintf("the request %s was cancelled", Short(r.ID))}
	}
	return &api.Error{Kind: api.ErrInternal, Message: fmt.Sprintf("the request %s ended as %s without saying why", Short(r.ID), r.Status),
		Hint: "See: sky events " + Short(r.ID)}
}

// Result decodes the result of a request that succeeded.
func Result[T any](r *api.Request) (T, error) {
	var v T
	if len(r.Result) == 0 {
		return v, nil
	}
	if err := json.Unmarshal(r.Result, &v); err != nil {
		return v, fmt.Errorf("the result of request %s can't be read: %w", Short(r.ID), err)
	}
	return v, nil
}

// progress turns events into lines.
type progress struct {
	s    *session.Session
	o    Options
	step string
	live interface {
		Step(string)
		Update(string, bool)
		Done(string)
		Fail()
		Drop()
		Close()
	}
	began bool // something better than the request's name is shown
}

func (p *progress) event(e api.Event) error {
	if p.live == nil {
		return nil
	}
	if !p.began {
		p.began = true
		p.live.Drop()
	}
	msg := strings.TrimRight(e.Message, "\n")
	switch e.Kind {
	case api.EventStep:
		if e.Attempt > 1 {
			msg += fmt.Sprintf(" (attempt %d)", e.Attempt)
		}
		if msg == "" {
			msg = e.Step
		}
		if e.Step != "" && e.Step == p.step {
			p.live.Update(msg, true)
		} else {
			p.live.Step(msg)
		}
		p.step = e.Step
	case api.EventStatus:
		if msg != "" {
			p.live.Update(msg, true)
		}
	case api.EventError:
		p.s.IO.Notef("%s", p.s.IO.ErrStyle(session.Red, msg))
	case api.EventRetry:
		p.live.Update(RetryText(p.s.Now(), msg, e.NextRetry), true)
	case api.EventPlan:
		var plan api.Plan
		if json.Unmarshal(e.Data, &plan) == nil && plan.Hash != p.o.ShownPlan && p.o.Plan != nil {
			p.o.Plan(&plan)
		}
	default:
		if msg != "" {
			p.s.IO.Notef("%s", msg)
		}
	}
	return nil
}

// RetryText is a retry event's line: why, and when the next try is.
func RetryText(now time.Time, msg string, next *time.Time) string {
	if next == nil {
		return msg
	}
	d := next.Sub(now).Round(time.Second)
	switch {
	case d < time.Second:
		return msg + "; trying again now"
	case strings.Contains(msg, "next try"): // it says when
		return fmt.Sprintf("%s (in %s)", msg, d)
	}
	return fmt.Sprintf("%s; trying again in %s (at %s)", msg, d, next.Local().Format("15:04:05"))
}

// LogOptions say which part of a job's log is shown.
type LogOptions struct {
	JobID  int64 // 0: the latest
	Follow bool
	Tail   int // lines per node; 0: all
	// Note is told before the first line, if there is a log at all.
	Note string
}

// Logs shows the log of a job and returns what its end means as an exit code.
func Logs(ctx context.Context, s *session.Session, c *api.Client, cluster string, o LogOptions) (int, error) {
	var style func(string) string
	if s.IO.OutColor {
		style = func(t string) string { return s.IO.OutStyle(session.Cyan, t) }
	}
	p := joblog.New(s.IO.Out, style)
	piece := func(print func() error) error { return print() }
	quiet := func() {}
	if o.Follow {
		l := NewLull(ctx, s, p, jobWaits(cluster, o.JobID))
		piece, quiet = l.Piece, l.Close
	}
	note := o.Note
	end, err := c.JobLogs(ctx, cluster, api.LogFilter{JobID: o.JobID, Follow: o.Follow, Tail: o.Tail}, func(ch api.LogChunk) error {
		return piece(func() error {
			if note != "" {
				s.IO.Notef("%s", s.IO.ErrStyle(session.Dim, note))
				note = ""
			}
			if ch.Lost > 0 {
				s.IO.Warnf("%d bytes of the log of rank %d are no longer there.", ch.Lost, ch.Rank)
			}
			if ch.Cut != "" {
				return CutNote(s, p, ch)
			}
			return p.Write(ch)
		})
	})
	quiet()
	if cerr := p.Close(); err == nil && cerr != nil {
		err = cerr
	}
	if err != nil {
		if ctx.Err() != nil {
			s.IO.Notef("")
			s.IO.Warnf("The job goes on. To see its log again: sky logs %s%s", cluster, jobArg(end))
			s.IO.Notef("To cancel it: sky cancel %s%s", cluster, jobArg(end))
			return ExitInterrupted, nil
		}
		var ae *api.Error
		if errors.As(err, &ae) && ae.Kind == api.ErrJobNotFound {
			s.IO.Notef("%s", s.IO.ErrStyle(session.Red, ae.Error()))
			return api.ExitNotFound, nil
		}
		if errors.Is(err, os.ErrClosed) {
			return 1, nil
		}
		return 1, err
	}
	if end.Status.Terminal() {
		mark := s.IO.ErrStyle(session.Green, "✓")
		if end.Status != api.JobSucceeded {
			mark = s.IO.ErrStyle(session.Red, "✗")
		}
		line := fmt.Sprintf("%s Job %d ended: %s", mark, end.JobID, end.Status)
		if end.Reason != "" && end.Status != api.JobSucceeded && !strings.EqualFold(end.Reason, string(end.Status)) {
			line += " (" + end.Reason + ")"
		}
		s.IO.Notef("%s", line)
	}
	if !o.Follow && !end.Status.Terminal() {
		return api.ExitNotFinished, nil
	}
	return end.Status.ExitCode(), nil
}

// CutNote tells that a node's log may end before its end.
func CutNote(s *session.Session, p *joblog.Printer, ch api.LogChunk) error {
	if err := p.Close(); err != nil {
		return err
	}
	s.IO.Notef("%s", s.IO.ErrStyle(session.Dim, fmt.Sprintf("── the log of %s may be cut here: %s ──", ch.Node, ch.Cut)))
	return nil
}

func jobArg(e *api.LogEnd) string {
	if e == nil || e.JobID == 0 {
		return ""
	}
	return fmt.Sprintf(" %d", e.JobID)
}
