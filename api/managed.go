package api

import (
	"slices"
	"time"
)

// ManagedStatus is the state of a managed job, and of each of its tasks.
type ManagedStatus string

// States of a managed job. There is no controller that could die, so there are no states for that: a terminal state is
// never left.
const (
	ManagedPending    ManagedStatus = "PENDING"    // waits: for admission, for other jobs, or for room between two rounds
	ManagedStarting   ManagedStatus = "STARTING"   // its cluster is being brought up
	ManagedRunning    ManagedStatus = "RUNNING"    // submitted to its cluster
	ManagedRecovering ManagedStatus = "RECOVERING" // its cluster was lost, or its task is restarted
	ManagedCancelling ManagedStatus = "CANCELLING" // cancel was accepted; clean-up is under way

	ManagedSucceeded        ManagedStatus = "SUCCEEDED"
	ManagedCancelled        ManagedStatus = "CANCELLED"
	ManagedFailed           ManagedStatus = "FAILED"
	ManagedFailedSetup      ManagedStatus = "FAILED_SETUP"
	ManagedFailedPrechecks  ManagedStatus = "FAILED_PRECHECKS"
	ManagedFailedNoResource ManagedStatus = "FAILED_NO_RESOURCE"
)

// ManagedStatuses are all states of a managed job.
var ManagedStatuses = []ManagedStatus{ManagedPending, ManagedStarting, ManagedRunning, ManagedRecovering, ManagedCancelling,
	ManagedSucceeded, ManagedCancelled, ManagedFailed, ManagedFailedSetup, ManagedFailedPrechecks, ManagedFailedNoResource}

// Terminal says that the job has ended for good.
func (s ManagedStatus) Terminal() bool {
	switch s {
	case ManagedSucceeded, ManagedCancelled, ManagedFailed, ManagedFailedSetup, ManagedFailedPrechecks, ManagedFailedNoResource:
		return true
	}
	return false
}

// ExitCode is what the commands that wait for a managed job exit with.
func (s ManagedStatus) ExitCode() int {
	switch {
	case s == ManagedSucceeded:
		return ExitSucceeded
	case s == ManagedCancelled:
		return ExitCancelled
	case s.Terminal():
		return ExitFailed
	}
	return ExitNotFinished
}

// ManagedJob is one row of `sky jobs queue`: one task of a managed job.
type ManagedJob struct {
	ID       int64         `json:"job_id"`
	TaskID   int           `json:"task_id" doc:"index of the task in a pipeline or group, from 0"`
	NumTasks int           `json:"num_tasks"`
	Name     string        `json:"job_name"`
	TaskName string        `json:"task_name"`
	Status   ManagedStatus `json:"status"`
	// Details say why it waits or what it does; FailureReason why it ended as it did.
	Details       string            `json:"details,omitempty"`
	FailureReason string            `json:"failure_reason,omitempty"`
	Resources     string            `json:"resources" doc:"as asked"`
	Cluster       string            `json:"current_cluster_name,omitempty"`
	ClusterHash   string            `json:"cluster_hash,omitempty"`
	ClusterRes    string            `json:"cluster_resources,omitempty"`
	Cloud         string            `json:"cloud,omitempty"`
	Region        string            `json:"region,omitempty"`
	Zone          string            `json:"zone,omitempty"`
	Infra         string            `json:"infra,omitempty"`
	Recoveries    int               `json:"recovery_count"`
	Restarts      int               `json:"restart_count" doc:"after errors of the user's code"`
	Attempt       int               `json:"attempt" doc:"epoch: raised at each start"`
	User          string            `json:"user_name"`
	UserHash      string            `json:"user_hash"`
	Workspace     string            `json:"workspace,omitempty"`
	Priority      int               `json:"priority"`
	PriorityClass string            `json:"priority_class,omitempty"`
	SubmittedAt   time.Time         `json:"submitted_at"`
	StartAt       *time.Time        `json:"start_at"`
	EndAt         *time.Time        `json:"end_at"`
	RunSeconds    float64           `json:"job_duration" doc:"seconds in which the task ran, over all attempts, up to UpdatedAt"`
	RunningSince  *time.Time        `json:"running_since,omitempty"`
	NextRetry     *time.Time        `json:"next_retry,omitempty"`
	ExitCodes     []int             `json:"exit_codes,omitempty"`
	UserYAML      string            `json:"user_yaml,omitempty" doc:"secrets redacted"`
	Command       string            `json:"entrypoint,omitempty"`
	RequestID     string            `json:"request_id,omitempty"`
	Metadata      map[string]string `json:"metadata,omitempty"`
	JobRank       int               `json:"job_rank" doc:"with --num-jobs"`
	NumJobs       int               `json:"num_jobs"`
	Group         bool              `json:"is_job_group,omitempty"`
	Primary       bool              `json:"is_primary_in_job_group,omitempty"`
	EndedBy       string            `json:"ended_by,omitempty" doc:"of a group: the task that could not be launched, and so ended this one"`
	ClusterJobID  int64             `json:"cluster_job_id,omitempty"`
	CostDollars   float64           `json:"cost,omitempty" doc:"US dollars, over all attempts"`
	Array         *ArrayProgress    `json:"array,omitempty" doc:"of an array: its elements"`
	Workflow      string            `json:"workflow,omitempty" doc:"id of the workflow that carries it, if a workflow of others started it: else job/JOB_ID"`
	WorkflowRun   string            `json:"workflow_run,omitempty" doc:"first run of that workflow"`
	Seq           int64             `json:"seq" doc:"order of versions of this row"`
	Notices       *NoticeCounts     `json:"notices,omitempty" doc:"what became of the notifications of the job, of all its tasks"`
}

// JobsLaunchBody is POST /api/v1/jobs/launch.
type JobsLaunchBody struct {
	Base
	Task    string `json:"task" doc:"task YAML, several documents for a pipeline or group; overrides applied"`
	Name    string `json:"name,omitempty" maxLength:"255" doc:"of the job; none: that of the file, else one is made up"`
	NumJobs int    `json:"num_jobs,omitempty" minimum:"0" maximum:"10000" doc:"this many jobs, each on a cluster of its own; 0: one"`
	// FileMounts are by task index.
	FileMounts map[int][]FileMount `json:"files,omitempty"`
	GitCommit  string              `json:"git_commit,omitempty"`
	Secrets    map[string]string   `json:"secrets,omitempty"`
	SecretRefs map[string]string   `json:"secret_refs,omitempty"`
	// After holds conditions "ID", "ID:ok", "ID:any".
	After []string `json:"after,omitempty"`
	// Notify holds http and https addresses that are told of changes of state.
	Notify []string `json:"notify,omitempty"`
	// Schedule makes a schedule, whose firings submit the jobs.
	Schedule *ScheduleSpec `json:"schedule,omitempty"`
}

// JobsLaunchResult is the result of a submission.
type JobsLaunchResult struct {
	RequestID string       `json:"request_id"`
	JobIDs    []int64      `json:"job_ids"`
	Schedule  *JobSchedule `json:"schedule,omitempty" doc:"what was made instead of jobs"`
}

// PublicPayload marks the type as free of secrets.
func (JobsLaunchResult) PublicPayload() {}

// JobsCancelBody is POST /api/v1/jobs/cancel. Exactly one selector.
type JobsCancelBody struct {
	Base
	JobIDs   []int64 `json:"job_ids,omitempty"`
	Name     string  `json:"name,omitempty"`
	All      bool    `json:"all,omitempty"`
	AllUsers bool    `json:"all_users,omitempty"`
}

// JobsCancelReply lists the jobs whose cancel was accepted.
type JobsCancelReply struct {
	Cancelled []int64 `json:"cancelled"`
	Finished  []int64 `json:"finished,omitempty" doc:"had ended before"`
}

// ManagedList is the answer of GET /api/v1/jobs/queue.
type ManagedList struct {
	Jobs   []ManagedJob          `json:"jobs" doc:"one row per task; the newest job first"`
	Total  int                   `json:"total" doc:"jobs that match, whatever the limit"`
	Counts map[ManagedStatus]int `json:"counts" doc:"tasks by status, whatever the filter says of status and limit"`
}

// ManagedState is the state of a whole job, from the rows of its tasks: that of the first one, in order, that has not
// succeeded; in a group only primary tasks count, and a task that was ended because another could not be launched counts as that one.
func ManagedState(tasks []ManagedJob) (status ManagedStatus, decisive ManagedJob) {
	if by := launchFailure(tasks); by != nil {
		return by.Status, *by
	}
	for _, t := range tasks {
		if t.Status != ManagedSucceeded && (!t.Group || t.Primary) {
			return t.Status, t
		}
	}
	if len(tasks) == 0 {
		return "", ManagedJob{}
	}
	return ManagedSucceeded, tasks[len(tasks)-1]
}

// launchFailure is the task of a group that could not be launched and so ended the others; while they end, one of these.
func launchFailure(tasks []ManagedJob) *ManagedJob {
	ended := slices.IndexFunc(tasks, func(t ManagedJob) bool { return t.EndedBy != "" })
	if ended < 0 {
		return nil
	}
	if open := slices.IndexFunc(tasks, func(t ManagedJob) bool { return !t.Status.Terminal() }); open >= 0 {
		return &tasks[open]
	}
	if by := slices.IndexFunc(tasks, func(t ManagedJob) bool { return t.TaskName == tasks[ended].EndedBy }); by >= 0 {
		return &tasks[by]
	}
	return nil
}
