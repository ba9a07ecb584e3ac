package worker

import (
	"context"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/worker/httpapi"
)

var _ httpapi.PoolKeeper = (*backend)(nil)

// AddSSHPools takes pools from a user's file.
func (b *backend) AddSSHPools(ctx context.Context, p api.SSHPools) ([]string, error) {
	return b.acts.AddPools(ctx, p)
}
