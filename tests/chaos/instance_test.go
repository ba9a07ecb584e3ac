package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/providers/local"
)

// instance is one installation: a home, and a server that is started again whenever it dies.
type instance struct {
	t      *testing.T
	dir    string // of everything
	home   string
	ledger string // jobs write here
	points string // marks of failpoints: those of the server and of the agents
	bin    string
	addr   string
	client *api.Client // patient: it outlives kills
	hasty  *api.Client // one try
	names  []string    // the server's failpoints
	book   book

	mu       sync.Mutex
	cmd      *exec.Cmd
	stopping bool
	gaveUp   bool          // it ended by itself
	held     chan struct{} // once dead it is not started again before this is closed
	killed   time.Time     // last kill by us, or death found
	deaths   int
	back     []time.Duration // from each death to the next healthy answer
	done     chan struct{}
}

// open starts an instance with every failpoint armed and disarmed by its mark. It is taken down at the test's end.
func open(t *testing.T) *instance {
	t.Helper()
	bin := programs(t)
	dir, err := os.MkdirTemp("", "sky-chaos-")
	if err != nil {
		t.Fatal(err)
	}
	in := &instance{t: t, dir: dir, home: filepath.Join(dir, "home"), ledger: filepath.Join(dir, "ledger"), points: filepath.Join(dir, "points"), bin: bin,
		done: make(chan struct{})}
	for _, d := range []string{in.home, in.points} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(in.ledger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(in.home, "config.yaml"), []byte("server:\n  web_ui: false\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	in.addr = freeAddr(t)
	in.names = serverPoints(t)
	for _, p := range append(append([]string(nil), in.names...), agent.Failpoints...) {
		in.disarm(p)
	}
	begin := time.Now()
	if err := in.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(in.close)
	in.healthy(60 * time.Second)
	t.Logf("%s: first start took %v", dir, time.Since(begin).Round(time.Millisecond))
	token, err := os.ReadFile(filepath.Join(in.home, "token"))
	if err != nil {
		t.Fatal(err)
	}
	tok := strings.TrimSpace(string(token))
	in.client = api.NewClient("http://"+in.addr, tok, api.WithPatience(90*time.Second))
	in.hasty = api.NewClient("http://"+in.addr, tok, api.WithPatience(0))
	return in
}

// serverPoints asks the server's program for its failpoints.
func serverPoints(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command(filepath.Join(programs(t), "sky-server"), "failpoints").Output()
	if err != nil {
		t.Fatalf("the server's failpoints: %v", err)
	}
	return strings.Fields(string(out))
}

func freeAddr(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// kills makes the failpoints of a program all end it, unless a mark says that they did.
func kills(points []string) string {
	return strings.Join(points, "=kill;") + "=kill"
}

func (in *instance) start() error {
	cmd := exec.Command(filepath.Join(in.bin, "sky-server"), "--addr", in.addr)
	cmd.Env = append(os.Environ(), "SKY_HOME="+in.home, failpoint.Env+"="+kills(in.names), failpoint.EnvDir+"="+in.points,
		local.EnvAgentFailpoints+"="+kills(agent.Failpoints), local.EnvAgentFailpointDir+"="+in.points)
	log, err := os.OpenFile(in.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	fmt.Fprintf(log, "---- start %d\n", in.deaths+1)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	in.cmd = cmd
	go in.supervise(cmd)
	return nil
}

// supervise starts the server again when it has died, and takes the time until it answers.
func (in *instance) supervise(cmd *exec.Cmd) {
	cmd.Wait()
	in.mu.Lock()
	held := in.held
	in.mu.Unlock()
	if held != nil {
		<-held
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.stopping {
		close(in.done)
		return
	}
	died := time.Now()
	in.deaths, in.killed = in.deaths+1, died
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		in.t.Errorf("the server ended by itself: %v", cmd.ProcessState)
		in.gaveUp = true
		close(in.done)
		return
	}
	if err := in.start(); err != nil {
		in.t.Errorf("the server could not be started again: %v", err)
		in.gaveUp = true
		close(in.done)
		return
	}
	go func(n int) {
		for in.health() != "healthy" {
			time.Sleep(10 * time.Millisecond)
			in.mu.Lock()
			stale := in.deaths != n || in.stopping
			in.mu.Unlock()
			if stale {
				return
			}
		}
		in.mu.Lock()
		in.back = append(in.back, time.Since(died))
		in.mu.Unlock()
	}(in.deaths)
}

func (in *instance) log() string { return filepath.Join(in.home, "server.log") }

func (in *instance) health() string {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	h, err := api.NewClient("http://"+in.addr, "", api.WithPatience(0)).Health(ctx)
	if err != nil {
		return ""
	}
	if h.Status == "needs_auth" { // ready, and we said nothing
		return "healthy"
	}
	return h.Status
}

// healthy waits until the server answers.
func (in *instance) healthy(limit time.Duration) {
	in.t.Helper()
	for end := time.Now().Add(limit); in.health() != "healthy"; time.Sleep(20 * time.Millisecond) {
		in.mu.Lock()
		gone := in.gaveUp
		in.mu.Unlock()
		if gone || time.Now().After(end) {
			in.t.Fatalf("the server does not answer for %v\n%s", limit, tail(in.log(), 40))
		}
	}
}

// kill ends the server as kill -9 does. It waits for its death.
func (in *instance) kill() {
	in.mu.Lock()
	cmd, before := in.cmd, in.deaths
	in.mu.Unlock()
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		in.t.Errorf("kill: %v", err)
		return
	}
	for n := before; n == before; time.Sleep(time.Millisecond) {
		in.mu.Lock()
		n = in.deaths
		in.mu.Unlock()
	}
}

// away kills the server and keeps it dead until the function it returns is called.
func (in *instance) away() (back func()) {
	in.mu.Lock()
	held := make(chan struct{})
	in.held = held
	cmd := in.cmd
	in.mu.Unlock()
	if err := cmd.Process.Kill(); err != nil {
		in.t.Errorf("kill: %v", err)
	}
	return sync.OnceFunc(func() {
		in.mu.Lock()
		in.held = nil
		in.mu.Unlock()
		close(held)
	})
}

func (in *instance) disarm(point string) {
	if err := os.WriteFile(failpoint.Marker(in.points, point), nil, 0o600); err != nil {
		in.t.Fatal(err)
	}
}

// arm makes the next process that reaches the point die there.
func (in *instance) arm(point string) {
	if err := os.Remove(failpoint.Marker(in.points, point)); err != nil {
		in.t.Fatal(err)
	}
}

// fired says that the point has killed since it was armed, and when.
func (in *instance) fired(point string) (time.Time, bool) {
	fi, err := os.Stat(failpoint.Marker(in.points, point))
	if err != nil {
		return time.Time{}, false
	}
	return fi.ModTime(), true
}

// close ends everything of the instance. The home is kept if the test failed.
func (in *instance) close() {
	in.mu.Lock()
	in.stopping = true
	cmd := in.cmd
	in.mu.Unlock()
	cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-in.done:
	case <-time.After(15 * time.Second):
		in.t.Errorf("the server does not end on SIGTERM")
		cmd.Process.Kill()
		<-in.done
	}
	in.sweep()
	if len(in.back) > 0 {
		var sum, most time.Duration
		for _, d := range in.back {
			sum, most = sum+d, max(most, d)
		}
		in.t.Logf("%d deaths of the server; back after %v on average, %v at most", in.deaths, (sum / time.Duration(len(in.back))).Round(time.Millisecond), most.Round(time.Millisecond))
	}
	if in.t.Failed() {
		in.t.Logf("kept for a look: %s\nlast lines of %s:\n%s", in.dir, in.log(), tail(in.log(), 40))
		return
	}
	os.RemoveAll(in.dir)
}

// sweep ends what is left of nodes, without the product's help.
func (in *instance) sweep() {
	for range 50 {
		left := in.processes()
		if len(left) == 0 {
			return
		}
		for _, p := range left {
			syscall.Kill(p.pid, syscall.SIGKILL)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// tail gives the last lines of a log, without those of answered calls.
func tail(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := slices.DeleteFunc(strings.Split(strings.TrimRight(string(b), "\n"), "\n"), func(l string) bool { return strings.Contains(l, "msg=call ") })
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
