package cluster

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/follow"
	"github.com/skyloom/skyloom/cli/session"
)

// PreemptOptions is `sky preempt`.
type PreemptOptions struct {
	Cluster string
	Node    *int
	Notice  *int // seconds
	Yes     bool
	Async   bool
}

// NewPreempt makes `sky preempt`.
func NewPreempt(s *session.Session, run func(context.Context, *session.Session, *PreemptOptions) error) *cobra.Command {
	o := &PreemptOptions{}
	if run == nil {
		run = Preempt
	}
	cmd := &cobra.Command{
		Use:   "preempt CLUSTER",
		Short: "Take spot nodes away, as a cloud would",
		Long: `Take spot nodes of a cluster away, as a cloud would, to see how a task copes. It works
on infra that can do so, such as local.`,
		Example:           "  sky preempt mycluster\n  sky preempt mycluster --node 1 --notice 30",
		ValidArgsFunction: completeNames(s, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return session.Usagef("exactly one cluster: sky preempt CLUSTER")
			}
			o.Cluster = args[0]
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	flags.Int(fs, &o.Node, "node", "", 0, "only the node of this `RANK` (0 is the head)")
	flags.Int(fs, &o.Notice, "notice", "", 0, "`SECONDS` between the notice and the end")
	addYes(fs, &o.Yes)
	addAsync(fs, &o.Async)
	return cmd
}

// Preempt takes spot nodes away.
func Preempt(ctx context.Context, s *session.Session, o *PreemptOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	if !o.Yes && s.IO.InTTY {
		if err := s.IO.Require("Taking spot nodes of " + o.Cluster + " away. Proceed?"); err != nil {
			return err
		}
	}
	b, err := s.Base()
	if err != nil {
		return err
	}
	body := &api.PreemptBody{Base: b, Cluster: o.Cluster, Node: o.Node}
	if o.Notice != nil {
		body.NoticeSeconds = *o.Notice
	}
	ref, err := c.Preempt(ctx, body)
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
	if res.Message == "" {
		res.Message = "Spot nodes of cluster " + o.Cluster + " were taken away."
	}
	s.IO.Printf("%s\n", res.Message)
	return nil
}
