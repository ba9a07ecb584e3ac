package activities

import (
	"fmt"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/optimizer"
	"github.com/skyloom/skyloom/internal/recovery"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/task"
)

// Task queues. Workflows and short activities share one; slow work has its own, so that it never starves an exec.
const (
	QueueMain      = "sky"
	QueueProvision = "sky-provision"
	QueueFiles     = "sky-files"
)

// Workflow and signal names that the activities need to reach an entity.
const (
	ClusterWorkflow = "Cluster"
	SignalOp        = "op"
	SignalCancel    = "cancel"
	SignalObserved  = "observed"
	SignalReply     = "reply"
	SignalAdmitted  = "admitted"
	SignalWaited    = "waited"
	QueryState      = "state"
)

// ClusterWorkflowID is the id of the workflow that owns the cluster name.
func ClusterWorkflowID(name string) string { return "cluster/" + name }

// ManagedWorkflowID is the id of the workflow of a managed job that this server starts.
func ManagedWorkflowID(id int64) string { return fmt.Sprintf("%s%d", ManagedWorkflows, id) }

// ManagedWorkflows is how the ids of workflows of managed jobs begin that this server starts.
const ManagedWorkflows = "job/"

// ManagedWorkflow is the id of the workflow that carries a managed job, given one of its rows: also of one that a workflow of
// others has started, under an id of their choice.
func ManagedWorkflow(row api.ManagedJob) string {
	if row.Workflow != "" {
		return row.Workflow
	}
	return ManagedWorkflowID(row.ID)
}

// RequestWorkflowID is the id of the workflow that carries out a request.
func RequestWorkflowID(id string) string { return "request/" + id }

// Observed tells a cluster's workflow what a watcher saw.
type Observed struct {
	Hash string       `json:"hash"`
	Kind ObservedKind `json:"kind"`
	// Autostop is the generation the agent asks to be stopped for.
	Autostop int64    `json:"autostop,omitempty"`
	Down     bool     `json:"down,omitempty"`
	Message  string   `json:"message,omitempty"`
	Job      *api.Job `json:"job,omitempty"`   // that ended
	Rank     int      `json:"rank,omitempty"`  // of a node that is silent, answers again, or is given up
	Batch    int64    `json:"batch,omitempty"` // of elements of an array
}

// ObservedKind says what was seen.
type ObservedKind string

// What a watcher sees.
const (
	ObservedReady    ObservedKind = "ready"    // every node runs and its agent answers
	ObservedNodes    ObservedKind = "nodes"    // a node changed its state: look
	ObservedJob      ObservedKind = "job"      // a job ended
	ObservedBatch    ObservedKind = "batch"    // every element of a batch ended
	ObservedSuspect  ObservedKind = "suspect"  // a node is silent, and its infra can't tell whether it lives
	ObservedAlive    ObservedKind = "alive"    // it answers again
	ObservedLost     ObservedKind = "lost"     // it has been silent for too long
	ObservedSilent   ObservedKind = "silent"   // a node that is awaited has been silent for too long, and its infra can't tell whether it lives
	ObservedAutostop ObservedKind = "autostop" // the agent drains and asks to be stopped
)

// Owned is a cluster workflow's answer to what it owns.
type Owned struct {
	Hash     string            `json:"hash"`
	Token    string            `json:"token"`
	Status   api.ClusterStatus `json:"status"`
	Provider string            `json:"provider"`
	Nodes    []providers.Node  `json:"nodes"`
	Row      api.Cluster       `json:"row"`
	// Others are further incarnations of a workflow that owns several.
	Others []Owned `json:"others,omitempty"`
}

// DeliverInput hands an operation to a cluster's workflow.
type DeliverInput struct {
	Op      cluster.Op  `json:"op"`
	Cluster string      `json:"cluster"`
	Request api.Request `json:"request"`
	// Secrets tells that the body names secrets; inline ones are refused.
	Workspace string `json:"workspace,omitempty"`
}

// Delivery says what became of a delivery.
type Delivery string

// Deliveries.
const (
	Delivered Delivery = "delivered"
	NoCluster Delivery = "no-cluster"
	TryAgain  Delivery = "try-again" // a launch of the name is under way but not there yet
)

// DeliverOutput answers a delivery. At most one of Error and Outcome is set: the operation was refused, or had been
// carried out before.
type DeliverOutput struct {
	Delivery Delivery         `json:"delivery,omitempty"`
	Cluster  string           `json:"cluster,omitempty"`
	Error    *api.Error       `json:"error,omitempty"`
	Outcome  *cluster.Outcome `json:"outcome,omitempty"`
}

// PlanInput asks for the places to try for a launch.
type PlanInput struct {
	RequestID string            `json:"request_id"`
	Body      api.LaunchBody    `json:"body"`
	Existing  *ExistingCluster  `json:"existing,omitempty"`
	Blocked   []optimizer.Block `json:"blocked,omitempty"`
	// Failures are the attempts of this round so far; Tries counts those at the last place in a row.
	Failures  []optimizer.Failure `json:"failures,omitempty"`
	Last      *optimizer.Choice   `json:"last,omitempty"`
	Tries     int                 `json:"tries,omitempty"`
	After     time.Duration       `json:"after,omitempty"`
	CheckHash bool                `json:"check_hash,omitempty"`
	// Recover narrows the places by a recovery strategy.
	Recover *RecoverHint `json:"recover,omitempty"`
	// Home is where the other tasks of its group are.
	Home  *HomeHint `json:"home,omitempty"`
	Mint  bool      `json:"mint,omitempty"`  // mint the hash of a new incarnation
	Round int       `json:"round,omitempty"` // of a launch that waited for room
}

// RecoverHint says where a managed job was lost, and which round of its recovery this is.
type RecoverHint struct {
	Strategy recovery.Strategy `json:"strategy"`
	Round    int               `json:"round"`
	Old      recovery.Place    `json:"old"`
}

// HomeHint says where a group of tasks is. A task of it goes there if it can, and nowhere else with Only.
type HomeHint struct {
	Place recovery.Place `json:"place"`
	Only  bool           `json:"only,omitempty"`
}

// ExistingCluster is what a reuse check must know.
type ExistingCluster struct {
	Row      api.Cluster  `json:"row"`
	Have     task.Request `json:"have"`
	NumNodes int          `json:"num_nodes"`
}

// TaskSummary is what a workflow must know of a task; the task itself stays in the request's body.
type TaskSummary struct {
	Name       string             `json:"name"`
	NumNodes   int                `json:"num_nodes"`
	HasSetup   bool               `json:"has_setup"`
	HasRun     bool               `json:"has_run"`
	Autostop   *agentapi.Autostop `json:"autostop,omitempty"` // as asked by file and flags; nil: leave as it is
	Hooks      []agentapi.Hook    `json:"hooks,omitempty"`
	ConfigHash string             `json:"config_hash"`
	Redacted   string             `json:"redacted"` // canonical YAML without secrets
	Warnings   []string           `json:"warnings,omitempty"`
}

// PlanOutput is the recorded decision.
type PlanOutput struct {
	Task   TaskSummary       `json:"task"`
	Plan   api.Plan          `json:"plan"`
	Choice *optimizer.Choice `json:"choice,omitempty"` // nil: nothing is left to try
	Have   task.Request      `json:"have"`             // what a cluster made from the choice offers
	Error  *api.Error        `json:"error,omitempty"`
	// Blocked is what must not be tried again in this round. Same says that Choice is the last place once more, after
	// Wait and under the same token. Retry says that a later round may succeed.
	Blocked      []optimizer.Block `json:"blocked,omitempty"`
	Same         bool              `json:"same,omitempty"`
	Wait         time.Duration     `json:"wait,omitempty"` // nanoseconds
	Retry        bool              `json:"retry,omitempty"`
	Hash         string            `json:"hash,omitempty"`
	SecretRef    string            `json:"secret_ref,omitempty"`
	Installation string            `json:"installation,omitempty"`
	Now          time.Time         `json:"now"`
}

// ProvisionInput asks to bring up all nodes at one place.
type ProvisionInput struct {
	RequestID string               `json:"request_id"`
	Ref       providers.ClusterRef `json:"ref"`
	Choice    optimizer.Choice     `json:"choice"`
	NumNodes  int                  `json:"num_nodes"`
	Token     string               `json:"token"`
	Epoch     int64                `json:"epoch"`
	SecretRef string               `json:"secret_ref"`
	User      string               `json:"user"`
	Restart   bool                 `json:"restart,omitempty"` // start stopped nodes instead of making new ones
	Beside    bool                 `json:"beside,omitempty"`  // with Restart: nodes that run go on, and their jobs
	Row       api.Cluster          `json:"row"`               // written before the infra is asked
	Events    []store.Event        `json:"events,omitempty"`
	EventKey  string               `json:"event_key"`
	Autostop  *agentapi.Autostop   `json:"autostop,omitempty"`
	Nodes     []providers.Node     `json:"nodes,omitempty"` // Configure: made before
}

// ProvisionOutput tells what was brought up. A failure is data, so that the workflow decides.
type ProvisionOutput struct {
	Nodes   []providers.Node   `json:"nodes,omitempty"`
	Ready   bool               `json:"ready"` // false: the watcher will tell
	Failure *optimizer.Failure `json:"failure,omitempty"`
	// After is how long to wait before the same again, with a failure of kind rate-limited.
	After time.Duration `json:"after,omitempty"`
}

// NodesInput names a cluster's nodes for stop, delete, preempt, inspect.
type NodesInput struct {
	RequestID string               `json:"request_id,omitempty"`
	Ref       providers.ClusterRef `json:"ref"`
	Provider  string               `json:"provider"`
	Nodes     []providers.Node     `json:"nodes,omitempty"`
	NumNodes  int                  `json:"num_nodes,omitempty"`
	Row       api.Cluster          `json:"row"`
	Events    []store.Event        `json:"events,omitempty"`
	EventKey  string               `json:"event_key,omitempty"`
	Purge     bool                 `json:"purge,omitempty"`
	// GiveUp says that nodes which can be neither reached nor confirmed as gone hold nobody up for longer than a node may be
	// silent before it is lost; Lost, that they were silent for that long. What is left of them is the reaper's.
	GiveUp    bool            `json:"give_up,omitempty"`
	Lost      bool            `json:"lost,omitempty"`
	Hooks     []agentapi.Hook `json:"hooks,omitempty"`
	HookEvent string          `json:"hook_event,omitempty"`
	Graceful  bool            `json:"graceful,omitempty"`
	Timeout   time.Duration   `json:"timeout,omitempty"`
	Rank      *int            `json:"rank,omitempty"`
	Notice    time.Duration   `json:"notice,omitempty"`
	SecretRef string          `json:"secret_ref,omitempty"`
	// Ask has the nodes themselves asked whether they live, where their infra can't tell.
	Ask bool `json:"ask,omitempty"`
}

// NodesOutput is what an activity on nodes found.
type NodesOutput struct {
	Nodes    []providers.Node `json:"nodes,omitempty"`
	Verdict  cluster.Verdict  `json:"verdict,omitempty"`
	Reason   string           `json:"reason,omitempty"`
	Error    *api.Error       `json:"error,omitempty"`
	Warnings []string         `json:"warnings,omitempty"`
	Ranks    []int            `json:"ranks,omitempty"`
	// HeadLost says that the head node is among the lost; Confirmed that the infra knows for sure.
	HeadLost  bool `json:"head_lost,omitempty"`
	Confirmed bool `json:"confirmed,omitempty"`
	// Silent says that a node does not answer which was to be asked: that it runs is what was known last.
	Silent bool `json:"silent,omitempty"`
}

// SyncInput brings files to the nodes.
type SyncInput struct {
	RequestID string               `json:"request_id"`
	Cluster   string               `json:"cluster"`
	Ref       providers.ClusterRef `json:"ref"`
	Provider  string               `json:"provider"`
	Nodes     []providers.Node     `json:"nodes"`
	Files     []api.FileMount      `json:"files"`
	EventKey  string               `json:"event_key"`
}

// SyncOutput tells how a sync ended.
type SyncOutput struct {
	Error   *api.Error `json:"error,omitempty"`
	Written int        `json:"written"`
	Bytes   int64      `json:"bytes"`
}

// SubmitInput hands a job to the head node's agent.
type SubmitInput struct {
	RequestID  string               `json:"request_id"`
	Ref        providers.ClusterRef `json:"ref"`
	Provider   string               `json:"provider"`
	Nodes      []providers.Node     `json:"nodes"`
	NumNodes   int                  `json:"num_nodes"`
	Have       task.Request         `json:"have"`
	Epoch      int64                `json:"epoch"`
	Task       string               `json:"task"`
	SecretRefs map[string]string    `json:"secret_refs,omitempty"`
	Setup      bool                 `json:"setup"`                // run the task's setup
	SetupOnly  bool                 `json:"setup_only,omitempty"` // and nothing else
	Exec       bool                 `json:"exec"`
	User       string               `json:"user"`
	UserHash   string               `json:"user_hash"`
	GitCommit  string               `json:"git_commit,omitempty"`
	// TaskID and Envs are set for managed jobs, whose identity outlives a cluster.
	TaskID string            `json:"task_id,omitempty"`
	Envs   map[string]string `json:"envs,omitempty"`
	// Autostop, if set, is given to the agent first.
	Autostop *agentapi.Autostop `json:"autostop,omitempty"`
}

// SubmitOutput tells the job's number.
type SubmitOutput struct {
	Job   *api.Job   `json:"job,omitempty"`
	Error *api.Error `json:"error,omitempty"`
}

// WithdrawInput names a job whose submission has an unknown outcome.
type WithdrawInput struct {
	Key      string               `json:"key"`
	Ref      providers.ClusterRef `json:"ref"`
	Provider string               `json:"provider"`
	Nodes    []providers.Node     `json:"nodes"`
}

// ReplyInput ends a request: its row, the rows and events that go with it, and the signal to the workflow that waits.
type ReplyInput struct {
	Outcome cluster.Outcome `json:"outcome"`
	ReplyTo string          `json:"reply_to,omitempty"`
	Record  RecordInput     `json:"record"`
}

// RecordInput is a change of the read model.
type RecordInput struct {
	Batch store.Batch `json:"batch"`
	// DropScope deletes the secrets of a scope.
	DropScope string `json:"drop_scope,omitempty"`
}

// WatchRow is a cluster to be watched.
type WatchRow struct {
	Name     string               `json:"name"`
	Ref      providers.ClusterRef `json:"ref"`
	Provider string               `json:"provider"`
	Nodes    []providers.Node     `json:"nodes"`
	NumNodes int                  `json:"num_nodes"`
	Epoch    int64                `json:"epoch"`
	// Workflow is who is told; empty: the cluster's own. Jobs says that it wants to hear of jobs that end.
	Workflow string `json:"workflow,omitempty"`
	Jobs     bool   `json:"jobs,omitempty"`
	// Array is the number of the array whose elements run there.
	Array int64 `json:"array,omitempty"`
	// Checkpoint says what is saved of the attempt that runs.
	Checkpoint *WatchedCheckpoint `json:"checkpoint,omitempty"`
	// Log says whose log is kept while it runs.
	Log *WatchedLog `json:"log,omitempty"`
	// Provisioning says that the nodes are not ready yet: tell when they are.
	Provisioning bool `json:"provisioning,omitempty"`
}

// CancelInput cancels jobs on a cluster.
type CancelInput struct {
	Ref      providers.ClusterRef `json:"ref"`
	Provider string               `json:"provider"`
	Nodes    []providers.Node     `json:"nodes"`
	Body     api.CancelBody       `json:"body"`
}

// CancelOutput lists cancelled jobs.
type CancelOutput struct {
	JobIDs   []int64    `json:"job_ids,omitempty"`
	Warnings []string   `json:"warnings,omitempty"`
	Error    *api.Error `json:"error,omitempty"`
}

// AutostopInput gives a node its idle rule.
type AutostopInput struct {
	Ref      providers.ClusterRef `json:"ref"`
	Provider string               `json:"provider"`
	Nodes    []providers.Node     `json:"nodes"`
	Autostop agentapi.Autostop    `json:"autostop"`
	Undrain  bool                 `json:"undrain,omitempty"`
}

// Abilities are what a cluster's infra can do.
type Abilities struct {
	Stop     bool `json:"stop"`
	SpotStop bool `json:"spot_stop"`
	Preempt  bool `json:"preempt"`
	// Extend says that lost nodes can be replaced, and nodes added.
	Extend bool `json:"extend,omitempty"`
}
