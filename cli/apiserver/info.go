package apiserver

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/table"
	"github.com/skyloom/skyloom/internal/version"
)

// InfoOptions is `sky api info`.
type InfoOptions struct{ Output string }

// NewInfo makes `sky api info`.
func NewInfo(s *session.Session, run func(context.Context, *session.Session, *InfoOptions) error) *cobra.Command {
	o := &InfoOptions{}
	if run == nil {
		run = Info
	}
	cmd := &cobra.Command{
		Use:   "info",
		Short: "Show what the API server is and how to reach its workflow engine",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), s, o) },
	}
	flags.Output(cmd.Flags(), &o.Output)
	return cmd
}

// Info shows the server.
func Info(ctx context.Context, s *session.Session, o *InfoOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	i, err := c.Info(ctx)
	if err != nil {
		return err
	}
	if i.URL == "" {
		i.URL = c.Endpoint()
	}
	user := i.User
	if user == "" {
		user = s.User().Name
	}
	if o.Output == "json" {
		return s.PrintJSON(map[string]any{
			"client": map[string]any{"version": version.Version, "commit": version.Commit},
			"server": map[string]any{"url": i.URL, "status": i.Status, "version": i.Version, "commit": i.Commit,
				"api_version": i.APIVersion, "installation": i.Installation, "pid": i.PID, "home": i.Home,
				"started_at": i.StartedAt.Format(time.RFC3339), "web_ui": i.WebUI},
			"temporal": i.Temporal,
			"user":     user,
		})
	}
	s.IO.Printf("%s\n", s.IO.OutStyle(session.Bold, "API server "+i.URL))
	t := &table.Table{Indent: "  "}
	t.Row("Status", i.Status)
	t.Row("Version", i.Version+" (commit "+i.Commit+", API "+itoa(i.APIVersion)+")")
	t.Row("Client", version.Version+" (commit "+version.Commit+")")
	t.Row("User", user)
	if i.PID > 0 {
		t.Row("Process", itoa(i.PID)+", started "+table.Ago(s.Now(), i.StartedAt))
	}
	t.Row("Home", i.Home)
	t.Row("Installation", i.Installation)
	t.Row("Web UI", i.WebUI)
	if err := t.Print(s.IO.Out); err != nil {
		return err
	}
	s.IO.Printf("%s\n", s.IO.OutStyle(session.Bold, "Workflow engine (Temporal), for workers of your own"))
	t = &table.Table{Indent: "  "}
	where := "external"
	if i.Temporal.Embedded {
		where = "embedded in the server"
	}
	t.Row("Kind", where)
	t.Row("Address", i.Temporal.Address)
	t.Row("Namespace", i.Temporal.Namespace)
	t.Row("Task queue", i.Temporal.TaskQueue)
	t.Row("Authentication", i.Temporal.Auth)
	if i.Temporal.TokenFile != "" {
		t.Row("API key file", i.Temporal.TokenFile)
	}
	return t.Print(s.IO.Out)
}
