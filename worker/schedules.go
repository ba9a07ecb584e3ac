package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/task"
	"github.com/skyloom/skyloom/worker/engine"
	"github.com/skyloom/skyloom/workflows"
)

const (
	// firingsShown is how many of the next firings are told.
	firingsShown = 3
	// scheduledJobs bounds the jobs of one firing.
	scheduledJobs = 1000
	// leastCatchUp is the least that the engine takes.
	leastCatchUp = 10 * time.Second
)

var overlaps = map[api.ScheduleOverlap]enumspb.ScheduleOverlapPolicy{
	api.OverlapSkip: enumspb.SCHEDULE_OVERLAP_POLICY_SKIP, api.OverlapBufferOne: enumspb.SCHEDULE_OVERLAP_POLICY_BUFFER_ONE, api.OverlapBufferAll: enumspb.SCHEDULE_OVERLAP_POLICY_BUFFER_ALL,
	api.OverlapCancelOther: enumspb.SCHEDULE_OVERLAP_POLICY_CANCEL_OTHER, api.OverlapAllowAll: enumspb.SCHEDULE_OVERLAP_POLICY_ALLOW_ALL,
}

// first is the first that is given.
func first[T any](ps ...*T) *T {
	for _, p := range ps {
		if p != nil {
			return p
		}
	}
	return nil
}

// checkSchedule fills in defaults, and refuses what could not be carried out. It gives the engine's cron expressions and
// the next firings after now.
func checkSchedule(s *api.ScheduleSpec, body api.JobsLaunchBody, now time.Time) (cron []string, next []time.Time, err error) {
	wrong := func(format string, args ...any) error {
		return &api.Error{Kind: api.ErrInvalid, Message: "schedule: " + fmt.Sprintf(format, args...)}
	}
	if cron, err = task.CronExpressions(s.Cron); err != nil {
		return nil, nil, wrong("%v", err)
	}
	if s.Timezone == "" {
		s.Timezone = "UTC"
	}
	if s.Timezone == "Local" {
		return nil, nil, wrong("there is no time zone %q; write a name like Europe/Berlin", s.Timezone)
	}
	if s.Overlap == "" {
		s.Overlap = api.OverlapSkip
	}
	if s.CatchUpSeconds == 0 {
		s.CatchUpSeconds = int64(api.DefaultCatchUp / time.Second)
	}
	if _, ok := overlaps[s.Overlap]; !ok {
		return nil, nil, wrong("unknown overlap policy %q; there are %v", s.Overlap, api.Overlaps)
	}
	if s.CatchUpSeconds < int64(leastCatchUp/time.Second) || s.CatchUpSeconds > 365*24*3600 {
		return nil, nil, wrong("the window of what is made up for must be from 10 seconds to a year")
	}
	if len(body.After) > 0 {
		return nil, nil, wrong("can't be combined with after: each firing would wait for the same jobs")
	}
	if body.NumJobs > scheduledJobs {
		return nil, nil, wrong("at most %d jobs can begin at one firing", scheduledJobs)
	}
	if next, err = engine.NextFirings(cron, s.Timezone, now, firingsShown); err != nil {
		return nil, nil, wrong("%v", err)
	}
	if len(next) == 0 {
		return nil, nil, wrong("%q never comes", s.Cron)
	}
	return cron, next, nil
}

// createSchedule makes a schedule that submits the jobs. Idempotent: the request's id gives the schedule's number, and that
// its name in the engine.
func (b *backend) createSchedule(ctx context.Context, body api.JobsLaunchBody, spec activities.ManagedSpec, s api.ScheduleSpec) (api.Ref, error) {
	cron, next, err := checkSchedule(&s, body, time.Now())
	if err != nil {
		return api.Ref{}, err
	}
	body.Schedule = nil
	raw, err := json.Marshal(body)
	if err != nil {
		return api.Ref{}, err
	}
	row := api.JobSchedule{Name: spec.Name, ScheduleSpec: s, User: body.User, UserHash: body.UserHash, Workspace: body.Workspace, NumJobs: max(body.NumJobs, 1),
		RequestID: body.RequestID, Command: body.Command, CreatedAt: time.Now()}
	if row.ID, err = b.store.CreateSchedule(ctx, row, raw); err != nil {
		if errors.Is(err, store.ErrNotFound) {
			return api.Ref{}, &api.Error{Kind: api.ErrConflict, Message: err.Error(), Hint: "submit it anew"}
		}
		return api.Ref{}, err
	}
	_, err = b.client.ScheduleClient().Create(ctx, client.ScheduleOptions{
		ID:            activities.ScheduleID(row.ID),
		Spec:          client.ScheduleSpec{CronExpressions: cron, TimeZoneName: s.Timezone},
		Overlap:       overlaps[s.Overlap],
		CatchupWindow: time.Duration(s.CatchUpSeconds) * time.Second,
		Paused:        s.Paused,
		Action: &client.ScheduleWorkflowAction{ID: fmt.Sprintf("schedule/%d", row.ID), Workflow: "ScheduledJobs", Args: []any{workflows.ScheduledInput{Schedule: row.ID}},
			TaskQueue: activities.QueueMain, WorkflowTaskTimeout: activities.WorkflowTaskTimeout,
			TypedSearchAttributes: activities.SearchAttributes("schedule", spec.Name, body.Workspace, body.User), StaticSummary: "a firing of schedule " + spec.Name},
	})
	var exists *serviceerror.AlreadyExists
	if err != nil && !errors.Is(err, temporal.ErrScheduleAlreadyRunning) && !errors.As(err, &exists) {
		return api.Ref{}, &api.Error{Kind: api.ErrUnavailable, Message: "the workflow engine did not take the schedule: " + err.Error(), Hint: "send it again: the request id makes that safe"}
	}
	// The engine's schedule counts from the moment at which it first runs, which is before it can answer: from then on no
	// firing is lost to a server that dies.
	if _, err := b.client.ScheduleClient().GetHandle(ctx, activities.ScheduleID(row.ID)).Describe(ctx); err != nil {
		return api.Ref{}, &api.Error{Kind: api.ErrUnavailable, Message: "the workflow engine took the schedule and does not answer yet: " + err.Error(), Hint: "send it again: the request id makes that safe"}
	}
	row.Next, row.Last = next, []api.ScheduleFiring{}
	res := activities.EncodeResult(api.JobsLaunchResult{RequestID: body.RequestID, JobIDs: []int64{}, Schedule: &row})
	if err := b.store.FinishRequest(ctx, body.RequestID, api.RequestSucceeded, res, nil); err != nil {
		return api.Ref{}, err
	}
	return api.Ref{RequestID: body.RequestID, Name: "sky.jobs.launch", Status: api.RequestSucceeded}, nil
}

// Schedules lists schedules of managed jobs with what the engine knows of them.
func (b *backend) Schedules(ctx context.Context, userHash string, ids []int64) ([]api.JobSchedule, error) {
	rows, err := b.store.Schedules(ctx, userHash, ids...)
	if err != nil {
		return nil, err
	}
	err = b.each(len(rows), func(i int) error {
		r := &rows[i]
		d, err := b.client.ScheduleClient().GetHandle(ctx, activities.ScheduleID(r.ID)).Describe(ctx)
		var missing *serviceerror.NotFound
		if errors.As(err, &missing) {
			r.Paused, r.Note = true, "the workflow engine does not have it yet" // its request is under way
			return nil
		}
		if err != nil {
			return &api.Error{Kind: api.ErrUnavailable, Message: fmt.Sprintf("schedule %d: the workflow engine does not answer: %v", r.ID, err)}
		}
		r.Paused, r.Note = d.Schedule.State.Paused, d.Schedule.State.Note
		r.Skipped, r.Missed = int64(d.Info.NumActionsSkippedOverlap), int64(d.Info.NumActionsMissedCatchupWindow)
		if !r.Paused {
			for _, t := range d.Info.NextActionTimes[:min(len(d.Info.NextActionTimes), firingsShown)] {
				r.Next = append(r.Next, t.UTC())
			}
		}
		return nil
	})
	return rows, err
}
