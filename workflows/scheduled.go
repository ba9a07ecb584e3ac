package workflows

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

// ScheduledInput names the schedule that fires.
type ScheduledInput struct {
	Schedule int64 `json:"schedule_id"`
}

// PublicPayload marks the type as free of secrets.
func (ScheduledInput) PublicPayload() {}

// ScheduledResult is what a firing submitted.
type ScheduledResult struct {
	JobIDs []int64 `json:"job_ids"`
}

// PublicPayload marks the type as free of secrets.
func (ScheduledResult) PublicPayload() {}

// scheduledStart is when the engine's schedule was due, which it notes on what it starts.
var scheduledStart = temporal.NewSearchAttributeKeyTime("TemporalScheduledStartTime")

// ScheduledJobs is one firing of a schedule of managed jobs. It submits them, and lives until they have ended: that is how
// the engine's schedule knows whether the last firing still runs, and a cancel of this is a cancel of them.
func ScheduledJobs(ctx workflow.Context, in ScheduledInput) (ScheduledResult, error) {
	info := workflow.GetInfo(ctx)
	due, ok := workflow.GetTypedSearchAttributes(ctx).GetTime(scheduledStart)
	if !ok {
		due = info.WorkflowStartTime
	}
	root, _ := workflow.NewDisconnectedContext(ctx)
	var out activities.FireOutput
	fire := activities.FireInput{Schedule: in.Schedule, Due: due.UTC().Truncate(time.Second)}
	if err := workflow.ExecuteLocalActivity(local(root, "take numbers for the jobs"), acts.FireSchedule, fire).Get(root, &out); err != nil {
		return ScheduledResult{}, err
	}
	if out.Gone {
		actx := remote(root, activities.QueueMain, "drop the deleted schedule", 10*time.Second, time.Hour)
		return ScheduledResult{}, workflow.ExecuteActivity(actx, acts.DropSchedule, in.Schedule).Get(actx, nil)
	}
	workflow.SetCurrentDetails(root, fmt.Sprintf("submits managed job(s) %v, due %s", out.JobIDs, due.UTC().Format(time.RFC3339)))
	var jobs []workflow.ChildWorkflowFuture
	for rank, id := range out.JobIDs {
		cctx := workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
			WorkflowID: activities.ManagedWorkflowID(id), TaskQueue: activities.QueueMain, WorkflowTaskTimeout: activities.WorkflowTaskTimeout,
			WorkflowIDReusePolicy: enumspb.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE, ParentClosePolicy: enumspb.PARENT_CLOSE_POLICY_ABANDON, WaitForCancellation: true,
			TypedSearchAttributes: activities.SearchAttributes("job", out.Name, out.Body.Workspace, out.Body.User), StaticSummary: "managed job " + out.Name,
		})
		jobs = append(jobs, workflow.ExecuteChildWorkflow(cctx, ManagedJob, ManagedInput{ID: id, Rank: rank, NumJobs: len(out.JobIDs), Body: out.Body,
			Schedule: in.Schedule, Due: fire.Due}))
	}
	for i, j := range jobs {
		var started *temporal.ChildWorkflowExecutionAlreadyStartedError
		if err := j.Get(root, nil); errors.As(err, &started) {
			workflow.GetLogger(root).Warn("the job was there already", "job", out.JobIDs[i])
		}
	}
	if err := ctx.Err(); err != nil {
		return ScheduledResult{}, err
	}
	return ScheduledResult{JobIDs: out.JobIDs}, nil // how they ended is theirs to tell
}

// scheduled notes on a job's row which schedule submitted it, and gives the words for it.
func (in ManagedInput) scheduled(row *api.ManagedJob) string {
	if in.Schedule == 0 {
		return ""
	}
	due := in.Due.UTC().Format(time.RFC3339)
	if row != nil {
		m := map[string]string{"schedule_id": fmt.Sprint(in.Schedule), "due": due}
		for k, v := range row.Metadata {
			m[k] = v
		}
		row.Metadata = m
	}
	return fmt.Sprintf(", by schedule %d, due %s", in.Schedule, due)
}

// refused ends a job that a schedule submitted and that can't be carried out, as its server may say long after the schedule
// was made: others are refused before they have a number.
func (j *job) refused(e *api.Error) {
	if j.in.Schedule == 0 {
		return
	}
	b, now := j.in.Body, workflow.Now(j.root)
	name := b.Name
	if name == "" {
		name = fmt.Sprintf("schedule-%d", j.in.Schedule)
	}
	row := api.ManagedJob{ID: j.in.ID, NumTasks: 1, Name: name, TaskName: name, Status: api.ManagedFailedPrechecks, FailureReason: words(e), User: b.User, UserHash: b.UserHash,
		Workspace: cmp.Or(b.Workspace, "default"), SubmittedAt: now, EndAt: &now, Command: b.Command, RequestID: b.RequestID, JobRank: j.in.Rank, NumJobs: max(j.in.NumJobs, 1), Primary: true, Seq: 1}
	by := j.in.scheduled(&row)
	ev := store.Event{Key: j.prefix + "/refused", Event: api.Event{Time: now, JobID: j.in.ID, Kind: api.EventStatus, Message: fmt.Sprintf("%s: %s (submitted by %s%s)", row.Status, words(e), orNobody(b.User), by)}}
	rec := activities.RecordInput{Batch: store.Batch{ManagedJobs: []api.ManagedJob{row}, Events: []store.Event{ev}, Durable: true}}
	if err := workflow.ExecuteLocalActivity(local(j.root, "write why it was refused"), acts.Record, rec).Get(j.root, nil); err != nil {
		workflow.GetLogger(j.root).Warn("row not written", "job", j.in.ID, "error", err)
	}
}
