package activities

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/activity"
	"golang.org/x/sync/errgroup"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/internal/optimizer"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
)

var (
	fpProvisionBefore = failpoint.Register("provision.before-create")
	fpProvisionAfter  = failpoint.Register("provision.after-create")
	fpConfigured      = failpoint.Register("provision.after-configure")
	fpDeleteBefore    = failpoint.Register("down.before-delete")
	fpDeleteAfter     = failpoint.Register("down.after-delete")
	fpStopBefore      = failpoint.Register("stop.before-stop")
	fpStopAfter       = failpoint.Register("stop.after-stop")
)

// settle is how long a create waits itself for nodes that are up at once; others are awaited by the watcher.
const settle = 3 * time.Second

// Provision makes (or starts) all nodes at one place, and sets up their agents if they run at once. Idempotent by the
// create's token; the row it writes first is guarded by its sequence.
func (a *Activities) Provision(ctx context.Context, in ProvisionInput) (ProvisionOutput, error) {
	defer beat(ctx)()
	var out ProvisionOutput
	if err := a.Store.Write(ctx, store.Batch{Clusters: []api.Cluster{in.Row}, Events: in.Events}); err != nil {
		return out, err
	}
	p, err := a.provider(in.Choice.Provider)
	if err != nil {
		return out, err
	}
	if err := failpoint.Hit(fpProvisionBefore); err != nil {
		return out, err
	}
	f := providers.FeaturesOf(p)
	var nodes []providers.Node
	if in.Restart {
		nodes, err = a.restart(ctx, p, f, in)
	} else {
		if f.Quota != nil {
			err = f.Quota.CheckQuota(ctx, in.Choice.Spec, in.NumNodes)
		}
		if err == nil {
			nodes, err = p.Create(ctx, providers.CreateRequest{Cluster: in.Ref, Token: in.Token, NumNodes: in.NumNodes, Spec: in.Choice.Spec, Agent: a.Agent, User: in.User})
		}
	}
	if err != nil {
		if ctx.Err() != nil {
			return out, ctx.Err() // the outcome is unknown: the next attempt finds it by its token
		}
		fail := optimizer.FailureOf(in.Choice, err)
		out.Failure = &fail
		var pe *providers.Error
		if errors.As(err, &pe) {
			out.After = pe.After
		}
		return out, nil
	}
	if err := failpoint.Hit(fpProvisionAfter); err != nil {
		return out, err
	}
	out.Nodes = nodes
	for _, n := range nodes {
		if n.State != providers.NodeRunning {
			return out, nil
		}
	}
	wait, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	if err := a.configure(wait, p, in, nodes); err != nil {
		a.Log.Info("nodes are not ready yet", "cluster", in.Ref.Name, "error", err)
		return out, nil
	}
	out.Ready = true
	return out, failpoint.Hit(fpConfigured)
}

// Configure sets up the agents of nodes that have become ready. Idempotent by epoch.
func (a *Activities) Configure(ctx context.Context, in ProvisionInput) (ProvisionOutput, error) {
	defer beat(ctx)()
	p, err := a.provider(in.Choice.Provider)
	if err != nil {
		return ProvisionOutput{}, err
	}
	nodes, err := p.List(ctx, in.Ref.Tag())
	if err != nil {
		return ProvisionOutput{}, err
	}
	nodes = ours(nodes, in.Ref, in.Nodes)
	if v, why := cluster.Judge(nodes, in.NumNodes); v != cluster.VerdictUp {
		if v == cluster.VerdictPending {
			return ProvisionOutput{}, fmt.Errorf("nodes are not running yet")
		}
		fail := optimizer.Failure{Choice: in.Choice, Kind: providers.NoCapacity, Scope: providers.ScopeZone, Message: "nodes went away before they were ready: " + why, Midway: true}
		return ProvisionOutput{Failure: &fail}, nil
	}
	if err := a.configure(ctx, p, in, nodes); err != nil {
		return ProvisionOutput{}, err
	}
	return ProvisionOutput{Nodes: nodes, Ready: true}, nil
}

// ours are the listed nodes of this incarnation that the workflow knows; all of the incarnation if it knows none.
func ours(listed []providers.Node, ref providers.ClusterRef, known []providers.Node) []providers.Node {
	ids := map[string]bool{}
	for _, n := range known {
		ids[n.ID] = true
	}
	var out []providers.Node
	for _, n := range listed {
		if n.Cluster.Hash == ref.Hash && n.Cluster.Installation == ref.Installation && (len(ids) == 0 || ids[n.ID]) {
			out = append(out, n)
		}
	}
	return out
}

// configure tells every node what it must know of its cluster, in parallel, until it answers or ctx ends.
func (a *Activities) configure(ctx context.Context, p providers.Provider, in ProvisionInput, nodes []providers.Node) error {
	secret, err := a.Secrets.Get(ctx, in.SecretRef)
	if err != nil {
		return fmt.Errorf("the cluster's secret: %w", err)
	}
	spec := agentapi.ClusterSpec{Name: in.Ref.Name, Hash: in.Ref.Hash, Epoch: in.Epoch, Cloud: p.Name(), Region: in.Choice.Spec.Region, Zone: in.Choice.Spec.Zone,
		UserName: in.User, Secret: secret, Restarted: in.Restart && !in.Beside}
	for _, n := range nodes {
		spec.Nodes = append(spec.Nodes, agentapi.Peer{NodeID: n.ID, Rank: n.Rank, IP: n.InternalIP, Addr: n.AgentAddr})
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(32)
	for _, n := range nodes {
		g.Go(func() error {
			s := spec
			s.Resources = n.Resources
			return a.untilAnswered(ctx, p, n, func(ctx context.Context, c *agentapi.Client) error {
				if err := c.Configure(ctx, s); err != nil {
					return err
				}
				if n.Rank == 0 && in.Autostop != nil {
					_, err := c.SetAutostop(ctx, *in.Autostop)
					return err
				}
				return nil
			})
		})
	}
	return g.Wait()
}

// untilAnswered repeats a call to a node's agent until the agent answers it, one way or the other.
func (a *Activities) untilAnswered(ctx context.Context, p providers.Provider, n providers.Node, call func(context.Context, *agentapi.Client) error) error {
	for pause := 20 * time.Millisecond; ; pause = min(pause*2, time.Second) {
		c, err := NodeClient(ctx, p, n)
		if err == nil {
			err = call(ctx, c)
			c.Close()
		}
		var answered *agentapi.Error
		if err == nil || errors.As(err, &answered) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("node %d does not answer: %w", n.Rank, err)
		case <-time.After(pause):
		}
	}
}

// Deprovision deletes a cluster's nodes until the infra lists none. Idempotent. With Purge it gives up on an infra that
// can't be reached, and says what may be left; with GiveUp after a while, where the infra can't tell whether a node is gone.
func (a *Activities) Deprovision(ctx context.Context, in NodesInput) (NodesOutput, error) {
	defer beat(ctx)()
	var out NodesOutput
	p, err := a.provider(in.Provider)
	if err != nil {
		if in.Purge {
			out.Warnings = append(out.Warnings, err.Error())
			return out, nil
		}
		return out, err
	}
	a.lastWords(ctx, p, in)
	if err := failpoint.Hit(fpDeleteBefore); err != nil {
		return out, err
	}
	for pause := 50 * time.Millisecond; ; pause = min(pause*2, 5*time.Second) {
		err := p.Delete(ctx, in.Ref, nil)
		if err == nil || providers.Is(err, providers.NotFound) {
			var left []providers.Node
			if left, err = p.List(ctx, in.Ref.Tag()); err == nil && len(ours(left, in.Ref, nil)) == 0 {
				return out, failpoint.Hit(fpDeleteAfter)
			}
		}
		if err != nil && !providers.Is(err, providers.NotFound) {
			if in.Purge {
				out.Warnings = append(out.Warnings, fmt.Sprintf("nodes of %s may be left on %s: %v", in.Ref.NameOnCloud(), p.Name(), err))
				return out, nil
			}
			if !in.GiveUp || providers.FeaturesOf(p).Confirms {
				return out, err
			}
			if since := time.Since(activity.GetInfo(ctx).ScheduledTime); since > a.giveUpAfter(in.Lost) {
				out.Warnings = append(out.Warnings, fmt.Sprintf("given up for now, to be removed once it can be reached: %v", err))
				a.Log.Warn("nodes are left to the reaper", "cluster", in.Ref.NameOnCloud(), "after", since.Round(time.Second), "error", err)
				return out, nil
			}
		}
		select {
		case <-ctx.Done():
			return out, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// giveUpAfter is how long the deletion of nodes that can't be reached is tried before it is left to the reaper.
func (a *Activities) giveUpAfter(lost bool) time.Duration {
	switch {
	case lost:
		return 10 * time.Second
	case a.LostAfter > 0:
		return a.LostAfter
	}
	return 5 * time.Minute
}

// lastWords runs the hooks of an outcome and keeps the last state of the jobs, as far as the head node answers.
func (a *Activities) lastWords(ctx context.Context, p providers.Provider, in NodesInput) {
	h, err := head(in.Nodes)
	if err != nil {
		return
	}
	c, err := NodeClient(ctx, p, h)
	if err != nil {
		return
	}
	defer c.Close()
	quick, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := c.Info(quick); err != nil && !a.comesBack(ctx, p, in.Ref, h) {
		return
	}
	if in.HookEvent != "" {
		a.runHooks(ctx, c, in)
	}
	quick2, cancel2 := context.WithTimeout(ctx, 5*time.Second)
	defer cancel2()
	if jobs, err := c.Jobs(quick2); err == nil && len(jobs) > 0 {
		if err := a.Store.PutJobs(ctx, in.Ref.Name, in.Ref.Hash, jobs); err != nil {
			a.Log.Warn("jobs not mirrored", "cluster", in.Ref.Name, "error", err)
		}
	}
}

// agentRestart is longer than an agent takes to be back after it died, however often it did.
const agentRestart = 7 * time.Second

// comesBack waits for an agent that does not answer on a node that runs: it may be on its way back.
func (a *Activities) comesBack(ctx context.Context, p providers.Provider, ref providers.ClusterRef, n providers.Node) bool {
	ctx, cancel := context.WithTimeout(ctx, agentRestart)
	defer cancel()
	listed, err := p.List(ctx, ref.Tag())
	if err != nil || !slices.ContainsFunc(listed, func(l providers.Node) bool { return l.ID == n.ID && l.State == providers.NodeRunning }) {
		return false // one that is still on its way has no agent to wait for
	}
	return a.untilAnswered(ctx, p, n, func(ctx context.Context, c *agentapi.Client) error {
		_, err := c.Info(ctx)
		return err
	}) == nil
}

// runHooks runs the lifecycle hooks of an event and waits for them. They can only warn. Asking again is asking how far
// they are, since the agent runs them once per key; it may have died before it took the first asking in.
func (a *Activities) runHooks(ctx context.Context, c *agentapi.Client, in NodesInput) {
	run := agentapi.HookRun{Key: in.Ref.Hash + "/" + in.HookEvent + "/" + in.EventKey, Hooks: in.Hooks}
	var st agentapi.HookState
	var err error
	for silent := 0; ; {
		st, err = c.RunHooks(ctx, in.HookEvent, run)
		var answered *agentapi.Error
		if err == nil {
			silent = 0
		} else if silent++; errors.As(err, &answered) || silent == 30 {
			break
		}
		if st.Done {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
	switch {
	case err != nil:
		a.say(ctx, in.EventKey+"/hook", 0, api.Event{Cluster: in.Ref.Name, Hash: in.Ref.Hash, RequestID: in.RequestID, Kind: api.EventError, Step: "hook", Message: fmt.Sprintf("%s hook: %v", in.HookEvent, err)})
	case st.Error != "":
		a.say(ctx, in.EventKey+"/hook", 0, api.Event{Cluster: in.Ref.Name, Hash: in.Ref.Hash, RequestID: in.RequestID, Kind: api.EventError, Step: "hook", Message: fmt.Sprintf("%s hook: %s", in.HookEvent, st.Error)})
	}
}

// StopNodes ends the nodes and keeps their files. Idempotent.
func (a *Activities) StopNodes(ctx context.Context, in NodesInput) (NodesOutput, error) {
	defer beat(ctx)()
	p, err := a.provider(in.Provider)
	if err != nil {
		return NodesOutput{}, err
	}
	f := providers.FeaturesOf(p)
	if f.Stop == nil {
		return NodesOutput{Error: &api.Error{Kind: api.ErrNotSupported, Message: p.Name() + " can't stop nodes", Hint: "use sky down"}}, nil
	}
	a.lastWords(ctx, p, in)
	if err := failpoint.Hit(fpStopBefore); err != nil {
		return NodesOutput{}, err
	}
	for pause := 50 * time.Millisecond; ; pause = min(pause*2, 5*time.Second) {
		if err := f.Stop.Stop(ctx, in.Ref, nil); err != nil && !providers.Is(err, providers.NotFound) {
			if k := providers.KindOf(err); k == providers.Unsupported || k == providers.Invalid {
				return NodesOutput{Error: &api.Error{Kind: api.ErrNotSupported, Message: err.Error()}}, nil
			}
			return NodesOutput{}, err
		}
		nodes, err := p.List(ctx, in.Ref.Tag())
		if err != nil {
			return NodesOutput{}, err
		}
		nodes = ours(nodes, in.Ref, in.Nodes)
		running := 0
		for _, n := range nodes {
			if n.State != providers.NodeStopped && n.State != providers.NodeGone {
				running++
			}
		}
		if running == 0 {
			return NodesOutput{Nodes: nodes}, failpoint.Hit(fpStopAfter)
		}
		select {
		case <-ctx.Done():
			return NodesOutput{}, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// fresh is how long a node just made may be missing from listings.
const fresh = 90 * time.Second

// Inspect asks the infra what a cluster's nodes do. It changes nothing.
func (a *Activities) Inspect(ctx context.Context, in NodesInput) (NodesOutput, error) {
	defer beat(ctx)()
	p, err := a.provider(in.Provider)
	if err != nil {
		return NodesOutput{}, err
	}
	listed, err := p.List(ctx, in.Ref.Tag())
	if err != nil {
		return NodesOutput{}, err
	}
	nodes := ours(listed, in.Ref, in.Nodes)
	seen := map[string]bool{}
	for _, n := range nodes {
		seen[n.ID] = true
	}
	for _, n := range in.Nodes {
		if !seen[n.ID] && time.Since(n.CreatedAt) < fresh {
			nodes = append(nodes, n)
		}
	}
	out := NodesOutput{Nodes: nodes, Confirmed: providers.FeaturesOf(p).Confirms}
	out.Verdict, out.Reason = cluster.Judge(nodes, in.NumNodes)
	if in.Ask && !out.Confirmed && out.Verdict == cluster.VerdictUp {
		for _, n := range nodes {
			out.Silent = out.Silent || a.mute(ctx, p, n)
		}
	}
	out.HeadLost = true
	for _, n := range nodes {
		if n.Rank == 0 && n.State == providers.NodeRunning {
			out.HeadLost = false
		}
	}
	if out.Verdict == cluster.VerdictUnhealthy {
		for _, n := range nodes {
			if n.State == providers.NodeRunning && (n.Rank == 0 || out.HeadLost) {
				a.tellLost(ctx, p, n, nodes, in)
			}
		}
	}
	return out, nil
}

// tellLost tells the head's agent which peers the infra has confirmed as gone, so that their jobs end; where the head
// itself is among them, the other nodes' agents, so that no job goes on without it.
func (a *Activities) tellLost(ctx context.Context, p providers.Provider, to providers.Node, nodes []providers.Node, in NodesInput) {
	c, err := NodeClient(ctx, p, to)
	if err != nil {
		return
	}
	defer c.Close()
	alive := map[string]string{}
	for _, n := range nodes {
		if n.State == providers.NodeRunning || n.State == providers.NodePending {
			alive[n.ID] = ""
		}
	}
	for _, n := range in.Nodes {
		if _, ok := alive[n.ID]; ok {
			continue
		}
		reason := "the node is gone"
		for _, l := range nodes {
			if l.ID == n.ID && l.Reason != "" {
				reason = l.Reason
			}
		}
		cctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		if err := c.PeerLost(cctx, agentapi.PeerLost{NodeID: n.ID, Reason: reason}); err != nil {
			a.Log.Warn("node not told of a lost peer", "cluster", in.Ref.Name, "node", n.ID, "error", err)
		}
		cancel()
	}
}

// GiveUp tells the head's agent that a peer is lost, so that its jobs with a rank there end. Idempotent.
func (a *Activities) GiveUp(ctx context.Context, in NodesInput) error {
	defer beat(ctx)()
	c, err := a.headClient(ctx, in.Provider, in.Nodes)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, n := range in.Nodes {
		if in.Rank != nil && n.Rank == *in.Rank {
			return c.PeerLost(ctx, agentapi.PeerLost{NodeID: n.ID, Reason: "the node is lost: it has been silent for too long"})
		}
	}
	return nil
}

// PreemptOwned takes spot nodes away from a cluster by its name, as its watch row knows them. Idempotent, as PreemptNodes is.
func (a *Activities) PreemptOwned(ctx context.Context, body api.PreemptBody) (NodesOutput, error) {
	row, err := a.Store.Cluster(ctx, body.Cluster)
	if errors.Is(err, store.ErrNotFound) {
		return NodesOutput{Error: cluster.NoCluster(body.Cluster)}, nil
	} else if err != nil {
		return NodesOutput{}, err
	}
	w, err := a.Store.Watch(ctx, row.Hash)
	if errors.Is(err, store.ErrNotFound) {
		return NodesOutput{Error: cluster.NotUp(row)}, nil
	} else if err != nil {
		return NodesOutput{}, err
	}
	var data WatchRow
	if err := json.Unmarshal(w.Data, &data); err != nil {
		return NodesOutput{}, err
	}
	return a.PreemptNodes(ctx, NodesInput{RequestID: body.RequestID, Ref: data.Ref, Provider: data.Provider, Nodes: data.Nodes, NumNodes: data.NumNodes,
		Rank: body.Node, Notice: time.Duration(body.NoticeSeconds) * time.Second})
}

// PreemptNodes takes spot nodes away. Idempotent: a node that is gone stays gone.
func (a *Activities) PreemptNodes(ctx context.Context, in NodesInput) (NodesOutput, error) {
	defer beat(ctx)()
	var out NodesOutput
	p, err := a.provider(in.Provider)
	if err != nil {
		return out, err
	}
	f := providers.FeaturesOf(p)
	if f.Preempt == nil {
		return NodesOutput{Error: &api.Error{Kind: api.ErrNotSupported, Message: p.Name() + " can't simulate a preemption", Hint: "it works on the infra `local`"}}, nil
	}
	var targets []providers.Node
	for _, n := range in.Nodes {
		if in.Rank != nil && n.Rank != *in.Rank {
			continue
		}
		if n.Spot {
			targets = append(targets, n)
		} else if in.Rank != nil {
			return NodesOutput{Error: &api.Error{Kind: api.ErrNotSupported, Message: fmt.Sprintf("node %d is not a spot node: it can't be preempted", n.Rank), Hint: "launch with --use-spot"}}, nil
		}
	}
	if len(targets) == 0 {
		e := &api.Error{Kind: api.ErrNotSupported, Message: "the cluster has no spot nodes to preempt", Hint: "launch with --use-spot"}
		if in.Rank != nil {
			e = &api.Error{Kind: api.ErrNotFound, Message: fmt.Sprintf("the cluster has no node %d", *in.Rank), Hint: fmt.Sprintf("nodes are numbered from 0 to %d", in.NumNodes-1)}
		}
		return NodesOutput{Error: e}, nil
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, n := range targets {
		out.Ranks = append(out.Ranks, n.Rank)
		g.Go(func() error {
			err := f.Preempt.Preempt(gctx, in.Ref, n.ID, in.Notice)
			if providers.Is(err, providers.NotFound) {
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		switch providers.KindOf(err) {
		case providers.Unsupported, providers.Invalid:
			return NodesOutput{Error: &api.Error{Kind: api.ErrNotSupported, Message: err.Error()}}, nil
		}
		return out, err
	}
	return out, nil
}
