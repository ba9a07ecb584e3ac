package jobs

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/events"
	"github.com/skyloom/skyloom/cli/follow"
	"github.com/skyloom/skyloom/cli/session"
)

// EventsOptions is `sky jobs events`.
type EventsOptions struct {
	JobID  int64
	Follow bool
	Limit  int // newest events; 0: all
	Output string
}

// NewEvents makes `sky jobs events`.
func NewEvents(s *session.Session, run func(context.Context, *session.Session, *EventsOptions) error) *cobra.Command {
	o := &EventsOptions{}
	if run == nil {
		run = Events
	}
	cmd := &cobra.Command{
		Use:   "events JOB_ID",
		Short: "Show what happened to a managed job, and why",
		Long: `Show the story of a managed job: its attempts, where they ran, why each ended, what it
waited for and when the next try is.`,
		Example:           "  sky jobs events 7\n  sky jobs events 7 -f\n  sky jobs events 7 -o json",
		ValidArgsFunction: completeJob(s, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return session.Usagef("exactly one managed job: sky jobs events JOB_ID")
			}
			ids, err := api.ParseIDs(args[0])
			if err != nil || len(ids) != 1 {
				return session.Usagef("%q is no job id; a job id is a number, see: sky jobs queue", args[0])
			}
			if o.Limit < 0 {
				return session.Usagef("--limit must be 0 or more")
			}
			o.JobID = ids[0]
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.Follow, "follow", "f", false, "go on with what happens, until the job has ended")
	fs.IntVarP(&o.Limit, "limit", "l", 0, "only the last `N`; 0 is all")
	addOutput(fs, &o.Output)
	return cmd
}

// errOver ends the following of a job that has ended.
var errOver = errors.New("over")

// Events shows the story of a managed job.
func Events(ctx context.Context, s *session.Session, o *EventsOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	// How it stands is read before its events: what was written together with its end is seen.
	over, notices, err := ended(ctx, c, o.JobID)
	if err != nil {
		return notFound(s, err)
	}
	list, err := c.ManagedEvents(ctx, o.JobID, 0, o.Limit)
	if err != nil {
		return notFound(s, err)
	}
	if o.Output == "json" && !o.Follow {
		if list == nil {
			list = []api.Event{}
		}
		return s.PrintJSON(list)
	}
	p := events.NewPrinter(s, o.Output == "json")
	var after int64
	for _, e := range list {
		if err := p.Print(e); err != nil {
			return err
		}
		after = max(after, e.ID)
	}
	if !o.Follow {
		if len(list) == 0 {
			s.IO.Notef("No events.")
		}
		if notices != nil {
			s.IO.Notef("Notifications: %d delivered, %d dropped, %d waiting", notices.Delivered, notices.Dropped, notices.Waiting)
		}
		return nil
	}
	if over {
		return nil
	}
	err = c.FollowManagedEvents(ctx, o.JobID, after, 0, func(e api.Event) error {
		if err := p.Print(e); err != nil {
			return err
		}
		if e.Kind == api.EventStatus {
			if over, _, err := ended(ctx, c, o.JobID); err == nil && over {
				return errOver
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, errOver):
		return nil
	case ctx.Err() != nil:
		return session.Exit(follow.ExitInterrupted)
	}
	return err
}

// ended says that all tasks of a job have ended, and what became of its notifications. A job whose rows are not written yet has not.
func ended(ctx context.Context, c *api.Client, id int64) (over bool, notices *api.NoticeCounts, err error) {
	l, err := c.ManagedJobs(ctx, api.ManagedFilter{IDs: []int64{id}})
	if err != nil {
		return false, nil, err
	}
	over = len(l.Jobs) > 0
	for _, r := range l.Jobs {
		over, notices = over && r.Status.Terminal(), r.Notices
	}
	return over, notices, nil
}

// notFound gives the exit code of an unknown job.
func notFound(s *session.Session, err error) error {
	var ae *api.Error
	if errors.As(err, &ae) && ae.Kind == api.ErrJobNotFound {
		s.IO.Notef("%s", s.IO.ErrStyle(session.Red, ae.Error()))
		return session.Exit(api.ExitNotFound)
	}
	return err
}
