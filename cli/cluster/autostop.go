package cluster

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/session"
)

// defaultIdleMinutes is what `sky autostop` sets without -i.
const defaultIdleMinutes = 5

// AutostopOptions is `sky autostop`.
type AutostopOptions struct {
	targets
	IdleMinutes int // -1: off
	WaitFor     string
	Down        bool
}

// NewAutostop makes `sky autostop`.
func NewAutostop(s *session.Session, run func(context.Context, *session.Session, *AutostopOptions) error) *cobra.Command {
	o := &AutostopOptions{}
	if run == nil {
		run = Autostop
	}
	var idle *int
	var cancel bool
	cmd := &cobra.Command{
		Use:   "autostop [CLUSTERS...]",
		Short: "Stop or remove clusters once they are idle",
		Long: `Set how long clusters may be idle before they stop, or go down with --down. Setting
it begins the idle time anew. A cluster is idle when no job runs and, unless --wait-for
says otherwise, nobody is logged in.`,
		Example:           "  sky autostop mycluster\n  sky autostop mycluster -i 30 --down\n  sky autostop mycluster --cancel",
		ValidArgsFunction: completeNames(s, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Names = args
			if err := o.targets.check("autostop"); err != nil {
				return err
			}
			if cancel && idle != nil {
				return session.Usagef("--cancel and --idle-minutes can't be combined")
			}
			if cancel && (o.Down || o.WaitFor != "") {
				return session.Usagef("--cancel can't be combined with --down or --wait-for")
			}
			o.IdleMinutes = defaultIdleMinutes
			if idle != nil {
				o.IdleMinutes = *idle
			}
			if cancel {
				o.IdleMinutes = -1
			}
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	flags.Int(fs, &idle, "idle-minutes", "i", -1, "idle `MINUTES` before it acts (default 5)")
	addWaitFor(fs, &o.WaitFor)
	fs.BoolVar(&cancel, "cancel", false, "switch it off")
	fs.BoolVar(&o.Down, "down", false, "remove the cluster instead of stopping it")
	o.targets.add(fs)
	return cmd
}

// Autostop sets or clears idle timers.
func Autostop(ctx context.Context, s *session.Session, o *AutostopOptions) error {
	doing := "Setting autostop on"
	if o.IdleMinutes < 0 {
		doing = "Switching autostop off on"
	} else if o.Down {
		doing = "Setting autodown on"
	}
	b := &batch{
		doing: doing,
		skip:  func(api.Cluster) string { return "" },
		refuse: func(cl api.Cluster) string {
			if cl.Status == api.ClusterStopped {
				return fmt.Sprintf("Cluster %s is stopped; autostop can be set once it is UP: sky start %s", cl.Name, cl.Name)
			}
			return ""
		},
		submit: func(ctx context.Context, c *api.Client, cl api.Cluster) (*api.Ref, error) {
			base, err := s.Base()
			if err != nil {
				return nil, err
			}
			return c.Autostop(ctx, &api.AutostopBody{Base: base, Cluster: cl.Name, IdleMinutes: o.IdleMinutes, WaitFor: o.WaitFor, Down: o.Down})
		},
		done: func(cl api.Cluster, res api.OpResult) string {
			switch {
			case o.IdleMinutes < 0:
				return fmt.Sprintf("Cluster %s no longer stops by itself.", cl.Name)
			case o.Down:
				return fmt.Sprintf("Cluster %s will go down after %d idle minute%s.\n  To switch that off: sky autostop %s --cancel", cl.Name, max(o.IdleMinutes, 1), plural(max(o.IdleMinutes, 1)), cl.Name)
			}
			return fmt.Sprintf("Cluster %s will stop after %d idle minute%s.\n  To switch that off: sky autostop %s --cancel", cl.Name, max(o.IdleMinutes, 1), plural(max(o.IdleMinutes, 1)), cl.Name)
		},
	}
	return b.run(ctx, s, &o.targets)
}
