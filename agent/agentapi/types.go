package agentapi

import (
	"time"

	"github.com/skyloom/skyloom/api"
)

// NodeConfig is the file an agent starts from. Whoever brings the node up writes it (mode 0600).
type NodeConfig struct {
	Installation string `json:"installation"`
	ClusterName  string `json:"cluster_name"`
	ClusterHash  string `json:"cluster_hash"`
	NodeID       string `json:"node_id" `
	Rank         int    `json:"rank"`
	// Dir is the agent's own state folder; Home is HOME of the jobs. Both absolute, as seen by the agent.
	Dir  string `json:"dir"`
	Home string `json:"home"`
	// Socket is the unix socket (0600) on which the server reaches the agent.
	Socket string `json:"socket"`
	// Listen, if set, is a TCP address for peers, served with mutual TLS by the files in Dir/tls (ca.pem, cert.pem, key.pem).
	Listen string `json:"listen,omitempty"`
	// IP is the node's address as its peers see it.
	IP string `json:"ip"`
	// Resources are what jobs may use on this node.
	Resources NodeResources `json:"resources"`
	// SelfEnd says how the node ends itself when an announced autostop stays unanswered: "exit" ends its processes and
	// keeps the files, "poweroff" turns the machine off after that. Empty: it cannot, and only says so by an event.
	SelfEnd string `json:"self_end,omitempty"`
	// CgroupRoot is a cgroup v2 folder the agent may make children in; empty: none.
	CgroupRoot string `json:"cgroup_root,omitempty"`
	// Isolated says that the agent's parent is PID 1 of a PID namespace of the node's own.
	Isolated bool `json:"isolated,omitempty"`
	// TmpDir is a folder bound over /tmp in the node's own mount namespace (with Isolated); empty: /tmp is shared.
	TmpDir string `json:"tmp_dir,omitempty"`
	// ClockOffset shifts the agent's clock (tests of clock skew), in nanoseconds.
	ClockOffset time.Duration `json:"clock_offset,omitempty"`
	// AutostopGrace is how long an announced autostop waits for the server before the agent acts alone; 0 means two minutes.
	AutostopGrace time.Duration `json:"autostop_grace,omitempty"`
	// KillGrace is the time between TERM and KILL when a job is ended; 0 means three seconds.
	KillGrace time.Duration `json:"kill_grace,omitempty"`
	// IdleCheck is how often idleness is looked at; 0 means five seconds.
	IdleCheck time.Duration `json:"idle_check,omitempty"`
}

// NodeResources are what a node offers to jobs.
type NodeResources struct {
	CPUs             float64  `json:"cpus"`
	MemoryGB         float64  `json:"memory_gb"`
	Accelerator      string   `json:"accelerator,omitempty"`
	AcceleratorCount float64  `json:"accelerator_count,omitempty"`
	DeviceIDs        []string `json:"device_ids,omitempty"` // values for CUDA_VISIBLE_DEVICES, one per accelerator
}

// Info is GET /v1/info.
type Info struct {
	Version     string     `json:"version"`
	BinarySHA   string     `json:"binary_sha256"`
	NodeID      string     `json:"node_id"`
	ClusterHash string     `json:"cluster_hash"`
	Rank        int        `json:"rank"`
	Epoch       int64      `json:"epoch"`
	PID         int        `json:"pid"`
	StartedAt   time.Time  `json:"started_at"`
	Now         time.Time  `json:"now"`
	Configured  bool       `json:"configured"`
	Draining    bool       `json:"draining"`
	LastEvent   int64      `json:"last_event"`
	Acked       int64      `json:"acked"`
	ActiveJobs  int        `json:"active_jobs"`
	IdleSince   *time.Time `json:"idle_since,omitempty"`
	Autostop    *Autostop  `json:"autostop,omitempty"`
	Unfinished  []int64    `json:"unfinished,omitempty"`
}

// ClusterSpec is PUT /v1/cluster: what a node must know of its cluster. Sent to every node at each bring-up; a lower
// epoch than the one seen is refused with KindStaleEpoch.
type ClusterSpec struct {
	Name      string        `json:"name"`
	Hash      string        `json:"hash"`
	Epoch     int64         `json:"epoch"`
	Cloud     string        `json:"cloud"`
	Region    string        `json:"region"`
	Zone      string        `json:"zone"`
	UserName  string        `json:"user_name"`
	Nodes     []Peer        `json:"nodes"`  // by rank, head first
	Secret    string        `json:"secret"` // shared by the cluster's nodes, authenticates peers
	Resources NodeResources `json:"resources"`
	// Restarted ends every job that was unfinished as FAILED: the cluster came back from STOPPED.
	Restarted bool `json:"restarted,omitempty"`
}

// Peer is one node of the cluster as seen by the others.
type Peer struct {
	NodeID string `json:"node_id"`
	Rank   int    `json:"rank"`
	IP     string `json:"ip"`
	Addr   string `json:"addr"` // unix:/path or https://ip:port
}

// JobSpec is POST /v1/jobs on the head node.
type JobSpec struct {
	// Key makes submitting idempotent: the same key gives the same job.
	Key      string `json:"key"`
	Epoch    int64  `json:"epoch"`
	Name     string `json:"name"`
	User     string `json:"user"`
	UserHash string `json:"user_hash"`
	// TaskID is SKYPILOT_TASK_ID; empty: the agent makes sky-YYYY-MM-DD-HH-MM-SS-ffffff_<cluster>_<job id>.
	TaskID   string            `json:"task_id,omitempty"`
	NumNodes int               `json:"num_nodes"`
	Setup    string            `json:"setup,omitempty"` // runs on every node of the cluster first
	Run      string            `json:"run,omitempty"`
	Workdir  bool              `json:"workdir,omitempty"` // cwd is ~/sky_workdir
	Envs     map[string]string `json:"envs,omitempty"`
	// Secrets are environment variables too; they are kept in a 0600 file, apart from the job's record, until the job ends.
	Secrets          map[string]string `json:"secrets,omitempty"`
	Accelerator      string            `json:"accelerator,omitempty"`
	AcceleratorCount float64           `json:"accelerator_count,omitempty"` // per node, fractions allowed below 1
	CPUs             float64           `json:"cpus,omitempty"`              // demand per node; 0 means the default of half a CPU, negative means none
	Resources        string            `json:"resources,omitempty"`         // for people
	Metadata         map[string]string `json:"metadata,omitempty"`
}

// CancelSpec is POST /v1/jobs/cancel. It is idempotent, and returns once every process of the jobs is gone.
type CancelSpec struct {
	JobIDs   []int64 `json:"job_ids,omitempty"`
	All      bool    `json:"all,omitempty"`    // every unfinished job (of UserHash, if given)
	Latest   bool    `json:"latest,omitempty"` // the latest running (else pending) job
	UserHash string  `json:"user_hash,omitempty"`
}

// CancelReply lists the jobs that were cancelled, and those that had ended before.
type CancelReply struct {
	Cancelled []int64 `json:"cancelled"`
	Finished  []int64 `json:"finished,omitempty"`
	Unknown   []int64 `json:"unknown,omitempty"`
}

// Autostop is PUT /v1/autostop: the idle rule of the cluster, kept by its head node.
type Autostop struct {
	// Generation is raised by the server at each change; a lower one is ignored.
	Generation  int64  `json:"generation"`
	IdleMinutes int    `json:"idle_minutes"` // -1: off
	Down        bool   `json:"down"`
	WaitFor     string `json:"wait_for,omitempty"` // jobs_and_ssh (default), jobs, none
	Hooks       []Hook `json:"hooks,omitempty"`
	// IdleSeconds, if positive, replaces IdleMinutes (tests).
	IdleSeconds float64 `json:"idle_seconds,omitempty"`
}

// Hook is a lifecycle hook: a command run on the head before the named outcomes.
type Hook struct {
	Run     string   `json:"run"`
	Events  []string `json:"events"`  // stop, preemption, down
	Timeout int      `json:"timeout"` // seconds
}

// HookRun is POST /v1/hooks/{event}: runs the hooks of an event once per key, in order. It returns at once; the end
// is told by an event of type hook and by GET /v1/hooks/{event}.
type HookRun struct {
	Key   string `json:"key"`
	Hooks []Hook `json:"hooks,omitempty"` // those given last by Autostop if empty
}

// HookState is GET /v1/hooks/{event}.
type HookState struct {
	Event string `json:"event"`
	Key   string `json:"key"`
	Done  bool   `json:"done"`
	Error string `json:"error,omitempty"` // the last one that failed or ran out of time
}

// EventType names what an agent's event is about.
type EventType string

// Types of agent events.
const (
	EventJob      EventType = "job"      // Job changed
	EventAutostop EventType = "autostop" // the node turned to DRAINING and asks to be stopped
	EventHook     EventType = "hook"
	EventNotice   EventType = "notice" // a spot notice arrived
	EventNode     EventType = "node"   // the agent started, a peer was lost, a disk filled
	EventLog      EventType = "log"    // output of the job that the reader follows; it has no Seq and is not kept
)

// Event is one line of GET /v1/events?after=SEQ (newline-delimited JSON; an empty line at least every 15 s shows the
// agent lives). An agent keeps events until acknowledged.
type Event struct {
	Seq      int64       `json:"seq"`
	Time     time.Time   `json:"time"`
	Type     EventType   `json:"type"`
	Job      *api.Job    `json:"job,omitempty"`
	Autostop *Autostop   `json:"autostop,omitempty"`
	Hook     *HookState  `json:"hook,omitempty"`
	Message  string      `json:"message,omitempty"`
	Seconds  int         `json:"seconds,omitempty"` // of a notice: the time that is left
	Log      *LogBytes   `json:"log,omitempty"`
	Output   *BatchBytes `json:"output,omitempty"`  // of EventLog, instead of Log
	Element  *Element    `json:"element,omitempty"` // with Job, if it is one of a batch
	Batch    int64       `json:"batch,omitempty"`   // of EventBatch: its number
}

// LogBytes is output of a job on this node, from an offset of the raw log of a phase on.
type LogBytes struct {
	JobID  int64  `json:"job_id"`
	Phase  string `json:"phase"`
	Offset int64  `json:"offset"`
	Data   []byte `json:"data"`
}

// LogFollow asks for a job's output along with the events: GET /v1/events?log=ID&log_every=SECONDS&offset_run=…&offset_setup=….
// It comes at most once in Every (16 MiB at most), and only if there is any. With batches=1&kept=… instead of log it is that of all
// elements of arrays.
type LogFollow struct {
	JobID   int64 // 0: none
	Every   time.Duration
	Offsets map[string]int64 // by phase: where to go on
	// Batches asks for the output of whatever elements there are; Kept is what is not to be sent of it.
	Batches bool
	Kept    KeptOutput
}

// LogQuery selects a part of a job's log on one node: GET /v1/jobs/{id}/logs. The answer is framed (api.LogFrame).
type LogQuery struct {
	Offsets map[string]int64 // by phase (setup, run): where to read on
	Follow  bool
	Tail    int // last lines only; 0: everything
}

// FilePlan is POST /v1/files/plan?dst=…&file=1&mirror=1&prune=1&now=1: names the blobs the node lacks to bring dst to the manifest's
// state. The body of the call is the encoded manifest; the reply lists hashes. With manifest=ID&known=1 there is no body, and
// with manifest=ID&base=ID it is a delta.
type FilePlan struct {
	// Unknown says that the node has not the manifest (known=1), or not the base, and nothing was done.
	Unknown bool `json:"unknown,omitempty"`
	// Base, with Unknown, is the manifest that the node knows of that destination, "" if none.
	Base string `json:"base,omitempty"`

	Missing []string `json:"missing"`
	Bytes   int64    `json:"bytes"`
	// Applied is set if now=1 was asked for and nothing was missing: the destination is as the manifest says.
	Applied *FileResult `json:"applied,omitempty"`
}

// FileFetch is POST /v1/files/fetch: get blobs from the spool of another node of the cluster.
type FileFetch struct {
	NodeID string   `json:"node_id"` // whom to ask
	Hashes []string `json:"hashes"`
}

// FileFetched tells what is still lacking after a fetch, and why if the peer gave trouble.
type FileFetched struct {
	Missing []string `json:"missing,omitempty"`
	Trouble string   `json:"trouble,omitempty"`
}

// FileApply is POST /v1/files/apply, after the missing blobs were sent.
type FileApply struct {
	Manifest string `json:"manifest"`
	Dst      string `json:"dst"` // absolute, or below ~, or relative to home
	File     bool   `json:"file,omitempty"`
	Mirror   bool   `json:"mirror,omitempty"`
	Prune    bool   `json:"prune,omitempty"` // remove what an earlier sync put there and the manifest lacks
	Now      bool   `json:"now,omitempty"`   // of a plan: apply it at once if nothing is missing
	Known    bool   `json:"known,omitempty"` // of a plan: the manifest is named, not sent
	Base     string `json:"base,omitempty"`  // of a plan: what is sent is what the manifest has otherwise than this one
	Place    bool   `json:"place,omitempty"` // of a plan: what is missing will come by PlaceBlobs, and needs its room once
}

// FileResult tells what an apply did.
type FileResult struct {
	Written int   `json:"written"`
	Removed int   `json:"removed"`
	Bytes   int64 `json:"bytes"`
	// Warnings name what was left as it was, such as links that point outside.
	Warnings []string `json:"warnings,omitempty"`
}

// SSHHost is GET /v1/ssh: the node's SSH server. POST /v1/ssh with "Upgrade: skyloom-ssh" turns the connection into a
// stream to it; SSHKeyHeader, repeatable, says which public keys may log in on that stream.
type SSHHost struct {
	HostKey string `json:"host_key"` // TYPE BASE64
	User    string `json:"user"`     // whom every login becomes
}

// Of the upgrade to SSH.
const (
	SSHProtocol  = "skyloom-ssh"
	SSHKeyHeader = "Skyloom-Ssh-Key"
)

// Kinds of errors an agent answers with, as the type of a problem document {type, detail}.
const (
	KindInvalid    = "invalid"
	KindNotFound   = "not-found"
	KindStaleEpoch = "stale-epoch"
	KindDraining   = "draining"
	KindConflict   = "conflict"
	KindEnded      = "ended" // what was to be done needs a job that runs
	KindUnfit      = "unfit" // the job asks for what the cluster has not
	KindDiskFull   = "disk-full"
	KindBucket     = "bucket" // an object store refuses, or can't be reached from the node
	KindInternal   = "internal"
)

// Error is an error answered by an agent.
type Error struct {
	Kind   string `json:"type"`
	Detail string `json:"detail"`
	Status int    `json:"status"`
}

func (e *Error) Error() string { return e.Detail }
