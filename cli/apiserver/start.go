package apiserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/internal/daemon"
)

// StartOptions is `sky api start`.
type StartOptions struct {
	Deploy     bool
	Host       string
	Foreground bool
	BasicAuth  bool
}

// NewStart makes `sky api start`.
func NewStart(s *session.Session, run func(context.Context, *session.Session, *StartOptions) error) *cobra.Command {
	o := &StartOptions{}
	if run == nil {
		run = Start
	}
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Start the local API server",
		Long: `Start the local API server. Other commands do that by themselves when they need it. It
listens on 127.0.0.1:46580, or on a free port if that one is taken.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), s, o) },
	}
	fs := cmd.Flags()
	fs.BoolVar(&o.Deploy, "deploy", false, "dedicate this machine to the server")
	fs.StringVar(&o.Host, "host", "127.0.0.1", "the `ADDRESS` to listen on")
	fs.BoolVar(&o.Foreground, "foreground", false, "stay in front and write the log to the terminal")
	fs.BoolVar(&o.BasicAuth, "enable-basic-auth", false, "ask for a user name and password")
	fs.Lookup("deploy").Hidden, fs.Lookup("enable-basic-auth").Hidden = true, true
	return cmd
}

// Start starts the local server.
func Start(ctx context.Context, s *session.Session, o *StartOptions) error {
	later := ""
	switch {
	case o.Deploy:
		later = "--deploy"
	case o.BasicAuth:
		later = "--enable-basic-auth"
	case o.Host != "127.0.0.1" && o.Host != "localhost":
		later = "--host " + o.Host
	}
	if later != "" {
		return fmt.Errorf("%s: a server for more than this machine comes with a later release; this one listens on 127.0.0.1 only\nTo reach it from elsewhere: ssh -L 46580:127.0.0.1:46580 HOST", later)
	}
	if ep, err := s.Endpoint(); err != nil {
		return err
	} else if ep != "" {
		s.IO.Warnf("Commands use the server at %s, as the environment or the configuration says, not the local one.", ep)
	}
	d, err := s.Daemon()
	if err != nil {
		return err
	}
	d.NoStart = false
	if o.Foreground {
		return foreground(ctx, s, d)
	}
	srv, err := s.Ensure(ctx, d)
	if err != nil {
		return err
	}
	if srv.Started {
		s.IO.Printf("The API server runs at %s (process %d).\n", srv.URL, srv.PID)
	} else {
		s.IO.Printf("The API server already runs at %s (process %d).\n", srv.URL, srv.PID)
	}
	s.IO.Notef("Its log: %s", d.LogPath())
	return nil
}

func foreground(ctx context.Context, s *session.Session, d *daemon.Daemon) error {
	if srv, err := d.Find(ctx); err == nil {
		return fmt.Errorf("the API server already runs at %s (process %d)\nStop it first: sky api stop", srv.URL, srv.PID)
	}
	cmd, err := d.Command()
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.IO.In, s.IO.Out, s.IO.Err
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s could not be started: %w", cmd.Path, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err = <-done:
	case <-ctx.Done():
		_ = cmd.Process.Signal(os.Interrupt)
		err = <-done
	}
	var ee *exec.ExitError
	if errors.As(err, &ee) && ee.ExitCode() > 0 {
		return session.Exit(ee.ExitCode())
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}
