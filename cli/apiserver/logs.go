package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/events"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/follow"
	"github.com/skyloom/skyloom/cli/session"
)

// LogsOptions is `sky api logs`.
type LogsOptions struct {
	Request    string
	ServerLogs bool
	Tail       int // lines or events; 0: all
	Follow     bool
}

// NewLogs makes `sky api logs`.
func NewLogs(s *session.Session, run func(context.Context, *session.Session, *LogsOptions) error) *cobra.Command {
	o := &LogsOptions{}
	if run == nil {
		run = Logs
	}
	var logPath string
	cmd := &cobra.Command{
		Use:   "logs [REQUEST]",
		Short: "Show the log of a request, or the server's own",
		Long: `Show the log of a request, given by its id or the beginning of it, or the server's own.
Exit code: 1 if the request failed or was cancelled.`,
		Example:           "  sky api logs 1f2e3d4c\n  sky api logs --server-logs --tail 100",
		ValidArgsFunction: completeRequests(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			if logPath != "" {
				return fmt.Errorf("--log-path: this server keeps no log files of requests\nThe log of a request: sky api logs REQUEST; of a job: sky logs CLUSTER JOB")
			}
			if (len(args) == 1) == o.ServerLogs || len(args) > 1 {
				return session.Usagef("either one request or --server-logs")
			}
			if o.Tail < 0 {
				return session.Usagef("--tail must be 0 or more")
			}
			if len(args) == 1 {
				o.Request = args[0]
			}
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&o.ServerLogs, "server-logs", false, "the server's own log")
	fs.StringVarP(&logPath, "log-path", "l", "", "")
	fs.Lookup("log-path").Hidden = true
	fs.IntVar(&o.Tail, "tail", 0, "begin with the last `N` lines; 0 is all")
	flags.Pair(fs, &o.Follow, "follow", "", true, "go on until the request ends")
	return cmd
}

// Logs shows a log.
func Logs(ctx context.Context, s *session.Session, o *LogsOptions) error {
	if o.ServerLogs {
		return serverLog(ctx, s, o)
	}
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	r, err := c.Request(ctx, o.Request, 0)
	if err != nil {
		return err
	}
	list, err := c.Events(ctx, api.EventFilter{Request: r.ID, Limit: o.Tail})
	if err != nil {
		return err
	}
	var after int64
	show := func(e api.Event) error {
		if e.Kind != api.EventDone {
			s.IO.Printf("%s\n", events.Line(s, e, false))
		}
		return nil
	}
	for _, e := range list {
		after = max(after, e.ID)
		_ = show(e)
	}
	if o.Follow && !r.Status.Terminal() {
		if r, err = c.FollowRequest(ctx, r.ID, after, show); err != nil {
			if ctx.Err() != nil {
				return session.Exit(follow.ExitInterrupted)
			}
			return err
		}
	}
	if !r.Status.Terminal() {
		return nil
	}
	if text := outcome(r); text != "" {
		s.IO.Printf("%s\n", text)
	}
	s.IO.Notef("%s %s: %s", r.Name, follow.Short(r.ID), r.Status)
	return follow.Outcome(r)
}

// outcome is what a request has brought that its events don't tell, "" for nothing.
func outcome(r *api.Request) string {
	switch r.Name {
	case "sky.jobs.launch":
		res, err := follow.Result[api.JobsLaunchResult](r)
		switch {
		case err != nil:
		case res.Schedule != nil:
			return fmt.Sprintf("Schedule %d made: %s", res.Schedule.ID, res.Schedule.Name)
		case len(res.JobIDs) == 1:
			return fmt.Sprintf("Managed job submitted, ID: %d", res.JobIDs[0])
		case len(res.JobIDs) > 1:
			return fmt.Sprintf("Managed jobs submitted, IDs: %s (%d jobs)", api.FormatIDs(res.JobIDs), len(res.JobIDs))
		}
	case "sky.cancel":
		res, err := follow.Result[api.OpResult](r)
		switch {
		case err != nil:
		case len(res.JobIDs) > 0:
			return "Cancelled jobs: " + api.FormatIDs(res.JobIDs)
		default:
			return res.Message
		}
	}
	return ""
}

// serverLog asks the server; when it doesn't run its file is read.
func serverLog(ctx context.Context, s *session.Session, o *LogsOptions) error {
	c, err := s.Running(ctx)
	if err != nil {
		return err
	}
	if c != nil {
		err := c.ServerLog(ctx, o.Tail, o.Follow, s.IO.Out)
		if ctx.Err() != nil {
			return session.Exit(follow.ExitInterrupted)
		}
		return err
	}
	d, err := s.Daemon()
	if err != nil {
		return err
	}
	f, err := os.Open(d.LogPath())
	if errors.Is(err, os.ErrNotExist) {
		return errors.New("the server has never run here, so there is no log\nStart it: sky api start")
	}
	if err != nil {
		return err
	}
	defer f.Close()
	s.IO.Notef("The server does not run; this is what it left in %s", d.LogPath())
	if o.Tail > 0 {
		if err := seekTail(f, o.Tail); err != nil {
			return err
		}
	}
	_, err = io.Copy(s.IO.Out, f)
	return err
}

// seekTail moves to the beginning of the last n lines.
func seekTail(f *os.File, n int) error {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	buf := make([]byte, 32<<10)
	pos, left := end, n
	for pos > 0 {
		k := min(int64(len(buf)), pos)
		pos -= k
		if _, err := f.ReadAt(buf[:k], pos); err != nil {
			return err
		}
		for i := k - 1; i >= 0; i-- {
			if buf[i] != '\n' || pos+i == end-1 {
				continue
			}
			if left--; left == 0 {
				_, err = f.Seek(pos+i+1, io.SeekStart)
				return err
			}
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}
