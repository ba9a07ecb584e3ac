//go:build linux

package sharedhost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/claims"
	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/agent/proctree"
)

// What a node shall be.
const (
	wantRunning = "running"
	wantStopped = "stopped"
)

// record is what a node is and what it shall be: record.json in its folder.
type record struct {
	ID           string          `json:"id"`
	Rank         int             `json:"rank"`
	Installation string          `json:"installation"`
	Cluster      string          `json:"cluster"`
	Hash         string          `json:"hash"`
	Token        string          `json:"token"`
	Nodes        int             `json:"nodes"`
	User         string          `json:"user,omitempty"`
	Created      time.Time       `json:"created"`
	Spec         json.RawMessage `json:"spec"`
	Ask          claims.Want     `json:"ask"`
	Devices      []string        `json:"devices,omitempty"`
	IP           string          `json:"ip"`
	Port         int             `json:"port,omitempty"`
	Socket       string          `json:"socket"`
	Cgroups      []string        `json:"cgroups,omitempty"`
	Unified      string          `json:"unified,omitempty"` // the one of them in the unified tree
	Tune         json.RawMessage `json:"tune,omitempty"`
	Env          []string        `json:"env,omitempty"`

	Want       string `json:"want"`
	StartToken string `json:"start_token,omitempty"`
	// SpawnedAt is when the processes were last about to be started; Boot and Init tell which they are. Init is empty if
	// whoever started them was killed before it could write so.
	SpawnedAt time.Time     `json:"spawned_at,omitzero"`
	Boot      string        `json:"boot,omitempty"`
	Init      proctree.Proc `json:"init,omitzero"`
	Program   string        `json:"program,omitempty"`
	Root      bool          `json:"root,omitempty"` // its processes are root's
	Isolated  bool          `json:"isolated,omitempty"`
	// Buried says that what outlived the init of a plain process tree was ended.
	Buried bool `json:"buried,omitempty"`

	dir string
}

func (r *record) config() string   { return filepath.Join(r.dir, "node.json") }
func (r *record) agentDir() string { return filepath.Join(r.dir, "agent") }
func (r *record) root() string     { return filepath.Dir(filepath.Dir(r.dir)) }
func (r *record) mark() string     { return r.Hash + "/" + r.ID }

func (r *record) save() error {
	if err := durable.WriteJSON(filepath.Join(r.dir, "record.json"), r); err != nil {
		return fmt.Errorf("write down node %s: %w", r.ID, err)
	}
	return nil
}

// claim is the claim of the node with a holder of its own.
func (r *record) claim(login string) claims.Claim {
	return claims.Claim{ID: r.ID, Installation: r.Installation, Cluster: r.Cluster, Hash: r.Hash, Nodes: r.Nodes, User: r.User, Login: login,
		CPUs: r.Ask.CPUs, MemoryGB: r.Ask.MemoryGB, GPUs: r.Devices, Dir: r.dir, Config: r.config(), Mark: r.mark(),
		Boot: claims.BootID(), Holder: proctree.Self(), Isolated: r.Isolated, Since: time.Now().UTC()}
}

func (r *record) resources() agentapi.NodeResources {
	return agentapi.NodeResources{CPUs: r.Ask.CPUs, MemoryGB: r.Ask.MemoryGB, Accelerator: r.Ask.Accelerator, AcceleratorCount: float64(len(r.Devices)), DeviceIDs: r.Devices}
}

func (r *record) node(state, reason string) Node {
	return Node{ID: r.ID, Rank: r.Rank, Installation: r.Installation, Cluster: r.Cluster, Hash: r.Hash, Token: r.Token, Nodes: r.Nodes, User: r.User,
		State: state, Reason: reason, Created: r.Created, Spec: r.Spec, IP: r.IP, Port: r.Port, Socket: r.Socket, Dir: r.dir, Program: r.Program, Resources: r.resources()}
}

// host is one call on this machine.
type host struct {
	req       Request
	claimsDir string
	note      string
}

func newHost(req Request) (*host, error) {
	h := &host{req: req, claimsDir: req.Claims}
	if len(req.Roots) == 0 || !slices.ContainsFunc(req.Roots, filepath.IsAbs) {
		return nil, errorf(KindInvalid, "the call names no folder")
	}
	if h.claimsDir == "" {
		d, err := claims.Dir()
		if err != nil {
			return nil, err
		}
		h.claimsDir = d
	}
	return h, nil
}

// root is where new nodes go.
func (h *host) root() string { return h.req.Roots[0] }

var safeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$`)

// records reads the nodes of all roots that are wanted, sorted by id. A record that can't be read is an error: to guess
// that the node is not there would leak it.
func (h *host) records(want func(*record) bool) ([]*record, error) {
	var out []*record
	for _, root := range h.req.Roots {
		es, err := os.ReadDir(filepath.Join(root, "nodes"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("the nodes on this machine can't be listed: %w", err)
		}
		for _, e := range es {
			r, err := readRecord(filepath.Join(root, "nodes", e.Name()))
			if err != nil {
				return nil, err
			}
			if r != nil && want(r) {
				out = append(out, r)
			}
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].dir < out[j].dir })
	return out, nil
}

// readRecord gives nil if no node is there.
func readRecord(dir string) (*record, error) {
	r := &record{dir: dir}
	b, err := os.ReadFile(filepath.Join(dir, "record.json"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil // deleted meanwhile
	}
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return nil, fmt.Errorf("the node in %s was made as root, and root can't be had now: make sudo work without a password again, or remove it by hand", dir)
	}
	if err == nil {
		err = json.Unmarshal(b, r)
		if err != nil && r.salvage() {
			err = nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the record of the node in %s is damaged (%w): end its processes, if any, and remove that folder", dir, err)
	}
	return r, nil
}

// salvage makes a damaged record up from node.json, so that the node can be listed and deleted.
func (r *record) salvage() bool {
	var c agentapi.NodeConfig
	if durable.ReadJSON(r.config(), &c) != nil || c.NodeID == "" {
		return false
	}
	*r = record{dir: r.dir, ID: c.NodeID, Rank: c.Rank, Installation: c.Installation, Cluster: c.ClusterName, Hash: c.ClusterHash, IP: c.IP, Socket: c.Socket,
		Devices: c.Resources.DeviceIDs, Isolated: c.Isolated, Want: wantRunning, Boot: claims.BootID(),
		Ask:       claims.Want{CPUs: c.Resources.CPUs, MemoryGB: c.Resources.MemoryGB, Accelerator: c.Resources.Accelerator, AcceleratorCount: c.Resources.AcceleratorCount},
		SpawnedAt: time.Unix(0, 0), Created: time.Unix(0, 0)}
	r.Cgroups, r.Unified = findCgroups(c.CgroupRoot, cgroupPrefix(r))
	return true
}

// mine selects the nodes of the request's cluster, narrowed to its ids.
func (h *host) mine(r *record) bool {
	return r.Installation == h.req.Installation && r.Hash == h.req.Hash && r.Cluster == h.req.Cluster && (len(h.req.IDs) == 0 || slices.Contains(h.req.IDs, r.ID))
}

// members are the nodes of the request's cluster; none is an error.
func (h *host) members() ([]*record, error) {
	if h.req.Installation == "" || h.req.Cluster == "" || h.req.Hash == "" {
		return nil, errorf(KindInvalid, "the call names no cluster")
	}
	recs, err := h.records(h.mine)
	if err == nil && len(recs) == 0 {
		err = errorf(KindNotFound, "there is no node of %s-%s here", h.req.Cluster, h.req.Hash)
	}
	return recs, err
}

// lock takes the lock of a node.
func (h *host) lock(ctx context.Context, root, id string) (unlock func(), err error) {
	dir := filepath.Join(root, "locks")
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, durable.Full(err)
		}
		path := filepath.Join(dir, id)
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
		if err == nil {
			err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
			if err == nil {
				mine, err1 := f.Stat()
				now, err2 := os.Stat(path)
				if err1 == nil && err2 == nil && os.SameFile(mine, now) {
					return func() { os.Remove(path); f.Close() }, nil
				}
			}
			f.Close()
		}
		if err != nil && !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("lock node %s: %w", id, durable.Full(err))
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("another operation on node %s is going on: %w", id, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// socketPath is short enough for a unix socket.
func socketPath(root, hash string, rank int) (string, error) {
	name := fmt.Sprintf("%s-%d.sock", hash, rank)
	dir := filepath.Join(root, "s")
	if len(filepath.Join(dir, name)) >= 100 {
		dir = fmt.Sprintf("/tmp/skyloom-s-%d", os.Getuid())
		if len(filepath.Join(dir, name)) >= 100 || strings.HasPrefix(root, "/tmp/") {
			return "", errorf(KindInvalid, "the path %s is too long for a socket", filepath.Join(dir, name))
		}
	}
	return filepath.Join(dir, name), nil
}
