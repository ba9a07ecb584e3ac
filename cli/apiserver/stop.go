package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/internal/daemon"
)

// stopPatience is how long a server may take to end after it was asked to.
const stopPatience = 30 * time.Second

// NewStop makes `sky api stop`.
func NewStop(s *session.Session, run func(context.Context, *session.Session) error) *cobra.Command {
	if run == nil {
		run = Stop
	}
	return &cobra.Command{
		Use:   "stop",
		Short: "Stop the local API server",
		Long: `Stop the local API server. Clusters and their jobs go on; requests in flight go on once
the server is started again.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), s) },
	}
}

// Stop stops the local server.
func Stop(ctx context.Context, s *session.Session) error {
	d, err := s.Daemon()
	if err != nil {
		return err
	}
	return d.WithLock(ctx, func() error {
		srv, err := d.Find(ctx)
		if errors.Is(err, daemon.ErrNotRunning) {
			s.IO.Printf("No API server is running.\n")
			return nil
		}
		if err != nil && srv.PID == 0 {
			return err
		}
		live := s.IO.StartLive(s.Now)
		defer live.Close()
		live.Step("Stopping the API server")
		c := api.NewClient(srv.URL, srv.Token, api.WithPatience(0))
		if err := c.Shutdown(ctx); err != nil {
			var ae *api.Error
			if errors.As(err, &ae) {
				return err
			}
			if err := daemon.Terminate(srv.PID); err != nil {
				return fmt.Errorf("process %d can't be asked to end: %w", srv.PID, err)
			}
		}
		if !daemon.AwaitExit(ctx, srv.PID, stopPatience) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			live.Fail()
			return fmt.Errorf("the API server (process %d) still runs %s after it was asked to end\nSee its log: %s", srv.PID, stopPatience, d.LogPath())
		}
		live.Drop()
		s.IO.Printf("The API server was stopped.\n")
		return nil
	})
}
