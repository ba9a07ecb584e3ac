package chaos

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/providers/local"
	"github.com/skyloom/skyloom/tests/rig"
)

// instance is one installation: a home, and a server that is started again whenever it dies.
type instance struct {
	t *testing.T
	*rig.Server
	*rig.Load
	dir    string // of everything
	home   string
	ledger string // jobs write here
	points string // marks of failpoints: those of the server and of the agents
	bin    string
	names  []string // the server's failpoints
}

// open starts an instance with every failpoint armed and disarmed by its mark. It is taken down at the test's end.
func open(t *testing.T) *instance {
	t.Helper()
	return openWith(t, "")
}

// openWith is open with more lines of configuration.
func openWith(t *testing.T, more string) *instance {
	t.Helper()
	bin := programs(t)
	dir, err := os.MkdirTemp("", "sky-chaos-")
	if err != nil {
		t.Fatal(err)
	}
	in := &instance{t: t, dir: dir, home: filepath.Join(dir, "home"), ledger: filepath.Join(dir, "ledger"), points: filepath.Join(dir, "points"), bin: bin}
	in.Server = &rig.Server{T: t, Log: filepath.Join(in.home, "server.log"), Addr: rig.Reserve(t), Command: in.command}
	for _, d := range []string{in.home, in.points} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(in.ledger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(in.home, "config.yaml"), []byte("server:\n  web_ui: false\n"+more), 0o600); err != nil {
		t.Fatal(err)
	}
	in.names = serverPoints(t)
	for _, p := range append(append([]string(nil), in.names...), agent.Failpoints...) {
		in.disarm(p)
	}
	begin := time.Now()
	if err := in.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(in.close)
	in.Healthy(60 * time.Second)
	t.Logf("%s: first start took %v", dir, time.Since(begin).Round(time.Millisecond))
	token, err := os.ReadFile(filepath.Join(in.home, "token"))
	if err != nil {
		t.Fatal(err)
	}
	in.Load = &rig.Load{T: t, Script: in.script}
	in.Client, in.Hasty = in.Clients(strings.TrimSpace(string(token)))
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

// kills makes the failpoints of a program all end it, unless a mark says that they did.
func kills(points []string) string {
	return strings.Join(points, "=kill;") + "=kill"
}

// command makes the server's process.
func (in *instance) command(int) *exec.Cmd {
	cmd := exec.Command(filepath.Join(in.bin, "sky-server"), "--addr", in.Addr)
	cmd.Env = append(os.Environ(), "SKY_HOME="+in.home, failpoint.Env+"="+kills(in.names), failpoint.EnvDir+"="+in.points,
		local.EnvAgentFailpoints+"="+kills(agent.Failpoints), local.EnvAgentFailpointDir+"="+in.points)
	return cmd
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
	in.Stop()
	in.sweep()
	if in.t.Failed() {
		in.t.Logf("kept for a look: %s\nlast lines of %s:\n%s", in.dir, in.Log, rig.Tail(in.Log, 40))
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
