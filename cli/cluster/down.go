package cluster

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/sshhosts"
)

// DownOptions is `sky down`.
type DownOptions struct {
	targets
	graceful
	Purge bool
}

// NewDown makes `sky down`.
func NewDown(s *session.Session, run func(context.Context, *session.Session, *DownOptions) error) *cobra.Command {
	o := &DownOptions{}
	if run == nil {
		run = Down
	}
	cmd := &cobra.Command{
		Use:   "down [CLUSTERS...]",
		Short: "Remove clusters with all that is on their disks",
		Long: `Remove clusters: their machines, and all that is on their disks. Names may be
globs. Buckets and volumes stay.`,
		Example:           "  sky down mycluster\n  sky down 'exp-*' -y\n  sky down -a",
		ValidArgsFunction: completeNames(s, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Names = args
			if err := o.targets.check("down"); err != nil {
				return err
			}
			if err := o.graceful.check(); err != nil {
				return err
			}
			return run(cmd.Context(), s, o)
		},
	}
	o.targets.add(cmd.Flags())
	cmd.Flags().BoolVarP(&o.Purge, "purge", "p", false, "forget the cluster even if its machines can't be deleted; they may go on costing")
	o.graceful.add(cmd.Flags())
	return cmd
}

// Down removes clusters.
func Down(ctx context.Context, s *session.Session, o *DownOptions) error {
	b := &batch{
		doing: "Removing",
		skip:  func(api.Cluster) string { return "" },
		submit: func(ctx context.Context, c *api.Client, cl api.Cluster) (*api.Ref, error) {
			base, err := s.Base()
			if err != nil {
				return nil, err
			}
			return c.Down(ctx, &api.StopOrDownBody{Base: base, Cluster: cl.Name, Purge: o.Purge, Graceful: o.On, GracefulTimeout: o.Timeout})
		},
		after:     func(_ context.Context, _ *api.Client, cl api.Cluster) { sshhosts.Gone(s, cl.Name) },
		launching: true,
		vanished:  func(cl api.Cluster) string { return fmt.Sprintf("Cluster %s is gone already.", cl.Name) },
		done:      func(cl api.Cluster, _ api.OpResult) string { return fmt.Sprintf("Cluster %s is removed.", cl.Name) },
	}
	return b.run(ctx, s, &o.targets)
}
