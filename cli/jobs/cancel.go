package jobs

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/session"
)

// CancelOptions is `sky jobs cancel`.
type CancelOptions struct {
	JobIDs   []int64
	Name     string
	All      bool
	AllUsers bool
	Yes      bool
}

// NewCancel makes `sky jobs cancel`.
func NewCancel(s *session.Session, run func(context.Context, *session.Session, *CancelOptions) error) *cobra.Command {
	o := &CancelOptions{}
	if run == nil {
		run = Cancel
	}
	var pool string
	var graceful bool
	var timeout *int
	cmd := &cobra.Command{
		Use:   "cancel [IDS...]",
		Short: "Cancel managed jobs",
		Long: `Cancel managed jobs: by id, of a name, all of yours (-a), or everyone's (-u). A cancel
is final, and stands once this command returns; a job is CANCELLED once nothing of it
runs. A job that ends first keeps its result.`,
		Example:           "  sky jobs cancel 7\n  sky jobs cancel 3 5-9\n  sky jobs cancel -n train\n  sky jobs cancel -a -y",
		ValidArgsFunction: completeJob(s, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			if pool != "" {
				return poolsLater()
			}
			if len(args) > 0 {
				ids, err := api.ParseIDs(strings.Join(args, ","))
				if err != nil {
					return session.Usagef("%v", err)
				}
				o.JobIDs = ids
			}
			picks := 0
			for _, on := range []bool{len(o.JobIDs) > 0, o.Name != "", o.All || o.AllUsers} {
				if on {
					picks++
				}
			}
			switch {
			case picks == 0:
				return session.Usagef("which jobs? Give ids, -n NAME, -a (all of yours) or -u (everyone's)")
			case picks > 1:
				return session.Usagef("ids, -n, and -a or -u can't be combined")
			case timeout != nil && !graceful:
				return session.Usagef("--graceful-timeout goes with --graceful")
			}
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&o.Name, "name", "n", "", "jobs of that `NAME`")
	addPool(fs, &pool)
	fs.BoolVarP(&o.All, "all", "a", false, "all of your jobs")
	fs.BoolVarP(&o.AllUsers, "all-users", "u", false, "all jobs of all users")
	fs.BoolVar(&graceful, "graceful", false, "finish pending uploads of mounted buckets first; there are none yet, so it changes nothing")
	flags.Int(fs, &timeout, "graceful-timeout", "", 0, "with --graceful: go on after `SECONDS`")
	fs.Lookup("graceful").Hidden, fs.Lookup("graceful-timeout").Hidden = true, true
	addYes(fs, &o.Yes)
	completeName(cmd, s)
	return cmd
}

// Cancel cancels managed jobs.
func Cancel(ctx context.Context, s *session.Session, o *CancelOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	b := &api.JobsCancelBody{JobIDs: o.JobIDs, Name: o.Name, All: o.All, AllUsers: o.AllUsers}
	if b.Base, err = s.Base(); err != nil {
		return err
	}
	what := "all your managed jobs"
	switch {
	case o.AllUsers:
		what = "all managed jobs of all users"
	case o.Name != "":
		what = "all managed jobs called " + session.Quote(o.Name)
	case len(o.JobIDs) > 0:
		what = fmt.Sprintf("managed job%s %s", plural(len(o.JobIDs)), api.FormatIDs(o.JobIDs))
	}
	if !o.Yes {
		if err := s.IO.Require(fmt.Sprintf("Cancelling %s. Proceed?", what)); err != nil {
			return err
		}
	}
	r, err := c.CancelManagedJobs(ctx, b)
	if err != nil {
		return err
	}
	known := map[int64]bool{}
	for _, id := range append(append([]int64(nil), r.Cancelled...), r.Finished...) {
		known[id] = true
	}
	var missing []int64
	for _, id := range o.JobIDs {
		if !known[id] {
			missing = append(missing, id)
		}
	}
	if n := len(r.Cancelled); n > 0 {
		s.IO.Printf("Cancelling managed job%s %s.\n", plural(n), api.FormatIDs(r.Cancelled))
		s.IO.Notef("To see how far that is: sky jobs queue")
	} else {
		s.IO.Printf("No managed job to cancel.\n")
	}
	if n := len(r.Finished); n > 0 && !o.All && !o.AllUsers {
		s.IO.Notef("Ended before: managed job%s %s.", plural(n), api.FormatIDs(r.Finished))
	}
	if len(missing) > 0 {
		s.IO.Warnf("Managed job%s %s not found.", plural(len(missing)), api.FormatIDs(missing))
		return session.Exit(1)
	}
	return nil
}
