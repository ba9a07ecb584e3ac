package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/worker/engine"
)

// reaperSchedule is the id of the schedule by which the reaper makes its rounds. Its memo says whose the namespace is.
const reaperSchedule = "reaper"

// mark is what the memo of the reaper's schedule says: the installation that uses the namespace.
type mark struct {
	Installation string `json:"installation"`
}

// PublicPayload marks the type as free of secrets: another installation, which has other keys, must be able to read it.
func (mark) PublicPayload() {}

const markField = "skyloom"

// ensureSchedules makes what runs by the clock.
func ensureSchedules(ctx context.Context, c client.Client, installation string) error {
	_, err := c.ScheduleClient().Create(ctx, client.ScheduleOptions{
		ID:      reaperSchedule,
		Spec:    client.ScheduleSpec{Intervals: []client.ScheduleIntervalSpec{{Every: 5 * time.Minute}}},
		Overlap: enumspb.SCHEDULE_OVERLAP_POLICY_SKIP,
		Action: &client.ScheduleWorkflowAction{ID: "reaper", Workflow: "Reaper", TaskQueue: activities.QueueMain, WorkflowTaskTimeout: activities.WorkflowTaskTimeout,
			StaticSummary: "what the infra holds against what workflows own"},
		Memo: map[string]any{markField: mark{installation}},
	})
	var exists *serviceerror.AlreadyExists
	if errors.Is(err, temporal.ErrScheduleAlreadyRunning) || errors.As(err, &exists) {
		return nil
	}
	return err
}

// claim makes the namespace of an external engine this installation's own, and refuses one that is another's: the ids of workflows,
// such as the numbers of managed jobs, are unique within one installation only. The schedule of the reaper is made by one
// of several servers that start at once, and bears the mark.
func claim(ctx context.Context, e *engine.Engine, c client.Client, installation string) error {
	for {
		if err := ensureSchedules(ctx, c, installation); err != nil || e.Embedded() {
			return err
		}
		h := c.ScheduleClient().GetHandle(ctx, reaperSchedule)
		d, err := h.Describe(ctx)
		if gone(err) { // somebody took the mark away just now
			continue
		}
		if err != nil {
			return fmt.Errorf("ask whose namespace %s is: %w", e.Namespace(), err)
		}
		switch owner := ownerOf(d.Memo); owner {
		case installation:
			return nil
		case "":
			// Made before there were marks.
			if err := h.Delete(ctx); err != nil && !gone(err) {
				return fmt.Errorf("mark namespace %s: %w", e.Namespace(), err)
			}
		default:
			return &api.Error{Kind: api.ErrConflict, Message: fmt.Sprintf("namespace %s of the Temporal cluster at %s belongs to installation %s, and this is installation %s: two in one namespace would take each other's jobs and clusters for their own",
				e.Namespace(), e.Address(), owner, installation),
				Hint: fmt.Sprintf("name a namespace of its own in temporal.namespace; or, if the other installation is gone for good and this one takes its place: temporal schedule delete --namespace %s --schedule-id %s", e.Namespace(), reaperSchedule)}
		}
	}
}

// ownerOf reads a mark; empty: there is none.
func ownerOf(memo *commonpb.Memo) string {
	p := memo.GetFields()[markField]
	if p == nil {
		return ""
	}
	var m mark
	if err := converter.GetDefaultDataConverter().FromPayload(p, &m); err != nil || m.Installation == "" {
		return "of an unknown version"
	}
	return m.Installation
}
