package cluster

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/sshhosts"
)

// StartOptions is `sky start`.
type StartOptions struct {
	targets
	IdleMinutes  *int
	WaitFor      string
	Down         bool
	RetryUntilUp bool
	Force        bool
}

// NewStart makes `sky start`.
func NewStart(s *session.Session, run func(context.Context, *session.Session, *StartOptions) error) *cobra.Command {
	o := &StartOptions{}
	if run == nil {
		run = Start
	}
	cmd := &cobra.Command{
		Use:   "start [CLUSTERS...]",
		Short: "Start stopped clusters",
		Long: `Start stopped clusters where they were; there is no failover to another place. Names
may be globs. Without names, the only cluster there is.`,
		Example:           "  sky start mycluster\n  sky start mycluster -i 30 --down\n  sky start -a",
		ValidArgsFunction: completeNames(s, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Names = args
			if o.Down && o.IdleMinutes == nil {
				return session.Usagef("--down goes with --idle-minutes")
			}
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.All, "all", "a", false, "all of your clusters")
	addYes(fs, &o.Yes)
	flags.Int(fs, &o.IdleMinutes, "idle-minutes-to-autostop", "i", -1, "stop again after `MINUTES` of idleness")
	addWaitFor(fs, &o.WaitFor)
	fs.BoolVar(&o.Down, "down", false, "with -i: remove the cluster instead of stopping it")
	fs.BoolVarP(&o.RetryUntilUp, "retry-until-up", "r", false, "try again until it succeeds")
	fs.BoolVarP(&o.Force, "force", "f", false, "also restart clusters that are UP, to renew what runs on them")
	addAsync(fs, &o.Async)
	return cmd
}

// Start starts clusters.
func Start(ctx context.Context, s *session.Session, o *StartOptions) error {
	if len(o.Names) == 0 && !o.All {
		c, err := s.Client(ctx)
		if err != nil {
			return err
		}
		sel, err := find(ctx, s, c, nil, false)
		if err != nil {
			return err
		}
		if len(sel.clusters) > 1 {
			return session.Usagef("which clusters? You have several: %s", nameList(sel.clusters))
		}
		for _, cl := range sel.clusters {
			o.Names = []string{cl.Name}
		}
	}
	b := &batch{
		doing: "Starting",
		skip: func(cl api.Cluster) string {
			if cl.Status == api.ClusterUp && !o.Force {
				return fmt.Sprintf("Cluster %s already has status UP.", cl.Name)
			}
			return ""
		},
		submit: func(ctx context.Context, c *api.Client, cl api.Cluster) (*api.Ref, error) {
			base, err := s.Base()
			if err != nil {
				return nil, err
			}
			return c.Start(ctx, &api.StartBody{Base: base, Cluster: cl.Name, IdleMinutes: o.IdleMinutes, WaitFor: o.WaitFor,
				RetryUntilUp: o.RetryUntilUp, Down: o.Down, Force: o.Force})
		},
		after: func(ctx context.Context, c *api.Client, cl api.Cluster) {
			sshhosts.Up(ctx, s, c, cl.Name, "", false)()
		},
		done: func(cl api.Cluster, _ api.OpResult) string { return fmt.Sprintf("Cluster %s is UP.", cl.Name) },
	}
	return b.run(ctx, s, &o.targets)
}
