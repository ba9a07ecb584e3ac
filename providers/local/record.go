package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/agent/proctree"
	"github.com/skyloom/skyloom/providers"
)

// What a node shall be.
const (
	wantRunning = "running"
	wantStopped = "stopped"
	wantGone    = "gone" // preempted: files are kept until it is deleted
)

// record is what a node is and what it shall be: record.json in its folder.
type record struct {
	ID      string               `json:"id"`
	Rank    int                  `json:"rank"`
	Cluster providers.ClusterRef `json:"cluster"`
	Token   string               `json:"token"`
	Nodes   int                  `json:"nodes"` // of the set
	Spec    providers.NodeSpec   `json:"spec"`
	User    string               `json:"user,omitempty"`
	Created time.Time            `json:"created"`
	IP      string               `json:"ip"`
	Port    int                  `json:"port"` // reserved for the node on its address
	Socket  string               `json:"socket"`
	Cgroup  string               `json:"cgroup,omitempty"` // if one was made
	Devices []string             `json:"devices,omitempty"`

	Want       string    `json:"want"`
	Reason     string    `json:"reason,omitempty"`
	StartToken string    `json:"start_token,omitempty"`
	PreemptAt  time.Time `json:"preempt_at,omitzero"`
	// StartingAt is when a stopped node was last told to run, until its process is written down.
	StartingAt time.Time `json:"starting_at,omitzero"`

	// SpawnedAt is when the processes were last about to be started; Boot and Init tell which they are. Init is empty
	// if whoever started them was killed before it could write so.
	SpawnedAt time.Time     `json:"spawned_at,omitzero"`
	Boot      string        `json:"boot,omitempty"`
	Init      proctree.Proc `json:"init,omitzero"`
	// Program is the agent's program that runs; Isolated says that the kernel ends all processes with Init. If not,
	// Buried says that those which outlived it were ended.
	Program  string `json:"program,omitempty"`
	Isolated bool   `json:"isolated,omitempty"`
	Buried   bool   `json:"buried,omitempty"`

	dir string
}

func (r *record) config() string   { return filepath.Join(r.dir, "node.json") }
func (r *record) agentDir() string { return filepath.Join(r.dir, "agent") }

// mark is the value of SKYLOOM_NODE in the environment of every process of the node.
func (r *record) mark() string { return r.Cluster.Hash + "/" + r.ID }

func (r *record) is(ref providers.ClusterRef) bool {
	return r.Cluster.Installation == ref.Installation && r.Cluster.Hash == ref.Hash && r.Cluster.Name == ref.Name
}

func (r *record) save() error {
	if err := durable.WriteJSON(filepath.Join(r.dir, "record.json"), r); err != nil {
		return internal(err, "write down node %s", r.ID)
	}
	return nil
}

var safeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$`)

// checkRef refuses names that are no safe part of a path.
func checkRef(ref providers.ClusterRef) error {
	if !safeName.MatchString(ref.Name) || !safeName.MatchString(ref.Hash) || ref.Installation == "" {
		return providers.Errorf(providers.Invalid, providers.ScopeCloud, "local: a cluster needs an installation, and a name and hash of letters, digits, dots and dashes (got %q, %q)", ref.Name, ref.Hash)
	}
	return nil
}

func (p *Provider) clusterDir(ref providers.ClusterRef) string {
	return filepath.Join(p.root, ref.NameOnCloud())
}

// records reads the nodes of a cluster hash, or of all clusters, sorted by cluster and rank. A record that cannot be
// read is an error: guessing that the node is not there would leak it.
func (p *Provider) records(hash string) ([]*record, error) {
	pattern := "*"
	if hash != "" {
		pattern = "*-" + hash
	}
	paths, err := filepath.Glob(filepath.Join(p.root, pattern, "node*", "record.json"))
	if err != nil {
		return nil, providers.Errorf(providers.Invalid, providers.ScopeCloud, "local: cluster hash %q: %v", hash, err)
	}
	var out []*record
	for _, path := range paths {
		r := &record{dir: filepath.Dir(path)}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, internal(err, "the record of a node cannot be read")
		}
		if err := json.Unmarshal(b, r); err != nil {
			if !r.salvage() {
				return nil, &providers.Error{Kind: providers.Internal, Scope: providers.ScopeCloud, Msg: "local: the record of a node is damaged: " + path, Err: err,
					Hint: "end its processes, if any, and remove that folder"}
			}
			p.log.Error("local: a damaged record was made up from the agent's configuration", "node", r.ID, "err", err)
		}
		if hash == "" || r.Cluster.Hash == hash {
			out = append(out, r)
		}
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i], out[j]
		if a.Cluster != b.Cluster {
			return a.Cluster.NameOnCloud() < b.Cluster.NameOnCloud()
		}
		return a.Rank < b.Rank
	})
	return out, nil
}

// salvage makes a damaged record up from node.json, so that the node can be listed and deleted.
func (r *record) salvage() bool {
	var c agentapi.NodeConfig
	if durable.ReadJSON(r.config(), &c) != nil || c.NodeID == "" {
		return false
	}
	*r = record{dir: r.dir, ID: c.NodeID, Rank: c.Rank, Cluster: providers.ClusterRef{Installation: c.Installation, Name: c.ClusterName, Hash: c.ClusterHash},
		IP: c.IP, Socket: c.Socket, Cgroup: c.CgroupRoot, Devices: c.Resources.DeviceIDs, Isolated: c.Isolated, Want: wantRunning,
		Spec:      providers.NodeSpec{CPUs: c.Resources.CPUs, MemoryGB: c.Resources.MemoryGB, Accelerator: c.Resources.Accelerator, AcceleratorCount: c.Resources.AcceleratorCount},
		SpawnedAt: time.Unix(0, 0), Boot: bootID(), Created: time.Unix(0, 0)}
	return true
}

// own reads the nodes of one incarnation.
func (p *Provider) own(ref providers.ClusterRef) ([]*record, error) {
	all, err := p.records(ref.Hash)
	if err != nil {
		return nil, err
	}
	out := all[:0]
	for _, r := range all {
		if r.is(ref) {
			out = append(out, r)
		}
	}
	return out, nil
}

// members reads the nodes of one incarnation, narrowed to ids; none is NotFound.
func (p *Provider) members(ref providers.ClusterRef, ids []string) ([]*record, error) {
	all, err := p.own(ref)
	if err != nil {
		return nil, err
	}
	var out []*record
	for _, r := range all {
		if len(ids) == 0 {
			out = append(out, r)
		}
		for _, id := range ids {
			if id == r.ID {
				out = append(out, r)
			}
		}
	}
	if len(out) == 0 {
		what := "no nodes"
		if len(ids) > 0 {
			what = "no node " + strings.Join(ids, ", ")
		}
		return nil, providers.Errorf(providers.NotFound, providers.ScopeCloud, "local: cluster %s has %s", ref.NameOnCloud(), what)
	}
	return out, nil
}

// lock takes the flock of a name, "root" or a cluster's, within this process and between processes.
func (p *Provider) lock(ctx context.Context, name string) (unlock func(), err error) {
	path := filepath.Join(p.root, "locks", name)
	pause := time.Millisecond
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, internal(err, "lock %s", name)
		}
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			// The file may have been removed by the last holder: then the lock is nobody's.
			mine, err1 := f.Stat()
			now, err2 := os.Stat(path)
			if err1 == nil && err2 == nil && os.SameFile(mine, now) {
				return func() { f.Close() }, nil
			}
		}
		f.Close()
		if err != nil && !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, internal(err, "lock %s", name)
		}
		select {
		case <-ctx.Done():
			return nil, internal(ctx.Err(), "another operation on %s is going on", name)
		case <-time.After(pause):
		}
		pause = min(2*pause, 50*time.Millisecond)
	}
}

func lockName(ref providers.ClusterRef) string { return "c-" + ref.NameOnCloud() }

// handle is the provider's own part of a node.
type handle struct {
	Dir    string `json:"dir"`
	Socket string `json:"socket"`
	Port   int    `json:"port"`
}

func parseHandle(n providers.Node) (handle, error) {
	var h handle
	if err := json.Unmarshal(n.Handle, &h); err != nil || h.Socket == "" {
		return h, providers.Errorf(providers.Invalid, providers.ScopeCloud, "local: node %s has no usable handle %q", n.ID, n.Handle)
	}
	return h, nil
}

// node tells a record as a node in a state.
func (r *record) node(st providers.NodeState, reason string) providers.Node {
	h, _ := json.Marshal(handle{Dir: r.dir, Socket: r.Socket, Port: r.Port})
	return providers.Node{ID: r.ID, Rank: r.Rank, Cluster: r.Cluster, Token: r.Token, State: st, Reason: reason, Spot: r.Spec.Spot, Region: Region,
		InternalIP: r.IP, ExternalIP: r.IP, CreatedAt: r.Created, AgentAddr: "unix:" + r.Socket, Resources: r.resources(), Handle: h}
}

func (r *record) resources() agentapi.NodeResources {
	return agentapi.NodeResources{CPUs: r.Spec.CPUs, MemoryGB: r.Spec.MemoryGB, Accelerator: r.Spec.Accelerator,
		AcceleratorCount: float64(len(r.Devices)), DeviceIDs: r.Devices}
}

func nodeID(ref providers.ClusterRef, rank int) string {
	return fmt.Sprintf("%s-%d", ref.NameOnCloud(), rank)
}
