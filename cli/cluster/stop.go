package cluster

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/sshhosts"
)

func (t *targets) add(fs *pflag.FlagSet) {
	fs.BoolVarP(&t.All, "all", "a", false, "all of your clusters")
	fs.BoolVarP(&t.AllUsers, "all-users", "u", false, "all clusters of all users")
	addYes(fs, &t.Yes)
	addAsync(fs, &t.Async)
}

// StopOptions is `sky stop`.
type StopOptions struct {
	targets
	graceful
}

// NewStop makes `sky stop`.
func NewStop(s *session.Session, run func(context.Context, *session.Session, *StopOptions) error) *cobra.Command {
	o := &StopOptions{}
	if run == nil {
		run = Stop
	}
	cmd := &cobra.Command{
		Use:   "stop [CLUSTERS...]",
		Short: "Stop clusters and keep their disks",
		Long: `Stop clusters and keep their disks: what was written stays, processes end, and
machines are no longer paid for. Names may be globs. Spot nodes can't be stopped.`,
		Example:           "  sky stop mycluster\n  sky stop 'exp-*' -y\n  sky stop -a",
		ValidArgsFunction: completeNames(s, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Names = args
			if err := o.targets.check("stop"); err != nil {
				return err
			}
			if err := o.graceful.check(); err != nil {
				return err
			}
			return run(cmd.Context(), s, o)
		},
	}
	o.targets.add(cmd.Flags())
	o.graceful.add(cmd.Flags())
	return cmd
}

// Stop stops clusters.
func Stop(ctx context.Context, s *session.Session, o *StopOptions) error {
	b := &batch{
		doing: "Stopping",
		skip: func(cl api.Cluster) string {
			if cl.Status == api.ClusterStopped {
				return fmt.Sprintf("Cluster %s is already stopped.", cl.Name)
			}
			return ""
		},
		submit: func(ctx context.Context, c *api.Client, cl api.Cluster) (*api.Ref, error) {
			base, err := s.Base()
			if err != nil {
				return nil, err
			}
			return c.Stop(ctx, &api.StopOrDownBody{Base: base, Cluster: cl.Name, Graceful: o.On, GracefulTimeout: o.Timeout})
		},
		after: func(_ context.Context, _ *api.Client, cl api.Cluster) { sshhosts.Gone(s, cl.Name) },
		done: func(cl api.Cluster, _ api.OpResult) string {
			return fmt.Sprintf("Cluster %s is stopped.\n  To restart the cluster, run: sky start %s", cl.Name, cl.Name)
		},
	}
	return b.run(ctx, s, &o.targets)
}
