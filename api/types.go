package api

import (
	"encoding/json"
	"strconv"
	"time"
)

// Version numbers of the HTTP API. The server answers a client below MinVersion with a clear refusal.
const (
	Version    = 1
	MinVersion = 1
	// Product tells our server from another product's on the same port.
	Product = "skyloom"
	// DefaultPort is where a local server listens unless the port is taken.
	DefaultPort = 46580
)

// Headers of the API.
const (
	HeaderAPIVersion = "X-Skyloom-API-Version"
	HeaderRequestID  = "X-Skyloom-Request-ID"
	HeaderSSHKey     = "X-Skyloom-SSH-Key"
	HeaderSSHHostKey = "X-Skyloom-SSH-Host-Key"
)

// ClusterStatus is the state of a cluster as stored.
type ClusterStatus string

// Cluster states, see the concepts page.
const (
	ClusterInit         ClusterStatus = "INIT"
	ClusterUp           ClusterStatus = "UP"
	ClusterStopped      ClusterStatus = "STOPPED"
	ClusterAutostopping ClusterStatus = "AUTOSTOPPING"
	ClusterTerminated   ClusterStatus = "TERMINATED" // only in history: the row leaves `sky status`
)

// JobStatus is the state of a job on a cluster.
type JobStatus string

// Job states; a job only moves forward in this order.
const (
	JobInit         JobStatus = "INIT"
	JobPending      JobStatus = "PENDING"
	JobSettingUp    JobStatus = "SETTING_UP"
	JobRunning      JobStatus = "RUNNING"
	JobFailedDriver JobStatus = "FAILED_DRIVER"
	JobSucceeded    JobStatus = "SUCCEEDED"
	JobFailed       JobStatus = "FAILED"
	JobFailedSetup  JobStatus = "FAILED_SETUP"
	JobCancelled    JobStatus = "CANCELLED"
)

// Terminal says that the job has ended for good.
func (s JobStatus) Terminal() bool {
	switch s {
	case JobSucceeded, JobFailed, JobFailedDriver, JobFailedSetup, JobCancelled:
		return true
	}
	return false
}

// Order gives the place of a status in a job's life; unknown states come first.
func (s JobStatus) Order() int {
	for i, v := range []JobStatus{JobInit, JobPending, JobSettingUp, JobRunning, JobFailedDriver, JobSucceeded, JobFailed, JobFailedSetup, JobCancelled} {
		if v == s {
			return i
		}
	}
	return -1
}

// Exit codes of commands that wait for a job.
const (
	ExitSucceeded   = 0
	ExitFailed      = 100
	ExitNotFinished = 101
	ExitNotFound    = 102
	ExitCancelled   = 103
)

// ExitCode is what `sky logs --status` and the tailing commands exit with.
func (s JobStatus) ExitCode() int {
	switch s {
	case JobSucceeded:
		return ExitSucceeded
	case JobCancelled:
		return ExitCancelled
	case JobFailed, JobFailedDriver, JobFailedSetup:
		return ExitFailed
	}
	return ExitNotFinished
}

// RequestStatus is the state of a request.
type RequestStatus string

// Request states. WAITING means parked: it costs nothing and says when it tries again.
const (
	RequestPending   RequestStatus = "PENDING"
	RequestWaiting   RequestStatus = "WAITING"
	RequestRunning   RequestStatus = "RUNNING"
	RequestSucceeded RequestStatus = "SUCCEEDED"
	RequestFailed    RequestStatus = "FAILED"
	RequestCancelled RequestStatus = "CANCELLED"
)

// Terminal says that the request has ended for good.
func (s RequestStatus) Terminal() bool {
	return s == RequestSucceeded || s == RequestFailed || s == RequestCancelled
}

// Health is the answer of GET /api/v1/health. It needs no login.
type Health struct {
	Product      string `json:"product" doc:"always skyloom"`
	Status       string `json:"status" enum:"healthy,starting,draining,needs_auth"`
	Version      string `json:"version"`
	Commit       string `json:"commit"`
	APIVersion   int    `json:"api_version"`
	Installation string `json:"installation,omitempty" doc:"installation id; only with a valid login"`
	// Features are the names of the task features that the server has (package task); a client may check a task before
	// it sends it, and name the line. Absent: not told.
	Features []string `json:"features,omitempty"`
}

// Info is the answer of GET /api/v1/info: what a person or a foreign workflow worker needs to know of the server.
type Info struct {
	Health
	URL       string     `json:"url"`
	PID       int        `json:"pid"`
	Home      string     `json:"home"`
	StartedAt time.Time  `json:"started_at"`
	User      string     `json:"user"`
	Temporal  EngineInfo `json:"temporal"`
	WebUI     string     `json:"web_ui" doc:"address of the workflow Web UI, behind the same login"`
}

// EngineInfo tells a foreign worker how to reach the workflow engine.
type EngineInfo struct {
	Address   string `json:"address"`
	Namespace string `json:"namespace"`
	TaskQueue string `json:"task_queue" doc:"queue on which Launch and the other requests are served"`
	Embedded  bool   `json:"embedded"`
	Auth      string `json:"auth" doc:"how to authenticate, in words"`
	TokenFile string `json:"token_file,omitempty" doc:"0600 file whose content is the API key (authorization: Bearer …)"`
}

// Cluster is one row of `sky status`, and of `sky status -o json`.
type Cluster struct {
	Name            string            `json:"name"`
	Hash            string            `json:"cluster_hash" doc:"incarnation: minted at each creation"`
	Status          ClusterStatus     `json:"status"`
	InitKind        string            `json:"init_kind,omitempty" doc:"launching or unhealthy while INIT"`
	StatusReason    string            `json:"init_status_reason,omitempty"`
	StatusUpdatedAt time.Time         `json:"status_updated_at"`
	LaunchedAt      *time.Time        `json:"launched_at"`
	LastUse         string            `json:"last_use,omitempty" doc:"the command that used it last"`
	LastEvent       string            `json:"last_event,omitempty"`
	AutostopMinutes int               `json:"autostop" doc:"idle minutes; -1 is off"`
	ToDown          bool              `json:"to_down"`
	WaitFor         string            `json:"wait_for,omitempty"`
	EverUp          bool              `json:"cluster_ever_up"`
	UserHash        string            `json:"user_hash"`
	UserName        string            `json:"user_name"`
	Workspace       string            `json:"workspace"`
	ConfigHash      string            `json:"config_hash,omitempty"`
	Cloud           string            `json:"cloud"`
	Region          string            `json:"region,omitempty"`
	Zone            string            `json:"zone,omitempty"`
	InstanceType    string            `json:"instance_type,omitempty"`
	Spot            bool              `json:"use_spot"`
	Nodes           int               `json:"nodes"`
	CPUs            float64           `json:"cpus"`
	MemoryGB        float64           `json:"memory"`
	Accelerators    string            `json:"accelerators,omitempty" doc:"NAME:COUNT"`
	ResourcesStr    string            `json:"resources_str"`
	ResourcesFull   string            `json:"resources_str_full"`
	PricePerHour    float64           `json:"price_per_hour" doc:"US dollars, all nodes"`
	Labels          map[string]string `json:"labels,omitempty"`
	HeadIP          string            `json:"head_ip,omitempty"`
	NodeIPs         []string          `json:"node_ips,omitempty"`
	NodeNames       []string          `json:"node_names,omitempty"`
	NameOnCloud     string            `json:"cluster_name_on_cloud,omitempty"`
	LastTaskYAML    string            `json:"last_creation_yaml,omitempty" doc:"secrets redacted"`
	LastCommand     string            `json:"last_creation_command,omitempty"`
	Managed         bool              `json:"is_managed"`
	Owner           string            `json:"owner,omitempty" doc:"workflow that owns it, if that is not the cluster's own"`
	// Step, Attempt, LastError and NextRetry explain what is going on right now.
	Step      string     `json:"step,omitempty"`
	Attempt   int        `json:"attempt,omitempty"`
	LastError string     `json:"last_error,omitempty"`
	NextRetry *time.Time `json:"next_retry,omitempty"`
	// Seq orders the versions of a row within one incarnation; a lower one never replaces a higher one.
	Seq int64 `json:"seq"`
}

// Job is one row of `sky queue`.
type Job struct {
	ID           int64              `json:"job_id"`
	Name         string             `json:"job_name"`
	User         string             `json:"username"`
	UserHash     string             `json:"user_hash"`
	SubmittedAt  time.Time          `json:"submitted_at"`
	StartAt      *time.Time         `json:"start_at"`
	EndAt        *time.Time         `json:"end_at"`
	Resources    string             `json:"resources"`
	Status       JobStatus          `json:"status"`
	LogPath      string             `json:"log_path"`
	ExitCodes    []int              `json:"exit_codes,omitempty" doc:"by rank, once ended"`
	Reason       string             `json:"reason,omitempty" doc:"why it failed or waits"`
	Metadata     map[string]string  `json:"metadata,omitempty" doc:"git_commit and the like"`
	NumNodes     int                `json:"num_nodes"`
	Cluster      string             `json:"cluster,omitempty"`
	Key          string             `json:"key,omitempty" doc:"request that submitted it"`
	Seq          int64              `json:"seq" doc:"order of versions of this row"`
	ClusterHash  string             `json:"cluster_hash,omitempty"`
	Accelerators map[string]float64 `json:"accelerators,omitempty"`
	RunsOn       []int              `json:"runs_on,omitempty" doc:"by rank of the job: the rank in the cluster of the node it runs on; once placed"`
}

// Request is one row of `sky api status`.
type Request struct {
	ID         string          `json:"request_id"`
	Name       string          `json:"name" doc:"sky.launch, sky.exec, …"`
	Status     RequestStatus   `json:"status"`
	StatusMsg  string          `json:"status_msg,omitempty"`
	Cluster    string          `json:"cluster_name,omitempty"`
	User       string          `json:"user_name,omitempty"`
	UserHash   string          `json:"user_id,omitempty"`
	Command    string          `json:"entrypoint,omitempty" doc:"the command line, secrets redacted"`
	CreatedAt  time.Time       `json:"created_at"`
	FinishedAt *time.Time      `json:"finished_at,omitempty"`
	NextRetry  *time.Time      `json:"next_retry,omitempty"`
	Result     json.RawMessage `json:"return_value,omitempty"`
	Error      *Error          `json:"error,omitempty"`
}

// Error is what a failed request tells: what failed, why, what to do next.
type Error struct {
	Kind    string   `json:"type" doc:"ResourcesUnavailable, ClusterNotUp, …"`
	Message string   `json:"message"`
	Hint    string   `json:"hint,omitempty"`
	Details []string `json:"details,omitempty" doc:"one line per candidate tried, and the like"`
}

func (e *Error) Error() string {
	s := e.Message
	for _, d := range e.Details {
		s += "\n  " + d
	}
	if e.Hint != "" {
		s += "\n" + e.Hint
	}
	return s
}

// PublicPayload marks the type as free of secrets: it may stand unencrypted in a workflow's history.
func (Error) PublicPayload() {}

// Kinds of errors a client may meet.
const (
	ErrInvalid              = "Invalid"
	ErrNotFound             = "NotFound"
	ErrClusterDoesNotExist  = "ClusterDoesNotExist"
	ErrClusterNotUp         = "ClusterNotUp"
	ErrAutostopping         = "ClusterAutostopping"
	ErrResourcesUnavailable = "ResourcesUnavailable"
	ErrResourcesMismatch    = "ResourcesMismatch"
	ErrPrechecks            = "ProvisionPrechecks"
	ErrNotSupported         = "NotSupported"
	ErrConflict             = "Conflict"
	ErrPlanChanged          = "PlanChanged"
	ErrJobNotFound          = "JobNotFound"
	ErrCancelled            = "RequestCancelled"
	ErrAuth                 = "Unauthorized"
	ErrInternal             = "Internal"
	ErrUnavailable          = "Unavailable"
	ErrSetup                = "ClusterSetUp"
	ErrStorage              = "StorageFull"
	ErrGit                  = "GitError"
)

// Event is one line of a timeline: what happened to a request or a cluster, and why.
type Event struct {
	ID        int64           `json:"id" doc:"cursor: read on after it"`
	Time      time.Time       `json:"time"`
	Cluster   string          `json:"cluster,omitempty"`
	Hash      string          `json:"cluster_hash,omitempty"`
	RequestID string          `json:"request_id,omitempty"`
	JobID     int64           `json:"job_id,omitempty" doc:"managed job"`
	Kind      EventKind       `json:"kind"`
	Step      string          `json:"step,omitempty" doc:"optimize, provision, sync, setup, submit, stop, …"`
	Attempt   int             `json:"attempt,omitempty"`
	Message   string          `json:"message"`
	NextRetry *time.Time      `json:"next_retry,omitempty"`
	Data      json.RawMessage `json:"data,omitempty"`
}

// EventKind says what an event is about.
type EventKind string

// Event kinds.
const (
	EventStatus EventKind = "status" // a status changed
	EventStep   EventKind = "step"   // a step began or ended
	EventError  EventKind = "error"  // an attempt failed
	EventRetry  EventKind = "retry"  // waiting, with next_retry
	EventOutput EventKind = "output" // a plain line for the person who waits
	EventPlan   EventKind = "plan"   // data holds a Plan
	EventDone   EventKind = "done"   // the request ended; data holds the Request
)

// Plan is what the optimizer chose, and what it weighed.
type Plan struct {
	Hash       string        `json:"hash" doc:"the plan confirmed is the plan launched"`
	Existing   bool          `json:"existing" doc:"an existing cluster is reused, nothing is chosen"`
	NumNodes   int           `json:"num_nodes"`
	Candidates []Candidate   `json:"candidates" doc:"best row per infra, cheapest first; the chosen one is marked"`
	Notes      []string      `json:"notes,omitempty" doc:"warnings to show"`
	Status     ClusterStatus `json:"status,omitempty" doc:"of the existing cluster"`
}

// Candidate is one row of the considered-resources table.
type Candidate struct {
	Infra        string  `json:"infra" doc:"cloud (zone or region)"`
	Cloud        string  `json:"cloud"`
	Region       string  `json:"region,omitempty"`
	Zone         string  `json:"zone,omitempty"`
	InstanceType string  `json:"instance_type,omitempty"`
	Spot         bool    `json:"use_spot"`
	CPUs         float64 `json:"cpus"`
	MemoryGB     float64 `json:"memory"`
	Accelerators string  `json:"accelerators,omitempty"`
	PricePerHour float64 `json:"price_per_hour" doc:"US dollars, all nodes"`
	Chosen       bool    `json:"chosen"`
}

// Ref answers every mutating call.
type Ref struct {
	RequestID string        `json:"request_id"`
	Name      string        `json:"name"`
	Cluster   string        `json:"cluster_name,omitempty"`
	Status    RequestStatus `json:"status"`
}

// Base is common to every mutating body.
type Base struct {
	RequestID string         `json:"request_id" doc:"UUID chosen by the client; the same id with another body is refused" format:"uuid"`
	Command   string         `json:"entrypoint,omitempty" doc:"the command line, for people"`
	User      string         `json:"user,omitempty"`
	UserHash  string         `json:"user_hash,omitempty"`
	Workspace string         `json:"workspace,omitempty"`
	Config    map[string]any `json:"config,omitempty" doc:"the client's config layers, merged"`
}

// FileMount is one tree or file to bring to the nodes, by content.
type FileMount struct {
	Dst      string `json:"dst" doc:"~/sky_workdir for the workdir"`
	Manifest string `json:"manifest" doc:"id of a manifest uploaded before"`
	File     bool   `json:"file,omitempty" doc:"the source is a single file"`
	Mirror   bool   `json:"mirror,omitempty" doc:"delete at dst what the source lacks"`
	Prune    bool   `json:"prune,omitempty" doc:"delete at dst what an earlier sync brought and the source now lacks"`
	Source   string `json:"source,omitempty" doc:"where it came from, for people"`
}

// LaunchBody is POST /api/v1/launch.
type LaunchBody struct {
	Base
	Task          string      `json:"task" doc:"task YAML, overrides applied"`
	Cluster       string      `json:"cluster_name,omitempty"`
	RetryUntilUp  bool        `json:"retry_until_up,omitempty"`
	IdleMinutes   *int        `json:"idle_minutes_to_autostop,omitempty" minimum:"-1" maximum:"52704000"`
	WaitFor       string      `json:"wait_for,omitempty" enum:",jobs_and_ssh,jobs,none"`
	Down          bool        `json:"down,omitempty"`
	Dryrun        bool        `json:"dryrun,omitempty"`
	NoSetup       bool        `json:"no_setup,omitempty"`
	Fast          bool        `json:"fast,omitempty"`
	Resize        bool        `json:"resize,omitempty"`
	CloneDiskFrom string      `json:"clone_disk_from,omitempty"`
	PlanHash      string      `json:"plan_hash,omitempty" doc:"refuse if the plan is no longer this one"`
	FileMounts    []FileMount `json:"files,omitempty"`
	GitCommit     string      `json:"git_commit,omitempty"`
	// Secrets are values by name; the server moves them to its secret store before anything else and keeps references.
	Secrets map[string]string `json:"secrets,omitempty"`
	// SecretRefs name secrets that stand in the server's store. A workflow's input has only these.
	SecretRefs map[string]string `json:"secret_refs,omitempty"`
}

// ExecBody is POST /api/v1/exec.
type ExecBody struct {
	Base
	Task       string      `json:"task"`
	Cluster    string      `json:"cluster_name"`
	FileMounts []FileMount `json:"files,omitempty"`
	GitCommit  string      `json:"git_commit,omitempty"`
	// Secrets are values by name; the server moves them to its secret store before anything else and keeps references.
	Secrets map[string]string `json:"secrets,omitempty"`
	// SecretRefs name secrets that stand in the server's store. A workflow's input has only these.
	SecretRefs map[string]string `json:"secret_refs,omitempty"`
}

// StartBody is POST /api/v1/start.
type StartBody struct {
	Base
	Cluster      string `json:"cluster_name"`
	IdleMinutes  *int   `json:"idle_minutes_to_autostop,omitempty" minimum:"-1" maximum:"52704000"`
	WaitFor      string `json:"wait_for,omitempty" enum:",jobs_and_ssh,jobs,none"`
	RetryUntilUp bool   `json:"retry_until_up,omitempty"`
	Down         bool   `json:"down,omitempty"`
	Force        bool   `json:"force,omitempty"`
}

// StopOrDownBody is POST /api/v1/stop and /api/v1/down.
type StopOrDownBody struct {
	Base
	Cluster         string `json:"cluster_name"`
	Purge           bool   `json:"purge,omitempty"`
	Graceful        bool   `json:"graceful,omitempty"`
	GracefulTimeout *int   `json:"graceful_timeout,omitempty" minimum:"0" maximum:"2147483647" doc:"seconds"`
}

// AutostopBody is POST /api/v1/autostop.
type AutostopBody struct {
	Base
	Cluster     string `json:"cluster_name"`
	IdleMinutes int    `json:"idle_minutes" minimum:"-1" maximum:"52704000" doc:"-1 turns it off"`
	WaitFor     string `json:"wait_for,omitempty" enum:",jobs_and_ssh,jobs,none"`
	Down        bool   `json:"down,omitempty"`
}

// CancelBody is POST /api/v1/cancel: cancels jobs on a cluster.
type CancelBody struct {
	Base
	Cluster  string  `json:"cluster_name"`
	JobIDs   []int64 `json:"job_ids,omitempty" doc:"none and not all: the latest running job"`
	All      bool    `json:"all,omitempty"`
	AllUsers bool    `json:"all_users,omitempty"`
}

// PreemptBody is POST /api/v1/preempt: takes a spot node away as a cloud would.
type PreemptBody struct {
	Base
	Cluster       string `json:"cluster_name"`
	Node          *int   `json:"node,omitempty" minimum:"0" doc:"rank; all spot nodes when absent"`
	NoticeSeconds int    `json:"notice_seconds,omitempty" minimum:"0" maximum:"2147483647"`
}

// CheckBody is POST /api/v1/check.
type CheckBody struct {
	Base
	Clouds  []string `json:"clouds,omitempty"`
	Verbose bool     `json:"verbose,omitempty"`
}

// RefreshBody is POST /api/v1/refresh: asks the infra about clusters (`sky status -r`).
type RefreshBody struct {
	Base
	Clusters []string `json:"cluster_names,omitempty"`
	AllUsers bool     `json:"all_users,omitempty"`
}

// CancelRequestsBody is POST /api/v1/requests/cancel.
type CancelRequestsBody struct {
	RequestIDs []string `json:"request_ids,omitempty" doc:"ids or unambiguous prefixes"`
	All        bool     `json:"all,omitempty" doc:"all active requests of the user"`
	AllUsers   bool     `json:"all_users,omitempty"`
	UserHash   string   `json:"user_hash,omitempty"`
}

// CancelRequestsReply lists what was cancelled.
type CancelRequestsReply struct {
	Cancelled []string `json:"cancelled"`
}

// OptimizeBody is POST /api/v1/optimize: a dry look at what a launch would choose.
type OptimizeBody struct {
	Task      string         `json:"task"`
	Cluster   string         `json:"cluster_name,omitempty"`
	Config    map[string]any `json:"config,omitempty"`
	Workspace string         `json:"workspace,omitempty"`
	Exec      bool           `json:"exec,omitempty" doc:"check as for exec"`
	Resize    bool           `json:"resize,omitempty" doc:"the cluster is to have as many nodes as the task asks for"`
	Managed   bool           `json:"managed,omitempty" doc:"check as for jobs launch"`
	Group     []string       `json:"group,omitempty" doc:"tasks of the job group that the task belongs to, itself among them: it goes where all can"`
	// IdleMinutes and Down are those of the launch to come: an idle rule narrows where it can go.
	IdleMinutes *int `json:"idle_minutes_to_autostop,omitempty"`
	Down        bool `json:"down,omitempty"`
}

// LaunchResult is the result of a launch or exec.
type LaunchResult struct {
	RequestID string `json:"request_id"`
	Cluster   string `json:"cluster_name"`
	Hash      string `json:"cluster_hash,omitempty"`
	JobID     int64  `json:"job_id,omitempty" doc:"0: nothing to run"`
	NumNodes  int    `json:"num_nodes,omitempty"`
	Created   bool   `json:"created,omitempty" doc:"the cluster was made by this request"`
	Plan      *Plan  `json:"plan,omitempty" doc:"with dryrun"`
}

// PublicPayload marks the type as free of secrets.
func (LaunchResult) PublicPayload() {}

// OpResult is the result of start, stop, down, autostop, cancel, preempt.
type OpResult struct {
	RequestID string   `json:"request_id"`
	Cluster   string   `json:"cluster_name"`
	Message   string   `json:"message,omitempty"`
	JobIDs    []int64  `json:"job_ids,omitempty" doc:"cancelled jobs"`
	Warnings  []string `json:"warnings,omitempty"`
}

// PublicPayload marks the type as free of secrets.
func (OpResult) PublicPayload() {}

// CheckResult is the result of `sky check`.
type CheckResult struct {
	Infras []InfraCheck `json:"infras"`
	// Enabled maps workspace → infra → capabilities, as `sky check -o json` prints it.
	Enabled map[string]map[string][]string `json:"enabled"`
}

// InfraCheck tells whether one infra can be used, and why not.
type InfraCheck struct {
	Name         string   `json:"name"`
	Enabled      bool     `json:"enabled"`
	Capabilities []string `json:"capabilities,omitempty"`
	Reason       string   `json:"reason,omitempty"`
	Hint         string   `json:"hint,omitempty"`
	Details      []string `json:"details,omitempty"`
}

// GPUOffer is one row of `sky gpus list`.
type GPUOffer struct {
	Cloud        string   `json:"cloud"`
	InstanceType string   `json:"instance_type,omitempty"`
	Name         string   `json:"accelerator_name"`
	Count        float64  `json:"accelerator_count"`
	CPUs         float64  `json:"cpu_count"`
	DeviceMemGB  float64  `json:"device_memory"`
	MemoryGB     float64  `json:"memory"`
	Price        *float64 `json:"price"`
	SpotPrice    *float64 `json:"spot_price"`
	Region       string   `json:"region"`
}

// GPUPool is realtime availability on infra with fixed machines.
type GPUPool struct {
	Infra       string    `json:"infra"`
	Name        string    `json:"accelerator_name"`
	Requestable []float64 `json:"requestable_qty_per_node"`
	Total       float64   `json:"total"`
	Free        float64   `json:"free"`
}

// GPUList is the answer of GET /api/v1/gpus.
type GPUList struct {
	Pools  []GPUPool             `json:"pools"`
	Offers map[string][]GPUOffer `json:"offers"`
}

// CostRow is one row of `sky cost-report`.
type CostRow struct {
	Name         string         `json:"name"`
	Hash         string         `json:"cluster_hash"`
	LaunchedAt   time.Time      `json:"launched_at"`
	DurationSec  float64        `json:"duration" doc:"seconds in which nodes were up"`
	NumNodes     int            `json:"num_nodes"`
	Resources    map[string]any `json:"resources" doc:"as task YAML, secrets redacted"`
	ResourcesStr string         `json:"resources_str"`
	Status       string         `json:"status" doc:"TERMINATED once gone"`
	PricePerHour float64        `json:"price_per_hour" doc:"US dollars, all nodes"`
	TotalCost    float64        `json:"total_cost" doc:"US dollars"`
	User         string         `json:"user_name,omitempty"`
}

// MissingBody asks which blobs the server lacks.
type MissingBody struct {
	Hashes []string `json:"hashes" doc:"SHA-256, hex" maxItems:"10000"`
}

// MissingReply names the blobs the server lacks.
type MissingReply struct {
	Missing []string `json:"missing"`
}

// ManifestReply answers an upload of a manifest.
type ManifestReply struct {
	ID      string   `json:"id" doc:"SHA-256 of the manifest's canonical form"`
	Missing []string `json:"missing" doc:"blobs it names that the server lacks; empty means complete and durable"`
}

// SSHHosts is the answer of GET /api/v1/clusters/{name}/ssh-hosts.
type SSHHosts struct {
	Cluster string    `json:"cluster_name"`
	Hash    string    `json:"cluster_hash"`
	Hosts   []SSHHost `json:"hosts" doc:"by rank"`
}

// SSHHost is the SSH server of one node, reached through GET /api/v1/clusters/{name}/ssh.
type SSHHost struct {
	Rank    int    `json:"rank"`
	Node    string `json:"node" doc:"head, worker1, …"`
	IP      string `json:"ip,omitempty"`
	User    string `json:"user,omitempty" doc:"whom every login becomes"`
	HostKey string `json:"host_key,omitempty" doc:"TYPE BASE64; absent: the node could not be asked"`
}

// LogFrame is the header of one piece of a log stream: a JSON line, followed by Len raw bytes.
// The stream's media type is LogMediaType. A reader that lost its connection asks again with the offsets it has.
type LogFrame struct {
	Rank int    `json:"rank"`
	Node string `json:"node,omitempty" doc:"head, worker1, …"`
	// JobRank is the rank within the job, where that is not Rank: a job may run on a part of the cluster's nodes.
	JobRank *int   `json:"job_rank,omitempty"`
	Phase   string `json:"phase,omitempty" doc:"setup or run"`
	PID     int    `json:"pid,omitempty"`
	Offset  int64  `json:"offset" doc:"of the first byte, in the raw log of this rank and phase"`
	Len     int    `json:"len"`
	// End closes the stream; Status is the job's then. A stream that ends without it was cut.
	End    bool      `json:"end,omitempty"`
	Status JobStatus `json:"status,omitempty"`
	Reason string    `json:"reason,omitempty"`
	// JobID and JobName stand in the first frame, whose Len is 0.
	JobID   int64  `json:"job_id,omitempty"`
	JobName string `json:"job_name,omitempty"`
	Nodes   int    `json:"nodes,omitempty"`
	// Task, TaskName and Attempt are of a managed job. A frame without bytes says that another attempt begins.
	Task     int    `json:"task,omitempty"`
	TaskName string `json:"task_name,omitempty"`
	Attempt  int    `json:"attempt,omitempty"`
	// Element is the element of an array whose output the bytes are.
	Element *int `json:"element,omitempty" doc:"of an array: whose output this is"`
	// Batch, BatchNode and BatchOffset are of an array that is followed: where the bytes stand in what is kept of its output. With
	// BatchDone nothing more comes of that batch and node.
	Batch       int64 `json:"batch,omitempty"`
	BatchNode   int   `json:"batch_node,omitempty"`
	BatchOffset int64 `json:"batch_offset,omitempty"`
	BatchDone   bool  `json:"batch_done,omitempty"`
	// Cut says that no more of a node's log can be had, and why. Such a frame has no bytes.
	Cut string `json:"cut,omitempty" doc:"no more of this rank's log can be had, and why"`
}

// NodeName is what people call a node by its rank in the cluster: head, worker1, …
func NodeName(rank int) string {
	if rank == 0 {
		return "head"
	}
	return "worker" + strconv.Itoa(rank)
}

// RankInJob is the rank within the job.
func (f LogFrame) RankInJob() int {
	if f.JobRank != nil {
		return *f.JobRank
	}
	return f.Rank
}

// LogMediaType is the media type of a framed log stream.
const LogMediaType = "application/x-skyloom-log-frames"
