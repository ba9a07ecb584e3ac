package providers

import (
	"context"
	"encoding/json"
	"net"
	"slices"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
)

// Provider is the core contract: what every infra must do.
type Provider interface {
	// Name is the word users write in `infra:`, lower case.
	Name() string
	// Check tells whether the infra can be used with the credentials at hand. The error says why not and what to do.
	Check(ctx context.Context) (CheckReport, error)
	// Offers lists what can be rented: instance types with their resources, places and prices.
	Offers(ctx context.Context, f OfferFilter) ([]Offer, error)
	// Create brings up all nodes of a cluster in one zone, or fails. It returns handles as soon as the infra has
	// accepted them; they need not run yet. The same token gives the same nodes. After an error the caller deletes by
	// tag whatever may have been made.
	Create(ctx context.Context, req CreateRequest) ([]Node, error)
	// List returns every node under the tag, whatever its state, in bulk. A node just created may be missing for a while.
	List(ctx context.Context, tag Tag) ([]Node, error)
	// Delete ends nodes of one cluster incarnation for good: all of them, or those with the given ids. It is
	// idempotent; NotFound means that nothing is left that the infra shows. Ids that Create returned are found also while
	// listings do not show them yet.
	Delete(ctx context.Context, ref ClusterRef, nodeIDs []string) error
	// Transport gives the way to a node's agent.
	Transport(ctx context.Context, n Node) (Transport, error)
}

// Tag selects nodes: by installation, and if given by one cluster incarnation.
type Tag struct {
	Installation string
	ClusterHash  string // empty: every cluster of the installation
}

// ClusterRef names one incarnation of a cluster.
type ClusterRef struct {
	Installation string `json:"installation"`
	Name         string `json:"name"`
	Hash         string `json:"hash"`
}

// Tag selects the nodes of this incarnation.
func (r ClusterRef) Tag() Tag { return Tag{Installation: r.Installation, ClusterHash: r.Hash} }

// NameOnCloud is the name nodes carry on the infra: readable, unique per incarnation.
func (r ClusterRef) NameOnCloud() string { return r.Name + "-" + r.Hash }

// CheckReport is what a check found.
type CheckReport struct {
	Capabilities []string // compute, storage
	Details      []string // lines for -v
}

// OfferFilter narrows a listing; zero values do not narrow.
type OfferFilter struct {
	Region, Zone, InstanceType string
	Accelerator                string // canonical name, any case
	Spot                       *bool
	Ports, FUSE                bool
}

// Offer is one thing that can be rented, in one place, spot or on demand.
type Offer struct {
	Provider         string  `json:"provider"`
	InstanceType     string  `json:"instance_type,omitempty"`
	Region           string  `json:"region,omitempty"`
	Zone             string  `json:"zone,omitempty"`
	CPUs             float64 `json:"cpus"`
	MemoryGB         float64 `json:"memory_gb"`
	Accelerator      string  `json:"accelerator,omitempty"`
	AcceleratorCount float64 `json:"accelerator_count,omitempty"`
	DeviceMemGB      float64 `json:"device_mem_gb,omitempty"`
	Manufacturer     string  `json:"manufacturer,omitempty"`
	Spot             bool    `json:"spot"`
	PricePerHour     float64 `json:"price_per_hour"` // US dollars per node
	Arch             string  `json:"arch,omitempty"` // amd64, arm64
	LocalDisk        string  `json:"local_disk,omitempty"`
	// Flexible says that cpus, memory and accelerators are upper bounds of which a part may be asked (local, ssh, pods).
	Flexible bool              `json:"flexible,omitempty"`
	MaxNodes int               `json:"max_nodes,omitempty"` // 0: no limit known
	Extra    map[string]string `json:"extra,omitempty"`
}

// NodeSpec is what each node of a cluster shall be.
type NodeSpec struct {
	InstanceType     string            `json:"instance_type,omitempty"`
	Region           string            `json:"region,omitempty"`
	Zone             string            `json:"zone,omitempty"`
	CPUs             float64           `json:"cpus"`
	MemoryGB         float64           `json:"memory_gb"`
	Accelerator      string            `json:"accelerator,omitempty"`
	AcceleratorCount float64           `json:"accelerator_count,omitempty"`
	Spot             bool              `json:"spot,omitempty"`
	DiskGB           int               `json:"disk_gb,omitempty"`
	DiskTier         string            `json:"disk_tier,omitempty"`
	NetworkTier      string            `json:"network_tier,omitempty"`
	ImageID          string            `json:"image_id,omitempty"`  // of the machine
	Container        string            `json:"container,omitempty"` // image of the container the task runs in
	Labels           map[string]string `json:"labels,omitempty"`
	Ports            []string          `json:"ports,omitempty"`
	PricePerHour     float64           `json:"price_per_hour"` // as offered, US dollars per node
}

// CreateRequest asks for all nodes of a cluster.
type CreateRequest struct {
	Cluster ClusterRef `json:"cluster"`
	// Token makes the call idempotent: one token, one set of nodes.
	Token    string   `json:"token"`
	NumNodes int      `json:"num_nodes"`
	Spec     NodeSpec `json:"spec"`
	// Agent is how the provider finds the agent's program for an architecture ("amd64", "arm64", or "" for this machine).
	Agent AgentSource `json:"-"`
	User  string      `json:"user,omitempty"`
}

// AllRanks are the ranks of a whole cluster.
func (r CreateRequest) AllRanks() []int {
	ranks := make([]int, max(r.NumNodes, 0))
	for i := range ranks {
		ranks[i] = i
	}
	return ranks
}

// CheckRanks refuses what no cluster of the request's size has (Invalid).
func (r CreateRequest) CheckRanks(ranks []int) error {
	if len(ranks) == 0 || slices.Min(ranks) < 0 || slices.Max(ranks) >= r.NumNodes {
		return Errorf(Invalid, ScopeCloud, "cluster %s of %d nodes has no ranks %v", r.Cluster.NameOnCloud(), r.NumNodes, ranks)
	}
	return nil
}

// AgentSource gives the agent's program.
type AgentSource interface {
	// Path returns a file on this machine with the agent for the operating system and architecture, and its SHA-256 (hex).
	Path(goos, goarch string) (path, sha256 string, err error)
}

// NodeState is the state of a node as the infra tells it.
type NodeState string

// Node states.
const (
	NodePending  NodeState = "pending" // accepted, not running yet
	NodeRunning  NodeState = "running"
	NodeStopping NodeState = "stopping"
	NodeStopped  NodeState = "stopped" // files kept, not billed
	NodeGone     NodeState = "gone"    // terminated or preempted, still listed
)

// Node is one machine as the infra lists it.
type Node struct {
	ID         string     `json:"id"`
	Rank       int        `json:"rank"`
	Cluster    ClusterRef `json:"cluster"`
	Token      string     `json:"token,omitempty"` // of the Create that made it
	State      NodeState  `json:"state"`
	Reason     string     `json:"reason,omitempty"` // preempted, killed, out of memory, …
	Spot       bool       `json:"spot,omitempty"`
	Region     string     `json:"region,omitempty"`
	Zone       string     `json:"zone,omitempty"`
	InternalIP string     `json:"internal_ip,omitempty"`
	ExternalIP string     `json:"external_ip,omitempty"`
	CreatedAt  time.Time  `json:"created_at"`
	// AgentAddr is the address peers use for the node's agent (agentapi.Peer.Addr); empty: by ip and the agent's port.
	AgentAddr string                 `json:"agent_addr,omitempty"`
	Resources agentapi.NodeResources `json:"resources"`
	// Handle is the provider's own, opaque to the core.
	Handle json.RawMessage `json:"handle,omitempty"`
}

// Transport is a way to a node's agent.
type Transport interface {
	// DialAgent opens a connection to the agent's HTTP server.
	DialAgent(ctx context.Context) (net.Conn, error)
	// Close frees what the transport holds (tunnels).
	Close() error
}

// Optional capabilities. Found once by FeaturesOf.

// Stopper keeps a stopped cluster's files and brings it back.
type Stopper interface {
	// Stop ends the nodes but keeps their files. Idempotent; returns once accepted.
	Stop(ctx context.Context, ref ClusterRef, nodeIDs []string) error
	// Start brings stopped nodes back under the same ids. Idempotent by token.
	Start(ctx context.Context, ref ClusterRef, token string, agent AgentSource) ([]Node, error)
}

// Extender gives a cluster nodes that it lacks: in place of lost ones, or more of them.
type Extender interface {
	// Extend makes nodes of the given ranks beside those that are there, where those are, all of them or none. NumNodes is
	// what the cluster has then. It gives the nodes of these ranks, and is idempotent by token and rank; a living node of
	// one of the ranks under another token is a Conflict. What is gone of these ranks the caller deletes first.
	Extend(ctx context.Context, req CreateRequest, ranks []int) ([]Node, error)
}

// Preempter takes a spot node away as the infra's owner would.
type Preempter interface {
	// Preempt ends the node; with a notice it tells the node's agent first and ends it after that time.
	Preempt(ctx context.Context, ref ClusterRef, nodeID string, notice time.Duration) error
}

// Watcher reports changes of nodes instead of being polled.
type Watcher interface {
	// WatchNodes calls f for every change under the tag until ctx ends.
	WatchNodes(ctx context.Context, tag Tag, f func(Node)) error
}

// QuotaChecker tells before a create that a quota can't hold it.
type QuotaChecker interface {
	CheckQuota(ctx context.Context, spec NodeSpec, nodes int) error
}

// PortOpener opens ports to the outside.
type PortOpener interface {
	OpenPorts(ctx context.Context, ref ClusterRef, ports []string) error
	Endpoints(ctx context.Context, ref ClusterRef, port int) ([]string, error)
}

// Pooler tells what is free right now on infra with fixed machines.
type Pooler interface {
	Pools(ctx context.Context) ([]Pool, error)
}

// Pool is the accelerators of one kind on fixed machines.
type Pool struct {
	Infra, Accelerator string
	Requestable        []float64
	Total, Free        float64
}

// HostKeeper looks after hosts that people already have, in named pools.
type HostKeeper interface {
	// AddPools takes pools from a file that a user names, in place of those of the same names, and gives their names.
	AddPools(ctx context.Context, file string, data []byte) ([]string, error)
	// PrepareHosts checks every host of the pools (none named: all) and brings there what nodes need.
	PrepareHosts(ctx context.Context, pools []string) ([]HostReport, error)
	// CleanHosts removes every trace from the hosts of the pools. Hosts that still have nodes are left, and say so.
	CleanHosts(ctx context.Context, installation string, pools []string) ([]HostReport, error)
}

// HostReport is how a host is.
type HostReport struct {
	Pool string `json:"pool"`
	Host string `json:"host"`
	OK   bool   `json:"ok"`
	// Reason says why it can't be used, or what works less well than it could; Hint what to do about it.
	Reason       string  `json:"reason,omitempty"`
	Hint         string  `json:"hint,omitempty"`
	Arch         string  `json:"arch,omitempty"`
	CPUs         float64 `json:"cpus,omitempty"`
	MemoryGB     float64 `json:"memory_gb,omitempty"`
	FreeCPUs     float64 `json:"free_cpus,omitempty"`
	FreeMemoryGB float64 `json:"free_memory_gb,omitempty"`
	GPUs         string  `json:"gpus,omitempty"` // for people
}

// Features are the optional capabilities a provider has.
type Features struct {
	Stop    Stopper
	Extend  Extender
	Preempt Preempter
	Watch   Watcher
	Quota   QuotaChecker
	Ports   PortOpener
	Pools   Pooler
	Hosts   HostKeeper
	Spot    bool // offers spot nodes
	// SpotStop says that spot nodes can be stopped too.
	SpotStop bool
	// Fallback says that the infra is chosen only if nothing else is enabled, or when named.
	Fallback bool
	// MachineLocal says that the nodes live on the server's machine and see its files.
	MachineLocal bool
	// HostNetwork says that nodes share the network of the machine they stand on: a port needs no opening, and is reached at
	// the machine's address as far as its own firewall allows.
	HostNetwork bool
	// Confirms says that the infra can tell for sure that a node is gone.
	Confirms bool
	// Sizes are what a node gets of a flexible offer where the task does not say; zero fields: the whole machine.
	Sizes Sizes
}

// Sizes of nodes that are parts of machines.
type Sizes struct {
	CPUs               float64 // of a node without accelerators
	MemoryPerCPU       float64 // GB; of a node without accelerators
	CPUsPerAccelerator float64
	// MemoryPerCPUWithAccelerator is in GB; 0: as MemoryPerCPU.
	MemoryPerCPUWithAccelerator float64
}

// Declarer lets a provider declare the features that are not interfaces.
type Declarer interface{ Declare(f *Features) }

// FeaturesOf finds what p can do.
func FeaturesOf(p Provider) Features {
	var f Features
	f.Stop, _ = p.(Stopper)
	f.Extend, _ = p.(Extender)
	f.Preempt, _ = p.(Preempter)
	f.Watch, _ = p.(Watcher)
	f.Quota, _ = p.(QuotaChecker)
	f.Ports, _ = p.(PortOpener)
	f.Pools, _ = p.(Pooler)
	f.Hosts, _ = p.(HostKeeper)
	if d, ok := p.(Declarer); ok {
		d.Declare(&f)
	}
	return f
}
