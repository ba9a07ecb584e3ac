package activities

import (
	"context"
	"errors"
	"fmt"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

// openJobs lists the rows of managed jobs that have not ended, by job.
func (a *Activities) openJobs(ctx context.Context) ([][]api.ManagedJob, error) {
	rows, _, _, err := a.Store.ManagedJobs(ctx, store.ManagedFilter{SkipFinished: true})
	var jobs [][]api.ManagedJob
	for i, r := range rows {
		if i == 0 || rows[i-1].ID != r.ID {
			jobs = append(jobs, nil)
		}
		jobs[len(jobs)-1] = append(jobs[len(jobs)-1], r)
	}
	return jobs, err
}

// endJobs ends the rows of managed jobs whose workflow has ended without a word: it was terminated, or its parent was and took it
// along. A job whose workflow has left something (left: owners by incarnation) is passed over until that is gone: nothing of a job
// runs that is shown as ended.
func (a *Activities) endJobs(ctx context.Context, jobs [][]api.ManagedJob, book *ledger, left map[string]string, out *ReapOutput) error {
	waits := map[string]bool{}
	for _, owner := range left {
		waits[owner] = true
	}
	for _, job := range jobs {
		id := ManagedWorkflow(job[0])
		if waits[id] || a.young(job[0].SubmittedAt) || !book.turn(id) && !book.ended(id) {
			continue
		}
		lives, why, at, err := a.carried(ctx, id, job[0].WorkflowRun)
		if err != nil {
			out.Errors = append(out.Errors, fmt.Sprintf("managed job %d: %v", job[0].ID, err))
			continue
		}
		if lives {
			continue
		}
		// It may have written its end since the rows were read.
		rows, err := a.Store.ManagedJob(ctx, job[0].ID)
		if err != nil {
			return err
		}
		batch := store.Batch{Durable: true}
		status := why.status()
		reason := fmt.Sprintf("its workflow %s %s", id, why)
		for _, r := range rows {
			if r.Status.Terminal() {
				continue
			}
			if r.RunningSince != nil {
				r.RunSeconds += max(at.Sub(*r.RunningSince), 0).Seconds()
			}
			r.Status, r.FailureReason, r.EndAt, r.RunningSince, r.NextRetry, r.Details, r.Cluster = status, reason, &at, nil, nil, "", ""
			r.Seq += 1_000_000
			batch.ManagedJobs = append(batch.ManagedJobs, r)
			batch.Events = append(batch.Events, store.Event{Key: fmt.Sprintf("reap/job/%d/%d", r.ID, r.TaskID),
				Event: api.Event{Time: time.Now(), JobID: r.ID, Kind: api.EventStatus, Step: "reap", Message: fmt.Sprintf("%s: %s", status, reason)}})
		}
		if err := a.Store.Write(ctx, batch); err != nil {
			return err
		}
		if len(batch.ManagedJobs) > 0 {
			out.Ended = append(out.Ended, job[0].ID)
		}
		if err := a.letGo(ctx, rows[0]); err != nil {
			return err
		}
	}
	return nil
}

// letGo gives back what an ended job held: its admissions, and the secrets of its submission if it was the last.
func (a *Activities) letGo(ctx context.Context, row api.ManagedJob) error {
	held := 1
	if row.Array != nil {
		held = max(held, row.Array.Parallel)
	}
	for n := range held {
		if err := a.Store.ReleaseAdmission(ctx, LaneAdmission(row.ID, n), store.PhaseNone); err != nil {
			return err
		}
	}
	return a.CloseJob(ctx, row.RequestID)
}

// ending is how a workflow ended that did not say so itself.
type ending string

const (
	endTerminated ending = "was terminated"
	endCancelled  ending = "was cancelled"
	endFailed     ending = "had ended and did not say how"
	endReplaced   ending = "had ended, and its id is another's"
	endMissing    ending = "is not there any more"
)

// status is the state of a job whose workflow ended so: to terminate one is to want its end.
func (e ending) status() api.ManagedStatus {
	if e == endTerminated || e == endCancelled {
		return api.ManagedCancelled
	}
	return api.ManagedFailed
}

// carried tells whether a workflow runs, given the first of its runs (empty: whatever run), and if not how and when it ended.
func (a *Activities) carried(ctx context.Context, id, firstRun string) (lives bool, how ending, at time.Time, err error) {
	d, err := a.Engine.DescribeWorkflowExecution(ctx, id, "")
	var missing *serviceerror.NotFound
	if errors.As(err, &missing) {
		return false, endMissing, time.Now(), nil
	}
	if err != nil {
		return false, "", time.Time{}, err
	}
	info := d.GetWorkflowExecutionInfo()
	if firstRun != "" && info.GetFirstRunId() != firstRun {
		return false, endReplaced, time.Now(), nil
	}
	at = time.Now()
	if t := info.GetCloseTime(); t != nil {
		at = t.AsTime()
	}
	switch info.GetStatus() {
	case enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING:
		return true, "", at, nil
	case enumspb.WORKFLOW_EXECUTION_STATUS_TERMINATED:
		how = endTerminated
	case enumspb.WORKFLOW_EXECUTION_STATUS_CANCELED:
		how = endCancelled
	default:
		how = endFailed
	}
	return false, how, at, nil
}
