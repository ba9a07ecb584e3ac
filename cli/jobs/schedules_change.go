package jobs

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/session"
)

// SchedulesChangeOptions is `sky jobs schedules pause|resume|delete`.
type SchedulesChangeOptions struct {
	Action string
	Names  []string // numbers, ranges of them, or names
	Note   string
	Yes    bool
	Output string
}

func changeSchedules(s *session.Session, run func(context.Context, *session.Session, *SchedulesChangeOptions) error, action, short, long string) *cobra.Command {
	o := &SchedulesChangeOptions{Action: action}
	if run == nil {
		run = SchedulesChange
	}
	cmd := &cobra.Command{
		Use:     action + " ID|NAME...",
		Short:   short,
		Long:    short + ". " + long,
		Example: fmt.Sprintf("  sky jobs schedules %[1]s 3\n  sky jobs schedules %[1]s nightly", action),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return session.Usagef("which schedules? See: sky jobs schedules ls")
			}
			o.Names = args
			return run(cmd.Context(), s, o)
		},
	}
	addOutput(cmd.Flags(), &o.Output)
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
	rows, err := namedSchedules(ctx, s, c, o.Names)
	if err != nil {
		return err
	}
	ids := scheduleIDs(rows)
	what := fmt.Sprintf("schedule%s %s", plural(len(ids)), api.FormatIDs(ids))
	if o.Action == api.ScheduleDelete && !o.Yes {
		if err := s.IO.Require(fmt.Sprintf("Deleting %s. Proceed?", what)); err != nil {
			return err
		}
	}
	rep, err := c.ChangeSchedules(ctx, &api.SchedulesChangeBody{IDs: ids, Action: o.Action, Note: o.Note})
	if err != nil {
		return err
	}
	if o.Output == "json" {
		return s.PrintJSON(rep)
	}
	done := map[string]string{api.SchedulePause: "Paused", api.ScheduleResume: "Resumed", api.ScheduleDelete: "Deleted"}[o.Action]
	s.IO.Printf("%s %s.\n", done, what)
	return nil
}

// namedSchedules finds schedules by number, range or name; a name is one of your own.
func namedSchedules(ctx context.Context, s *session.Session, c *api.Client, names []string) ([]api.JobSchedule, error) {
	if ids, err := api.ParseIDs(strings.Join(names, ",")); err == nil {
		list, err := c.Schedules(ctx, "", ids...)
		if err != nil {
			return nil, err
		}
		var unknown []int64
		for _, id := range ids {
			if !slices.Contains(scheduleIDs(list.Schedules), id) {
				unknown = append(unknown, id)
			}
		}
		if len(unknown) > 0 {
			return nil, noSchedule(api.FormatIDs(unknown))
		}
		return list.Schedules, nil
	}
	list, err := c.Schedules(ctx, s.User().Hash)
	if err != nil {
		return nil, err
	}
	var out []api.JobSchedule
	for _, name := range names {
		ids, err := api.ParseIDs(name)
		found := slices.DeleteFunc(slices.Clone(list.Schedules), func(r api.JobSchedule) bool {
			return err == nil && !slices.Contains(ids, r.ID) || err != nil && r.Name != name
		})
		switch {
		case err == nil && len(found) == len(ids), len(found) == 1:
			out = append(out, found...)
		case len(found) > 1:
			return nil, session.Usagef("several schedules are called %s: %s; name one by its number", session.Quote(name), api.FormatIDs(scheduleIDs(found)))
		default:
			return nil, noSchedule(name)
		}
	}
	return out, nil
}

func noSchedule(which string) error {
	return &api.Error{Kind: api.ErrNotFound, Message: "there is no schedule " + which + "; nothing was changed", Hint: "see all: sky jobs schedules ls -u"}
}

func scheduleIDs(rows []api.JobSchedule) []int64 {
	ids := make([]int64, len(rows))
	for i, r := range rows {
		ids[i] = r.ID
	}
	return ids
}
