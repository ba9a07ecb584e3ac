package agent

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/sshd"
	"github.com/skyloom/skyloom/agent/supervisor"
)

// sshHost is the node's SSH server, made when it is first asked for: most nodes are never logged in to.
type sshHost struct {
	mu  sync.Mutex
	srv *sshd.Server
}

func (h *sshHost) sessions() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.srv == nil {
		return 0
	}
	return h.srv.Sessions()
}

func (h *sshHost) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.srv != nil {
		h.srv.Close()
	}
}

func (a *Agent) sshServer() (*sshd.Server, error) {
	a.ssh.mu.Lock()
	defer a.ssh.mu.Unlock()
	if a.ssh.srv != nil {
		return a.ssh.srv, nil
	}
	srv, err := sshd.New(sshd.Options{Dir: a.path("ssh"), Home: a.cfg.Home, Env: a.sessionEnv, IP: a.cfg.IP, Tool: ownProgram(a.exe), Log: a.log})
	if err != nil {
		return nil, diskError(err)
	}
	a.ssh.srv = srv
	return srv, nil
}

// ownProgram is a path under which this program can be started by a process of the node's, also after its file was
// replaced.
func ownProgram(exe string) string {
	if exe == "/proc/self/exe" {
		return fmt.Sprintf("/proc/%d/exe", os.Getpid())
	}
	return exe
}

// sessionEnv is what a login on this node starts from: as a job's, with all of the node's devices.
func (a *Agent) sessionEnv() []string {
	env := baseEnv(a.cfg.Home)
	if devices := a.deviceIDs(); len(devices) > 0 {
		env = append(env, "CUDA_VISIBLE_DEVICES="+strings.Join(devices, ","))
	}
	return lastWins(append(env, supervisor.EnvNode+"="+NodeMark(a.cfg)))
}

// SSHHost tells who the node's SSH server is.
func (a *Agent) SSHHost() (agentapi.SSHHost, error) {
	srv, err := a.sshServer()
	if err != nil {
		return agentapi.SSHHost{}, err
	}
	return agentapi.SSHHost{HostKey: srv.HostKey(), User: srv.User()}, nil
}

// upgradeSSH makes a call's connection a stream to the SSH server: POST /v1/ssh.
func (a *Agent) upgradeSSH(w http.ResponseWriter, r *http.Request) {
	var keys []ssh.PublicKey
	for _, line := range r.Header.Values(agentapi.SSHKeyHeader) {
		k, err := sshd.ParseKey(line)
		if err != nil {
			fail(w, invalid("an SSH key of the login: %v", err))
			return
		}
		keys = append(keys, k)
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), agentapi.SSHProtocol) || len(keys) == 0 {
		fail(w, invalid("a login over SSH needs the header Upgrade: %s and at least one %s", agentapi.SSHProtocol, agentapi.SSHKeyHeader))
		return
	}
	srv, err := a.sshServer()
	if err != nil {
		fail(w, err)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		fail(w, err)
		return
	}
	// net/http gives no connection back: from here on it is ours alone.
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+agentapi.SSHProtocol+"\r\n\r\n"); err != nil {
		conn.Close()
		return
	}
	go func() {
		if err := srv.Serve(readFirst(conn, rw.Reader), keys); err != nil {
			a.log.Info("ssh", "error", err)
		}
	}()
}

// readFirst gives back what was read ahead of a connection.
func readFirst(conn net.Conn, r *bufio.Reader) net.Conn {
	n := r.Buffered()
	if n == 0 {
		return conn
	}
	ahead, _ := r.Peek(n)
	return &aheadConn{Conn: conn, ahead: append([]byte(nil), ahead...)}
}

type aheadConn struct {
	net.Conn
	ahead []byte
}

func (c *aheadConn) Read(p []byte) (int, error) {
	if len(c.ahead) > 0 {
		n := copy(p, c.ahead)
		c.ahead = c.ahead[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}
