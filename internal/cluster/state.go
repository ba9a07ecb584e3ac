package cluster

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/task"
)

// State is everything a cluster's workflow remembers; it is carried over when the workflow continues as new.
type State struct {
	Name string `json:"name"`
	// Row is the cluster as shown; Row.Hash is the incarnation, empty while there is none.
	Row      api.Cluster          `json:"row"`
	Ref      providers.ClusterRef `json:"ref"`
	Provider string               `json:"provider,omitempty"`
	Spec     providers.NodeSpec   `json:"spec"`
	NumNodes int                  `json:"num_nodes,omitempty"`
	Nodes    []providers.Node     `json:"nodes,omitempty"`
	// Have is what the cluster offers, in the words of a request, for the reuse rule.
	Have  task.Request `json:"have"`
	Epoch int64        `json:"epoch,omitempty"`
	// Token is that of the last Create: nodes under another one are not ours.
	Token    string            `json:"token,omitempty"`
	Autostop agentapi.Autostop `json:"autostop"`
	// Secret authenticates the nodes to each other; it is a reference into the secret store.
	SecretRef string `json:"secret_ref,omitempty"`
	// Opened says that nodes were up and their time is being counted.
	Metered bool `json:"metered,omitempty"`
	// Done holds the newest outcomes by key, oldest first.
	Done []Outcome `json:"done,omitempty"`
	// Queue holds operations not yet begun.
	Queue []Op `json:"queue,omitempty"`
	// Waiting holds launches that found no capacity and wait for their next try.
	Waiting []WaitingOp `json:"waiting,omitempty"`
	// Events counts the events written, for their keys.
	Events int64 `json:"events,omitempty"`
	// Born is when the workflow that owns the name began, over all its continuations.
	Born time.Time `json:"born"`
	// Gen counts incarnations of this name within the workflow, for tokens.
	Gen int `json:"gen,omitempty"`
}

// MaxDone bounds how many outcomes are remembered.
const MaxDone = 200

// OpKind names an operation on a cluster.
type OpKind string

// Operations.
const (
	OpLaunch   OpKind = "launch"
	OpExec     OpKind = "exec"
	OpStart    OpKind = "start"
	OpStop     OpKind = "stop"
	OpDown     OpKind = "down"
	OpAutostop OpKind = "autostop"
	OpCancel   OpKind = "cancel"
	OpPreempt  OpKind = "preempt"
	OpRefresh  OpKind = "refresh"
	OpHealth   OpKind = "health" // a node fell silent, answers again, or is given up: the watcher's word
	// OpForget removes an incarnation that was never up and that nobody launches any more.
	OpForget OpKind = "forget"
)

// Op is one operation asked of a cluster.
type Op struct {
	// Key is the operation key: the request's id. An operation is carried out once per key.
	Key  string          `json:"key"`
	Kind OpKind          `json:"kind"`
	Body json.RawMessage `json:"body"`
	// ReplyTo is the workflow that waits for the outcome; empty: nobody.
	ReplyTo string `json:"reply_to,omitempty"`
	User    string `json:"user,omitempty"`
	Command string `json:"command,omitempty"`
	// Auto says that the agent asked for it (autostop), not a person; Gen is the autostop's generation then.
	Auto bool  `json:"auto,omitempty"`
	Gen  int64 `json:"gen,omitempty"`
	// Quiet says that the key is no request of its own: no request row is written for it.
	Quiet bool `json:"quiet,omitempty"`
	// Attempt counts rounds of a launch that waits for capacity.
	Attempt int `json:"attempt,omitempty"`
}

// WaitingOp is a launch between two rounds.
type WaitingOp struct {
	Op  Op        `json:"op"`
	Due time.Time `json:"due"`
}

// Outcome is how an operation ended.
type Outcome struct {
	Key       string          `json:"key"`
	Kind      OpKind          `json:"kind"`
	Result    json.RawMessage `json:"result,omitempty"`
	Error     *api.Error      `json:"error,omitempty"`
	Cancelled bool            `json:"cancelled,omitempty"`
}

// Remember keeps an outcome, and forgets the oldest beyond MaxDone.
func (s *State) Remember(o Outcome) {
	s.Done = append(s.Done, o)
	if n := len(s.Done) - MaxDone; n > 0 {
		s.Done = append([]Outcome(nil), s.Done[n:]...)
	}
}

// Outcome finds how the operation with the key ended.
func (s *State) Outcome(key string) (Outcome, bool) {
	for i := len(s.Done) - 1; i >= 0; i-- {
		if s.Done[i].Key == key {
			return s.Done[i], true
		}
	}
	return Outcome{}, false
}

// Exists says that there is an incarnation.
func (s *State) Exists() bool { return s.Row.Hash != "" }

// Head is the node of rank 0.
func (s *State) Head() (providers.Node, bool) {
	for _, n := range s.Nodes {
		if n.Rank == 0 {
			return n, true
		}
	}
	return providers.Node{}, false
}

// Forget drops the incarnation, after its nodes are gone.
func (s *State) Forget() {
	seq := s.Row.Seq
	s.Row = api.Cluster{Name: s.Name, Seq: seq}
	s.Ref, s.Provider, s.Spec, s.NumNodes, s.Nodes = providers.ClusterRef{}, "", providers.NodeSpec{}, 0, nil
	s.Token = ""
	s.Have, s.Epoch, s.Autostop, s.SecretRef, s.Metered = task.Request{}, 0, agentapi.Autostop{}, "", false
}

// Verdict is what the nodes' states mean for the cluster.
type Verdict string

// Verdicts.
const (
	VerdictUp        Verdict = "up"
	VerdictPending   Verdict = "pending" // some nodes are not running yet
	VerdictUnhealthy Verdict = "unhealthy"
	VerdictStopped   Verdict = "stopped"
	VerdictGone      Verdict = "gone"
)

// Judge tells what a listing means. Want is the number of nodes the cluster should have.
func Judge(nodes []providers.Node, want int) (Verdict, string) {
	var running, stopped, pending int
	var reasons []string
	for _, n := range nodes {
		switch n.State {
		case providers.NodeRunning:
			running++
		case providers.NodeStopped, providers.NodeStopping:
			stopped++
		case providers.NodePending:
			pending++
		default:
			if n.Reason != "" {
				reasons = append(reasons, fmt.Sprintf("node %d: %s", n.Rank, n.Reason))
			}
		}
	}
	why := strings.Join(reasons, "; ")
	switch {
	case running == want:
		return VerdictUp, ""
	case running == 0 && stopped == 0 && pending == 0:
		if why == "" {
			why = "every node is gone"
		}
		return VerdictGone, why
	case stopped == want:
		return VerdictStopped, ""
	case running+pending == want:
		return VerdictPending, ""
	}
	if why == "" {
		why = fmt.Sprintf("%d of %d nodes running", running, want)
		if stopped > 0 {
			why += fmt.Sprintf(", %d stopped", stopped)
		}
	}
	return VerdictUnhealthy, why
}

// Admit tells whether an operation may run in the cluster's present state, and if not what to tell the user.
func (s *State) Admit(op Op, stoppable, spotStoppable bool) *api.Error {
	if !s.Exists() && op.Kind != OpLaunch {
		return NoCluster(s.Name)
	}
	switch op.Kind {
	case OpExec:
		if s.Row.Status != api.ClusterUp {
			return NotUp(s.Row)
		}
	case OpCancel:
		if s.Row.Status == api.ClusterStopped {
			return NotUp(s.Row)
		}
	case OpStop:
		if !stoppable {
			return &api.Error{Kind: api.ErrNotSupported, Message: fmt.Sprintf("cluster %q can't be stopped: %s has no stop", s.Name, s.Row.Cloud), Hint: "use: sky down " + s.Name}
		}
		if s.Row.Spot && !spotStoppable {
			return &api.Error{Kind: api.ErrNotSupported, Message: fmt.Sprintf("cluster %q runs on spot nodes, which can't be stopped", s.Name), Hint: "use: sky down " + s.Name}
		}
	case OpAutostop:
		if s.Row.Status == api.ClusterStopped {
			return &api.Error{Kind: api.ErrClusterNotUp, Message: fmt.Sprintf("cluster %q is STOPPED: autostop can't be set", s.Name), Hint: fmt.Sprintf("start it first: sky start %s", s.Name)}
		}
	}
	return nil
}

// NoCluster is the error for a name that no cluster has.
func NoCluster(name string) *api.Error {
	return &api.Error{Kind: api.ErrClusterDoesNotExist, Message: fmt.Sprintf("cluster %q does not exist", name), Hint: "see all clusters: sky status; make one: sky launch -c " + name + " task.yaml"}
}

// NotUp is the error for a cluster in a state that can't run jobs.
func NotUp(row api.Cluster) *api.Error {
	e := &api.Error{Kind: api.ErrClusterNotUp, Message: fmt.Sprintf("cluster %q is %s, not UP", row.Name, row.Status)}
	if row.StatusReason != "" {
		e.Message += ": " + row.StatusReason
	}
	switch row.Status {
	case api.ClusterStopped:
		e.Hint = "start it: sky start " + row.Name
	case api.ClusterInit:
		e.Hint = fmt.Sprintf("see why: sky events %s; repair it: sky start %s; or remove it: sky down %s", row.Name, row.Name, row.Name)
	case api.ClusterAutostopping:
		e.Hint = "wait until it has stopped, then: sky start " + row.Name
	}
	return e
}

// Cancelled is the error a cancelled operation ends with.
func Cancelled(why string) *api.Error {
	return &api.Error{Kind: api.ErrCancelled, Message: why}
}

// RowFor fills in a row from what was chosen.
func RowFor(row api.Cluster, provider string, spec providers.NodeSpec, nodes int) api.Cluster {
	row.Cloud, row.Region, row.Zone = provider, spec.Region, spec.Zone
	row.InstanceType, row.Spot, row.Nodes = spec.InstanceType, spec.Spot, nodes
	row.CPUs, row.MemoryGB = spec.CPUs, spec.MemoryGB
	row.Accelerators = ""
	if spec.Accelerator != "" {
		row.Accelerators = fmt.Sprintf("%s:%s", spec.Accelerator, trim(spec.AcceleratorCount))
	}
	row.PricePerHour = spec.PricePerHour * float64(nodes)
	row.Labels = spec.Labels
	short := "-"
	switch {
	case row.Accelerators != "":
		short = row.Accelerators
	case spec.InstanceType != "":
		short = spec.InstanceType
	default:
		short = "cpus=" + trim(spec.CPUs)
	}
	full := fmt.Sprintf("cpus=%s, mem=%s", trim(spec.CPUs), trim(spec.MemoryGB))
	if row.Accelerators != "" {
		full = row.Accelerators + ", " + full
	}
	if spec.InstanceType != "" {
		full = spec.InstanceType + ", " + full
	}
	if spec.Spot {
		short, full = "[spot]"+short, "[spot]"+full
	}
	row.ResourcesStr = fmt.Sprintf("%dx(%s)", nodes, short)
	row.ResourcesFull = fmt.Sprintf("%dx(%s)", nodes, full)
	return row
}

func trim(f float64) string {
	s := fmt.Sprintf("%.2f", f)
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
}

// HaveFor is what a cluster offers, in the words of a request.
func HaveFor(provider string, spec providers.NodeSpec) task.Request {
	r := task.Request{
		Infra:        task.Infra{Cloud: provider, Region: spec.Region, Zone: spec.Zone},
		InstanceType: spec.InstanceType, UseSpot: spec.Spot, SpotSaid: true,
		DiskSizeGB: spec.DiskGB, DiskTier: spec.DiskTier, NetworkTier: spec.NetworkTier,
		Labels: spec.Labels,
	}
	if spec.Accelerator != "" {
		r.Accelerator = &task.Accelerator{Name: spec.Accelerator, Count: spec.AcceleratorCount}
	}
	return r
}
