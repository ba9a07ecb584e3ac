package agent_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/skyloom/skyloom/agent/agentapi"
)

// streamConn makes a net.Conn of an upgraded stream.
type streamConn struct {
	io.ReadWriteCloser
	net.Conn
}

func (s streamConn) Read(p []byte) (int, error)       { return s.ReadWriteCloser.Read(p) }
func (s streamConn) Write(p []byte) (int, error)      { return s.ReadWriteCloser.Write(p) }
func (s streamConn) Close() error                     { return s.ReadWriteCloser.Close() }
func (s streamConn) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (s streamConn) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (s streamConn) SetDeadline(time.Time) error      { return nil }
func (s streamConn) SetReadDeadline(time.Time) error  { return nil }
func (s streamConn) SetWriteDeadline(time.Time) error { return nil }

// logIn opens an SSH connection to a node.
func (n *testNode) logIn() *ssh.Client {
	n.t.Helper()
	_, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		n.t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		n.t.Fatal(err)
	}
	host, err := n.api.SSHHost(ctx(n.t))
	if err != nil {
		n.t.Fatal(err)
	}
	raw, err := base64.StdEncoding.DecodeString(strings.Fields(host.HostKey)[1])
	if err != nil {
		n.t.Fatal(err)
	}
	pub, err := ssh.ParsePublicKey(raw)
	if err != nil {
		n.t.Fatal(err)
	}
	conn, err := n.api.DialSSH(ctx(n.t), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))))
	if err != nil {
		n.t.Fatal(err)
	}
	c, chans, reqs, err := ssh.NewClientConn(streamConn{ReadWriteCloser: conn}, "", &ssh.ClientConfig{User: host.User,
		Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.FixedHostKey(pub)})
	if err != nil {
		n.t.Fatal(err)
	}
	client := ssh.NewClient(c, chans, reqs)
	n.t.Cleanup(func() { client.Close() })
	return client
}

func TestSSH(t *testing.T) {
	n := cluster(t, 1, gpus(2))[0]
	host, err := n.api.SSHHost(ctx(t))
	if err != nil || host.User == "" {
		t.Fatalf("%+v, %v", host, err)
	}
	c := n.logIn()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.Output(`echo "$HOME|$CUDA_VISIBLE_DEVICES|${SKYPILOT_LEFT-none}|$SKYLOOM_NODE"; sleep 300 >/dev/null 2>&1 </dev/null & echo $!`)
	lines := strings.Fields(string(out))
	if err != nil || lines[0] != n.cfg.Home+"|0,1|none|"+hash+"/"+n.cfg.NodeID {
		t.Errorf("%q, %v", out, err)
	}
	// The agent is replaced: the login ends, what it left in the background does not, and the host key is the same.
	n.kill9()
	if _, err := c.NewSession(); err == nil {
		t.Error("a session of an agent that is gone")
	}
	if again, err := n.api.SSHHost(ctx(t)); err != nil || again != host {
		t.Errorf("%+v became %+v, %v", host, again, err)
	}
	if !strings.Contains(output(t, n.logIn(), "ps -o args= "+lines[1]), "sleep 300") {
		t.Error("the background process is gone")
	}
	n.stop()
	if _, err := os.Stat("/proc/" + lines[1]); err == nil {
		t.Error("a process of a login outlives its node")
	}
}

func output(t *testing.T, c *ssh.Client, command string) string {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	out, err := s.Output(command)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestSSHRefused(t *testing.T) {
	n := cluster(t, 1)[0]
	for _, keys := range [][]string{nil, {"no key"}, {"ssh-ed25519 AAAA"}} {
		if _, err := n.api.DialSSH(ctx(t), keys...); !agentapi.IsKind(err, agentapi.KindInvalid) {
			t.Errorf("%q: %v", keys, err)
		}
	}
}

// TestAutostopWaitsForSSH checks that a login keeps a node from its idle end, unless the rule says otherwise.
func TestAutostopWaitsForSSH(t *testing.T) {
	for waitFor, waits := range map[string]bool{"jobs_and_ssh": true, "jobs": false} {
		t.Run(waitFor, func(t *testing.T) {
			n := cluster(t, 1)[0]
			c := n.logIn()
			s, err := c.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			if err := s.RequestPty("xterm", 24, 80, nil); err != nil {
				t.Fatal(err)
			}
			if err := s.Shell(); err != nil {
				t.Fatal(err)
			}
			if _, err := n.api.SetAutostop(ctx(t), agentapi.Autostop{IdleSeconds: 0.3, WaitFor: waitFor, Generation: 1}); err != nil {
				t.Fatal(err)
			}
			draining := func() bool {
				i, err := n.api.Info(ctx(t))
				return err == nil && i.Draining
			}
			if !waits {
				n.eventually("it drains", draining)
				return
			}
			time.Sleep(time.Second)
			if draining() {
				t.Error("it drains under a login")
			}
			c.Close()
			n.eventually("it drains", draining)
		})
	}
}
