package jobs

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/session"
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
