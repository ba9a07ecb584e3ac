package cluster

import (
	"github.com/spf13/pflag"

	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/session"
)

func addYes(fs *pflag.FlagSet, p *bool) { fs.BoolVarP(p, "yes", "y", false, "don't ask") }

func addAsync(fs *pflag.FlagSet, p *bool) {
	flags.Pair(fs, p, "async", "", false, "return once the server has the request")
}

func addWorkspace(fs *pflag.FlagSet, s *session.Session) {
	fs.StringVarP(&s.Workspace, "workspace", "w", "", "the `NAME` of the workspace to work in")
}

func addWaitFor(fs *pflag.FlagSet, p *string) {
	flags.Choice(fs, p, "wait-for", "", "", []string{"jobs_and_ssh", "jobs", "none"}, "what keeps a cluster from being idle (default jobs_and_ssh)")
}

// graceful is the flags of stop and down that let jobs and uploads end first.
type graceful struct {
	On      bool
	Timeout *int // seconds
}

func (g *graceful) add(fs *pflag.FlagSet) {
	fs.BoolVar(&g.On, "graceful", false, "cancel running jobs and finish pending uploads first")
	flags.Int(fs, &g.Timeout, "graceful-timeout", "", 0, "with --graceful: go on after `SECONDS`")
}

func (g *graceful) check() error {
	if g.Timeout != nil && !g.On {
		return session.Usagef("--graceful-timeout goes with --graceful")
	}
	return nil
}
