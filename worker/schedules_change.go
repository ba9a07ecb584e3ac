package worker

import (
	"context"
	"fmt"
	"slices"
	"time"

	schedulepb "go.temporal.io/api/schedule/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/task"
	"github.com/skyloom/skyloom/worker/engine"
)

// ChangeSchedules pauses, resumes or deletes schedules, or has them fire. One that is not known changes nothing. It may be repeated.
func (b *backend) ChangeSchedules(ctx context.Context, in api.SchedulesChangeBody) (api.SchedulesChangeReply, error) {
	rows, err := b.store.Schedules(ctx, "", in.IDs...)
	if err != nil {
		return api.SchedulesChangeReply{}, err
	}
	rep := api.SchedulesChangeReply{IDs: []int64{}}
	for _, r := range rows {
		rep.IDs = append(rep.IDs, r.ID)
	}
	var unknown []int64
	for _, id := range in.IDs {
		if !slices.Contains(rep.IDs, id) {
			unknown = append(unknown, id)
		}
	}
	if len(unknown) > 0 {
		return api.SchedulesChangeReply{}, &api.Error{Kind: api.ErrNotFound, Message: "there is no schedule " + api.FormatIDs(unknown) + "; nothing was changed", Hint: "see all: sky jobs schedules ls -u"}
	}
	patch, firings, err := firingsOf(in, rows, time.Now())
	if err != nil {
		return api.SchedulesChangeReply{}, err
	}
	rep.Firings = firings
	return rep, b.each(len(rep.IDs), func(i int) error {
		id := rep.IDs[i]
		h := b.client.ScheduleClient().GetHandle(ctx, activities.ScheduleID(id))
		var err error
		switch in.Action {
		case api.SchedulePause:
			err = h.Pause(ctx, client.SchedulePauseOptions{Note: in.Note})
		case api.ScheduleResume:
			err = h.Unpause(ctx, client.ScheduleUnpauseOptions{Note: in.Note})
		case api.ScheduleTrigger, api.ScheduleBackfill:
			// With an id of our own, unlike the client's handle: a call that is repeated fires once.
			_, err = b.client.WorkflowService().PatchSchedule(ctx, &workflowservice.PatchScheduleRequest{Namespace: b.engine.Namespace(), ScheduleId: activities.ScheduleID(id),
				Patch: patch, RequestId: in.RequestID})
		default:
			// Out of our lists first: a firing that comes in between submits nothing, and drops what is left in the engine.
			if err = b.store.DeleteSchedule(ctx, id); err == nil {
				err = b.acts.DropSchedule(ctx, id)
			}
		}
		if err != nil {
			return &api.Error{Kind: api.ErrUnavailable, Message: fmt.Sprintf("schedule %d: %v", id, err), Hint: "send it again: it may be repeated"}
		}
		return nil
	})
}

// firingsOf says how schedules are to fire, if they are; of a backfill also for which times.
func firingsOf(in api.SchedulesChangeBody, rows []api.JobSchedule, now time.Time) (*schedulepb.SchedulePatch, []time.Time, error) {
	wrong := func(hint, format string, args ...any) error {
		return &api.Error{Kind: api.ErrInvalid, Message: fmt.Sprintf(format, args...), Hint: hint}
	}
	policy, known := overlaps[in.Overlap]
	if in.Overlap != "" && !known {
		return nil, nil, wrong("", "unknown overlap policy %q; there are %v", in.Overlap, api.Overlaps)
	}
	if in.Action != api.ScheduleBackfill && (in.From != nil || in.To != nil) {
		return nil, nil, wrong("", "from and to are of a backfill")
	}
	fires := in.Action == api.ScheduleTrigger || in.Action == api.ScheduleBackfill
	switch {
	case !fires && in.Overlap != "":
		return nil, nil, wrong("", "an overlap policy goes with trigger and backfill")
	case !fires:
		return nil, nil, nil
	case in.RequestID == "":
		return nil, nil, wrong("", "%s needs a request_id: it fires once for each", in.Action)
	case in.Action == api.ScheduleTrigger:
		return &schedulepb.SchedulePatch{TriggerImmediately: &schedulepb.TriggerImmediatelyRequest{OverlapPolicy: policy}}, nil, nil
	case len(rows) != 1:
		return nil, nil, wrong("", "a backfill is of one schedule")
	case in.From == nil || in.To == nil || in.To.Before(*in.From):
		return nil, nil, wrong("", "a backfill needs from and to, in this order")
	case in.To.After(now):
		return nil, nil, wrong("", "a backfill fires for times that are past; %s is not", in.To.UTC().Format(time.RFC3339))
	}
	if in.Overlap == "" {
		policy = overlaps[api.OverlapBufferAll]
	}
	cron, err := task.CronExpressions(rows[0].Cron)
	if err != nil {
		return nil, nil, err
	}
	due, err := engine.NextFirings(cron, rows[0].Timezone, in.From.Add(-time.Millisecond), api.MostBackfilled+1)
	if err != nil {
		return nil, nil, err
	}
	if i := slices.IndexFunc(due, func(t time.Time) bool { return t.After(*in.To) }); i >= 0 {
		due = due[:i]
	}
	switch {
	case len(due) == 0:
		return nil, nil, wrong("see what it fires at: sky jobs schedules ls -v", "schedule %d was not due from %s to %s", rows[0].ID, in.From.UTC().Format(time.RFC3339), in.To.UTC().Format(time.RFC3339))
	case len(due) > api.MostBackfilled:
		return nil, nil, wrong("take a shorter time", "schedule %d was due more than %d times from %s to %s", rows[0].ID, api.MostBackfilled, in.From.UTC().Format(time.RFC3339), in.To.UTC().Format(time.RFC3339))
	}
	return &schedulepb.SchedulePatch{BackfillRequest: []*schedulepb.BackfillRequest{{StartTime: timestamppb.New(*in.From), EndTime: timestamppb.New(*in.To), OverlapPolicy: policy}}}, due, nil
}
