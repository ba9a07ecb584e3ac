package jobs

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/session"
)

// New makes `sky jobs`.
func New(s *session.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "jobs",
		Short: "Managed jobs: unattended, recovered, cleaned up",
		Long: `Managed jobs run unattended, each on a cluster of its own: it is brought up, the task
runs, and the cluster goes away. If the infra takes the cluster away, the job is brought
up again elsewhere.`,
		RunE: session.Group,
	}
	cmd.AddCommand(NewLaunch(s, nil), NewQueue(s, nil), NewLogs(s, nil), NewCancel(s, nil), NewEvents(s, nil), NewCheckpoints(s, nil), NewCheckpoint(s, nil), NewSchedules(s), NewWebhookSecret(s, nil))
	return cmd
}

// poolsLater is the answer to flags that name a pool.
func poolsLater() error {
	return fmt.Errorf("--pool: pools come with a later release; this one does clusters and managed jobs.\nWithout --pool each job gets a cluster of its own.")
}

func addPool(fs *pflag.FlagSet, p *string) {
	fs.StringVarP(p, "pool", "p", "", "comes later: a pool's `NAME`")
	fs.Lookup("pool").Hidden = true
}

func addYes(fs *pflag.FlagSet, p *bool) { fs.BoolVarP(p, "yes", "y", false, "don't ask") }

// refreshIgnored adds -r, which restarted a stopped controller; there is none.
func refreshIgnored(fs *pflag.FlagSet) {
	var ignored bool
	fs.BoolVarP(&ignored, "refresh", "r", false, "without effect: there is no controller that could be stopped")
	fs.Lookup("refresh").Hidden = true
}

func addOutput(fs *pflag.FlagSet, p *string) { flags.Output(fs, p) }

// completeJob completes the number of a job that has not ended, as the first argument.
func completeJob(s *session.Session, most int) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, inc string) ([]string, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return s.Complete(cmd.Context(), "managed_job", inc), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeName completes the name of a job that has not ended, as the value of --name.
func completeName(cmd *cobra.Command, s *session.Session) {
	_ = cmd.RegisterFlagCompletionFunc("name", func(cmd *cobra.Command, _ []string, inc string) ([]string, cobra.ShellCompDirective) {
		return s.Complete(cmd.Context(), "managed_job_name", inc), cobra.ShellCompDirectiveNoFileComp
	})
}

// latest finds the newest job of the caller, or the newest one of a name. Nil: there is none.
func latest(ctx context.Context, s *session.Session, c *api.Client, name string) ([]api.ManagedJob, error) {
	f := api.ManagedFilter{Name: name, UserHash: s.User().Hash, Limit: 1}
	l, err := c.ManagedJobs(ctx, f)
	if err == nil && len(l.Jobs) == 0 && name != "" { // somebody else's
		f.UserHash = ""
		l, err = c.ManagedJobs(ctx, f)
	}
	if err != nil {
		return nil, err
	}
	return l.Jobs, nil
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}
