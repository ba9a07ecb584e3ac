package jobs

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/session"
)

// SchedulesFireOptions is `sky jobs schedules trigger` and `backfill`.
type SchedulesFireOptions struct {
	Name    string // or number
	Overlap string
	// From and To bound a backfill; nil: this is a trigger.
	From, To *time.Time
	Output   string
}

// firingWait is how long a triggered firing's jobs are waited for.
const firingWait = 30 * time.Second

func addOverlap(cmd *cobra.Command, o *SchedulesFireOptions, without string) {
	words := make([]string, len(api.Overlaps))
	for i, p := range api.Overlaps {
		words[i] = strings.ReplaceAll(string(p), "_", "-")
	}
	flags.Choice(cmd.Flags(), &o.Overlap, "overlap", "", "", words, "what happens when the jobs of an earlier firing still run; default "+without)
	addOutput(cmd.Flags(), &o.Output)
}

// NewSchedulesTrigger makes `sky jobs schedules trigger`.
func NewSchedulesTrigger(s *session.Session, run func(context.Context, *session.Session, *SchedulesFireOptions) error) *cobra.Command {
	o := &SchedulesFireOptions{}
	if run == nil {
		run = SchedulesTrigger
	}
	cmd := &cobra.Command{
		Use:   "trigger ID|NAME",
		Short: "Have a schedule fire now",
		Long: `Have a schedule fire now, besides its times; a paused one does too. Its overlap policy
holds for this firing as for any other, unless --overlap says otherwise.`,
		Example: "  sky jobs schedules trigger nightly\n  sky jobs schedules trigger 3 --overlap allow-all",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return session.Usagef("exactly one schedule: sky jobs schedules trigger ID|NAME")
			}
			o.Name = args[0]
			return run(cmd.Context(), s, o)
		},
	}
	addOverlap(cmd, o, "the schedule's own")
	return cmd
}

// NewSchedulesBackfill makes `sky jobs schedules backfill`.
func NewSchedulesBackfill(s *session.Session, run func(context.Context, *session.Session, *SchedulesFireOptions) error) *cobra.Command {
	o := &SchedulesFireOptions{}
	var from, to string
	if run == nil {
		run = SchedulesBackfill
	}
	cmd := &cobra.Command{
		Use:   "backfill ID|NAME --from TIME --to TIME",
		Short: "Have a schedule fire for times that are past",
		Long: fmt.Sprintf(`Have a schedule fire for each time that it was due from --from to --to, both included: for
what it missed, skipped, or was paused for, or for times before it was made. A time for which it
has fired already submits nothing. At most %d at once. A paused schedule does it too.`, api.MostBackfilled),
		Example: "  sky jobs schedules backfill nightly --from 2026-03-01 --to \"2026-03-05 12:00\"",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return session.Usagef("exactly one schedule: sky jobs schedules backfill ID|NAME --from TIME --to TIME")
			}
			o.Name = args[0]
			for _, t := range []struct {
				flag, text string
				to         **time.Time
			}{{"--from", from, &o.From}, {"--to", to, &o.To}} {
				if t.text == "" {
					return session.Usagef("from when to when? Give --from TIME and --to TIME")
				}
				var err error
				if *t.to, err = moment(t.flag, t.text); err != nil {
					return err
				}
			}
			if o.To.Before(*o.From) {
				return session.Usagef("--to is before --from")
			}
			return run(cmd.Context(), s, o)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "the first `TIME`, of this machine's zone: 2026-03-01 or \"2026-03-01 14:30\"")
	cmd.Flags().StringVar(&to, "to", "", "the last `TIME`")
	addOverlap(cmd, o, "buffer-all: one after the other")
	return cmd
}

// fire finds the schedule and has it fire.
func (o *SchedulesFireOptions) fire(ctx context.Context, s *session.Session, c *api.Client, action string) (api.JobSchedule, *api.SchedulesChangeReply, error) {
	rows, err := namedSchedules(ctx, s, c, []string{o.Name})
	if err != nil {
		return api.JobSchedule{}, nil, err
	}
	if len(rows) != 1 {
		return api.JobSchedule{}, nil, session.Usagef("exactly one schedule; %s names %d", o.Name, len(rows))
	}
	rep, err := c.ChangeSchedules(ctx, &api.SchedulesChangeBody{IDs: scheduleIDs(rows), Action: action, RequestID: api.NewRequestID(), From: o.From, To: o.To,
		Overlap: api.ScheduleOverlap(strings.ReplaceAll(o.Overlap, "-", "_"))})
	return rows[0], rep, err
}

// SchedulesTrigger has a schedule fire now, and tells what it submitted.
func SchedulesTrigger(ctx context.Context, s *session.Session, o *SchedulesFireOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	was, rep, err := o.fire(ctx, s, c, api.ScheduleTrigger)
	if err != nil {
		return err
	}
	if o.Output == "json" {
		return s.PrintJSON(rep)
	}
	s.IO.Printf("Triggered schedule %d.\n", was.ID)
	for end := s.Now().Add(firingWait); s.Now().Before(end); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
		list, err := c.Schedules(ctx, "", was.ID)
		if err != nil || len(list.Schedules) != 1 {
			return err
		}
		r := list.Schedules[0]
		fired := slices.DeleteFunc(slices.Clone(r.Last), func(f api.ScheduleFiring) bool {
			return slices.ContainsFunc(was.Last, func(old api.ScheduleFiring) bool { return old.At.Equal(f.At) })
		})
		switch {
		case len(fired) > 0 && len(fired[0].JobIDs) > 0:
			s.IO.Printf("Submitted: managed job%s %s\n", plural(len(fired[0].JobIDs)), api.FormatIDs(fired[0].JobIDs))
			return nil
		case r.Skipped > was.Skipped:
			s.IO.Warnf("It was left out, since jobs of an earlier firing still run. To run beside them: sky jobs schedules trigger %d --overlap allow-all", was.ID)
			return nil
		}
	}
	s.IO.Notef("It has submitted nothing yet: it may wait for jobs of an earlier firing. See: sky jobs schedules ls")
	return nil
}

// SchedulesBackfill has a schedule fire for times that are past.
func SchedulesBackfill(ctx context.Context, s *session.Session, o *SchedulesFireOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	r, rep, err := o.fire(ctx, s, c, api.ScheduleBackfill)
	if err != nil {
		return err
	}
	if o.Output == "json" {
		return s.PrintJSON(rep)
	}
	s.IO.Printf("Schedule %d fires for %d time%s:\n", r.ID, len(rep.Firings), plural(len(rep.Firings)))
	const shown = 5
	for i, t := range rep.Firings {
		if i == shown {
			s.IO.Printf("  and %d more\n", len(rep.Firings)-shown)
			break
		}
		s.IO.Printf("  %s\n", firingTime(t, r.Timezone))
	}
	s.IO.Notef("See what it submits: sky jobs schedules ls, sky jobs queue")
	return nil
}
