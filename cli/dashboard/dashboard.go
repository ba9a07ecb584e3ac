// Package dashboard holds `sky dashboard`: it opens the workflow Web UI, logged in.
package dashboard

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/cli/session"
)

// Options is `sky dashboard`.
type Options struct{ NoBrowser bool }

// New makes `sky dashboard`.
func New(s *session.Session, run func(context.Context, *session.Session, *Options) error) *cobra.Command {
	o := &Options{}
	if run == nil {
		run = Run
	}
	cmd := &cobra.Command{
		Use:     "dashboard",
		Aliases: []string{"ui"},
		Short:   "Open the Web UI in a browser",
		Long: `Open the Web UI in a browser: it shows the workflows behind requests and clusters, step
by step. The address printed logs in once, within five minutes.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return session.Usagef("%s takes no arguments (got %q)", cmd.CommandPath(), args[0])
			}
			return run(cmd.Context(), s, o)
		},
	}
	cmd.Flags().BoolVar(&o.NoBrowser, "no-browser", false, "only print the address")
	return cmd
}

// Run opens the Web UI.
func Run(ctx context.Context, s *session.Session, o *Options) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	link, err := c.LoginLink(ctx)
	if err != nil {
		return err
	}
	s.IO.Printf("%s\n", link)
	if o.NoBrowser || !s.IO.OutTTY {
		return nil
	}
	if err := s.OpenBrowser(link); err != nil {
		s.IO.Notef("No browser could be opened here; open the address yourself.")
	}
	return nil
}
