package activities

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/recovery"
	"github.com/skyloom/skyloom/internal/secret"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/task"
)

// ManagedSpec is what a managed job's workflow must know of its tasks.
type ManagedSpec struct {
	Kind  task.Kind         `json:"kind"`
	Name  string            `json:"name"`
	Tasks []ManagedTaskSpec `json:"tasks"`
	Error *api.Error        `json:"error,omitempty"`
	// Schedule is what the task file says of when to submit; a job's workflow passes it over.
	Schedule *api.ScheduleSpec `json:"schedule,omitempty"`
	// Notify is who is told of changes of state.
	Notify []store.NoticeStream `json:"notify,omitempty"`
	// Primary names the tasks of a group that decide its end; empty: all. Delay is how long the others may go on, by task name.
	Primary []string                 `json:"primary,omitempty"`
	Delay   map[string]time.Duration `json:"delay,omitempty"`
}

// ManagedTaskSpec is one task.
type ManagedTaskSpec struct {
	Name          string          `json:"name"`
	Text          string          `json:"text"` // canonical YAML, secrets by reference
	Redacted      string          `json:"redacted"`
	NumNodes      int             `json:"num_nodes"`
	HasRun        bool            `json:"has_run"`
	Resources     string          `json:"resources"`
	Policy        recovery.Policy `json:"policy"`
	Priority      int             `json:"priority"`
	PriorityClass string          `json:"priority_class,omitempty"`
	Checkpoint    *CheckpointRule `json:"checkpoint,omitempty"`
	Array         *ArrayRule      `json:"array,omitempty"`
	HasSetup      bool            `json:"has_setup,omitempty"` // of an array
	// Secrets are those that the task is given, where several tasks share what was given; nil: all.
	Secrets []string `json:"secrets"`
}

// SecretRefs are those of refs that the task is given.
func (t ManagedTaskSpec) SecretRefs(refs map[string]string) map[string]string {
	if t.Secrets == nil {
		return refs
	}
	own := map[string]string{}
	for _, name := range t.Secrets {
		if ref, ok := refs[name]; ok {
			own[name] = ref
		}
	}
	return own
}

// secretsOf names, of what was given to several tasks, what one of them declares or none does.
func secretsOf(t *task.Task, all []*task.Task, refs map[string]string) []string {
	if len(all) < 2 {
		return nil
	}
	out := []string{}
	for _, name := range sortedKeys(refs) {
		_, own := t.Secrets[name]
		declared := slices.ContainsFunc(all, func(t *task.Task) bool { _, ok := t.Secrets[name]; return ok })
		if own || !declared {
			out = append(out, name)
		}
	}
	return out
}

// MaxNumJobs bounds the jobs of one submission.
const MaxNumJobs = 10_000

// ParseManaged reads the tasks of a submission and refuses what this server can't do. It changes nothing.
func (a *Activities) ParseManaged(ctx context.Context, body api.JobsLaunchBody) (ManagedSpec, error) {
	f, err := task.Parse("task", []byte(body.Task), task.ParseOptions{})
	if err != nil {
		return ManagedSpec{Error: &api.Error{Kind: api.ErrInvalid, Message: err.Error()}}, nil
	}
	if _, err := api.ParseAfter(body.After); err != nil {
		return ManagedSpec{Error: invalid("after: %v", err)}, nil
	}
	if body.NumJobs < 0 || body.NumJobs > MaxNumJobs {
		return ManagedSpec{Error: &api.Error{Kind: api.ErrInvalid, Message: fmt.Sprintf("num_jobs must be from 1 to %d, not %d", MaxNumJobs, body.NumJobs), Hint: "more of the same are one job with array: {count: N}"}}, nil
	}
	name := body.Name
	if name == "" && f.Name == "" {
		if name = f.Tasks[0].Name; name == "" {
			name = DefaultClusterName(body.RequestID, body.User)
		}
	}
	if name != "" {
		if err := f.Rename(name); err != nil {
			return ManagedSpec{Error: invalid("name: %v", err)}, nil
		}
	}
	for i, files := range body.FileMounts {
		if i < 0 || i >= len(f.Tasks) {
			return ManagedSpec{Error: invalid("files: there is no task %d; the file holds %d", i, len(f.Tasks))}, nil
		}
		if e, err := a.checkFiles(files); e != nil || err != nil {
			return ManagedSpec{Error: e}, err
		}
	}
	s := ManagedSpec{Kind: f.Kind, Name: f.Name, Primary: f.PrimaryTasks, Delay: f.TerminationDelay}
	for i, t := range f.Tasks {
		if _, err := task.CheckSupported(t, task.VerbJobsLaunch, Features); err != nil {
			return ManagedSpec{Error: &api.Error{Kind: api.ErrNotSupported, Message: err.Error(), Hint: "leave the field out, or wait for the release that brings it"}}, nil
		}
		if _, e := a.checkTask(string(t.Render(task.SecretsReferenced)), "", body.FileMounts[i]); e != nil {
			return ManagedSpec{Error: e}, nil
		}
		spec := ManagedTaskSpec{Name: t.Name, Text: string(t.Render(task.SecretsReferenced)), Redacted: string(t.Render(task.SecretsRedacted)), NumNodes: max(t.NumNodes, 1),
			HasRun: strings.TrimSpace(t.Run) != "", Policy: recovery.Policy{Strategy: recovery.EagerNextRegion}}
		if e := checkSecrets(t, body.SecretRefs); e != nil {
			return ManagedSpec{Error: e}, nil
		}
		spec.Secrets = secretsOf(t, f.Tasks, body.SecretRefs)
		rule, e := a.checkpointRule(t)
		if e != nil {
			return ManagedSpec{Error: e}, nil
		}
		spec.Checkpoint = rule
		if spec.Array, e = arrayRule(f, t); e != nil {
			return ManagedSpec{Error: e}, nil
		}
		spec.HasSetup = spec.Array != nil && strings.TrimSpace(t.Setup) != ""
		if r := t.Recovery(); r != nil {
			spec.Policy.MaxRestarts, spec.Policy.Codes = r.MaxRestartsOnErrors, r.RecoverOnExitCodes
			switch {
			case r.Strategy == "NONE":
				spec.Policy.Off = true
			case r.Strategy == "":
			case !recovery.Known(r.Strategy):
				return ManagedSpec{Error: invalid("job_recovery: unknown strategy %q; there are FAILOVER and EAGER_NEXT_REGION", r.Strategy)}, nil
			default:
				spec.Policy.Strategy = recovery.Strategy(r.Strategy)
			}
		}
		if e := scheduleOf(&s, t); e != nil {
			return ManagedSpec{Error: e}, nil
		}
		if t.Array != nil {
			spec.Policy.MaxRestarts = max(spec.Policy.MaxRestarts, t.Array.Retries)
		}
		spec.Priority, spec.PriorityClass = t.Priority()
		if spec.Name == "" {
			spec.Name = s.Name
		}
		spec.Resources = asked(t)
		s.Tasks = append(s.Tasks, spec)
	}
	if e := notifyOf(&s, body, f.Tasks); e != nil {
		return ManagedSpec{Error: e}, nil
	}
	return s, nil
}

// asked says in a few words what a task wants per node.
func asked(t *task.Task) string {
	var words []string
	for _, group := range t.Candidates() {
		for _, r := range group {
			w := ""
			if r.Accelerator != nil {
				w = r.Accelerator.String()
			} else if s := r.CPUs.String(); s != "" {
				w = "CPU:" + s
			} else {
				w = "CPU:1+"
			}
			if r.UseSpot {
				w = "[Spot]" + w
			}
			if len(words) == 0 || words[len(words)-1] != w {
				words = append(words, w)
			}
		}
	}
	if len(words) > 3 {
		words = append(words[:3], "…")
	}
	return fmt.Sprintf("%dx[%s]", max(t.NumNodes, 1), strings.Join(words, ", "))
}

// JobOutcomeInput asks how a job on a cluster stands.
type JobOutcomeInput struct {
	Nodes NodesInput `json:"nodes"`
	JobID int64      `json:"job_id"`
}

// JobOutcomeOutput tells what the infra and the agent say, and what the mirror has kept of a node that is gone.
type JobOutcomeOutput struct {
	Job   *api.Job         `json:"job,omitempty"`
	Nodes []providers.Node `json:"nodes,omitempty"`
	Whole bool             `json:"whole"` // every node runs
	// Asked says that the agent itself has answered.
	Asked  bool   `json:"asked"`
	Reason string `json:"reason,omitempty"`
}

// JobOutcome tells whether a cluster is whole and how its job stands. It changes nothing.
func (a *Activities) JobOutcome(ctx context.Context, in JobOutcomeInput) (JobOutcomeOutput, error) {
	seen, err := a.Inspect(ctx, in.Nodes)
	if err != nil {
		return JobOutcomeOutput{}, err
	}
	out := JobOutcomeOutput{Nodes: seen.Nodes, Whole: seen.Verdict == cluster.VerdictUp, Reason: seen.Reason}
	if c, err := a.headClient(ctx, in.Nodes.Provider, in.Nodes.Nodes); err == nil {
		actx, cancel := context.WithTimeout(ctx, 3*time.Second)
		job, err := c.Job(actx, in.JobID)
		cancel()
		c.Close()
		if err == nil {
			out.Job, out.Asked = &job, true
			if err := a.Store.PutJobs(ctx, in.Nodes.Ref.Name, in.Nodes.Ref.Hash, []api.Job{job}); err != nil {
				return out, err
			}
			return out, nil
		}
	}
	jobs, err := a.Store.Jobs(ctx, store.JobFilter{Hash: in.Nodes.Ref.Hash, IDs: []int64{in.JobID}})
	if err != nil {
		return out, err
	}
	if len(jobs) > 0 {
		out.Job = &jobs[0]
	}
	return out, nil
}

// EndInput takes an attempt's cluster down, after its log was kept.
type EndInput struct {
	Nodes   NodesInput `json:"nodes"`
	JobID   int64      `json:"job_id"`  // on the cluster; 0: none was submitted
	Managed int64      `json:"managed"` // number of the managed job
	Task    int        `json:"task"`
	Attempt int        `json:"attempt"`
	// Keep leaves the nodes: only the log is kept, and the job is cancelled.
	Keep bool `json:"keep,omitempty"`
	// Save is what a later attempt may begin with, if the nodes that have it can be reached; nil: none is to come.
	Save *WatchedCheckpoint `json:"save,omitempty"`
	// LostRanks are the silent nodes of a cluster that was lost; empty: the head is one.
	LostRanks []int `json:"lost_ranks,omitempty"`
	// Stop says that the job is still under way: it is ended first, so that its last words are kept.
	Stop bool `json:"stop,omitempty"`
}

// stopTime bounds how long a job is given for its end before its nodes go.
const stopTime = 15 * time.Second

// savable says that the nodes answer on which the checkpoint is.
func (in EndInput) savable() bool {
	return !in.Nodes.Lost || !in.Save.All && len(in.LostRanks) > 0 && !slices.Contains(in.LostRanks, 0)
}

// EndAttempt saves what is asked for, keeps an attempt's log and deletes its nodes until the infra lists none. Idempotent: a log that is complete is not fetched again.
func (a *Activities) EndAttempt(ctx context.Context, in EndInput) (NodesOutput, error) {
	stop := beat(ctx)
	defer stop()
	var warn []string
	if in.Save != nil && a.SaveLast != nil && in.savable() {
		a.SaveLast(ctx, in.Nodes, *in.Save)
	}
	if in.Stop && in.JobID > 0 {
		sctx, cancel := context.WithTimeout(ctx, stopTime)
		if c, err := a.headClient(sctx, in.Nodes.Provider, in.Nodes.Nodes); err == nil {
			if _, err := c.Cancel(sctx, agentapi.CancelSpec{JobIDs: []int64{in.JobID}}); err != nil {
				warn = append(warn, "the job was not ended before its nodes: "+err.Error())
			}
			c.Close()
		}
		cancel()
	}
	if in.JobID > 0 {
		if err := a.keepLogsPatiently(ctx, in); err != nil {
			warn = append(warn, "the attempt's log is incomplete: "+err.Error())
		}
	}
	if in.Keep {
		c, err := a.headClient(ctx, in.Nodes.Provider, in.Nodes.Nodes)
		if err != nil {
			return NodesOutput{}, err
		}
		defer c.Close()
		_, err = c.Cancel(ctx, agentapi.CancelSpec{JobIDs: []int64{in.JobID}})
		return NodesOutput{Warnings: warn}, err
	}
	// Its going is no news to anybody: nobody is to be told of it.
	if err := a.Store.DeleteWatch(ctx, in.Nodes.Ref.Hash); err != nil {
		return NodesOutput{}, err
	}
	out, err := a.Deprovision(ctx, in.Nodes)
	for i, left := range out.Warnings {
		a.say(ctx, fmt.Sprintf("managed/%d/%d/%d/left", in.Managed, in.Task, in.Attempt), i, api.Event{JobID: in.Managed, Cluster: in.Nodes.Ref.Name, Hash: in.Nodes.Ref.Hash, Kind: api.EventError, Step: "teardown", Message: left})
	}
	out.Warnings = append(warn, out.Warnings...)
	return out, err
}

// JudgeInput is what is known of an attempt that may have ended.
type JudgeInput struct {
	Policy   recovery.Policy `json:"policy"`
	Restarts int             `json:"restarts"`
	Ended    *api.Job        `json:"ended,omitempty"` // as the watcher told
	Lost     string          `json:"lost,omitempty"`  // why its infra can't confirm a silent node
	// LostRanks are the nodes that are silent; empty: the head.
	LostRanks []int           `json:"lost_ranks,omitempty"`
	Outcome   JobOutcomeInput `json:"outcome"`
}

// JudgeOutput is the recorded decision. GoesOn: nothing has ended.
type JudgeOutput struct {
	GoesOn    bool              `json:"goes_on,omitempty"`
	Decision  recovery.Decision `json:"decision"`
	ExitCodes []int             `json:"exit_codes,omitempty"`
}

// settleFailure is how long the infra gets to show that a failure was its own: a node that was taken away may fail the job first.
const settleFailure = 3 * time.Second

// Judge tells what follows for an attempt: whether it has ended, and if so whose fault it was. It changes nothing.
func (a *Activities) Judge(ctx context.Context, in JudgeInput) (JudgeOutput, error) {
	if in.Ended != nil && in.Ended.Status == api.JobSucceeded {
		return JudgeOutput{Decision: recovery.Decide(in.Policy, in.Restarts, recovery.Ending{Status: api.JobSucceeded}), ExitCodes: in.Ended.ExitCodes}, nil
	}
	defer beat(ctx)()
	if in.Ended != nil && in.Lost == "" {
		select {
		case <-time.After(settleFailure):
		case <-ctx.Done():
			return JudgeOutput{}, ctx.Err()
		}
	}
	seen, err := a.JobOutcome(ctx, in.Outcome)
	if err != nil {
		return JudgeOutput{}, err
	}
	job := seen.Job
	if in.Ended != nil && (job == nil || !job.Status.Terminal()) {
		job = in.Ended
	}
	e := recovery.Ending{Lost: !seen.Whole, Reason: seen.Reason}
	if in.Lost != "" && (!seen.Asked || a.anySilent(ctx, in.Outcome.Nodes, in.LostRanks)) {
		e.Lost, e.Reason = true, in.Lost
	}
	if job != nil && job.Status.Terminal() {
		e.Status, e.ExitCodes = job.Status, job.ExitCodes
		if e.Reason == "" {
			e.Reason = job.Reason
		}
	} else if !e.Lost {
		return JudgeOutput{GoesOn: true}, nil
	}
	return JudgeOutput{Decision: recovery.Decide(in.Policy, in.Restarts, e), ExitCodes: e.ExitCodes}, nil
}

// JobNumbers takes numbers for managed jobs. Idempotent by request.
func (a *Activities) JobNumbers(ctx context.Context, requestID string, n int) ([]int64, error) {
	return a.Store.JobNumbers(ctx, requestID, n)
}

// AdmitInput asks for a launching slot.
type AdmitInput struct {
	JobID    int64  `json:"job_id"`
	Priority int    `json:"priority"`
	UserHash string `json:"user_hash"`
}

// AdmitOutput tells whether the job may launch, and if not why it waits.
type AdmitOutput struct {
	Granted bool   `json:"granted"`
	Why     string `json:"why,omitempty"`
}

// Admit asks for a launching slot. Idempotent: a slot that was granted stays granted.
func (a *Activities) Admit(ctx context.Context, in AdmitInput) (AdmitOutput, error) {
	ok, _, err := a.Store.AskAdmission(ctx, store.Admission{JobID: in.JobID, Priority: in.Priority, UserHash: in.UserHash}, a.Limits)
	if err != nil || ok {
		return AdmitOutput{Granted: ok}, err
	}
	info, err := a.Store.AdmissionState(ctx, in.JobID)
	if err != nil {
		return AdmitOutput{}, err
	}
	return AdmitOutput{Why: info.Why(a.Limits)}, nil
}

// ReleaseAdmission gives a slot back. Idempotent.
func (a *Activities) ReleaseAdmission(ctx context.Context, id int64, phase string) error {
	return a.Store.ReleaseAdmission(ctx, id, store.AdmissionPhase(phase))
}

// CloseJob drops the secrets of a submission once the last of its jobs has ended. Idempotent.
func (a *Activities) CloseJob(ctx context.Context, requestID string) error {
	open, err := a.Store.ManagedOpen(ctx, requestID)
	if err != nil || len(open) > 0 {
		return err
	}
	// What signs notifications that are not delivered yet stays until they are.
	if n, err := a.Store.NoticesOpen(ctx, requestID); err != nil || n > 0 {
		return err
	}
	return a.Secrets.DeleteScope(ctx, secret.JobsScope(requestID))
}
