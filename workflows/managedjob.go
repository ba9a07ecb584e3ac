package workflows

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/task"
)

// ManagedInput is a managed job. A foreign parent gives Body only: the number is then made from the workflow's identity.
type ManagedInput struct {
	ID      int64              `json:"job_id,omitempty"`
	Rank    int                `json:"job_rank,omitempty"`
	NumJobs int                `json:"num_jobs,omitempty"`
	Body    api.JobsLaunchBody `json:"body"`
	// Schedule is the number of the schedule that submits the job, for the time Due.
	Schedule int64     `json:"schedule_id,omitempty"`
	Due      time.Time `json:"due,omitzero"`
	// Carried is what an earlier run of the same job knows.
	Carried *managedState `json:"carried,omitempty"`
}

// ManagedResult is how a managed job ended.
type ManagedResult struct {
	JobID  int64             `json:"job_id"`
	Status api.ManagedStatus `json:"status"`
	Reason string            `json:"reason,omitempty"`
}

// PublicPayload marks the type as free of secrets.
func (ManagedResult) PublicPayload() {}

// managedState outlives a run of the workflow.
type managedState struct {
	Spec  activities.ManagedSpec `json:"spec"`
	Runs  []*taskRun             `json:"runs"`
	Began time.Time              `json:"began"`
	Array *arrayState            `json:"array,omitempty"`
}

// ManagedJob carries a job from its submission to its end: it brings up a cluster of its own, runs the task, recovers it
// when the infra fails, and takes everything down, whatever happens. It is its own request. A pipeline runs its tasks in order, a
// group all at once.
func ManagedJob(ctx workflow.Context, in ManagedInput) (ManagedResult, error) {
	in.Body.RequestID = requestID(ctx, in.Body.RequestID)
	root, _ := workflow.NewDisconnectedContext(ctx)
	j := &job{in: in, outer: ctx, root: root, prefix: workflow.GetInfo(ctx).FirstRunID}
	if in.ID == 0 {
		if err := j.foreign(); err != nil {
			return ManagedResult{}, err
		}
		var ids []int64
		if err := workflow.ExecuteLocalActivity(local(root, "take a number"), acts.JobNumbers, in.Body.RequestID, 1).Get(root, &ids); err != nil {
			return ManagedResult{}, err
		}
		j.in.ID = ids[0]
	}
	if in.Carried != nil {
		j.state = *in.Carried
	} else if e := j.open(); e != nil {
		j.refused(e)
		return ManagedResult{JobID: j.in.ID}, failure(e)
	}
	if err := j.listen(); err != nil {
		return ManagedResult{}, err
	}
	if in.Carried == nil && len(in.Body.After) > 0 && !j.await() {
		return j.end()
	}
	var again bool
	switch {
	case j.state.Spec.Kind == task.JobGroup:
		j.group()
	case j.state.Spec.Tasks[0].Array != nil:
		again = j.array()
	default:
		again = j.pipeline()
	}
	if again {
		in := j.in
		in.Carried = &j.state
		return ManagedResult{}, workflow.NewContinueAsNewError(ctx, ManagedJob, in)
	}
	return j.end()
}

// foreign refuses a workflow of others that bears an id which a job of this server's own may get.
func (j *job) foreign() error {
	id := workflow.GetInfo(j.outer).WorkflowExecution.ID
	if !strings.HasPrefix(id, activities.ManagedWorkflows) || workflow.GetVersion(j.root, "own ids are refused", workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		return nil
	}
	return failure(&api.Error{Kind: api.ErrInvalid, Message: fmt.Sprintf("workflow id %q: ids that begin with %q are those of this server's own jobs", id, activities.ManagedWorkflows),
		Hint: "start ManagedJob under another id"})
}

// job is the workflow's memory while it runs.
type job struct {
	in          ManagedInput
	state       managedState
	outer, root workflow.Context
	prefix      string
	cancelled   bool
	meets       bool  // the tasks of the group know each other's addresses
	home        *home // of a group that is in one place
	admitted    int   // counts nudges of the admission
}

// open makes the rows of the job's tasks.
func (j *job) open() *api.Error {
	if err := workflow.ExecuteLocalActivity(local(j.root, "read the tasks"), acts.ParseManaged, j.in.Body).Get(j.root, &j.state.Spec); err != nil {
		return asError(err)
	}
	if e := j.state.Spec.Error; e != nil {
		return e
	}
	j.state.Began = workflow.GetInfo(j.outer).WorkflowStartTime
	b := j.in.Body
	var batch store.Batch
	for i := range j.state.Spec.Tasks {
		r := &taskRun{Index: i, Row: ManagedRow(j.state.Spec, j.in, i, j.state.Began)}
		r.Row.Seq = 1
		if info := workflow.GetInfo(j.outer); info.WorkflowExecution.ID != activities.ManagedWorkflowID(j.in.ID) {
			r.Row.Workflow, r.Row.WorkflowRun = info.WorkflowExecution.ID, info.FirstRunID
		}
		j.state.Runs = append(j.state.Runs, r)
		batch.ManagedJobs = append(batch.ManagedJobs, r.Row)
	}
	kept := store.ManagedFiles{JobID: j.in.ID}
	for i := range j.state.Spec.Tasks {
		for _, f := range b.FileMounts[i] {
			kept.Manifests = append(kept.Manifests, f.Manifest)
		}
	}
	if len(kept.Manifests) > 0 {
		batch.ManagedFiles = []store.ManagedFiles{kept}
	}
	for _, s := range j.state.Spec.Notify {
		s.JobID = j.in.ID
		batch.NoticeStreams = append(batch.NoticeStreams, s)
	}
	batch.Events = []store.Event{{Key: j.prefix + "/open", Event: api.Event{Time: j.state.Began, JobID: j.in.ID, Kind: api.EventStatus, Message: "submitted by " + orNobody(b.User) + j.in.scheduled(nil)}}}
	batch.Durable = true
	if err := workflow.ExecuteLocalActivity(local(j.root, "write the job's rows"), acts.Record, activities.RecordInput{Batch: batch}).Get(j.root, nil); err != nil {
		return asError(err)
	}
	return nil
}

func orNobody(s string) string {
	if s == "" {
		return "another workflow"
	}
	return s
}

// ManagedRow is the row of a task of a job that was just submitted.
func ManagedRow(s activities.ManagedSpec, in ManagedInput, i int, submitted time.Time) api.ManagedJob {
	b, t := in.Body, s.Tasks[i]
	r := api.ManagedJob{ID: in.ID, TaskID: i, NumTasks: len(s.Tasks), Name: s.Name, TaskName: t.Name, Status: api.ManagedPending,
		Resources: t.Resources, User: b.User, UserHash: b.UserHash, Workspace: cmp.Or(b.Workspace, "default"), Priority: t.Priority, PriorityClass: t.PriorityClass,
		SubmittedAt: submitted, UserYAML: t.Redacted, Command: b.Command, RequestID: b.RequestID, JobRank: in.Rank, NumJobs: max(in.NumJobs, 1),
		Group: s.Kind == task.JobGroup, Primary: len(s.Primary) == 0 || slices.Contains(s.Primary, t.Name)}
	if t.Array != nil {
		r.Array = &api.ArrayProgress{Count: t.Array.Count, Parallel: t.Array.Parallel}
	}
	if b.GitCommit != "" {
		r.Metadata = map[string]string{"git_commit": b.GitCommit}
	}
	in.scheduled(&r)
	return r
}

// listen takes in what the watcher and the admission say, for as long as the workflow runs.
func (j *job) listen() error {
	err := workflow.SetQueryHandler(j.root, activities.QueryState, func() (activities.Owned, error) {
		var o activities.Owned
		for _, r := range j.clusters() {
			if r.St.Exists() {
				o.Others = append(o.Others, activities.Owned{Hash: r.St.Ref.Hash, Token: r.St.Token, Status: r.St.Row.Status, Provider: r.St.Provider, Nodes: r.St.Nodes, Row: r.St.Row})
			}
		}
		return o, nil
	})
	if err != nil {
		return err
	}
	seen := workflow.GetSignalChannel(j.outer, activities.SignalObserved)
	workflow.GoNamed(j.root, "observed", func(ctx workflow.Context) {
		for {
			var o activities.Observed
			if !seen.Receive(ctx, &o) {
				return
			}
			j.observe(o)
		}
	})
	admitted := workflow.GetSignalChannel(j.outer, activities.SignalAdmitted)
	workflow.GoNamed(j.root, "admitted", func(ctx workflow.Context) {
		for admitted.Receive(ctx, nil) {
			j.admitted++
		}
	})
	workflow.GoNamed(j.root, "cancel", func(ctx workflow.Context) {
		j.outer.Done().Receive(ctx, nil)
		j.cancelled = true
		for _, r := range j.clusters() {
			r.halt()
		}
	})
	return nil
}

// observe routes what was seen to the task whose cluster it is about.
func (j *job) observe(o activities.Observed) {
	for _, r := range j.clusters() {
		if !r.St.Exists() || r.St.Ref.Hash != o.Hash {
			continue
		}
		switch o.Kind {
		case activities.ObservedReady:
			if r.m != nil {
				r.m.ready = true
			}
		case activities.ObservedSilent:
			if r.m != nil {
				r.m.silent(o)
			}
		case activities.ObservedJob:
			if o.Job != nil && o.Job.ID == r.JobID {
				r.ended = o.Job
			} else {
				r.early = o.Job
			}
		case activities.ObservedBatch:
			r.Lane.heard(o.Batch)
		case activities.ObservedSuspect, activities.ObservedAlive:
			// Shown by the cluster's events; the job goes on.
		case activities.ObservedLost:
			r.lost = fmt.Sprintf("node %d %s", o.Rank, o.Message)
			if !slices.Contains(r.lostRanks, o.Rank) {
				r.lostRanks = append(r.lostRanks, o.Rank)
			}
		default: // nodes changed, or the cluster wants to stop itself
			r.look = true
		}
	}
}

// pipeline runs the tasks one after the other. It tells whether the workflow must continue as new.
func (j *job) pipeline() (again bool) {
	failed := false
	for i, r := range j.state.Runs {
		switch {
		case r.Row.Status.Terminal():
		case failed || j.cancelled && i > 0 && j.state.Runs[i-1].Row.Status.Terminal() && r.Row.Attempt == 0:
			why := "an earlier task of the pipeline did not succeed"
			if j.cancelled {
				why = "cancelled"
			}
			j.finish(r, api.ManagedCancelled, why)
		default:
			if again := j.run(j.root, r); again {
				return true
			}
		}
		failed = failed || r.Row.Status != api.ManagedSucceeded
	}
	return false
}

// group runs all tasks at once. When the primary ones are done the others are ended, after their delay.
func (j *job) group() {
	done := 0
	j.meets = groupMeets(j.root)
	if groupShares(j.root) {
		j.gather()
	}
	for _, r := range j.state.Runs {
		workflow.GoNamed(j.root, "task "+r.Row.TaskName, func(ctx workflow.Context) {
			for !r.Row.Status.Terminal() {
				j.run(ctx, r)
			}
			done++
		})
	}
	primaries := func() (open, failed bool) {
		for _, r := range j.state.Runs {
			if r.Row.Primary {
				open = open || !r.Row.Status.Terminal()
				failed = failed || r.Row.Status.Terminal() && r.Row.Status != api.ManagedSucceeded
			}
		}
		return open, failed
	}
	_ = workflow.Await(j.root, func() bool { open, _ := primaries(); return !open })
	_, failed := primaries()
	for _, r := range j.state.Runs {
		if r.Row.Status.Terminal() {
			continue
		}
		delay := j.delay(r.Row.TaskName)
		if failed || j.cancelled {
			delay = 0
		}
		workflow.GoNamed(j.root, "end "+r.Row.TaskName, func(ctx workflow.Context) {
			if delay > 0 {
				_, _ = workflow.AwaitWithTimeout(ctx, delay, func() bool { return j.cancelled || r.Row.Status.Terminal() })
			}
			r.auxiliary = true
			r.halt()
		})
	}
	_ = workflow.Await(j.root, func() bool { return done == len(j.state.Runs) })
}

// delay is how long an auxiliary task may go on after the primary ones.
func (j *job) delay(name string) time.Duration {
	if d, ok := j.state.Spec.Delay[name]; ok {
		return d
	}
	return j.state.Spec.Delay["default"]
}

// end draws the job's result from its tasks, and lets go of what only recoveries needed.
func (j *job) end() (ManagedResult, error) {
	var rows []api.ManagedJob
	for _, r := range j.state.Runs {
		rows = append(rows, r.Row)
	}
	res := ManagedResult{JobID: j.in.ID}
	status, decisive := api.ManagedState(rows)
	if res.Status = status; status != api.ManagedSucceeded {
		res.Reason = decisive.FailureReason
	}
	if err := workflow.ExecuteLocalActivity(local(j.root, "let go of the job's secrets"), acts.CloseJob, j.in.Body.RequestID).Get(j.root, nil); err != nil {
		workflow.GetLogger(j.root).Warn("secrets not dropped", "job", j.in.ID, "error", err)
	}
	switch {
	case res.Status == api.ManagedSucceeded:
		return res, nil
	case res.Status == api.ManagedCancelled:
		return res, temporal.NewCanceledError(res)
	}
	return res, failure(&api.Error{Kind: string(res.Status), Message: fmt.Sprintf("managed job %d: %s", j.in.ID, res.Reason), Hint: fmt.Sprintf("see its log: sky jobs logs %d", j.in.ID)})
}

// clusterName names a task's own cluster.
func clusterName(task string, id int64, index, tasks int) string {
	name := strings.ToLower(task)
	if len(name) > 25 {
		name = name[:25]
	}
	name = strings.Trim(name, "-_.")
	if name == "" || name[0] < 'a' || name[0] > 'z' {
		name = "job-" + name
	}
	name = fmt.Sprintf("%s-%d", strings.Trim(name, "-_."), id)
	if tasks > 1 {
		name += fmt.Sprintf("-%d", index)
	}
	return name
}
