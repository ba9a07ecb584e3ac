package memory

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/skyloom/skyloom/providers"
)

// Create makes all nodes of a cluster in one zone, or none; after a scripted partial failure some may stay. It is
// idempotent by the token, which is never free again: a token whose nodes were deleted is a Conflict.
func (c *Cloud) Create(ctx context.Context, req providers.CreateRequest) ([]providers.Node, error) {
	return c.create(ctx, req, req.AllRanks(), false)
}

// Extend makes nodes of further ranks in the cluster's zone, all or none.
func (c *Cloud) Extend(ctx context.Context, req providers.CreateRequest, ranks []int) ([]providers.Node, error) {
	if err := req.CheckRanks(ranks); err != nil {
		return nil, err
	}
	return c.create(ctx, req, ranks, true)
}

func (c *Cloud) create(ctx context.Context, req providers.CreateRequest, ranks []int, beside bool) ([]providers.Node, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	sha := agentSHA(req.Agent, c.arch(req.Spec.InstanceType))
	defer c.begin()()
	if req.NumNodes < 1 || req.Token == "" || req.Cluster.Hash == "" || req.Cluster.Installation == "" {
		return nil, providers.Errorf(providers.Invalid, providers.ScopeCloud,
			"create needs a token, an installation, a cluster hash and at least one node (got %d nodes)", req.NumNodes)
	}
	set := c.tokens[req.Token]
	if err := sameSet(set, req); err != nil {
		return nil, err
	}
	for _, m := range c.byHash[req.Cluster.Hash] {
		if beside && !slices.Contains(ranks, m.Rank) {
			continue
		}
		if m.is(req.Cluster) && m.alive() && m.Token != req.Token {
			return nil, &providers.Error{Kind: providers.Conflict, Scope: providers.ScopeCloud,
				Msg: fmt.Sprintf("cluster %s has node %s, made under another token", req.Cluster.NameOnCloud(), m.ID), Hint: "delete the old nodes first"}
		}
	}
	if beside && req.Spec.Zone == "" {
		for _, m := range c.byHash[req.Cluster.Hash] {
			if m.is(req.Cluster) && m.alive() {
				req.Spec.Region, req.Spec.Zone = m.Spec.Region, m.Spec.Zone
			}
		}
	}
	spec, zone, err := c.place(req, set, len(ranks))
	if err != nil {
		return nil, err
	}
	f := c.script.next(call{name: "create", region: spec.Region, zone: spec.Zone, ref: req.Cluster, nodes: req.NumNodes})
	if f != nil && f.Err != nil && !f.AfterEffect && f.Leave == 0 {
		return nil, f.Err
	}
	have := map[int]bool{}
	for _, m := range set {
		have[m.Rank] = true
	}
	want := len(ranks)
	if f != nil && f.Leave > 0 {
		want = min(f.Leave, want)
	}
	missing := 0
	for _, rank := range ranks {
		if !have[rank] {
			missing++
		}
	}
	if missing > 0 {
		if err := c.quota(spec, missing); err != nil {
			return nil, err
		}
		if err := c.capacity(zone, spec, missing); err != nil {
			return nil, err
		}
	}
	now := c.clock.Now()
	for _, rank := range ranks[:want] {
		if !have[rank] {
			c.birth(req, spec, rank, now).BinarySHA = sha
		}
	}
	if f != nil && (f.Err != nil || f.Leave > 0) {
		if f.Err == nil {
			return nil, providers.Errorf(providers.NoCapacity, providers.ScopeZone, "no capacity in %s for node %d of %d", spec.Zone, want+1, req.NumNodes)
		}
		return nil, f.Err
	}
	made := slices.DeleteFunc(slices.Clone(c.tokens[req.Token]), func(m *machine) bool { return !slices.Contains(ranks, m.Rank) })
	return c.nodesOf(made), nil
}

// place completes the spec with the instance type's resources and one zone: that of the nodes there are already.
func (c *Cloud) place(req providers.CreateRequest, set []*machine, nodes int) (providers.NodeSpec, Zone, error) {
	s := req.Spec
	if len(set) > 0 {
		return set[0].Spec, c.zone(set[0].Spec.Zone), nil
	}
	var t *InstanceType
	for i := range c.cfg.Types {
		if c.cfg.Types[i].Name == s.InstanceType {
			t = &c.cfg.Types[i]
		}
	}
	if t == nil {
		return s, Zone{}, &providers.Error{Kind: providers.Invalid, Scope: providers.ScopeCloud,
			Msg: fmt.Sprintf("%s has no instance type %q", c.cfg.Name, s.InstanceType), Hint: "list what there is with `sky gpus list --all`"}
	}
	s.CPUs, s.MemoryGB, s.Accelerator, s.AcceleratorCount = t.CPUs, t.MemoryGB, t.Accelerator, t.AcceleratorCount
	var full error
	known := false
	for _, r := range c.cfg.Regions {
		for _, z := range r.Zones {
			if s.Region != "" && s.Region != r.Name || s.Zone != "" && s.Zone != z.Name {
				continue
			}
			known = true
			if !c.offered(z.Name, *t, s.Spot) {
				continue
			}
			p := s
			p.Region, p.Zone = r.Name, z.Name
			// With the zone left to us, the first that holds them.
			if err := c.capacity(z, p, nodes); err != nil && s.Zone == "" {
				full = err
				continue
			}
			return p, z, nil
		}
	}
	if full != nil {
		scope := providers.ScopeRegion
		if s.Region == "" {
			scope = providers.ScopeCloud
		}
		return s, Zone{}, &providers.Error{Kind: providers.NoCapacity, Scope: scope, Msg: full.Error()}
	}
	if !known {
		return s, Zone{}, providers.Errorf(providers.Invalid, providers.ScopeZone, "%s has no region %q with zone %q", c.cfg.Name, s.Region, s.Zone)
	}
	kind := "on demand"
	if s.Spot {
		kind = "as spot"
	}
	return s, Zone{}, providers.Errorf(providers.Invalid, providers.ScopeZone, "instance type %s is not offered %s in %s", t.Name, kind, s.Region+" "+s.Zone)
}

func (c *Cloud) zone(name string) Zone {
	for _, r := range c.cfg.Regions {
		for _, z := range r.Zones {
			if z.Name == name {
				return z
			}
		}
	}
	return Zone{Name: name}
}

// sameSet refuses a token that stands for something else, or for what was deleted.
func sameSet(set []*machine, req providers.CreateRequest) error {
	for _, m := range set {
		if !m.is(req.Cluster) || m.Nodes != req.NumNodes || m.Asked != asked(req.Spec) {
			return providers.Errorf(providers.Conflict, providers.ScopeCloud, "token %s was used for another request, for %d nodes of %s", req.Token, m.Nodes, m.Cluster.NameOnCloud())
		}
		if m.Unlisted || m.Doom == ReasonDeleted {
			return providers.Errorf(providers.Conflict, providers.ScopeCloud, "token %s was used before, and its node %s was deleted", req.Token, m.ID)
		}
	}
	return nil
}

// asked is what tells two requests apart: the spec without its price, which may move between two tries.
func asked(s providers.NodeSpec) string {
	s.PricePerHour = 0
	b, _ := json.Marshal(s)
	return string(b)
}

// agentSHA is the hash of the agent that a node of the architecture starts with, "" if the caller has none.
func agentSHA(src providers.AgentSource, arch string) string {
	if src == nil {
		return ""
	}
	_, sha, err := src.Path("linux", arch)
	if err != nil {
		return "" // nothing here runs it
	}
	return sha
}

func (c *Cloud) arch(instanceType string) string {
	for _, t := range c.cfg.Types {
		if t.Name == instanceType && t.Arch != "" {
			return t.Arch
		}
	}
	return "amd64"
}

// birth makes one machine.
func (c *Cloud) birth(req providers.CreateRequest, spec providers.NodeSpec, rank int, now time.Time) *machine {
	c.seq++
	m := &machine{ID: fmt.Sprintf("%s-%d-%06x", req.Cluster.NameOnCloud(), rank, c.seq), Seq: c.seq, Rank: rank, Cluster: req.Cluster, Token: req.Token,
		Spec: spec, Asked: asked(req.Spec), Nodes: req.NumNodes, IP: fmt.Sprintf("10.%d.%d.%d", c.seq>>16&255, c.seq>>8&255, c.seq&255), CreatedAt: now,
		VisibleAt: now.Add(time.Duration(c.cfg.VisibleAfter)), RunningAt: now.Add(time.Duration(c.cfg.CreateDelay)), Bills: []Interval{{From: now}}}
	if after, reason := c.script.doom(m); reason != "" {
		m.DoomAt, m.Doom = now.Add(after), reason
	}
	c.insert(m)
	c.touch(m)
	c.log.Debug("memory cloud: created", "node", m.ID, "zone", spec.Zone, "token", req.Token)
	return m
}

// capacity tells whether a zone can hold so many nodes more.
func (c *Cloud) capacity(z Zone, s providers.NodeSpec, nodes int) error {
	for _, kind := range []string{"", s.InstanceType} {
		limit, ok := z.Capacity[kind]
		if !ok {
			continue
		}
		used := 0
		for _, m := range c.machines {
			if m.alive() && m.Spec.Zone == z.Name && (kind == "" || m.Spec.InstanceType == kind) {
				used++
			}
		}
		if used+nodes > limit {
			return providers.Errorf(providers.NoCapacity, providers.ScopeZone, "no capacity in zone %s for %d nodes of %s", z.Name, nodes, s.InstanceType)
		}
	}
	return nil
}

// CheckQuota tells whether the account's quotas can hold so many nodes more.
func (c *Cloud) CheckQuota(ctx context.Context, spec providers.NodeSpec, nodes int) error {
	defer c.begin()()
	if f := c.script.next(call{name: "quota", region: spec.Region, zone: spec.Zone, nodes: nodes}); f != nil && f.Err != nil {
		return f.Err
	}
	for _, t := range c.cfg.Types {
		if t.Name == spec.InstanceType {
			spec.CPUs, spec.AcceleratorCount = t.CPUs, t.AcceleratorCount
		}
	}
	return c.quota(spec, nodes)
}

func (c *Cloud) quota(s providers.NodeSpec, nodes int) error {
	for _, q := range c.cfg.Quotas {
		if q.Region != "" && q.Region != s.Region {
			continue
		}
		n, cpus, accs := nodes, s.CPUs*float64(nodes), s.AcceleratorCount*float64(nodes)
		for _, m := range c.machines {
			if m.alive() && !m.Stranger && (q.Region == "" || q.Region == m.Spec.Region) {
				n, cpus, accs = n+1, cpus+m.Spec.CPUs, accs+m.Spec.AcceleratorCount
			}
		}
		if q.Nodes > 0 && n > q.Nodes || q.CPUs > 0 && cpus > q.CPUs || q.Accelerators > 0 && accs > q.Accelerators {
			scope, where := providers.ScopeRegion, "region "+q.Region
			if q.Region == "" {
				scope, where = providers.ScopeCloud, "this account"
			}
			return &providers.Error{Kind: providers.QuotaExceeded, Scope: scope,
				Msg: fmt.Sprintf("the quota of %s does not hold %d more nodes of %s", where, nodes, s.InstanceType), Hint: "take down what is not needed, or ask for a higher quota"}
		}
	}
	return nil
}
