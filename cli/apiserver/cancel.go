package apiserver

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/session"
)

// CancelOptions is `sky api cancel`.
type CancelOptions struct {
	Requests []string
	All      bool
	AllUsers bool
	Yes      bool
}

// NewCancel makes `sky api cancel`.
func NewCancel(s *session.Session, run func(context.Context, *session.Session, *CancelOptions) error) *cobra.Command {
	o := &CancelOptions{}
	if run == nil {
		run = Cancel
	}
	cmd := &cobra.Command{
		Use:               "cancel [REQUESTS...]",
		Short:             "Cancel requests",
		Long:              "Cancel requests, given by their ids or the beginnings of them. Finished ones are left alone.",
		ValidArgsFunction: completeRequests(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Requests = args
			all := o.All || o.AllUsers
			if len(args) > 0 && all {
				return session.Usagef("requests can't be combined with -a or -u")
			}
			if len(args) == 0 && !all {
				return session.Usagef("which requests? Give ids, -a for all of yours, -u for everybody's")
			}
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.All, "all", "a", false, "all of your requests")
	fs.BoolVarP(&o.AllUsers, "all-users", "u", false, "all requests of all users")
	fs.BoolVarP(&o.Yes, "yes", "y", false, "don't ask")
	return cmd
}

// Cancel cancels requests.
func Cancel(ctx context.Context, s *session.Session, o *CancelOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	if (o.All || o.AllUsers) && !o.Yes {
		whose := "all of your requests"
		if o.AllUsers {
			whose = "all requests of all users"
		}
		if err := s.IO.RequireWord(fmt.Sprintf("This cancels %s.", whose), "cancel all requests"); err != nil {
			return err
		}
	}
	reply, err := c.CancelRequests(ctx, &api.CancelRequestsBody{RequestIDs: o.Requests, All: o.All || o.AllUsers, AllUsers: o.AllUsers, UserHash: s.User().Hash})
	if err != nil {
		return err
	}
	n := len(reply.Cancelled)
	switch n {
	case 0:
		s.IO.Printf("No requests were cancelled: none of them is active.\n")
	case 1:
		s.IO.Printf("1 request was cancelled: %s\n", reply.Cancelled[0])
	default:
		s.IO.Printf("%d requests were cancelled: %s\n", n, strings.Join(reply.Cancelled, ", "))
	}
	return nil
}
