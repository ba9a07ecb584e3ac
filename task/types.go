package task

import "time"

// Kind says how the tasks of a file belong together.
type Kind string

// The kinds of a file.
const (
	Single   Kind = "single"
	Pipeline Kind = "pipeline"  // tasks run one after the other, each on its own cluster
	JobGroup Kind = "job_group" // tasks run at the same time and reach each other by name
)

// File is a parsed task file: one task, a pipeline or a job group.
type File struct {
	Kind  Kind
	Name  string // of the task, the pipeline or the group; may be empty except for a group
	Tasks []*Task
	// PrimaryTasks of a job group: when all of them are done the others are ended. Empty means all are primary.
	PrimaryTasks []string
	// TerminationDelay of a job group: how long an auxiliary task may go on after the primaries; "default" holds for
	// tasks that are not listed.
	TerminationDelay map[string]time.Duration
	// Warnings are things worth telling that are no errors, one line each.
	Warnings []string
}

// Task is one task as its file and the overrides describe it. The zero value with NumNodes 1 is a valid task that only
// brings up a CPU node.
type Task struct {
	Name            string
	Workdir         *Workdir // nil: none
	NumNodes        int      // at least 1
	Resources       Resources
	Envs            map[string]string
	Secrets         map[string]Secret // by environment name
	ManagedSecrets  []ManagedSecret
	FileMounts      []FileMount   // sorted by Dst
	Volumes         []VolumeMount // sorted by Dst
	Setup           string
	Run             string
	Service         *Service
	Pool            *Pool
	Config          Config
	APIServerAccess *bool // nil: default (true)
	EventCallback   string
	Inputs          *DataSize
	Outputs         *DataSize

	// Ours, beside the compatible surface.
	Checkpoint *Checkpoint
	Array      *Array
	Schedule   *Schedule
	Notify     []Notify

	src *source // where the fields stand in the file; nil for tasks made in code
}

// Workdir is the folder that goes to ~/sky_workdir of every node: a local path or a git repository.
type Workdir struct {
	Path   string // local folder as written; empty for git
	URL    string // git: https, ssh:// or scp-like
	Ref    string // git: branch, tag or commit; empty for the default branch
	Mirror bool   // delete on the nodes what is gone locally (ours)
}

// IsGit tells whether the folder comes from a git repository.
func (w *Workdir) IsGit() bool { return w != nil && w.URL != "" }

// Secret is one entry of `secrets`. Inline ones carry their value in the file or on the command line. The rest are
// references, resolved at launch: from what ExtractSecrets set aside, or by a provider of managed secrets.
type Secret struct {
	Value  string // only when Inline
	Inline bool
	Ref    string // managed secret: NAME, or personal.NAME, workspace.NAME, global.NAME; empty for a plain null
}

// ManagedSecret is one entry of `managed_secrets`.
type ManagedSecret struct {
	Name      string
	MountPath string // deliver as a file of mode 0600; empty: as an environment variable
}

// DataSize is `inputs` or `outputs`: where the data lies and how much it is.
type DataSize struct {
	URL    string
	SizeGB float64
}

// Resources is what one node of the task needs, as written. AnyOf and Ordered hold alternatives that inherit the fields
// they don't set; Candidates expands all of it.
type Resources struct {
	Infra           Infra
	Accelerators    Accelerators
	AcceleratorArgs *AcceleratorArgs
	CPUs            CPUs
	Memory          Memory
	InstanceType    string
	UseSpot         *bool // nil: not said, which means on-demand but matches a spot cluster on reuse
	JobRecovery     *JobRecovery
	DiskSizeGB      int    // 0: not said, see DefaultDiskSizeGB
	DiskTier        string // low, medium, high, ultra, best, none; empty: not said
	NetworkTier     string // standard, best; empty: not said
	LocalDisk       *LocalDisk
	MaxHourlyCost   float64 // US dollars per node; 0: no limit
	Ports           Ports
	Images          map[string]string // by region; key "" holds for all, "docker" is the container
	Labels          map[string]string
	Autostop        *Autostop
	Priority        *int // -1000..1000
	PriorityClass   string
	Volumes         []DiskVolume // legacy disks
	AnyOf           []Resources
	Ordered         []Resources
}

// Defaults that apply where a task says nothing.
const (
	DefaultDiskSizeGB     = 256
	DefaultAutostopMins   = 5 // `autostop: true`, and an object without idle_minutes
	DefaultWaitFor        = "jobs_and_ssh"
	DefaultLocalDiskGB    = 100
	DefaultHookTimeoutSec = 3600
	CommandTaskName       = "sky-cmd" // name of a task made from a shell command
)

// Infra is where something may run. Empty parts mean any; as written in a file a part may also be "*", which means any
// too but overrides an outer value. The region is the context on kubernetes, the pool on ssh and the cluster on slurm;
// the zone is the partition on slurm.
type Infra struct {
	Cloud  string `json:"cloud,omitempty"` // lower case; "k8s" is stored as "kubernetes"
	Region string `json:"region,omitempty"`
	Zone   string `json:"zone,omitempty"`
}

// Accelerators are alternatives: in order of preference when Ordered, else the cheapest first.
type Accelerators struct {
	Ordered bool
	Options []Accelerator
}

// Accelerator is a kind and a number per node. Name is empty when it is asked for by memory: then MemoryGB, MemoryAtLeast
// and Vendor tell which of the catalog's accelerators fit.
type Accelerator struct {
	Name          string  `json:"name,omitempty"` // as written; names compare without case
	Count         float64 `json:"count,omitempty"`
	MemoryGB      float64 `json:"memory_gb,omitempty"` // of one device
	MemoryAtLeast bool    `json:"memory_at_least,omitempty"`
	Vendor        string  `json:"vendor,omitempty"`
}

// AcceleratorArgs are settings of TPUs.
type AcceleratorArgs struct {
	RuntimeVersion    string `json:"runtime_version,omitempty"`
	TPUName           string `json:"tpu_name,omitempty"`
	TPUVM             *bool  `json:"tpu_vm,omitempty"` // nil: true
	GCPQueuedResource *bool  `json:"gcp_queued_resource,omitempty"`
}

// CPUs is a number of virtual CPUs; zero means not said.
type CPUs struct {
	N       float64 `json:"n,omitempty"`
	AtLeast bool    `json:"at_least,omitempty"`
}

// Memory of a node in GB (1024^3 bytes), or in GB per CPU; zero means not said.
type Memory struct {
	GB      float64 `json:"gb,omitempty"`
	AtLeast bool    `json:"at_least,omitempty"`
	PerCPU  bool    `json:"per_cpu,omitempty"` // GB is per virtual CPU ("4x")
	Whole   bool    `json:"whole,omitempty"`   // memory: 0, all memory of a Slurm node
}

// LocalDisk is a disk that is part of the machine.
type LocalDisk struct {
	Mode    string  `json:"mode"` // nvme or ssd; nvme meets ssd too
	SizeGB  float64 `json:"size_gb"`
	AtLeast bool    `json:"at_least,omitempty"`
}

// PortRange is From..To inclusive, 1..65535.
type PortRange struct {
	From int `json:"from"`
	To   int `json:"to"`
}

// Ports are sorted, disjoint and not adjacent.
type Ports []PortRange

// JobRecovery says what a managed job does when its cluster is lost or its command fails.
type JobRecovery struct {
	Strategy            string // upper case; empty: default; "NONE" disables
	MaxRestartsOnErrors int
	RecoverOnExitCodes  []int          // sorted
	Extra               map[string]any // keys of other strategies
}

// Autostop ends an idle cluster.
type Autostop struct {
	Enabled     bool   `json:"enabled"` // false cancels a setting that is in force
	IdleMinutes int    `json:"idle_minutes,omitempty"`
	Down        bool   `json:"down,omitempty"`     // remove instead of stop
	WaitFor     string `json:"wait_for,omitempty"` // jobs_and_ssh, jobs, none; empty: jobs_and_ssh
}

// DiskVolume is an entry of the legacy `resources.volumes`.
type DiskVolume struct {
	Path        string
	Name        string
	DiskSizeGB  int
	DiskTier    string
	StorageType string // network, instance
	AttachMode  string // read_write, read_only
	AutoDelete  *bool
}

// FileMount puts a file, a folder or a bucket at Dst. Exactly one of Src and Storage is set.
type FileMount struct {
	Dst     string
	Src     string // local path or bucket URL
	Storage *Storage
}

// IsRemote tells whether the source is not on the user's machine.
func (m FileMount) IsRemote() bool { return m.Storage != nil || IsBucketURL(m.Src) }

// Storage is a bucket to mount or copy.
type Storage struct {
	Name         string
	Source       []string // empty: a scratch bucket
	SourceIsList bool
	Store        string
	Persistent   *bool  // nil: true
	Mode         string // MOUNT, COPY, MOUNT_CACHED; empty: MOUNT
	Type         string // MODEL_CHECKPOINT_RO/RW, DATASET_RO/RW
	MountOptions string
	Config       map[string]any
}

// VolumeMount mounts a named volume, or one that lives as long as the cluster.
type VolumeMount struct {
	Dst       string
	Name      string
	SubPath   string
	Ephemeral *EphemeralVolume
}

// EphemeralVolume is made with the cluster and deleted with it.
type EphemeralVolume struct {
	SizeGB int
	Type   string // k8s-pvc
	Labels map[string]string
	Config map[string]any
}

// Config is the task's part of the configuration and its lifecycle hooks.
type Config struct {
	Overrides map[string]any // without hooks
	Hooks     []Hook
}

// Hook runs a command on the head node before the cluster ends.
type Hook struct {
	Run            string   `json:"run"`
	Events         []string `json:"events"`          // of stop, preemption, down
	TimeoutSeconds int      `json:"timeout_seconds"` // at least 1
}

// Service makes the task a replicated service.
type Service struct {
	ReadinessProbe      Probe
	StreamTimeoutSec    float64 // 0: default 120
	Replicas            *int
	Policy              *ReplicaPolicy
	LoadBalancingPolicy string
	Port                int // 0: the single port of the resources
	TLS                 *TLS
	Pool                bool // internal form of a pool
	Workers             *int
}

// Probe tells when a replica is ready. Durations in seconds; 0 means the default.
type Probe struct {
	Path                       string
	InitialDelaySec            float64
	TimeoutSec                 float64
	IntervalSec                float64
	FailureThresholdTimeoutSec float64
	PostData                   string // JSON text
	Headers                    map[string]string
}

// ReplicaPolicy scales a service.
type ReplicaPolicy struct {
	MinReplicas                  int
	MaxReplicas                  *int
	TargetQPSPerReplica          float64            // 0: not set
	TargetQPSByAccelerator       map[string]float64 // GPU[:n] to qps
	NumOverprovision             *int
	UpscaleDelaySec              *float64
	DownscaleDelaySec            *float64
	BaseOndemandFallbackReplicas int
	DynamicOndemandFallback      bool
	SpotPlacer                   string
}

// TLS names the files of a service's certificate.
type TLS struct{ Keyfile, Certfile string }

// Pool makes the task a pool of workers for managed jobs.
type Pool struct {
	Workers              *int
	MinWorkers           *int
	MaxWorkers           *int
	QueueLengthThreshold *int
	UpscaleDelaySec      *float64
	DownscaleDelaySec    *float64
}

// Checkpoint saves a folder of the node so that a recovered job goes on where it was (ours).
type Checkpoint struct {
	Path      string        // on the node
	To        string        // bucket URL; empty: the server's store
	Every     time.Duration // 0: only on events
	Signal    string        // sent before a save, without SIG
	OnPreempt string        // command run on a notice of preemption
	Keep      int           // complete checkpoints kept; 0: default 3
	Scope     string        // head, all; empty: head
}

// Array runs the task once for each element (ours).
type Array struct {
	Count    int                 // elements, when there are no Values
	Values   map[string][]string // environment name to its values; the elements are all combinations
	Parallel int                 // clusters used at most; 0: decided by the server
	Retries  int                 // of one element
}

// Schedule starts the job again and again (ours).
type Schedule struct {
	Cron     string
	Timezone string        // IANA name; empty: UTC
	Overlap  string        // skip, buffer_one, buffer_all, cancel_other, allow_all; empty: skip
	CatchUp  time.Duration // missed starts this recent are made up for; 0: the server's default
	Paused   bool
}

// Notify posts changes of state to a web address (ours).
type Notify struct {
	URL    string
	Events []string // state names in lower case; empty: all
	Secret string   // name in `secrets` of the key that signs the posts
}
