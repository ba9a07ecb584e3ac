// Package sshhosts keeps the user's ssh configuration in step with the clusters, so that `ssh CLUSTER` works.
//
// It decides which clusters have an entry; package sshconfig knows the files. What goes wrong here is a warning: no
// command fails because ssh could not be set up.
package sshhosts

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/internal/sshconfig"
)

// EnvOff keeps sky from touching ssh's configuration when set.
const EnvOff = "SKYLOOM_NO_SSH_CONFIG"

// patience bounds how long a command waits for the entry of its cluster.
const patience = 10 * time.Second

// keeper is what one change needs.
type keeper struct {
	s      *session.Session
	dir    sshconfig.Dir
	proxy  sshconfig.Proxy
	server string
}

func open(s *session.Session) (*keeper, error) {
	home, err := s.Home()
	if err != nil {
		return nil, err
	}
	server, err := s.Endpoint()
	if err != nil {
		return nil, err
	}
	return &keeper{s: s, dir: sshconfig.At(home), proxy: Proxy(home), server: server}, nil
}

// Proxy is the command line by which ssh reaches nodes: this program, for this SKY_HOME.
func Proxy(home string) sshconfig.Proxy {
	exe := program()
	return func(name string, c sshconfig.Cluster, rank int) string {
		line := sshconfig.Quote(exe) + " ssh-proxy --home " + sshconfig.Quote(home)
		if c.Server != "" {
			line += " --server " + sshconfig.Quote(c.Server)
		}
		return line + " --node " + strconv.Itoa(rank) + " " + sshconfig.Quote(name)
	}
}

// program is the path of this program: that by which it is found on PATH, which outlives upgrades, or its own.
func program() string {
	exe, err := os.Executable()
	if err != nil {
		return "sky"
	}
	mine, err := os.Stat(exe)
	if err != nil {
		return exe
	}
	for _, name := range []string{os.Args[0], "sky"} {
		found, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if st, err := os.Stat(found); err != nil || !os.SameFile(st, mine) {
			continue
		}
		if abs, err := filepath.Abs(found); err == nil {
			return abs
		}
	}
	return exe
}

// Up writes the entry of a cluster that is UP, in the background. The returned function waits for it and says whether
// ssh is set up. A cluster whose incarnation has an entry already is left alone if known says so.
func Up(ctx context.Context, s *session.Session, c *api.Client, name, hash string, known bool) (wait func() bool) {
	if s.Env(EnvOff) != "" {
		return func() bool { return false }
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(ctx, patience)
	go func() { done <- up(ctx, s, c, name, hash, known) }()
	return func() bool {
		defer cancel()
		select {
		case err := <-done:
			if nothingThere(err) {
				return false
			}
			return warn(s, err)
		case <-ctx.Done():
			return false
		}
	}
}

// nothingThere says that there is nothing to log in to: the cluster has gone again, or the server is an older one.
func nothingThere(err error) bool {
	var e *api.Error
	return errors.As(err, &e) && slices.Contains([]string{api.ErrNotFound, api.ErrClusterDoesNotExist, api.ErrClusterNotUp, api.ErrNotSupported}, e.Kind)
}

func warn(s *session.Session, err error) bool {
	if err != nil {
		s.IO.Warnf("ssh is not set up for clusters: %v", err)
	}
	return err == nil
}

func up(ctx context.Context, s *session.Session, c *api.Client, name, hash string, known bool) error {
	k, err := open(s)
	if err != nil {
		return err
	}
	if known {
		if cs, err := k.dir.Read(); err == nil && hash != "" && cs[name].Hash == hash && cs[name].Server == k.server {
			return nil
		}
	}
	if _, err := k.dir.Key(); err != nil {
		return err
	}
	hosts, err := c.SSHHosts(ctx, name)
	if err != nil {
		return err
	}
	entry := sshconfig.Cluster{Hash: hosts.Hash, Server: k.server}
	for _, h := range hosts.Hosts {
		entry.Hosts = append(entry.Hosts, sshconfig.Host{IP: h.IP, User: h.User, HostKey: h.HostKey})
	}
	if err := k.dir.Update(k.proxy, func(cs sshconfig.Clusters) { cs[name] = entry }); err != nil {
		return err
	}
	return k.dir.Include(s.UserHome)
}

// Gone removes the entries of clusters that were stopped or removed.
func Gone(s *session.Session, names ...string) {
	if s.Env(EnvOff) != "" {
		return
	}
	k, err := open(s)
	if err != nil {
		warn(s, err)
		return
	}
	warn(s, k.change(func(cs sshconfig.Clusters) { k.drop(cs, names) }))
}

func (k *keeper) drop(cs sshconfig.Clusters, names []string) {
	for _, n := range names {
		if c, ok := cs[n]; ok && c.Server == k.server {
			delete(cs, n)
		}
	}
}

// Seen brings the entries into line with what a listing showed: entries for clusters that are UP, none for the others
// listed, for names that were asked for and are missing, and, if everything was listed, for what is not listed.
func Seen(s *session.Session, listed []api.Cluster, missing []string, everything bool) {
	if s.Env(EnvOff) != "" {
		return
	}
	k, err := open(s)
	if err != nil {
		warn(s, err)
		return
	}
	warn(s, k.change(func(cs sshconfig.Clusters) {
		k.drop(cs, missing)
		if everything {
			for name, c := range cs {
				if c.Server == k.server && !slices.ContainsFunc(listed, func(l api.Cluster) bool { return l.Name == name }) {
					delete(cs, name)
				}
			}
		}
		for _, l := range listed {
			if l.Status != api.ClusterUp && l.Status != api.ClusterAutostopping {
				k.drop(cs, []string{l.Name})
				continue
			}
			cs[l.Name] = entryOf(l, cs[l.Name], k.server)
		}
	}))
}

// entryOf is the entry of a listed cluster; what is known of the same incarnation stays.
func entryOf(l api.Cluster, old sshconfig.Cluster, server string) sshconfig.Cluster {
	e := sshconfig.Cluster{Hash: l.Hash, Server: server, Hosts: make([]sshconfig.Host, max(l.Nodes, 1))}
	for i := range e.Hosts {
		if old.Hash == l.Hash && old.Server == server && i < len(old.Hosts) {
			e.Hosts[i] = old.Hosts[i]
		}
		switch { // only for people, and Up knows better
		case e.Hosts[i].IP != "":
		case i == 0 && l.HeadIP != "":
			e.Hosts[i].IP = l.HeadIP
		case i < len(l.NodeIPs):
			e.Hosts[i].IP = l.NodeIPs[i]
		}
	}
	return e
}

// change applies f, and touches nothing if that changes nothing.
func (k *keeper) change(f func(sshconfig.Clusters)) error {
	now, err := k.dir.Read()
	if err != nil {
		return err
	}
	next := make(sshconfig.Clusters, len(now))
	for name, c := range now {
		next[name] = c
	}
	if f(next); equal(now, next) {
		return nil
	}
	if len(next) > 0 {
		if _, err := k.dir.Key(); err != nil {
			return err
		}
	}
	if err := k.dir.Update(k.proxy, f); err != nil || len(next) == 0 {
		return err
	}
	return k.dir.Include(k.s.UserHome)
}

func equal(a, b sshconfig.Clusters) bool {
	if len(a) != len(b) {
		return false
	}
	for name, c := range a {
		d, ok := b[name]
		if !ok || c.Hash != d.Hash || c.Server != d.Server || !slices.Equal(c.Hosts, d.Hosts) {
			return false
		}
	}
	return true
}
