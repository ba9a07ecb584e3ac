package activities

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/providers"
)

// TellHostsInput names the nodes of a group of tasks to the nodes of one of them.
type TellHostsInput struct {
	Provider string           `json:"provider"`
	Nodes    []providers.Node `json:"nodes"`
	Hosts    agentapi.Hosts   `json:"hosts"`
}

// TellHosts makes names known on nodes. Idempotent: what is told replaces what was. Agents of an earlier version know no names.
func (a *Activities) TellHosts(ctx context.Context, in TellHostsInput) error {
	defer beat(ctx)()
	p, err := a.provider(in.Provider)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, n := range in.Nodes {
		g.Go(func() error {
			c, err := NodeClient(ctx, p, n)
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.SetHosts(ctx, in.Hosts); err != nil && !agentapi.IsKind(err, agentapi.KindNotFound) {
				return err
			}
			return nil
		})
	}
	return g.Wait()
}
