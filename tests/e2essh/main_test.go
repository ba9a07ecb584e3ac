package e2essh

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skyloom/skyloom/tests/lab"
)

var (
	root   string
	binDir string
	homes  atomic.Int64
)

// long says that the long tests run too.
var long = os.Getenv("SKYLOOM_E2E_SSH") == "all"

// needLong skips what only make e2e-ssh runs.
func needLong(t *testing.T) {
	t.Helper()
	if !long {
		t.Skip("make e2e-ssh runs it")
	}
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if err := lab.Available(); err != nil {
		fmt.Println("skipped:", err)
		return 0
	}
	var err error
	if root, err = os.MkdirTemp("", "ss"); err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(root)
	if binDir, err = build(); err != nil {
		fmt.Println(err)
		return 1
	}
	return m.Run()
}

func build() (string, error) {
	programs := []string{"sky", "sky-agent", "sky-server"}
	if dir := os.Getenv("SKYLOOM_E2E_BIN"); dir != "" {
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

// site is a SKY_HOME whose server runs in a lab's network.
type site struct {
	*testing.T
	lab  *lab.Lab
	home string
	cmd  *exec.Cmd
	log  string
	// extra is added to the server's environment.
	extra []string
}

// newSite makes a SKY_HOME with the pool "lab" of all the lab's hosts, and starts its server.
func newSite(t *testing.T, l *lab.Lab, pools string) *site {
	t.Helper()
	s := &site{T: t, lab: l, home: filepath.Join(root, fmt.Sprint("h", homes.Add(1)))}
	if err := os.Mkdir(s.home, 0o700); err != nil {
		t.Fatal(err)
	}
	if pools == "" {
		pools = l.PoolsYAML("lab")
	}
	s.write("ssh_node_pools.yaml", pools)
	s.write("config.yaml", "api_server: {}\n")
	t.Cleanup(s.end)
	s.start()
	return s
}

func (s *site) write(name, text string) {
	s.Helper()
	path := filepath.Join(s.home, name)
	os.MkdirAll(filepath.Dir(path), 0o700)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.Fatal(err)
	}
}

func (s *site) env() []string {
	env := []string{"SKY_HOME=" + s.home, "HOME=" + s.home, "NO_COLOR=1", "SKYLOOM_NO_AUTOSTART=1", "PATH=" + binDir + ":" + os.Getenv("PATH"), "USER=tester", "SSH_AUTH_SOCK="}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "SKY_HOME", "HOME", "NO_COLOR", "PATH", "USER", "SSH_AUTH_SOCK", "SKYLOOM_NO_SSH_CONFIG":
		default:
			env = append(env, kv)
		}
	}
	return env
}

// start starts the server and waits until it answers.
func (s *site) start() {
	s.Helper()
	s.log = filepath.Join(s.home, "server-out.log")
	out, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.Fatal(err)
	}
	defer out.Close()
	s.cmd = s.lab.Command(filepath.Join(binDir, "sky-server"), "--addr", "127.0.0.1:0")
	s.cmd.Env, s.cmd.Stdout, s.cmd.Stderr = append(s.env(), s.extra...), out, out
	if err := s.cmd.Start(); err != nil {
		s.Fatal(err)
	}
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if o, err := s.try(10*time.Second, "api", "info", "-o", "json"); err == nil && strings.Contains(o, "healthy") {
			return
		} else if time.Now().After(deadline) {
			b, _ := os.ReadFile(s.log)
			s.Fatalf("the server does not answer: %v %s\n%s", err, o, b)
		}
	}
}

// kill ends the server as a power cut does.
func (s *site) kill() {
	s.Helper()
	s.cmd.Process.Signal(syscall.SIGKILL)
	s.cmd.Wait()
	s.cmd = nil
}

// dies runs something that the server's death interrupts, and waits for that death.
func (s *site) dies(f func()) {
	s.Helper()
	dead := make(chan struct{})
	go func() { s.cmd.Wait(); close(dead) }()
	ended := make(chan struct{})
	go func() { f(); close(ended) }()
	select {
	case <-dead:
		s.cmd = nil
	case <-time.After(time.Minute):
		s.Fatal("the server was to die and lives")
	}
}

func (s *site) end() {
	if s.cmd == nil {
		return
	}
	if out, err := s.try(3*time.Minute, "down", "-a", "-u", "-y", "-p"); err != nil && s.Failed() {
		s.Logf("down: %v %s", err, out)
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { s.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		s.cmd.Process.Kill()
		<-done
	}
	if s.Failed() {
		b, _ := os.ReadFile(s.log)
		if len(b) > 20_000 {
			b = b[len(b)-20_000:]
		}
		s.Logf("server log:\n%s", b)
	}
}

// try runs sky and gives all that it printed.
func (s *site) try(limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := s.lab.CommandContext(ctx, filepath.Join(binDir, "sky"), args...)
	var out bytes.Buffer
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = s.env(), s.home, &out, &out, time.Second
	err := cmd.Run()
	return out.String(), err
}

// sky runs a command that must go well, and checks that it printed what is wanted.
func (s *site) sky(args ...string) *printed {
	s.Helper()
	began := time.Now()
	out, err := s.try(2*time.Minute, args...)
	if err != nil {
		s.Fatalf("sky %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return &printed{s, strings.Join(args, " "), out, time.Since(began)}
}

// fails runs a command that must not go well.
func (s *site) fails(args ...string) *printed {
	s.Helper()
	began := time.Now()
	out, err := s.try(2*time.Minute, args...)
	if err == nil {
		s.Fatalf("sky %s went well:\n%s", strings.Join(args, " "), out)
	}
	return &printed{s, strings.Join(args, " "), out, time.Since(began)}
}

type printed struct {
	s    *site
	cmd  string
	out  string
	took time.Duration
}

func (p *printed) has(want ...string) *printed {
	p.s.Helper()
	for _, w := range want {
		if !strings.Contains(p.out, w) {
			p.s.Errorf("sky %s: no %q in\n%s", p.cmd, w, p.out)
		}
	}
	return p
}

func (p *printed) hasNot(bad ...string) *printed {
	p.s.Helper()
	for _, w := range bad {
		if strings.Contains(p.out, w) {
			p.s.Errorf("sky %s: %q in\n%s", p.cmd, w, p.out)
		}
	}
	return p
}

func (s *site) until(limit time.Duration, what string, ok func() bool) {
	s.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.Fatalf("not so after %v: %s", limit, what)
		}
	}
}

func (s *site) task(name, text string) string {
	s.write(name, text)
	return filepath.Join(s.home, name)
}

// agents lists what of ours runs on a host.
func agents(t *testing.T, h *lab.Host) (out []string) {
	t.Helper()
	ps, err := h.Processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ps {
		if args := strings.Join(p.Args, " "); strings.Contains(args, "sky-agent") {
			out = append(out, args)
		}
	}
	return out
}

// empty waits until no host has a process or a claim of ours.
func (s *site) empty(when string) {
	s.Helper()
	s.until(3*time.Minute, "nothing of ours holds or runs "+when, func() bool {
		for _, h := range s.lab.Hosts() {
			if len(agents(s.T, h)) > 0 || len(claimed(s.T, h)) > 0 {
				return false
			}
		}
		return true
	})
}

// claimed reads the claims on a host.
func claimed(t *testing.T, h *lab.Host) (out []map[string]any) {
	t.Helper()
	text, err := h.Run(context.Background(), `for f in /var/tmp/skyloom-claims/*.json; do [ -e "$f" ] && cat "$f"; done; true`)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		if line == "" {
			continue
		}
		var c map[string]any
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatalf("claim %q: %v", line, err)
		}
		out = append(out, c)
	}
	return out
}
