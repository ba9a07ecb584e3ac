package apiserver

import (
	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/cli/session"
)

// New makes `sky api`.
func New(s *session.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "api",
		Short: "The API server and its requests",
		RunE:  session.Group,
	}
	cmd.AddCommand(NewStart(s, nil), NewStop(s, nil), NewLogs(s, nil), NewCancel(s, nil), NewStatus(s, nil),
		NewLogin(s, nil), NewLogout(s, nil), NewInfo(s, nil))
	return cmd
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return session.Usagef("%s takes no arguments (got %q)", cmd.CommandPath(), args[0])
	}
	return nil
}

func completeRequests(s *session.Session) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, _ []string, inc string) ([]string, cobra.ShellCompDirective) {
		return s.Complete(cmd.Context(), "api_request", inc), cobra.ShellCompDirectiveNoFileComp
	}
}
