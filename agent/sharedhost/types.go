package sharedhost

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
)

// Verbs of `sky-agent host`.
const (
	VerbProbe  = "probe"  // what the machine has, and what is free
	VerbList   = "list"   // the nodes of an installation, or of one cluster
	VerbCreate = "create" // claims a share and starts a node
	VerbStart  = "start"
	VerbStop   = "stop"
	VerbDelete = "delete"
	VerbClean  = "clean" // removes everything, if no node is left
	VerbDial   = "dial"  // joins stdin and stdout to a node's socket
	VerbSweep  = "sweep" // removes what deletes left behind
)

// RootName is the folder in the user's home below which everything is.
const RootName = ".skyloom-host"

// Request is what a call reads on its standard input.
type Request struct {
	// Roots are the folders that may hold nodes on this machine; the first is where new ones go.
	Roots []string `json:"roots"`
	// Claims is the ledger's folder; empty: that of the machine.
	Claims string `json:"claims,omitempty"`
	// Plain says not to become root by sudo. SudoPassword is what sudo gets if it asks.
	Plain        bool   `json:"plain,omitempty"`
	SudoPassword string `json:"sudo_password,omitempty"`
	// Login is whose the sockets shall be, LoginName his name; filled in by the call itself.
	Login     int    `json:"login,omitempty"`
	LoginName string `json:"login_name,omitempty"`
	// Addr is the machine's address as it was reached; peers use it.
	Addr string `json:"addr,omitempty"`

	Installation string `json:"installation,omitempty"`
	Cluster      string `json:"cluster,omitempty"`
	Hash         string `json:"hash,omitempty"`
	// IDs narrow start, stop and delete to nodes; empty: all of the cluster.
	IDs []string `json:"ids,omitempty"`
	// Token is that of a create or start.
	Token string `json:"token,omitempty"`

	Create *Create `json:"create,omitempty"`
	TLS    *TLS    `json:"tls,omitempty"`
	// Fresh has what is remembered of the machine (its GPUs, a sudo that failed) found out again.
	Fresh bool `json:"fresh,omitempty"`
}

// Create is what a new node shall be.
type Create struct {
	ID    string `json:"id"`
	Rank  int    `json:"rank"`
	Nodes int    `json:"nodes"` // of the cluster
	User  string `json:"user,omitempty"`
	// Spec is the caller's, kept as it is; a node under the same token with another Spec is a conflict.
	Spec             json.RawMessage `json:"spec"`
	CPUs             float64         `json:"cpus"`
	MemoryGB         float64         `json:"memory_gb"`
	Accelerator      string          `json:"accelerator,omitempty"`
	AcceleratorCount float64         `json:"accelerator_count,omitempty"`
	// Tune replaces fields of the agent's configuration (tests).
	Tune json.RawMessage `json:"tune,omitempty"`
	// Env are more variables for everything on the node (tests).
	Env []string `json:"env,omitempty"`
}

// TLS are the keys with which a node meets its peers, in PEM.
type TLS struct {
	CA   string `json:"ca"`
	Cert string `json:"cert"`
	Key  string `json:"key"`
}

// Kinds of errors of a call.
const (
	KindFull     = "full"      // the share asked for is not free
	KindUnfit    = "unfit"     // the machine never has what is asked for
	KindDisk     = "disk-full" // no space left
	KindConflict = "conflict"  // another node of that name, or another request under the token
	KindNotFound = "not-found"
	KindInvalid  = "invalid"
	KindInternal = "internal"
)

// Error is what a call answers if it failed.
type Error struct {
	Kind string `json:"kind"`
	Msg  string `json:"msg"`
}

func (e *Error) Error() string { return e.Msg }

func errorf(kind, format string, args ...any) *Error {
	return &Error{kind, fmt.Sprintf(format, args...)}
}

// Reply is what a call answers.
type Reply struct {
	Error *Error `json:"error,omitempty"`
	Info  *Info  `json:"info,omitempty"`
	Nodes []Node `json:"nodes,omitempty"`
	// Kept names what a clean left, and why.
	Kept []string `json:"kept,omitempty"`
	// Note tells what works less well than it could, such as a sudo that fails.
	Note string `json:"note,omitempty"`
}

// Info is what a machine has, and what of it is free.
type Info struct {
	Arch     string  `json:"arch"` // as uname tells
	CPUs     float64 `json:"cpus"`
	MemoryGB float64 `json:"memory_gb"`
	GPUs     []GPU   `json:"gpus,omitempty"`
	GPUError string  `json:"gpu_error,omitempty"`

	FreeCPUs     float64  `json:"free_cpus"`
	FreeMemoryGB float64  `json:"free_memory_gb"`
	FreeGPUs     []string `json:"free_gpus,omitempty"` // ids
	DiskFreeGB   float64  `json:"disk_free_gb"`
	Claims       []Holder `json:"claims,omitempty"`

	Root     bool   `json:"root"`     // nodes run as root, with namespaces of their own
	Limits   bool   `json:"limits"`   // cgroups hold CPUs and memory
	BootID   string `json:"boot_id"`  // of this run of the machine
	Hostname string `json:"hostname"` // as the machine calls itself
	// Untouched says that the machine has nothing of ours: it was asked by its shell alone.
	Untouched bool `json:"untouched,omitempty"`
}

// GPU is one device.
type GPU struct {
	ID       string  `json:"id"`
	Name     string  `json:"name"` // canonical
	MemoryGB float64 `json:"memory_gb"`
}

// Holder is a live claim.
type Holder struct {
	Node         string   `json:"node"`
	Installation string   `json:"installation"`
	Cluster      string   `json:"cluster"`
	User         string   `json:"user,omitempty"`
	CPUs         float64  `json:"cpus"`
	MemoryGB     float64  `json:"memory_gb"`
	GPUs         []string `json:"gpus,omitempty"`
	// Contends says that it is of a cluster of several nodes and was taken a moment ago: the create may still be going on, and
	// may give it back if it does not get its other hosts.
	Contends bool `json:"contends,omitempty"`
}

// States of a node.
const (
	StatePending  = "pending"
	StateRunning  = "running"
	StateStopping = "stopping"
	StateStopped  = "stopped"
	StateGone     = "gone"
)

// Node is a node as the host tells it.
type Node struct {
	ID           string                 `json:"id"`
	Rank         int                    `json:"rank"`
	Installation string                 `json:"installation"`
	Cluster      string                 `json:"cluster"`
	Hash         string                 `json:"hash"`
	Token        string                 `json:"token"`
	Nodes        int                    `json:"nodes"`
	User         string                 `json:"user,omitempty"`
	State        string                 `json:"state"`
	Reason       string                 `json:"reason,omitempty"`
	Created      time.Time              `json:"created"`
	Spec         json.RawMessage        `json:"spec"`
	IP           string                 `json:"ip"`
	Port         int                    `json:"port,omitempty"` // where peers find the agent; 0: nowhere
	Socket       string                 `json:"socket"`
	Dir          string                 `json:"dir"`
	Program      string                 `json:"program"`
	Resources    agentapi.NodeResources `json:"resources"`
	// Started says that the call itself started it; Adopted that the node was there already.
	Adopted bool `json:"adopted,omitempty"`
}

// Marks around an answer. The nonce is the caller's.
func Begin(nonce string) string { return "<<skyloom " + nonce }

// End is the line after an answer.
func End(nonce string) string { return "skyloom " + nonce + ">>" }
