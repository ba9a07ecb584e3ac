package activities

import (
	"context"
	"fmt"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
)

// restart brings a cluster to its full number of nodes: stopped ones start, and workers that are gone are replaced. The
// head cannot be. Idempotent by the epoch.
func (a *Activities) restart(ctx context.Context, p providers.Provider, f providers.Features, in ProvisionInput) ([]providers.Node, error) {
	token := func(what string) string { return fmt.Sprintf("%s-%s-%d", in.Token, what, in.Epoch) }
	listed, err := p.List(ctx, in.Ref.Tag())
	if err != nil {
		return nil, err
	}
	byRank := make([]*providers.Node, in.NumNodes)
	var gone []string
	stopped := false
	for _, n := range ours(listed, in.Ref, nil) {
		switch {
		case n.State == providers.NodeGone:
			gone = append(gone, n.ID)
			continue
		case n.State == providers.NodeStopped || n.State == providers.NodeStopping:
			stopped = true
		}
		if n.Rank < len(byRank) {
			byRank[n.Rank] = &n
		}
	}
	var missing []int
	for rank, n := range byRank {
		if n == nil || n.Token == token("extend") { // an earlier try may have made it in part
			missing = append(missing, rank)
		}
	}
	switch {
	case len(missing) == in.NumNodes && len(gone) == 0:
		return nil, providers.Errorf(providers.NotFound, providers.ScopeCloud, "%s has no nodes of it any more", p.Name())
	case byRank[0] == nil:
		// The jobs and their numbers were its own: another head would count from one again.
		return nil, providers.Errorf(providers.Unsupported, providers.ScopeCloud, "its head node is gone, and with it the job queue")
	case len(missing) > 0 && f.Extend == nil:
		return nil, providers.Errorf(providers.Unsupported, providers.ScopeCloud, "%s can't replace a node that is gone", p.Name())
	case stopped && f.Stop == nil:
		return nil, providers.Errorf(providers.Unsupported, providers.ScopeCloud, "%s can't start stopped nodes", p.Name())
	}
	if len(gone) > 0 {
		if err := p.Delete(ctx, in.Ref, gone); err != nil && !providers.Is(err, providers.NotFound) {
			return nil, err
		}
	}
	put := func(nodes []providers.Node) {
		for _, n := range nodes {
			if n.Rank < len(byRank) {
				byRank[n.Rank] = &n
			}
		}
	}
	// What stopped comes first: a node that can't start leaves none that was made for nothing.
	if stopped || len(missing) == 0 && f.Stop != nil {
		nodes, err := f.Stop.Start(ctx, in.Ref, token("start"), a.Agent)
		if err != nil {
			return nil, err
		}
		put(nodes)
	}
	if len(missing) > 0 {
		nodes, err := f.Extend.Extend(ctx, providers.CreateRequest{Cluster: in.Ref, Token: token("extend"), NumNodes: in.NumNodes, Spec: in.Choice.Spec, Agent: a.Agent, User: in.User}, missing)
		if err != nil {
			return nil, err
		}
		put(nodes)
	}
	out := make([]providers.Node, 0, len(byRank))
	for rank, n := range byRank {
		if n == nil {
			return nil, providers.Errorf(providers.Internal, providers.ScopeCloud, "%s gave no node %d", p.Name(), rank)
		}
		out = append(out, *n)
	}
	return out, nil
}

// Idle refuses to take nodes from a cluster whose jobs have not ended.
func (a *Activities) Idle(ctx context.Context, in NodesInput) (NodesOutput, error) {
	c, err := a.headClient(ctx, in.Provider, in.Nodes)
	if err != nil {
		return NodesOutput{}, err
	}
	defer c.Close()
	info, err := c.Info(ctx)
	if err != nil {
		return NodesOutput{}, fmt.Errorf("the head's agent does not answer: %w", err)
	}
	if info.ActiveJobs > 0 {
		return NodesOutput{Error: &api.Error{Kind: api.ErrConflict, Message: fmt.Sprintf("cluster %q has %d job(s) that have not ended: nodes can't be taken from it", in.Ref.Name, info.ActiveJobs),
			Hint: "wait for them (sky queue " + in.Ref.Name + "), or end them: sky cancel " + in.Ref.Name + " -a"}}, nil
	}
	return NodesOutput{}, nil
}

// Shrink leaves a cluster the nodes of the first ranks: those that stay are told first, then the others are deleted.
// Idempotent by the epoch.
func (a *Activities) Shrink(ctx context.Context, in ProvisionInput) (ProvisionOutput, error) {
	defer beat(ctx)()
	p, err := a.provider(in.Choice.Provider)
	if err != nil {
		return ProvisionOutput{}, err
	}
	if err := a.Store.Write(ctx, store.Batch{Clusters: []api.Cluster{in.Row}, Events: in.Events}); err != nil {
		return ProvisionOutput{}, err
	}
	var keep []providers.Node
	var drop []string
	for _, n := range in.Nodes {
		if n.Rank < in.NumNodes {
			keep = append(keep, n)
		} else {
			drop = append(drop, n.ID)
		}
	}
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := a.configure(wait, p, in, keep); err != nil {
		return ProvisionOutput{}, err
	}
	if len(drop) > 0 { // without ids it would be all of them
		if err := p.Delete(ctx, in.Ref, drop); err != nil && !providers.Is(err, providers.NotFound) {
			return ProvisionOutput{}, err
		}
	}
	listed, err := p.List(ctx, in.Ref.Tag())
	if err != nil {
		return ProvisionOutput{}, err
	}
	if v, why := cluster.Judge(ours(listed, in.Ref, in.Nodes), in.NumNodes); v != cluster.VerdictUp {
		return ProvisionOutput{}, fmt.Errorf("nodes are still going: %s", why)
	}
	return ProvisionOutput{Nodes: keep, Ready: true}, nil
}
