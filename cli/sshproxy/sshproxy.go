// Package sshproxy is `sky ssh-proxy`: what ssh runs to reach a node. It carries the bytes of one connection between
// ssh, on its standard streams, and the API server.
//
// It must stay thin: it starts with every ssh, scp and rsync.
package sshproxy

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/sshhosts"
	"github.com/skyloom/skyloom/internal/config"
	"github.com/skyloom/skyloom/internal/sshconfig"
)

// bufferSize of each direction, in bytes.
const bufferSize = 128 << 10

// Options is `sky ssh-proxy`.
type Options struct {
	Cluster string
	Node    int
	Home    string // SKY_HOME to use; empty: as always
	Server  string // address of the API server; empty: as always
}

// New makes `sky ssh-proxy`.
func New(s *session.Session, run func(context.Context, *session.Session, *Options) error) *cobra.Command {
	o := &Options{}
	if run == nil {
		run = Run
	}
	cmd := &cobra.Command{
		Use:    "ssh-proxy CLUSTER",
		Short:  "Carry an SSH connection to a node; ssh runs it as its ProxyCommand",
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return session.Usagef("exactly one cluster")
			}
			if o.Node < 0 {
				return session.Usagef("nodes are counted from 0, the head")
			}
			o.Cluster = args[0]
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&o.Node, "node", 0, "the node's `RANK`; 0 is the head")
	fs.StringVar(&o.Home, "home", "", "use this SKY_HOME `FOLDER`")
	fs.StringVar(&o.Server, "server", "", "use the API server at this `ADDRESS`")
	return cmd
}

// Run carries one connection to its end.
func Run(ctx context.Context, s *session.Session, o *Options) error {
	override(s, config.EnvHome, o.Home)
	override(s, session.EnvEndpoint, o.Server)
	home, err := s.Home()
	if err != nil {
		return err
	}
	dir := sshconfig.At(home)
	key, err := dir.Key()
	if err != nil {
		return err
	}
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	t, err := c.DialSSH(ctx, o.Cluster, o.Node, key)
	if err != nil {
		return err
	}
	defer t.Close()
	if t.HostKey != "" { // before ssh sees the node's: it looks the pin up only then
		if err := dir.Pin(sshhosts.Proxy(home), o.Cluster, o.Node, t.HostKey); err != nil {
			s.IO.Warnf("the node's host key can't be pinned: %v", err)
		}
	}
	return carry(ctx, s.IO.In, s.IO.Out, t)
}

func override(s *session.Session, name, value string) {
	if value == "" {
		return
	}
	lookup := s.LookupEnv
	s.LookupEnv = func(k string) (string, bool) {
		if k == name {
			return value, true
		}
		return lookup(k)
	}
	s.Environ = append(s.Environ, name+"="+value)
}

// carry copies both ways until the node's side ends, ssh does, or ctx.
func carry(ctx context.Context, in io.Reader, out io.Writer, t *api.Tunnel) error {
	widen(in, out)
	ended := make(chan error, 2)
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{t}, struct{ io.Reader }{in}, make([]byte, bufferSize))
		ended <- err
	}()
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{t}, make([]byte, bufferSize))
		ended <- err
	}()
	select {
	case err := <-ended: // ssh sends to its very end: nothing is on its way back that it would still read
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
