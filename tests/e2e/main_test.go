package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// programs of the product.
var programs = []string{"sky", "sky-agent", "sky-server"}

var (
	root   string // everything the tests write is below it; short, since sockets lie there
	binDir string
	homes  atomic.Int64
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if runtime.GOOS != "linux" {
		fmt.Println("skipped: these tests look into /proc, and the infra of this machine is at its best, on Linux")
		return 0
	}
	var err error
	if root, err = os.MkdirTemp("", "se"); err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(root)
	if binDir, err = build(); err != nil {
		fmt.Println(err)
		return 1
	}
	code := m.Run()
	if left := settled(root, 30*time.Second); len(left) > 0 {
		fmt.Println("processes were left behind:")
		for _, p := range left {
			fmt.Printf("  %d %s\n", p.pid, p.args)
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
		code = 1
	}
	return code
}

// build makes the programs, or takes those of the folder that SKYLOOM_E2E_BIN names.
func build() (string, error) {
	if dir := os.Getenv("SKYLOOM_E2E_BIN"); dir != "" {
		for _, p := range programs {
			if _, err := os.Stat(filepath.Join(dir, p)); err != nil {
				return "", fmt.Errorf("SKYLOOM_E2E_BIN: %w", err)
			}
		}
		return dir, nil
	}
	dir := filepath.Join(root, "bin")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	for _, p := range programs {
		cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(dir, p), "./cmd/"+p)
		cmd.Dir = filepath.Join("..", "..")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("go build ./cmd/%s: %w\n%s", p, err, out)
		}
	}
	return dir, nil
}

// newHome is a SKY_HOME of its own.
func newHome(t testing.TB) string {
	dir := filepath.Join(root, fmt.Sprintf("h%02d", homes.Add(1))) // none begins as another does: processes are told by it
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// sky runs a command against a SKY_HOME and gives all that it printed.
func sky(home string, limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(binDir, "sky"), args...)
	cmd.Env = append(os.Environ(), "SKY_HOME="+home, "HOME="+home, "NO_COLOR=1", "SKYLOOM_NO_AUTOSTART=1")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	return out.String(), err
}

// finish takes down what is left in a SKY_HOME and stops its server. It returns what did not go as it should.
func finish(home string) (wrong []string) {
	defer func() {
		for _, p := range settled(home, 30*time.Second) {
			wrong = append(wrong, fmt.Sprintf("process %d was left behind: %s", p.pid, p.args))
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
	}()
	if len(processes(home)) == 0 {
		return nil
	}
	// A script may have ended its server; only a running one can take its clusters down.
	if out, err := sky(home, patience, "api", "start"); err != nil {
		wrong = append(wrong, fmt.Sprintf("sky api start: %v\n%s", err, out))
	}
	if out, err := sky(home, patience, "down", "-a", "-u", "-y"); err != nil {
		wrong = append(wrong, fmt.Sprintf("sky down -a -u: %v\n%s", err, out))
	}
	if out, err := sky(home, patience, "api", "stop"); err != nil {
		wrong = append(wrong, fmt.Sprintf("sky api stop: %v\n%s", err, out))
	}
	return wrong
}

type process struct {
	pid  int
	args string
}

// processes are those that carry mark in their command line, environment, or working folder.
func processes(mark string) []process {
	var out []process
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		if pid == os.Getpid() || pid == os.Getppid() {
			continue
		}
		args, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		if len(args) == 0 {
			continue // ended already, or the kernel's own
		}
		env, _ := os.ReadFile(filepath.Join(d, "environ"))
		cwd, _ := os.Readlink(filepath.Join(d, "cwd"))
		if strings.Contains(string(args)+"\x00", mark) || strings.Contains(string(env), mark) || strings.Contains(cwd, mark) {
			out = append(out, process{pid, strings.TrimSpace(strings.ReplaceAll(string(args), "\x00", " "))})
		}
	}
	return out
}

// settled waits until no process carries mark, and returns those that still do.
func settled(mark string, limit time.Duration) []process {
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		left := processes(mark)
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}

// TestShared runs the scripts that share a server.
func TestShared(t *testing.T) {
	home := newHome(t)
	if out, err := sky(home, patience, "api", "start"); err != nil {
		t.Fatalf("sky api start: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(serverLog(home))
		}
		for _, w := range finish(home) {
			t.Error(w)
		}
	})
	t.Run("script", func(t *testing.T) { scripts(t, "shared", func(*testscript.Env) string { return home }, false) })
}

// TestAlone runs the scripts that nothing may run beside, each with a server of its own.
func TestAlone(t *testing.T) {
	scripts(t, "alone", func(env *testscript.Env) string { return newHome(t) }, true)
}

// TestOwn runs the scripts that have a server each.
func TestOwn(t *testing.T) {
	scripts(t, "own", func(env *testscript.Env) string { return newHome(t) }, true)
}

// scripts runs a folder of scripts.
func scripts(t *testing.T, dir string, home func(*testscript.Env) string, end bool) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script", dir),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Deadline:            time.Now().Add(10 * time.Minute),
		Cmds:                commands,
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Geteuid() == 0, nil
			case "big":
				return os.Getenv("SKYLOOM_E2E_BIG") == "1", nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Setup: func(env *testscript.Env) error {
			h := home(env)
			user := filepath.Join(env.WorkDir, "user")
			if err := os.MkdirAll(user, 0o755); err != nil {
				return err
			}
			name := strings.TrimSuffix(filepath.Base(env.WorkDir), filepath.Ext(env.WorkDir))
			name = strings.TrimPrefix(name, "script-")
			env.Setenv("HOME", user)
			env.Setenv("SKY_HOME", h)
			env.Setenv("SKYPILOT_USER", name)
			env.Setenv("C", name) // the name of the script's cluster
			env.Setenv("PATH", binDir+string(os.PathListSeparator)+os.Getenv("PATH"))
			env.Setenv("NO_COLOR", "1")
			env.Setenv("SKYLOOM_CLAIMS", filepath.Join(h, "claims"))
			env.Setenv("BIN", binDir)
			env.Values[tKey{}] = env.T()
			env.Values[hooksKey{}] = &hooks{seen: map[string]bool{}}
			if end {
				env.Defer(func() {
					if f, ok := env.T().(interface{ Failed() bool }); ok && f.Failed() {
						env.T().Log(serverLog(h))
					}
					if wrong := finish(h); len(wrong) > 0 {
						env.T().Fatal(strings.Join(wrong, "\n"))
					}
					_ = exec.Command("umount", h).Run() // a script may have put a small disk there
					_ = os.RemoveAll(h)
				})
			}
			return nil
		},
	})
}

// tKey is under which a script's test is kept.
type tKey struct{}

// serverLog is the end of a server's log.
func serverLog(home string) string {
	b, err := os.ReadFile(filepath.Join(home, "server.log"))
	if err != nil {
		return err.Error()
	}
	if len(b) > 6000 {
		b = b[len(b)-6000:]
	}
	return "end of server.log:\n" + string(b)
}
