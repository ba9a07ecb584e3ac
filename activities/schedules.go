package activities

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"go.temporal.io/api/serviceerror"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/task"
)

// ScheduleID is the engine's name of a schedule of managed jobs.
func ScheduleID(id int64) string { return fmt.Sprintf("job-schedule/%d", id) }

// FireInput is a firing of a schedule.
type FireInput struct {
	Schedule int64     `json:"schedule_id"`
	Due      time.Time `json:"due"`
}

// FireOutput is what the firing submits. Gone: the schedule was deleted.
type FireOutput struct {
	Gone   bool               `json:"gone,omitempty"`
	Name   string             `json:"name,omitempty"`
	Body   api.JobsLaunchBody `json:"body"`
	JobIDs []int64            `json:"job_ids,omitempty"`
}

// FireSchedule takes numbers for the jobs that a schedule submits for a time that was due. Idempotent: schedule and time
// make the id of the request, and that gives the same numbers.
func (a *Activities) FireSchedule(ctx context.Context, in FireInput) (FireOutput, error) {
	request := uuid.NewSHA1(uuid.NameSpaceURL, fmt.Appendf(nil, "%s/schedule/%d/%d", a.Store.Installation(), in.Schedule, in.Due.UnixMicro())).String()
	f, err := a.Store.FireSchedule(ctx, in.Schedule, in.Due, request)
	if errors.Is(err, store.ErrNotFound) {
		return FireOutput{Gone: true}, nil
	}
	if err != nil {
		return FireOutput{}, err
	}
	out := FireOutput{Name: f.Schedule.Name, JobIDs: f.JobIDs}
	if err := json.Unmarshal(f.Body, &out.Body); err != nil {
		return FireOutput{}, fmt.Errorf("schedule %d: %w", in.Schedule, err)
	}
	out.Body.RequestID, out.Body.Schedule = request, nil
	return out, nil
}

// DropSchedule takes a schedule that was deleted out of the engine. Idempotent: one that is gone is no error.
func (a *Activities) DropSchedule(ctx context.Context, id int64) error {
	err := a.Engine.ScheduleClient().GetHandle(ctx, ScheduleID(id)).Delete(ctx)
	var missing *serviceerror.NotFound
	if errors.As(err, &missing) {
		return nil
	}
	return err
}

// scheduleOf takes over what a task says of when to submit. A file has one schedule.
func scheduleOf(s *ManagedSpec, t *task.Task) *api.Error {
	if t.Schedule == nil {
		return nil
	}
	if s.Schedule != nil {
		return invalid("schedule: a file has one; all its tasks are submitted together")
	}
	s.Schedule = &api.ScheduleSpec{Cron: t.Schedule.Cron, Timezone: t.Schedule.Timezone, Overlap: api.ScheduleOverlap(t.Schedule.Overlap),
		CatchUpSeconds: int64(t.Schedule.CatchUp / time.Second), Paused: t.Schedule.Paused}
	return nil
}
