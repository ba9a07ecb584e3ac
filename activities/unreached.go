package activities

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/providers"
)

// unreached judges a call that nodes did not answer: it comes back with what the call said if another try may fare better, and
// with an error that no retry changes if the infra says that one of them has ended, or if the infra can't tell and one
// stays silent until it counts as lost.
func (a *Activities) unreached(ctx context.Context, p providers.Provider, ref providers.ClusterRef, nodes []providers.Node, said error) error {
	var answered *agentapi.Error
	if ctx.Err() != nil || errors.As(said, &answered) {
		return said
	}
	listed, err := p.List(ctx, ref.Tag())
	if err != nil {
		return said
	}
	for _, n := range nodes {
		now := providers.Node{State: providers.NodeGone, Reason: "it is not listed any more"}
		if time.Since(n.CreatedAt) < fresh {
			now = n
		}
		for _, l := range listed {
			if l.ID == n.ID {
				now = l
			}
		}
		switch now.State {
		case providers.NodeGone, providers.NodeStopped, providers.NodeStopping:
			return lostNode(n.Rank, fmt.Sprintf("%s (%s)", now.State, now.Reason))
		}
	}
	if providers.FeaturesOf(p).Confirms {
		return said
	}
	limit := a.giveUpAfter(false)
	for _, n := range nodes {
		quick, cancel := context.WithTimeout(ctx, limit)
		err := a.untilAnswered(quick, p, n, func(ctx context.Context, c *agentapi.Client) error {
			_, err := c.Info(ctx)
			return err
		})
		late := quick.Err() != nil
		cancel()
		if err != nil && late && ctx.Err() == nil {
			return lostNode(n.Rank, fmt.Sprintf("silent for %v", limit))
		}
	}
	return said
}

func lostNode(rank int, how string) error {
	return refuse(&api.Error{Kind: api.ErrClusterNotUp, Message: fmt.Sprintf("node %d is %s", rank, how), Hint: "see how the cluster is: sky status -r"})
}

// anySilent says that one of the nodes of some ranks does not answer just now; the head is asked by others.
func (a *Activities) anySilent(ctx context.Context, in NodesInput, ranks []int) bool {
	p, err := a.provider(in.Provider)
	if err != nil {
		return false
	}
	for _, n := range in.Nodes {
		if n.Rank == 0 || !slices.Contains(ranks, n.Rank) {
			continue
		}
		if a.mute(ctx, p, n) {
			return true
		}
	}
	return false
}

// mute says that a node's agent does not answer just now.
func (a *Activities) mute(ctx context.Context, p providers.Provider, n providers.Node) bool {
	quick, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	c, err := NodeClient(quick, p, n)
	if err == nil {
		_, err = c.Info(quick)
		c.Close()
	}
	return err != nil && ctx.Err() == nil
}
