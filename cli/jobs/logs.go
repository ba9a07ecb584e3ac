package jobs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/follow"
	"github.com/skyloom/skyloom/cli/joblog"
	"github.com/skyloom/skyloom/cli/session"
)

// LogsOptions is `sky jobs logs`.
type LogsOptions struct {
	JobID      int64 // 0: the latest
	Name       string
	Task       string
	Follow     bool
	Controller bool
	SyncDown   bool
	Tail       int // 0: everything
	// Elements are those of an array from the first to the last (below 0: to the end); nil: all of them.
	Elements *[2]int
}

// NewLogs makes `sky jobs logs`.
func NewLogs(s *session.Session, run func(context.Context, *session.Session, *LogsOptions) error) *cobra.Command {
	o := &LogsOptions{}
	var element string
	if run == nil {
		run = Logs
	}
	cmd := &cobra.Command{
		Use:   "logs [JOB_ID] [TASK]",
		Short: "Show the log of a managed job",
		Long: `Show the log of a managed job, of your latest one when none is given: that of all its
attempts, and what comes. TASK is the number or name of a task of a pipeline or group.
Logs stay readable when the cluster is gone.

The log of an array is the output of its elements, each line with the element's number:
while following as it comes, a few seconds late, else by element. --element shows one at
once, or some: 17, 0-99 or 100-.

Exit code: 0 the job succeeded, 100 it failed, 101 it has not ended, 102 there is no
such job, 103 it was cancelled.`,
		Example:           "  sky jobs logs\n  sky jobs logs 7 --no-follow --tail 20\n  sky jobs logs 8 eval\n  sky jobs logs 7 --sync-down\n  sky jobs logs 9 --element 17\n  sky jobs logs 9 --element 0-99 --sync-down",
		ValidArgsFunction: completeJob(s, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 2 || (o.Name != "" && len(args) > 1) {
				return session.Usagef("too many words: sky jobs logs [JOB_ID] [TASK]")
			}
			if o.Name == "" && len(args) > 0 {
				ids, err := api.ParseIDs(args[0])
				if err != nil || len(ids) != 1 {
					return session.Usagef("%q is no job id; a job id is a number, see: sky jobs queue. By name: sky jobs logs -n NAME", args[0])
				}
				o.JobID, args = ids[0], args[1:]
			}
			if len(args) > 0 {
				if o.Task = args[0]; o.Task == "" {
					return session.Usagef("the task is empty")
				}
			}
			if cmd.Flags().Changed("element") {
				first, last, err := elementRange("--element", element)
				if err != nil {
					return err
				}
				o.Elements = &[2]int{first, last}
			}
			switch {
			case o.SyncDown && o.Controller:
				return session.Usagef("--sync-down and --controller can't be combined; to keep the story: sky jobs events ID -o json")
			case o.Elements != nil && (o.Task != "" || o.Controller):
				return session.Usagef("--element does not go with a task or --controller")
			case o.SyncDown && cmd.Flags().Changed("tail"):
				return session.Usagef("--sync-down and --tail can't be combined")
			case o.Tail < 0:
				return session.Usagef("--tail must be 0 or more")
			}
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&o.Name, "name", "n", "", "the latest job of that `NAME`")
	flags.Pair(fs, &o.Follow, "follow", "", true, "go on until the job ends")
	fs.BoolVar(&o.Controller, "controller", false, "what was done for the job, as sky jobs events shows it")
	refreshIgnored(fs)
	fs.BoolVarP(&o.SyncDown, "sync-down", "s", false, "download the logs of all attempts to ~/sky_logs")
	fs.IntVar(&o.Tail, "tail", 0, "only the last `N` lines of the latest attempt (of an array, of each element that runs, or with --no-follow of each), and what comes; 0 is everything")
	fs.StringVar(&element, "element", "", "of an array: the log of one element, or of a range: `INDEX`, 0-99 or 100-")
	completeName(cmd, s)
	return cmd
}

// Logs shows or downloads the log of a managed job.
func Logs(ctx context.Context, s *session.Session, o *LogsOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	if o.JobID == 0 {
		rows, err := latest(ctx, s, c, o.Name)
		if err != nil {
			return err
		}
		if len(rows) == 0 {
			if o.Name != "" {
				s.IO.Warnf("No managed job is called %s. All of them: sky jobs queue -u -a", session.Quote(o.Name))
			} else {
				s.IO.Warnf("You have no managed jobs.")
			}
			return session.Exit(api.ExitNotFound)
		}
		o.JobID = rows[0].ID
	}
	switch {
	case o.Controller:
		return Events(ctx, s, &EventsOptions{JobID: o.JobID, Follow: o.Follow, Limit: o.Tail, Output: "table"})
	case o.SyncDown:
		return syncDown(ctx, s, c, o)
	}
	f := o.filter()
	f.Follow, f.Tail = o.Follow, o.Tail
	code, err := tail(ctx, s, c, o.JobID, f)
	if err != nil {
		return err
	}
	return session.Exit(code)
}

// filter selects what is shown or downloaded.
func (o *LogsOptions) filter() api.ManagedLogFilter {
	f := api.ManagedLogFilter{Task: o.Task}
	if e := o.Elements; e != nil && e[0] == e[1] && !o.SyncDown {
		f.Element = &e[0]
	} else {
		f.Elements = e
	}
	return f
}

// tail shows a job's log and returns what its state means as an exit code.
func tail(ctx context.Context, s *session.Session, c *api.Client, id int64, f api.ManagedLogFilter) (int, error) {
	var style func(string) string
	if s.IO.OutColor {
		style = func(t string) string { return s.IO.OutStyle(session.Cyan, t) }
	}
	what := fmt.Sprintf("Managed job %d", id)
	switch {
	case f.Task != "":
		what = fmt.Sprintf("Task %s of managed job %d", f.Task, id)
	case f.Element != nil:
		what = fmt.Sprintf("Element %d of managed job %d", *f.Element, id)
	case f.Elements != nil:
		what = fmt.Sprintf("Elements %s of managed job %d", rangeText(*f.Elements), id)
	}
	p := joblog.New(s.IO.Out, style)
	show := func(ch api.LogChunk) error { return show(s, p, ch) }
	quiet := func() {}
	if f.Follow && f.Element == nil && f.Elements == nil {
		l := follow.NewLull(ctx, s, p, waits(s, id, f.Task))
		plain := show
		show = func(ch api.LogChunk) error { return l.Piece(func() error { return plain(ch) }) }
		quiet = l.Close
	}
	end, err := c.ManagedLogs(ctx, id, f, show)
	quiet()
	if cerr := p.Close(); err == nil && cerr != nil {
		err = cerr
	}
	if err != nil {
		if ctx.Err() != nil {
			s.IO.Notef("")
			s.IO.Warnf("The job goes on. To see its log again: sky jobs logs %d", id)
			s.IO.Notef("To cancel it: sky jobs cancel %d", id)
			return follow.ExitInterrupted, nil
		}
		var ae *api.Error
		if errors.As(err, &ae) && (ae.Kind == api.ErrJobNotFound || ae.Kind == api.ErrNotFound) {
			s.IO.Notef("%s", s.IO.ErrStyle(session.Red, ae.Error()))
			return api.ExitNotFound, nil
		}
		if errors.Is(err, os.ErrClosed) {
			return 1, nil
		}
		return 1, err
	}
	reason := ""
	if end.Reason != "" && end.Status != api.ManagedSucceeded && !strings.EqualFold(end.Reason, string(end.Status)) {
		reason = " (" + end.Reason + ")"
	}
	switch {
	case f.Elements != nil:
		s.IO.Notef("%s: %s%s", what, end.Status, reason)
	case end.Status == api.ManagedSucceeded:
		s.IO.Notef("%s %s ended: %s", s.IO.ErrStyle(session.Green, "✓"), what, end.Status)
	case end.Status.Terminal():
		s.IO.Notef("%s %s ended: %s%s", s.IO.ErrStyle(session.Red, "✗"), what, end.Status, reason)
	default:
		s.IO.Notef("%s is %s%s", what, end.Status, reason)
	}
	return end.Status.ExitCode(), nil
}

// show prints one piece of a job's log.
func show(s *session.Session, p *joblog.Printer, ch api.LogChunk) error {
	if ch.Lost > 0 {
		s.IO.Warnf("%d bytes of the log of rank %d are no longer there.", ch.Lost, ch.Rank)
	}
	if ch.Cut != "" {
		return follow.CutNote(s, p, ch)
	}
	if len(ch.Data) == 0 && ch.Attempt > 0 && ch.Element == nil {
		if err := p.Close(); err != nil {
			return err
		}
		if head := heading(ch.LogFrame); head != "" {
			s.IO.Notef("%s", s.IO.ErrStyle(session.Dim, head))
		}
	}
	return p.Write(ch)
}

// waits says what a managed job, or one task of it, waits for while it does not run.
func waits(s *session.Session, id int64, task string) func(context.Context, *api.Client) (string, error) {
	return func(ctx context.Context, c *api.Client) (string, error) {
		l, err := c.ManagedJobs(ctx, api.ManagedFilter{IDs: []int64{id}})
		if err != nil {
			return "", err
		}
		rows := l.Jobs
		for i, r := range rows {
			if task != "" && (r.TaskName == task || strconv.Itoa(r.TaskID) == task) {
				rows = rows[i : i+1]
				break
			}
		}
		status, row := api.ManagedState(rows)
		switch status {
		case api.ManagedPending, api.ManagedStarting, api.ManagedRecovering, api.ManagedCancelling:
		default:
			return "", nil
		}
		text := fmt.Sprintf("Managed job %d is %s", id, status)
		if len(rows) > 1 {
			text = fmt.Sprintf("Managed job %d, task %d (%s) is %s", id, row.TaskID, row.TaskName, status)
		}
		if row.NextRetry != nil {
			text += ", next try at " + row.NextRetry.Local().Format("15:04:05")
		}
		if why := strings.TrimSpace(row.Details); why != "" {
			text += ": " + strings.ReplaceAll(why, "\n", " ")
		}
		return text, nil
	}
}

// heading names the attempt that begins; the first one of a job's only task needs no name.
func heading(f api.LogFrame) string {
	switch {
	case f.TaskName != "" && f.Attempt > 1:
		return fmt.Sprintf("── task %d (%s), attempt %d ──", f.Task, f.TaskName, f.Attempt)
	case f.TaskName != "":
		return fmt.Sprintf("── task %d (%s) ──", f.Task, f.TaskName)
	case f.Attempt > 1:
		return fmt.Sprintf("── attempt %d ──", f.Attempt)
	}
	return ""
}
