//go:build linux

package sharedhost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/claims"
	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/agent/proctree"
	"github.com/skyloom/skyloom/internal/failpoint"
)

// Moments at which a call may be killed.
var (
	fpClaimed = failpoint.Register("host.create-after-claim")  // a share is claimed, no node is written down
	fpWritten = failpoint.Register("host.create-after-record") // the node is written down, not started
	fpSpawned = failpoint.Register("host.create-after-start")  // it was started, its process is not written down
	fpKilled  = failpoint.Register("host.delete-after-kill")   // its processes are gone, its folder and claim are there
	fpFreed   = failpoint.Register("host.delete-after-free")   // its claim is given back
)

// socketWait is how long a call waits for a node's socket before it leaves that to the caller.
const socketWait = 3 * time.Second

// spawn starts a node's init, detached, as well kept apart as this machine allows, and hands the claim over to it.
func (h *host) spawn(r *record, c claims.Claim) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r.Program, r.SpawnedAt, r.Boot, r.Init, r.Buried, r.Root = self, time.Now().UTC(), claims.BootID(), proctree.Proc{}, false, os.Geteuid() == 0
	ways := []bool{false}
	if os.Geteuid() == 0 {
		ways = []bool{true, false}
	}
	var last error
	for _, namespaces := range ways {
		r.Isolated = namespaces
		err := h.launch(r)
		if err == nil {
			c.Holder, c.Isolated, c.Boot = r.Init, r.Isolated, r.Boot
			return h.putClaim(c)
		}
		last = errors.Join(last, err)
		for _, d := range r.Cgroups {
			removeCgroup(d)
		}
		// What a kernel or a container forbids; anything else fails in every way.
		if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOSYS) && !errors.Is(err, syscall.ENOSPC) {
			break
		}
		h.remark("namespaces are refused here: nodes are plain process trees")
	}
	return fmt.Errorf("start node %s: %w", r.ID, last)
}

func (h *host) launch(r *record) error {
	name := cgroupPrefix(r) + strconv.FormatInt(time.Now().UnixNano()%1e9, 36)
	r.Cgroups, r.Unified = makeCgroups(name, r.Ask.CPUs, r.Ask.MemoryGB)
	conf, err := h.config(r)
	if err != nil {
		return err
	}
	if err := durable.WriteJSON(r.config(), conf); err != nil {
		return err
	}
	os.Remove(filepath.Join(r.agentDir(), "ended.json"))
	os.Remove(r.Socket)
	if err := r.save(); err != nil {
		return err
	}
	logFile, err := os.OpenFile(filepath.Join(r.dir, "init.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	// The shell enters the cgroups and becomes the agent, so that nothing of the node is born outside of them.
	script := `n=$1; shift; while [ "$n" -gt 0 ]; do echo 0 > "$1/cgroup.procs"; shift; n=$((n-1)); done; exec "$@"`
	args := append([]string{"-c", script, "sh", strconv.Itoa(len(r.Cgroups))}, r.Cgroups...)
	cmd := exec.Command("/bin/sh", append(args, r.Program, "init", "--config", r.config())...)
	if len(r.Cgroups) == 0 {
		cmd = exec.Command(r.Program, "init", "--config", r.config())
	}
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = "/", h.environment(r), logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if r.Isolated {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run %s: %w", r.Program, err)
	}
	if err := failpoint.Hit(fpSpawned); err != nil {
		return err
	}
	proc, ok := proctree.Find(cmd.Process.Pid)
	if !ok {
		cmd.Wait()
		return fmt.Errorf("it ended at once: %s", tail(logFile.Name()))
	}
	r.Init = proc
	exited := make(chan struct{})
	go func() { cmd.Wait(); close(exited) }()
	if err := r.save(); err != nil {
		return err
	}
	return h.awaitSocket(r, exited)
}

// awaitSocket waits until the agent listens, and gives the socket to the login's user.
func (h *host) awaitSocket(r *record, exited <-chan struct{}) error {
	deadline := time.Now().Add(socketWait)
	for pause := 2 * time.Millisecond; time.Now().Before(deadline); pause = min(2*pause, 20*time.Millisecond) {
		if c, err := net.Dial("unix", r.Socket); err == nil {
			c.Close()
			h.own(r.Socket)
			return nil
		}
		select {
		case <-exited:
			return fmt.Errorf("its init ended at once: %s", tail(filepath.Join(r.dir, "init.log")))
		case <-time.After(pause):
		}
	}
	return nil // a busy machine: the caller sees when it answers
}

// own gives a file to the user of the login, so that sshd, which works as that user, can open it.
func (h *host) own(path string) {
	if os.Geteuid() == 0 && h.req.Login > 0 {
		os.Lchown(path, h.req.Login, -1)
	}
}

func tail(path string) string {
	b, _ := os.ReadFile(path)
	if len(b) > 600 {
		b = b[len(b)-600:]
	}
	if s := strings.TrimSpace(string(b)); s != "" {
		return s
	}
	return "it printed nothing"
}

// config is what the node's agent starts from.
func (h *host) config(r *record) (agentapi.NodeConfig, error) {
	c := agentapi.NodeConfig{Installation: r.Installation, ClusterName: r.Cluster, ClusterHash: r.Hash, NodeID: r.ID, Rank: r.Rank,
		Dir: r.agentDir(), Home: filepath.Join(r.dir, "home"), Socket: r.Socket, IP: r.IP, Resources: r.resources(), SelfEnd: "exit",
		CgroupRoot: r.Unified, Isolated: r.Isolated}
	if r.Port > 0 {
		c.Listen = net.JoinHostPort(r.IP, strconv.Itoa(r.Port))
	}
	// A folder of ours below /tmp would be hidden by a /tmp of the node's own.
	if r.Isolated && !strings.HasPrefix(r.dir, "/tmp/") && !strings.HasPrefix(r.Socket, "/tmp/") {
		c.TmpDir = filepath.Join(r.dir, "tmp")
	}
	if len(r.Tune) > 0 {
		if err := json.Unmarshal(r.Tune, &c); err != nil {
			return c, errorf(KindInvalid, "the agent's configuration: %v", err)
		}
	}
	return c, nil
}

// inherited are the login's variables that a node gets: how this machine is set up.
var inherited = []string{"PATH", "LANG", "LANGUAGE", "TZ", "SHELL", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"}

// environment is what the node's init starts with.
func (h *host) environment(r *record) []string {
	env := []string{"HOME=" + filepath.Join(r.dir, "home"), "SKYLOOM_NODE=" + r.mark()}
	name := strconv.Itoa(os.Geteuid())
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	env = append(env, "USER="+name, "LOGNAME="+name)
	for _, k := range inherited {
		v, ok := os.LookupEnv(k)
		if k == "PATH" && v == "" {
			v, ok = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", true
		}
		if ok {
			env = append(env, k+"="+v)
		}
	}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "LC_") {
			env = append(env, kv)
		}
	}
	return append(env, r.Env...)
}

// pickPort finds a port for the agent's peers on the node's address that no other node of this root has.
func (h *host) pickPort(ip string, prefer int, all []*record, own string) (int, error) {
	taken := map[int]bool{}
	for _, o := range all {
		taken[o.Port] = taken[o.Port] || o.ID != own
	}
	for try := range 50 {
		port := 0
		if try == 0 && prefer > 0 && !taken[prefer] {
			port = prefer
		}
		l, err := net.Listen("tcp", net.JoinHostPort(ip, strconv.Itoa(port)))
		if err != nil {
			if port == 0 {
				return 0, fmt.Errorf("no port on %s for the other nodes of the cluster: %w", ip, err)
			}
			continue
		}
		port = l.Addr().(*net.TCPAddr).Port
		l.Close()
		if !taken[port] {
			return port, nil
		}
	}
	return 0, fmt.Errorf("no free port on %s", ip)
}

// address is where the other nodes of the cluster reach this machine: as the server came in, if that is one of the
// machine's own addresses.
func address(reached string) (string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	first := ""
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if n.IP.String() == reached {
			return reached, nil
		}
		if first == "" && n.IP.IsGlobalUnicast() {
			first = n.IP.String()
		}
	}
	if first == "" {
		first = "127.0.0.1"
	}
	return first, nil
}

// writeTLS puts the keys where the agent looks for them.
func (h *host) writeTLS(r *record) error {
	if h.req.TLS == nil {
		return nil
	}
	dir := filepath.Join(r.agentDir(), "tls")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return durable.Full(err)
	}
	for name, pem := range map[string]string{"ca.pem": h.req.TLS.CA, "cert.pem": h.req.TLS.Cert, "key.pem": h.req.TLS.Key} {
		if err := durable.WriteFile(filepath.Join(dir, name), []byte(pem), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (h *host) putClaim(c claims.Claim) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	l, err := claims.Open(ctx, h.claimsDir)
	if err != nil {
		return err
	}
	defer l.Close()
	return l.Put(c)
}

func (h *host) remark(s string) {
	if h.note == "" {
		h.note = s
	}
}
