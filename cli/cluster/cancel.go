package cluster

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/follow"
	"github.com/skyloom/skyloom/cli/session"
)

// CancelOptions is `sky cancel`.
type CancelOptions struct {
	Cluster  string
	JobIDs   []int64
	All      bool
	AllUsers bool
	Yes      bool
	Async    bool
}

// NewCancel makes `sky cancel`.
func NewCancel(s *session.Session, run func(context.Context, *session.Session, *CancelOptions) error) *cobra.Command {
	o := &CancelOptions{}
	if run == nil {
		run = Cancel
	}
	cmd := &cobra.Command{
		Use:   "cancel CLUSTER [JOBS...]",
		Short: "Cancel jobs of a cluster",
		Long: `Cancel jobs of a cluster; without ids, -a or -u, the latest running one.

CLUSTER may be a glob; job ids are not allowed when it matches several clusters.`,
		Example:           "  sky cancel mycluster 3\n  sky cancel mycluster -a",
		ValidArgsFunction: completeNames(s, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return session.Usagef("which cluster? sky cancel CLUSTER [JOBS...]")
			}
			ids, err := jobIDs(args[1:])
			if err != nil {
				return err
			}
			if len(ids) > 0 && (o.All || o.AllUsers) {
				return session.Usagef("job ids can't be combined with -a or -u")
			}
			o.Cluster, o.JobIDs = args[0], ids
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.All, "all", "a", false, "all of your jobs")
	fs.BoolVarP(&o.AllUsers, "all-users", "u", false, "all jobs of all users")
	addYes(fs, &o.Yes)
	addAsync(fs, &o.Async)
	return cmd
}

// Cancel cancels jobs.
func Cancel(ctx context.Context, s *session.Session, o *CancelOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	sel, err := find(ctx, s, c, []string{o.Cluster}, true)
	if err != nil {
		return err
	}
	if len(sel.clusters) == 0 {
		return notFound(o.Cluster)
	}
	if len(sel.clusters) > 1 && len(o.JobIDs) > 0 {
		return session.Usagef("%q matches several clusters (%s); job ids need exactly one", o.Cluster, nameList(sel.clusters))
	}
	what := "the latest running job"
	switch {
	case o.AllUsers:
		what = "all jobs of all users"
	case o.All:
		what = "all your jobs"
	case len(o.JobIDs) > 0:
		what = "job" + plural(len(o.JobIDs)) + " " + strings.Trim(strings.Join(strings.Fields(fmt.Sprint(o.JobIDs)), ", "), "[]")
	default:
		s.IO.Warnf("No job ids, -a or -u given: the latest running job is meant.")
	}
	if !o.Yes {
		if err := s.IO.Require(fmt.Sprintf("Cancelling %s on %s. Proceed?", what, nameList(sel.clusters))); err != nil {
			return err
		}
	}
	var failed error
	for _, cl := range sel.clusters {
		if err := cancelOn(ctx, s, c, cl.Name, o); err != nil {
			if ctx.Err() != nil || len(sel.clusters) == 1 {
				return err
			}
			s.IO.Warnf("%s: %v", cl.Name, err)
			failed = session.Exit(1)
		}
	}
	return failed
}

func cancelOn(ctx context.Context, s *session.Session, c *api.Client, name string, o *CancelOptions) error {
	b, err := s.Base()
	if err != nil {
		return err
	}
	ref, err := c.CancelJobs(ctx, &api.CancelBody{Base: b, Cluster: name, JobIDs: o.JobIDs, All: o.All, AllUsers: o.AllUsers})
	if err != nil {
		return err
	}
	if o.Async {
		follow.Submitted(s, c, ref)
		return nil
	}
	r, err := follow.Wait(ctx, s, c, ref, follow.Options{})
	if err != nil {
		return err
	}
	res, err := follow.Result[api.OpResult](r)
	if err != nil {
		return err
	}
	for _, w := range res.Warnings {
		s.IO.Warnf("%s", w)
	}
	switch {
	case len(res.JobIDs) > 0:
		ids := strings.Trim(strings.Join(strings.Fields(fmt.Sprint(res.JobIDs)), ", "), "[]")
		s.IO.Printf("Cancelled job%s %s on cluster %s.\n", plural(len(res.JobIDs)), ids, name)
	case res.Message != "":
		s.IO.Printf("%s\n", res.Message)
	default:
		s.IO.Printf("No job to cancel on cluster %s.\n", name)
	}
	return nil
}
