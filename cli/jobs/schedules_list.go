package jobs

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/table"
)

// NewSchedules makes `sky jobs schedules`.
func NewSchedules(s *session.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "schedules",
		Short: "Schedules that submit managed jobs again and again",
		Long: `Schedules submit managed jobs again and again. Make one with sky jobs launch --schedule,
or with the field schedule of a task file.`,
		RunE: session.Group,
	}
	cmd.AddCommand(NewSchedulesList(s, nil),
		changeSchedules(s, nil, api.SchedulePause, "Pause schedules", "They fire no more until they are resumed. Jobs that they have submitted go on."),
		changeSchedules(s, nil, api.ScheduleResume, "Resume schedules", "Firings that would have come while a schedule was paused are not made up for."),
		changeSchedules(s, nil, api.ScheduleDelete, "Delete schedules", "Jobs that they have submitted go on; sky jobs cancel ends them."),
		NewSchedulesTrigger(s, nil),
		NewSchedulesBackfill(s, nil))
	return cmd
}

// SchedulesListOptions is `sky jobs schedules ls`.
type SchedulesListOptions struct {
	AllUsers bool
	Verbose  bool
	Output   string
}

// NewSchedulesList makes `sky jobs schedules ls`.
func NewSchedulesList(s *session.Session, run func(context.Context, *session.Session, *SchedulesListOptions) error) *cobra.Command {
	o := &SchedulesListOptions{}
	if run == nil {
		run = SchedulesList
	}
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List schedules, with their next and last firings",
		Example: "  sky jobs schedules ls\n  sky jobs schedules ls -v\n  sky jobs schedules ls -u -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return session.Usagef("sky jobs schedules ls takes no arguments")
			}
			return run(cmd.Context(), s, o)
		},
	}
	cmd.Flags().BoolVarP(&o.AllUsers, "all-users", "u", false, "those of all users")
	cmd.Flags().BoolVarP(&o.Verbose, "verbose", "v", false, "the next three firings as times, catch-up and notes as well")
	addOutput(cmd.Flags(), &o.Output)
	return cmd
}

// SchedulesList lists schedules.
func SchedulesList(ctx context.Context, s *session.Session, o *SchedulesListOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	user := s.User().Hash
	if o.AllUsers {
		user = ""
	}
	list, err := c.Schedules(ctx, user)
	if err != nil {
		return err
	}
	if o.Output == "json" {
		if list.Schedules == nil {
			list.Schedules = []api.JobSchedule{}
		}
		return s.PrintJSON(list.Schedules)
	}
	if len(list.Schedules) == 0 {
		s.IO.Printf("No schedules.\n")
		return nil
	}
	head := []string{"ID", "NAME", "SCHEDULE", "OVERLAP", "STATE", "NEXT", "LAST", "JOBS", "SKIPPED", "MISSED"}
	if o.AllUsers {
		head = append(head, "USER")
	}
	if o.Verbose {
		head = append(head, "CATCH-UP", "NEXT THREE", "NOTE")
	}
	t := table.New(head...)
	for _, r := range list.Schedules {
		state, next, last, jobs := "ACTIVE", "-", "-", "-"
		if r.Paused {
			state = "PAUSED"
		}
		if len(r.Next) > 0 {
			next = "in " + table.Span(max(r.Next[0].Sub(s.Now()), time.Second))
		}
		if len(r.Last) > 0 {
			last, jobs = table.Ago(s.Now(), r.Last[0].At), api.FormatIDs(r.Last[0].JobIDs)
		}
		cells := []any{r.ID, r.Name, scheduleWords(r.ScheduleSpec), strings.ReplaceAll(string(r.Overlap), "_", "-"), state, next, last, jobs, r.Skipped, r.Missed}
		if o.AllUsers {
			cells = append(cells, r.User)
		}
		if o.Verbose {
			var times []string
			for _, t := range r.Next {
				times = append(times, firingTime(t, r.Timezone))
			}
			cells = append(cells, table.Span(time.Duration(r.CatchUpSeconds)*time.Second), strings.Join(times, ", "), r.Note)
		}
		t.Row(cells...)
	}
	return t.Print(s.IO.Out)
}
