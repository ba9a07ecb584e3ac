package worker

import (
	"context"
	"errors"
	"sort"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"golang.org/x/sync/errgroup"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/config"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/workflows"
)

var (
	fpJobsBefore = failpoint.Register("jobs.before-start-workflows")
	fpJobsAfter  = failpoint.Register("jobs.after-start-workflows")
)

// submitJobs starts a workflow per job. Idempotent: the numbers follow from the request's id, and the engine refuses a second
// workflow of a number. again: the request was accepted before; a store that is away now is then no reason to refuse it.
func (b *backend) submitJobs(ctx context.Context, body api.JobsLaunchBody, again bool) (api.Ref, error) {
	spec, err := b.acts.ParseManaged(ctx, body)
	if err != nil {
		return api.Ref{}, err
	}
	if spec.Error != nil {
		return api.Ref{}, spec.Error
	}
	if err := b.checkNotify(spec); err != nil {
		return api.Ref{}, err
	}
	if !again {
		if err := b.acts.CheckBuckets(ctx, spec); err != nil {
			return api.Ref{}, err
		}
	}
	if s := first(body.Schedule, spec.Schedule); s != nil {
		return b.createSchedule(ctx, body, spec, *s)
	}
	if err := b.checkAfter(ctx, body); err != nil {
		return api.Ref{}, err
	}
	n := max(body.NumJobs, 1)
	ids, err := b.store.JobNumbers(ctx, body.RequestID, n)
	if err != nil {
		return api.Ref{}, err
	}
	if err := failpoint.Hit(fpJobsBefore); err != nil {
		return api.Ref{}, err
	}
	err = b.each(len(ids), func(rank int) error {
		id := ids[rank]
		in := workflows.ManagedInput{ID: id, Rank: rank, NumJobs: n, Body: body}
		_, err := b.client.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
			ID: activities.ManagedWorkflowID(id), TaskQueue: activities.QueueMain, WorkflowTaskTimeout: activities.WorkflowTaskTimeout,
			WorkflowIDReusePolicy:                    enumspb.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
			WorkflowExecutionErrorWhenAlreadyStarted: true, EnableEagerStart: true,
			TypedSearchAttributes: activities.SearchAttributes("job", spec.Name, body.Workspace, body.User), StaticSummary: "managed job " + spec.Name,
			Priority: temporal.Priority{PriorityKey: batchPriority},
		}, "ManagedJob", in)
		var dup *serviceerror.WorkflowExecutionAlreadyStarted
		if err != nil && !errors.As(err, &dup) {
			return err
		}
		return nil
	})
	if err != nil {
		return api.Ref{}, &api.Error{Kind: api.ErrUnavailable, Message: "the workflow engine did not take the job: " + err.Error(), Hint: "send it again: the request id makes that safe"}
	}
	if err := failpoint.Hit(fpJobsAfter); err != nil {
		return api.Ref{}, err
	}
	// Whoever is told the numbers finds the jobs, though a workflow may not have written its rows yet: these stand below them.
	res := activities.EncodeResult(api.JobsLaunchResult{RequestID: body.RequestID, JobIDs: ids})
	batch := store.Batch{Requests: []store.RequestUpdate{{ID: body.RequestID, Status: api.RequestSucceeded, Result: res}}}
	for rank, id := range ids {
		for i := range spec.Tasks {
			batch.ManagedJobs = append(batch.ManagedJobs, workflows.ManagedRow(spec, workflows.ManagedInput{ID: id, Rank: rank, NumJobs: n, Body: body}, i, time.Now()))
		}
	}
	if err := b.store.Write(ctx, batch); err != nil {
		return api.Ref{}, err
	}
	return api.Ref{RequestID: body.RequestID, Name: "sky.jobs.launch", Status: api.RequestSucceeded}, nil
}

// CancelManagedJobs asks the workflows of managed jobs to end. The cancel is durable when it returns.
func (b *backend) CancelManagedJobs(ctx context.Context, in api.JobsCancelBody) (api.JobsCancelReply, error) {
	f := store.ManagedFilter{IDs: in.JobIDs, Name: in.Name}
	if in.All || in.AllUsers {
		f = store.ManagedFilter{SkipFinished: true}
		if !in.AllUsers {
			f.UserHash = in.UserHash
		}
	}
	rows, _, _, err := b.store.ManagedJobs(ctx, f)
	if err != nil {
		return api.JobsCancelReply{}, err
	}
	open, head := map[int64]bool{}, map[int64]api.ManagedJob{}
	var ids []int64
	for _, r := range rows {
		if _, ok := open[r.ID]; !ok {
			ids = append(ids, r.ID)
			head[r.ID] = r
		}
		open[r.ID] = open[r.ID] || !r.Status.Terminal()
	}
	if len(ids) == 0 && !in.All && !in.AllUsers {
		what := in.Name
		if what == "" {
			what = api.FormatIDs(in.JobIDs)
		}
		return api.JobsCancelReply{}, &api.Error{Kind: api.ErrJobNotFound, Message: "there is no managed job " + what, Hint: "see all: sky jobs queue"}
	}
	sort.Slice(ids, func(i, k int) bool { return ids[i] < ids[k] })
	took := make([]bool, len(ids)) // whose cancel was accepted
	err = b.each(len(ids), func(i int) error {
		if !open[ids[i]] {
			return nil
		}
		var err error
		took[i], err = b.cancelJob(ctx, head[ids[i]])
		return err
	})
	rep := api.JobsCancelReply{Cancelled: []int64{}}
	for i, id := range ids {
		if took[i] {
			rep.Cancelled = append(rep.Cancelled, id)
		} else if err == nil {
			rep.Finished = append(rep.Finished, id)
		}
	}
	return rep, err
}

// cancelJob asks the workflow of a job to end. False: it has ended.
func (b *backend) cancelJob(ctx context.Context, row api.ManagedJob) (took bool, err error) {
	id := activities.ManagedWorkflow(row)
	if row.WorkflowRun != "" { // others may have used the id again
		d, err := b.client.DescribeWorkflowExecution(ctx, id, "")
		if err == nil && d.GetWorkflowExecutionInfo().GetFirstRunId() != row.WorkflowRun {
			return false, nil
		}
		if err != nil && !gone(err) {
			return false, err
		}
	}
	if err = b.client.CancelWorkflow(ctx, id, ""); gone(err) {
		return false, nil
	}
	return err == nil, err
}

// gone says that the engine knows of no such workflow that runs.
func gone(err error) bool {
	var missing *serviceerror.NotFound
	return errors.As(err, &missing)
}

// batchPriority puts the tasks of managed jobs behind those of requests, at the engine's usual 3, which somebody waits for.
const batchPriority = 4

// inFlight bounds the calls to the engine that submissions and cancels have under way, all together: enough that they share its
// commits, and few enough that none waits long.
const inFlight = 16

// patience is how long a call that the engine did not answer in time is repeated.
const patience = time.Minute

// each calls do with 0 to n-1, some at once. It goes on after an error, and returns the first. A call that timed out is
// repeated: do must be idempotent.
func (b *backend) each(n int, do func(int) error) error {
	var g errgroup.Group
	g.SetLimit(inFlight)
	for i := range n {
		g.Go(func() (err error) {
			b.flight <- struct{}{}
			defer func() { <-b.flight }()
			for start := time.Now(); ; {
				err = do(i)
				var late *serviceerror.DeadlineExceeded
				if !errors.As(err, &late) && !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > patience {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// admission nudges the managed jobs for which there is room.
func (s *server) admission(ctx context.Context) {
	changed, stop := s.store.Subscribe(store.AdmissionTopic)
	defer stop()
	poll := time.NewTicker(15 * time.Second)
	defer poll.Stop()
	for {
		ids, err := s.store.NextAdmissions(ctx, s.acts.Limits)
		if err != nil && ctx.Err() == nil {
			s.log.Warn("admission", "error", err)
		}
		for _, id := range ids {
			err := s.admitted(ctx, activities.AdmissionJob(id))
			switch {
			case gone(err):
				// It has ended without giving its slot back: its workflow was terminated from outside.
				err = s.store.ReleaseAdmission(ctx, id, store.PhaseNone)
			case err == nil:
				err = s.store.AdmissionsTold(ctx, id)
			}
			if err != nil && ctx.Err() == nil {
				s.log.Warn("admission", "job", id, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
		case <-changed:
		}
	}
}

// admitted nudges the workflow of a job, which asks again then.
func (s *server) admitted(ctx context.Context, id int64) error {
	row, err := s.store.ManagedHead(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		row, err = api.ManagedJob{ID: id}, nil
	}
	if err != nil {
		return err
	}
	return s.client.SignalWorkflow(ctx, activities.ManagedWorkflow(row), "", activities.SignalAdmitted, nil)
}

// admissionLimits are how many managed jobs may launch and run at once, from jobs.limits in the configuration.
func admissionLimits(c *config.Config) store.AdmissionLimits {
	l := store.AdmissionLimits{Launching: c.Int("jobs.limits.launching", defaultLaunching), Running: c.Int("jobs.limits.running", 0), Infra: map[string]store.InfraLimit{}}
	for name := range c.Map("jobs.limits.infra") {
		at := "jobs.limits.infra." + name + "."
		l.Infra[name] = store.InfraLimit{Launching: c.Int(at+"launching", 0), Running: c.Int(at+"running", 0)}
	}
	return l
}

// defaultLaunching bounds the launches of managed jobs under way at once.
const defaultLaunching = 64
