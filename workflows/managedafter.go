package workflows

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
)

// afterLook is how often a job that waits for others looks although nothing was heard.
const afterLook = 24 * time.Hour

// await waits for the jobs that this one was to begin after. The server's signal comes when the last of them has ended as
// wished, or one as it should not have; nothing is polled. False: the job has ended, since the condition can no longer come true.
func (j *job) await() bool {
	r := j.state.Runs[0]
	j.idle(r)
	told := 0
	signals := workflow.GetSignalChannel(j.outer, activities.SignalWaited)
	workflow.GoNamed(j.root, "waited", func(ctx workflow.Context) {
		for signals.Receive(ctx, nil) {
			told++
		}
	})
	for shown := false; !j.cancelled; {
		heard := told
		var out activities.AfterOutput
		in := activities.AfterInput{JobID: j.in.ID, Workflow: workflow.GetInfo(j.outer).WorkflowExecution.ID, After: j.in.Body.After}
		if err := workflow.ExecuteLocalActivity(local(j.root, "see what it waits for"), acts.WaitForJobs, in).Get(j.root, &out); err != nil {
			workflow.GetLogger(j.root).Warn("wait not noted", "job", j.in.ID, "error", err)
			if err := workflow.Sleep(j.root, time.Minute); err != nil {
				return true
			}
			continue
		}
		switch {
		case out.Never != "":
			for _, r := range j.state.Runs {
				j.finish(r, api.ManagedCancelled, out.Never)
			}
			return false
		case out.Met:
			r.Row.Details = ""
			j.show(r, api.EventStatus, "it begins: %s", out.Why)
			return true
		case !shown:
			shown = true
			r.Row.Details = out.Why
			j.show(r, api.EventRetry, "%s", out.Why)
		}
		_, _ = workflow.AwaitWithTimeout(j.root, afterLook, func() bool { return told > heard || j.cancelled })
	}
	return true // the cancel is carried out task by task
}
