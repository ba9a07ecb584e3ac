//go:build linux

package labchaos

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"google.golang.org/grpc"

	"github.com/skyloom/skyloom/tests/lab"
	"github.com/skyloom/skyloom/tests/rig"
)

// site is one installation: a home, and a server in the lab's network that is started again whenever it dies.
type site struct {
	t *testing.T
	*rig.Server
	*rig.Load
	lab  *lab.Lab
	dir  string
	home string
	// infra is where tasks go; empty: the pool of all hosts. others are keys of jobs that are not ours.
	infra  string
	others map[string]bool
}

// What the server of a site counts a silent host as, and when.
const (
	suspectAfter = 3 * time.Second
	lostAfter    = 15 * time.Second
)

// open makes an installation with its pools file, and starts its server.
func open(t *testing.T, l *lab.Lab, name, pools string, port int) *site {
	t.Helper()
	dir, err := os.MkdirTemp("", "sky-labchaos-"+name+"-")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, lab: l, dir: dir, home: filepath.Join(dir, "home")}
	if err := os.Mkdir(s.home, 0o700); err != nil {
		t.Fatal(err)
	}
	s.write("ssh_node_pools.yaml", pools)
	s.write("config.yaml", fmt.Sprintf("server: {web_ui: false}\nlocal: {enabled: false}\nhealth: {suspect_after: %v, lost_after: %v}\nprovision: {ssh_timeout: 3}\n", suspectAfter, lostAfter))
	s.Server = &rig.Server{T: t, Log: filepath.Join(s.home, "server.log"), Addr: fmt.Sprint("127.0.0.1:", port), Command: s.command,
		HTTP: &http.Client{Transport: &http.Transport{DialContext: l.Dialer(), MaxIdleConnsPerHost: 16}}}
	s.Load = &rig.Load{T: t, Script: s.script, Patience: patience}
	t.Cleanup(s.close)
	s.begin()
	token, err := os.ReadFile(filepath.Join(s.home, "token"))
	if err != nil {
		t.Fatal(err)
	}
	s.Client, s.Hasty = s.Clients(strings.TrimSpace(string(token)))
	return s
}

// patience is how long a request may take to end: one that needs a host that is away waits for it.
const patience = 5 * time.Minute

// begin starts the server, for the first time or after a halt.
func (s *site) begin() {
	s.t.Helper()
	if err := s.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.Healthy(2 * time.Minute)
}

// write replaces a file of the home, whole.
func (s *site) write(name, text string) {
	path := filepath.Join(s.home, name)
	err := os.WriteFile(path+".new", []byte(text), 0o600)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		s.t.Error(err)
	}
}

func (s *site) command(int) *exec.Cmd {
	cmd := s.lab.Command(filepath.Join(binDir, "sky-server"), "--addr", s.Addr)
	cmd.Env = []string{"SKY_HOME=" + s.home, "HOME=" + s.home, "PATH=" + os.Getenv("PATH"), "USER=chaos", "SKYLOOM_NO_SSH_CONFIG=1"}
	return cmd
}

// close ends the server. Its home is kept if the test failed.
func (s *site) close() {
	if s.Running() {
		s.Stop()
	}
	if s.t.Failed() {
		s.t.Logf("kept for a look: %s\nlast lines of %s:\n%s", s.dir, s.Log, rig.Tail(s.Log, 40))
		return
	}
	os.RemoveAll(s.dir)
}

// engine connects to the server's engine.
func (s *site) engine(ctx context.Context) (client.Client, error) {
	i, err := s.Client.Info(ctx)
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(i.Temporal.TokenFile)
	if err != nil {
		return nil, err
	}
	dial := grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return s.lab.Dial(ctx, "tcp", addr) })
	return client.DialContext(ctx, client.Options{HostPort: "passthrough:///" + i.Temporal.Address, Namespace: i.Temporal.Namespace,
		Credentials: client.NewAPIKeyStaticCredentials(strings.TrimSpace(string(key))), ConnectionOptions: client.ConnectionOptions{TLSDisabled: true, DialOptions: []grpc.DialOption{dial}}})
}

// reap has the reaper make its round now, not when its five minutes are over.
func (s *site) reap() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := s.engine(ctx)
	if err == nil {
		defer c.Close()
		err = c.ScheduleClient().GetHandle(ctx, "reaper").Trigger(ctx, client.ScheduleTriggerOptions{Overlap: enumspb.SCHEDULE_OVERLAP_POLICY_SKIP})
	}
	if err != nil {
		s.t.Errorf("the reaper's round: %v", err)
	}
}

// poolsOf is a pools file of hosts: one pool of them all, or one per host.
func poolsOf(l *lab.Lab, hosts []*lab.Host, each bool) string {
	var b strings.Builder
	for i, h := range hosts {
		switch {
		case each:
			fmt.Fprintf(&b, "%s:\n  hosts:\n", h.Name)
		case i == 0:
			b.WriteString("lab:\n  hosts:\n")
		}
		fmt.Fprintf(&b, "    - {ip: %s, user: %s, identity_file: %s}\n", h.Addr, h.User, l.KeyFile)
	}
	return b.String()
}
