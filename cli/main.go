package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/skyloom/skyloom/cli/console"
	"github.com/skyloom/skyloom/cli/follow"
	"github.com/skyloom/skyloom/cli/session"
)

// Main runs `sky` with this process's streams and environment, and returns the exit code. args leave the program's
// name out.
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		stop() // a second Ctrl-C ends the program at once
	}()
	return Run(ctx, session.System(args))
}

// Run runs one command in a session and returns the exit code. Cancelling ctx is what Ctrl-C does.
func Run(ctx context.Context, s *session.Session) int {
	if len(s.Args) == 1 && (s.Args[0] == "--version" || s.Args[0] == "-v") { // nothing else is set up for it
		printVersion(s)
		return 0
	}
	s.IO.Interrupted = ctx.Done()
	root := NewRoot(s)
	args := normalise(s.Args)
	if err := knownCommand(root, args); err != nil {
		return fail(ctx, s, "sky", err)
	}
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	return fail(ctx, s, cmd.CommandPath(), s.Explain(ctx, err))
}

// normalise spells the one flag that looks like several short ones as a long one: -no-d.
func normalise(args []string) []string {
	out := make([]string, len(args))
	copy(out, args)
	for i, a := range out {
		if a == "--" {
			break
		}
		if a == "-no-d" {
			out[i] = "--no-detach-run"
		}
	}
	return out
}

// fail says what went wrong and gives the exit code.
func fail(ctx context.Context, s *session.Session, path string, err error) int {
	var exit *session.ExitError
	if errors.As(err, &exit) {
		return exit.Code
	}
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, ctx.Err())) {
		s.IO.Notef("Interrupted.")
		return follow.ExitInterrupted
	}
	var usage *session.UsageError
	if errors.As(err, &usage) {
		s.IO.Notef("%s %s", s.IO.ErrStyle(session.Red, "Error:"), usage.Msg)
		s.IO.Notef("See: %s --help", path)
		return 2
	}
	var abort *console.ErrAbort
	if errors.As(err, &abort) {
		s.IO.Notef("%s", abort.Error())
		return 1
	}
	s.IO.Notef("%s %s", s.IO.ErrStyle(session.Red, "Error:"), strings.TrimSpace(err.Error()))
	return 1
}
