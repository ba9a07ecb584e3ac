package local

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/agent/proctree"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/providers"
)

// Moments at which a server may be killed.
var (
	fpWritten  = failpoint.Register("local.create-after-record") // nodes are written down, none is started
	fpSpawned  = failpoint.Register("local.create-after-start")  // a node was started, its process is not written down
	fpStopping = failpoint.Register("local.stop-after-record")   // nodes shall stop, none was told
	fpStarting = failpoint.Register("local.start-after-record")  // stopped nodes shall run, none was started
	fpKilled   = failpoint.Register("local.delete-after-kill")   // a node's processes are gone, its folder is there
	fpRemoved  = failpoint.Register("local.delete-after-remove") // its folder is in the trash
)

// Create brings up all nodes of a cluster, or none. They are written down before they start, so a retry by the same
// token starts what is missing and adopts the rest.
func (p *Provider) Create(ctx context.Context, req providers.CreateRequest) ([]providers.Node, error) {
	return p.create(ctx, req, req.AllRanks(), false)
}

// Extend makes nodes of further ranks, all or none.
func (p *Provider) Extend(ctx context.Context, req providers.CreateRequest, ranks []int) ([]providers.Node, error) {
	if err := req.CheckRanks(ranks); err != nil {
		return nil, err
	}
	return p.create(ctx, req, ranks, true)
}

func (p *Provider) create(ctx context.Context, req providers.CreateRequest, ranks []int, beside bool) ([]providers.Node, error) {
	if err := checkRef(req.Cluster); err != nil {
		return nil, err
	}
	if req.Token == "" || req.NumNodes < 1 || req.NumNodes > 1000 {
		return nil, providers.Errorf(providers.Invalid, providers.ScopeCloud, "local: create needs a token and 1 to 1000 nodes (got %d)", req.NumNodes)
	}
	m := p.hardware(ctx)
	if err := p.fit(m, len(ranks), req.Spec); err != nil {
		return nil, err
	}
	agent, err := p.program(req.Agent)
	if err != nil {
		return nil, err
	}
	unlock, err := p.lock(ctx, lockName(req.Cluster))
	if err != nil {
		return nil, err
	}
	defer unlock()
	defer p.notify()
	recs, err := p.existing(req, ranks, beside)
	if err != nil {
		return nil, err
	}
	fresh, err := p.writeDown(ctx, m, req, ranks, recs)
	if err != nil {
		return nil, err
	}
	recs = append(recs, fresh...)
	if err := failpoint.Hit(fpWritten); err != nil {
		return nil, internal(err, "create %s", req.Cluster.NameOnCloud())
	}
	procs := newTable()
	for _, r := range recs {
		if r.Want != wantRunning || r.Init.PID != 0 || p.findInit(r, procs) != nil {
			continue
		}
		if err := p.spawn(r, agent); err != nil {
			// All or nothing: what this call made goes again. What an earlier one made is the caller's to delete.
			for _, f := range fresh {
				p.remove(context.WithoutCancel(ctx), f)
			}
			return nil, err
		}
	}
	return p.tell(recs, newTable()), nil
}

// existing gives the nodes that an earlier call with this token wrote down, and refuses what stands in the way. Beside
// says that the cluster may have nodes of other ranks.
func (p *Provider) existing(req providers.CreateRequest, ranks []int, beside bool) ([]*record, error) {
	all, err := p.records(req.Cluster.Hash)
	if err != nil {
		return nil, err
	}
	var own []*record
	for _, r := range all {
		conflict := func(format string, args ...any) error {
			return &providers.Error{Kind: providers.Conflict, Scope: providers.ScopeCloud, Msg: "local: " + fmt.Sprintf(format, args...), Hint: "delete the old nodes first"}
		}
		switch {
		case r.dir != filepath.Join(p.clusterDir(req.Cluster), fmt.Sprint("node", r.Rank)):
			continue // another cluster's, whose name ends alike
		case !r.is(req.Cluster):
			return nil, conflict("%s is in use by another installation", req.Cluster.NameOnCloud())
		case beside && !slices.Contains(ranks, r.Rank):
			continue
		case r.Token != req.Token:
			return nil, conflict("cluster %s has node %s, made under another token", req.Cluster.NameOnCloud(), r.ID)
		case r.Nodes != req.NumNodes || asked(r.Spec) != asked(complete(req.Spec, p)):
			return nil, conflict("token %s was used for another request, for %d nodes of %s", req.Token, r.Nodes, req.Cluster.NameOnCloud())
		}
		own = append(own, r)
	}
	return own, nil
}

// asked is what tells two requests apart: the spec without its price.
func asked(s providers.NodeSpec) string {
	s.PricePerHour = 0
	b, _ := json.Marshal(s)
	return string(b)
}

// complete fills in what a request left open: the whole machine.
func complete(s providers.NodeSpec, p *Provider) providers.NodeSpec {
	m := p.hardware(context.Background())
	if s.CPUs <= 0 {
		s.CPUs = m.cpus
	}
	if s.MemoryGB <= 0 {
		s.MemoryGB = m.memoryGB
	}
	for _, g := range m.gpus {
		if strings.EqualFold(g.Name, s.Accelerator) {
			s.Accelerator = g.Name
		}
	}
	s.Region = Region
	return s
}

// writeDown gives the ranks that are missing their address and GPUs, and makes their folders.
func (p *Provider) writeDown(ctx context.Context, m machine, req providers.CreateRequest, ranks []int, have []*record) (fresh []*record, err error) {
	missing := map[int]bool{}
	for _, rank := range ranks {
		missing[rank] = true
	}
	for _, r := range have {
		delete(missing, r.Rank)
	}
	if len(missing) == 0 {
		return nil, nil
	}
	unlock, err := p.lock(ctx, "root")
	if err != nil {
		return nil, err
	}
	defer unlock()
	all, err := p.records("")
	if err != nil {
		return nil, err
	}
	gpus, held, err := p.pick(ctx, m, all, len(missing), req.Spec)
	if err != nil {
		return nil, err
	}
	defer held.close()
	taken := map[string]bool{}
	for _, r := range all {
		taken[r.IP], taken[fmt.Sprint(r.IP, ":", r.Port)] = true, true
	}
	defer func() {
		if err != nil {
			for _, r := range fresh {
				held.release(r)
				os.RemoveAll(r.dir)
			}
			os.Remove(p.clusterDir(req.Cluster))
		}
	}()
	for _, rank := range ranks {
		if !missing[rank] {
			continue
		}
		r := &record{ID: nodeID(req.Cluster, rank), Rank: rank, Cluster: req.Cluster, Token: req.Token, Nodes: req.NumNodes, Spec: complete(req.Spec, p),
			User: req.User, Created: time.Now().UTC(), Want: wantRunning, dir: filepath.Join(p.clusterDir(req.Cluster), fmt.Sprint("node", rank))}
		r.Devices, gpus = gpus[0], gpus[1:]
		if r.Socket, err = p.socketPath(req.Cluster, rank); err != nil {
			return fresh, err
		}
		if r.IP, err = pickIP(req.Cluster.Hash, rank, taken); err != nil {
			return fresh, err
		}
		if r.Port, err = pickPort(r.IP, taken); err != nil {
			return fresh, err
		}
		if err = p.makeFolder(r); err != nil {
			return fresh, err
		}
		fresh = append(fresh, r)
	}
	return fresh, held.put(proctree.Self(), fresh...)
}

// makeFolder makes a node's folder with its record, whole or not at all.
func (p *Provider) makeFolder(r *record) error {
	tmp, err := os.MkdirTemp(filepath.Join(p.root, "trash"), "new-")
	if err != nil {
		return internal(err, "make the folder of node %s", r.ID)
	}
	defer os.RemoveAll(tmp)
	for _, d := range []string{"home", "agent", "tmp"} {
		if err := os.Mkdir(filepath.Join(tmp, d), 0o700); err != nil {
			return internal(err, "make the folder of node %s", r.ID)
		}
	}
	if err := durable.WriteJSON(filepath.Join(tmp, "record.json"), r); err != nil {
		return internal(err, "write down node %s", r.ID)
	}
	if err := os.MkdirAll(filepath.Dir(r.dir), 0o700); err != nil {
		return internal(err, "make the folder of node %s", r.ID)
	}
	if err := os.Rename(tmp, r.dir); err != nil {
		return internal(err, "make the folder of node %s", r.ID)
	}
	return nil
}

// nodeConfig is what the node's agent starts from.
func (p *Provider) nodeConfig(r *record, isolated bool) agentapi.NodeConfig {
	c := agentapi.NodeConfig{Installation: r.Cluster.Installation, ClusterName: r.Cluster.Name, ClusterHash: r.Cluster.Hash, NodeID: r.ID, Rank: r.Rank,
		Dir: r.agentDir(), Home: filepath.Join(r.dir, "home"), Socket: r.Socket, IP: r.IP, Resources: r.resources(), SelfEnd: "exit",
		CgroupRoot: r.Cgroup, Isolated: isolated}
	// A folder of ours below /tmp would be hidden by a /tmp of the node's own.
	if isolated && !strings.HasPrefix(r.dir, "/tmp/") && !strings.HasPrefix(r.Socket, "/tmp/") {
		c.TmpDir = filepath.Join(r.dir, "tmp")
	}
	if p.o.Tune != nil {
		p.o.Tune(&c)
	}
	return c
}
