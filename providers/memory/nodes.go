package memory

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sort"
	"time"

	"github.com/skyloom/skyloom/providers"
)

// nodesOf tells machines as nodes, by rank.
func (c *Cloud) nodesOf(ms []*machine) []providers.Node {
	out := make([]providers.Node, 0, len(ms))
	for _, m := range ms {
		out = append(out, c.node(m))
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Rank < out[j].Rank })
	return out
}

// List returns every visible node under the tag. Nodes that died without being deleted are listed as gone.
func (c *Cloud) List(ctx context.Context, tag providers.Tag) ([]providers.Node, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	defer c.begin()()
	if f := c.script.next(call{name: "list", ref: providers.ClusterRef{Hash: tag.ClusterHash, Name: c.nameOf(tag.ClusterHash)}}); f != nil && f.Err != nil {
		return nil, f.Err
	}
	now := c.clock.Now()
	var ms []*machine
	pick := func(m *machine) {
		if !m.Stranger && m.Cluster.Installation == tag.Installation && !m.Unlisted && !m.VisibleAt.After(now) {
			ms = append(ms, m)
		}
	}
	if tag.ClusterHash != "" {
		for _, m := range c.byHash[tag.ClusterHash] {
			pick(m)
		}
		return c.nodesOf(ms), nil
	}
	for _, m := range c.machines {
		pick(m)
	}
	sort.Slice(ms, func(i, j int) bool { return ms[i].Seq < ms[j].Seq })
	out := make([]providers.Node, len(ms))
	for i, m := range ms {
		out[i] = c.node(m)
	}
	return out, nil
}

func (c *Cloud) nameOf(hash string) string {
	if ms := c.byHash[hash]; len(ms) > 0 {
		return ms[0].Cluster.Name
	}
	return ""
}

// members gives the machines of an incarnation that calls by tag see, narrowed to ids; an id that belongs to somebody
// else is a breach, and refused.
func (c *Cloud) members(verb string, ref providers.ClusterRef, ids []string) ([]*machine, error) {
	for _, id := range ids {
		if m := c.machines[id]; m != nil && !m.is(ref) {
			c.ledger = append(c.ledger, Breach{Kind: ForeignCall, Node: id, Text: fmt.Sprintf("%s of %s named node %s of %s", verb, ref.NameOnCloud(), id, m.Cluster.NameOnCloud())})
			return nil, providers.Errorf(providers.Invalid, providers.ScopeCloud, "node %s does not belong to cluster %s", id, ref.NameOnCloud())
		}
	}
	now := c.clock.Now()
	var ms []*machine
	for _, m := range c.byHash[ref.Hash] {
		if !m.is(ref) || m.Unlisted {
			continue
		}
		if len(ids) == 0 && !m.VisibleAt.After(now) || slices.Contains(ids, m.ID) {
			ms = append(ms, m)
		}
	}
	if len(ms) == 0 {
		return nil, providers.Errorf(providers.NotFound, providers.ScopeCloud, "cluster %s has no nodes", ref.NameOnCloud())
	}
	return ms, nil
}

func (c *Cloud) faultFor(name string, ref providers.ClusterRef, node string) *Fault {
	at := call{name: name, ref: ref, node: node}
	if ms := c.byHash[ref.Hash]; len(ms) > 0 {
		at.region, at.zone = ms[len(ms)-1].Spec.Region, ms[len(ms)-1].Spec.Zone
	}
	if f := c.script.next(at); f != nil && (f.Err != nil || f.Lost) {
		return f
	}
	return nil
}

// Delete ends nodes for good. A delete by tag does not see a node that listings do not show yet. With a delete lag the
// machines live on for a while; NotFound tells that nothing is left.
func (c *Cloud) Delete(ctx context.Context, ref providers.ClusterRef, nodeIDs []string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	defer c.begin()()
	f := c.faultFor("delete", ref, "")
	if f != nil && !f.AfterEffect {
		return f.Err
	}
	ms, err := c.members("delete", ref, nodeIDs)
	if err != nil {
		return err
	}
	now := c.clock.Now()
	for _, m := range ms {
		at := now.Add(time.Duration(c.cfg.DeleteLag))
		switch {
		case !m.alive():
			m.Unlisted = true
		case m.Doom != ReasonDeleted || m.DoomAt.IsZero():
			if m.DoomAt.IsZero() || at.Before(m.DoomAt) {
				m.DoomAt = at
			}
			m.Doom = ReasonDeleted
		default:
			continue
		}
		c.touch(m)
	}
	if f != nil {
		return f.Err
	}
	return nil
}

// Stop ends the nodes and keeps their files. Gone nodes are left as they are.
func (c *Cloud) Stop(ctx context.Context, ref providers.ClusterRef, nodeIDs []string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	defer c.begin()()
	f := c.faultFor("stop", ref, "")
	if f != nil && !f.AfterEffect {
		return f.Err
	}
	ms, err := c.members("stop", ref, nodeIDs)
	if err != nil {
		return err
	}
	now := c.clock.Now()
	for _, m := range ms {
		if m.alive() && m.StopAsked.IsZero() {
			m.StopAsked, m.StoppedAt = now, now.Add(time.Duration(c.cfg.StopDelay))
			c.agents.Down(m.ID, false)
			c.touch(m)
		}
	}
	if f != nil {
		return f.Err
	}
	return nil
}

// Start brings the stopped nodes back; running ones stay. All of them, or it fails: a gone node is a Conflict.
func (c *Cloud) Start(ctx context.Context, ref providers.ClusterRef, token string, _ providers.AgentSource) ([]providers.Node, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	defer c.begin()()
	f := c.faultFor("start", ref, "")
	if f != nil && !f.AfterEffect {
		return nil, f.Err
	}
	ms, err := c.members("start", ref, nil)
	if err != nil {
		return nil, err
	}
	now := c.clock.Now()
	for _, m := range ms {
		switch m.state(now) {
		case providers.NodeGone:
			return nil, &providers.Error{Kind: providers.Conflict, Scope: providers.ScopeCloud,
				Msg: fmt.Sprintf("node %s is gone (%s) and cannot be started", m.ID, m.Reason), Hint: "take the cluster down and launch it again"}
		case providers.NodeStopping:
			return nil, providers.Errorf(providers.Internal, providers.ScopeCloud, "node %s is still stopping, try again", m.ID)
		}
	}
	for _, m := range ms {
		if m.state(now) == providers.NodeStopped {
			m.StopAsked, m.StoppedAt, m.StartToken = time.Time{}, time.Time{}, token
			m.RunningAt = now.Add(time.Duration(c.cfg.CreateDelay))
			m.Bills = append(m.Bills, Interval{From: now})
			c.touch(m)
		}
	}
	if f != nil && f.Err != nil {
		return nil, f.Err
	}
	return c.nodesOf(ms), nil
}

// Preempt takes a spot node away; with a notice its agent hears of it first.
func (c *Cloud) Preempt(ctx context.Context, ref providers.ClusterRef, nodeID string, notice time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	defer c.begin()()
	f := c.faultFor("preempt", ref, nodeID)
	if f != nil && !f.AfterEffect {
		return f.Err
	}
	ms, err := c.members("preempt", ref, []string{nodeID})
	if err != nil {
		return err
	}
	m := ms[0]
	if !m.Spec.Spot {
		return &providers.Error{Kind: providers.Invalid, Scope: providers.ScopeCloud, Msg: fmt.Sprintf("node %s is not a spot node", nodeID),
			Hint: "only spot nodes are preempted; launch with --use-spot"}
	}
	if m.alive() {
		c.doom(m, notice, ReasonPreempted)
	}
	if f != nil {
		return f.Err
	}
	return nil
}

// doom ends a machine after a time, and tells its agent if there is time.
func (c *Cloud) doom(m *machine, after time.Duration, reason string) {
	if at := c.clock.Now().Add(after); m.DoomAt.IsZero() || at.Before(m.DoomAt) {
		m.DoomAt, m.Doom = at, reason
	}
	if after > 0 && reason == ReasonPreempted {
		c.agents.Notice(m.ID, after)
	}
	c.touch(m)
}

// Kill ends a machine behind everybody's back.
func (c *Cloud) Kill(nodeID string) {
	defer c.begin()()
	if m := c.machines[nodeID]; m != nil && m.alive() {
		c.doom(m, 0, ReasonKilled)
	}
}

// KillZone ends every machine in a zone, and takes all offers out of it until Restore.
func (c *Cloud) KillZone(zone string) {
	defer c.begin()()
	c.withdrew[zone+"/"] = true
	for _, m := range c.machines {
		if m.alive() && m.Spec.Zone == zone {
			c.doom(m, 0, ReasonKilled)
		}
	}
}

// Restore puts back what Withdraw and KillZone took out of a zone.
func (c *Cloud) Restore(zone string) {
	defer c.begin()()
	for k := range c.withdrew {
		if len(k) > len(zone) && k[:len(zone)+1] == zone+"/" {
			delete(c.withdrew, k)
		}
	}
}

// AddStranger puts a machine of somebody else into the cloud, which bears the cluster's name and no tag of ours.
func (c *Cloud) AddStranger(ref providers.ClusterRef) (nodeID string) {
	defer c.begin()()
	r := c.cfg.Regions[0]
	m := c.birth(providers.CreateRequest{Cluster: ref, NumNodes: 1}, providers.NodeSpec{InstanceType: c.cfg.Types[0].Name, Region: r.Name, Zone: r.Zones[0].Name}, 0, c.clock.Now())
	m.Stranger, m.DoomAt, m.Doom = true, time.Time{}, ""
	return m.ID
}

// selfEnd is a node that ends itself, as an agent does whose idle rule nobody carries out.
func (c *Cloud) selfEnd(nodeID string, down bool) {
	defer c.begin()()
	m := c.machines[nodeID]
	if m == nil || m.state(c.clock.Now()) != providers.NodeRunning {
		return // nothing runs there that could
	}
	if down {
		c.doom(m, 0, ReasonAutostop)
		return
	}
	if m.StopAsked.IsZero() {
		m.StopAsked = c.clock.Now()
		m.StoppedAt = m.StopAsked.Add(time.Duration(c.cfg.StopDelay))
		c.agents.Down(m.ID, false)
		c.touch(m)
	}
}

// Cut takes a node's network away for a time: its agent cannot be reached, the machine lives on. Negative: for ever.
func (c *Cloud) Cut(nodeID string, d time.Duration) { c.agents.Cut(nodeID, d) }

// Transport gives the way to a node's simulated agent.
func (c *Cloud) Transport(ctx context.Context, n providers.Node) (providers.Transport, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	defer c.begin()()
	if f := c.faultFor("transport", n.Cluster, n.ID); f != nil && f.Err != nil {
		return nil, f.Err
	}
	m := c.machines[n.ID]
	if m == nil || m.Stranger {
		return nil, providers.Errorf(providers.NotFound, providers.ScopeCloud, "there is no node %s", n.ID)
	}
	return transport{c, m.ID}, nil
}

type transport struct {
	c  *Cloud
	id string
}

// Close frees nothing: connections are the caller's.
func (transport) Close() error { return nil }

// DialAgent connects to the agent if the node runs.
func (t transport) DialAgent(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m, err := t.c.reachable(t.id)
	if err != nil {
		return nil, err
	}
	return t.c.agents.Dial(ctx, m)
}

// refused is the error of a connection that nobody takes.
func refused(m *machine, why string) error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: fmt.Errorf("node %s (%s): connection refused: %s", m.ID, m.IP, why)}
}
