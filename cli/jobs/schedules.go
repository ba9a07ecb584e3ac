package jobs

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/table"
	"github.com/skyloom/skyloom/task"
)

// ScheduleFlags are the flags of `sky jobs launch` that make a schedule.
type ScheduleFlags struct {
	Cron, Timezone, Overlap, CatchUp string
	Paused                           bool
}

func (f *ScheduleFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.Cron, "schedule", "", "submit again and again, as the `CRON` expression says (\"0 3 * * *\", @daily); see sky jobs schedules")
	fs.StringVar(&f.Timezone, "schedule-timezone", "", "time `ZONE` of the schedule, like Europe/Berlin; default UTC")
	words := make([]string, len(api.Overlaps))
	for i, o := range api.Overlaps {
		words[i] = strings.ReplaceAll(string(o), "_", "-")
	}
	flags.Choice(fs, &f.Overlap, "schedule-overlap", "", "", words, "what happens when the last firing's jobs still run; default skip")
	fs.StringVar(&f.CatchUp, "schedule-catch-up", "", "make up for firings that were missed up to this long ago (`DURATION`); default 1h")
	fs.BoolVar(&f.Paused, "schedule-paused", false, "begin paused")
}

// spec puts the flags on top of what the task file says. Nil: neither of them asks for a schedule.
func (f *ScheduleFlags) spec(file *task.File) (*api.ScheduleSpec, error) {
	var s *api.ScheduleSpec
	for _, t := range file.Tasks {
		if t.Schedule != nil && s == nil {
			s = &api.ScheduleSpec{Cron: t.Schedule.Cron, Timezone: t.Schedule.Timezone, Overlap: api.ScheduleOverlap(t.Schedule.Overlap),
				CatchUpSeconds: int64(t.Schedule.CatchUp / time.Second), Paused: t.Schedule.Paused}
		} else if t.Schedule != nil {
			return nil, session.Usagef("schedule: a file has one; all its tasks are submitted together")
		}
	}
	if *f == (ScheduleFlags{}) {
		return s, nil
	}
	if s == nil {
		s = &api.ScheduleSpec{}
	}
	if f.Cron != "" {
		s.Cron = f.Cron
	}
	if s.Cron == "" {
		return nil, session.Usagef("the flags of a schedule go with --schedule CRON")
	}
	if _, err := task.CronExpressions(s.Cron); err != nil {
		return nil, session.Usagef("--schedule: %v", err)
	}
	if f.Timezone != "" {
		s.Timezone = f.Timezone
	}
	if f.Overlap != "" {
		s.Overlap = api.ScheduleOverlap(strings.ReplaceAll(f.Overlap, "-", "_"))
	}
	if f.CatchUp != "" {
		d, err := task.ParseDuration(f.CatchUp)
		if err != nil {
			return nil, session.Usagef("--schedule-catch-up: %v", err)
		}
		s.CatchUpSeconds = int64(d / time.Second)
	}
	s.Paused = s.Paused || f.Paused
	return s, nil
}

// scheduleWords is a schedule in a line.
func scheduleWords(c api.ScheduleSpec) string {
	zone := c.Timezone
	if zone == "" {
		zone = "UTC"
	}
	return fmt.Sprintf("%q, %s", c.Cron, zone)
}

// scheduled tells of a schedule that was made, and when it fires.
func scheduled(s *session.Session, r api.JobSchedule) {
	s.IO.Printf("Schedule %d made: %s (%s)\n", r.ID, r.Name, scheduleWords(r.ScheduleSpec))
	for i, t := range r.Next {
		head := "and at"
		if i == 0 {
			head = "fires at"
		}
		s.IO.Printf("  %-8s %s\n", head, firingTime(t, r.Timezone))
	}
	if r.Paused {
		s.IO.Printf("It is paused; begin with: sky jobs schedules resume %d\n", r.ID)
	}
	n := s.IO.Notef
	n("")
	n("%s", s.IO.ErrStyle(session.Bold, "Useful Commands"))
	n("  To see schedules:       sky jobs schedules ls")
	n("  To pause or delete it:  sky jobs schedules pause|delete %d", r.ID)
}

const minuteFormat = "2006-01-02 15:04 MST"

// firingTime gives a time in the schedule's zone, and in that of this machine where it differs.
func firingTime(t time.Time, zone string) string {
	there := t.UTC()
	if loc, err := time.LoadLocation(zone); err == nil {
		there = t.In(loc)
	}
	text := there.Format(minuteFormat)
	here := t.Local()
	_, a := there.Zone()
	if _, b := here.Zone(); a != b {
		text += " (" + here.Format(minuteFormat) + " here)"
	}
	return text
}

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
		changeSchedules(s, nil, api.ScheduleDelete, "Delete schedules", "Jobs that they have submitted go on; sky jobs cancel ends them."))
	return cmd
}

// SchedulesListOptions is `sky jobs schedules ls`.
type SchedulesListOptions struct {
	AllUsers bool
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
		Example: "  sky jobs schedules ls\n  sky jobs schedules ls -u -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return session.Usagef("sky jobs schedules ls takes no arguments")
			}
			return run(cmd.Context(), s, o)
		},
	}
	cmd.Flags().BoolVarP(&o.AllUsers, "all-users", "u", false, "those of all users")
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
		t.Row(cells...)
	}
	return t.Print(s.IO.Out)
}

// SchedulesChangeOptions is `sky jobs schedules pause|resume|delete`.
type SchedulesChangeOptions struct {
	Action string
	IDs    []int64
	Note   string
	Yes    bool
}

func changeSchedules(s *session.Session, run func(context.Context, *session.Session, *SchedulesChangeOptions) error, action, short, long string) *cobra.Command {
	o := &SchedulesChangeOptions{Action: action}
	if run == nil {
		run = SchedulesChange
	}
	cmd := &cobra.Command{
		Use:     action + " IDS...",
		Short:   short,
		Long:    short + ". " + long,
		Example: fmt.Sprintf("  sky jobs schedules %s 3", action),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return session.Usagef("which schedules? See: sky jobs schedules ls")
			}
			ids, err := api.ParseIDs(strings.Join(args, ","))
			if err != nil {
				return session.Usagef("%v", err)
			}
			o.IDs = ids
			return run(cmd.Context(), s, o)
		},
	}
	switch action {
	case api.ScheduleDelete:
		cmd.Aliases = []string{"rm"}
		addYes(cmd.Flags(), &o.Yes)
	default:
		cmd.Flags().StringVar(&o.Note, "note", "", "`TEXT` that says why; lists show it")
	}
	return cmd
}

// SchedulesChange pauses, resumes or deletes schedules.
func SchedulesChange(ctx context.Context, s *session.Session, o *SchedulesChangeOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("schedule%s %s", plural(len(o.IDs)), api.FormatIDs(o.IDs))
	if o.Action == api.ScheduleDelete && !o.Yes {
		if err := s.IO.Require(fmt.Sprintf("Deleting %s. Proceed?", what)); err != nil {
			return err
		}
	}
	if _, err := c.ChangeSchedules(ctx, &api.SchedulesChangeBody{IDs: o.IDs, Action: o.Action, Note: o.Note}); err != nil {
		return err
	}
	done := map[string]string{api.SchedulePause: "Paused", api.ScheduleResume: "Resumed", api.ScheduleDelete: "Deleted"}[o.Action]
	s.IO.Printf("%s %s.\n", done, what)
	return nil
}
