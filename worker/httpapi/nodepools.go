package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/skyloom/skyloom/api"
)

// PoolKeeper is a Backend with node pools.
type PoolKeeper interface {
	// AddSSHPools takes pools from a user's file. The file may hold passwords: it goes to no request and no log.
	AddSSHPools(ctx context.Context, p api.SSHPools) (names []string, err error)
}

const poolsTag = "node pools"

// poolRoutes are the calls about hosts that people already have.
func (s *Server) poolRoutes(h huma.API) {
	submit(h, s, "ssh.up", "Check and prepare the hosts of SSH node pools", func(b *api.SSHBody) (api.Base, string) { return b.Base, "" }, noCluster)
	submit(h, s, "ssh.down", "Remove every trace from the hosts of SSH node pools", func(b *api.SSHBody) (api.Base, string) { return b.Base, "" }, noCluster)

	op := operation("POST", "/ssh_node_pools", "add-ssh-node-pools", poolsTag, "Take a file of SSH node pools to the server", http.StatusServiceUnavailable)
	op.Description = "The pools take the place of those of the same names in the server's file. Keys that the file names are read on the server."
	get(h, op, s, func(ctx context.Context, in *bodyIn[api.SSHPools]) (api.SSHPoolNames, error) {
		k, ok := s.be().(PoolKeeper)
		if !ok {
			return api.SSHPoolNames{}, failure(api.ErrNotSupported, "", "this server has no SSH node pools")
		}
		names, err := k.AddSSHPools(ctx, in.Body)
		return api.SSHPoolNames{Pools: names}, err
	})
}
