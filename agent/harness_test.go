package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

// binary is sky-agent, built once for all tests.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "sky-agent-test")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "sky-agent")
	if out, err := exec.Command("go", "build", "-ldflags=-s -w", "-o", binary, "github.com/skyloom/skyloom/cmd/sky-agent").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%s\n%v\n", out, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

const (
	hash   = "c0ffee"
	secret = "not-for-others"
)

// testNode is one node: init, serve and their jobs.
type testNode struct {
	t     *testing.T
	cfg   agentapi.NodeConfig
	conf  string
	cmd   *exec.Cmd
	api   *agentapi.Client
	env   []string
	serve int
}

type nodeOption func(*agentapi.NodeConfig, *[]string)

func gpus(n float64) nodeOption {
	return func(c *agentapi.NodeConfig, _ *[]string) {
		c.Resources.Accelerator, c.Resources.AcceleratorCount = "A100", n
	}
}

func fails(points string) nodeOption {
	return func(_ *agentapi.NodeConfig, env *[]string) { *env = append(*env, "SKYLOOM_FAILPOINTS="+points) }
}

func config(f func(*agentapi.NodeConfig)) nodeOption {
	return func(c *agentapi.NodeConfig, _ *[]string) { f(c) }
}

// newNode makes a node of rank; it is started and ends with the test.
func newNode(t *testing.T, rank int, opts ...nodeOption) *testNode {
	t.Helper()
	dir, err := os.MkdirTemp("", "n") // short: a socket's path is limited
	if err != nil {
		t.Fatal(err)
	}
	n := &testNode{t: t, conf: filepath.Join(dir, "node.json")}
	n.cfg = agentapi.NodeConfig{
		Installation: "test", ClusterName: "c", ClusterHash: hash, NodeID: fmt.Sprintf("n%d-%s", rank, filepath.Base(dir)), Rank: rank,
		Dir: filepath.Join(dir, "agent"), Home: filepath.Join(dir, "home"), Socket: filepath.Join(dir, "s"), IP: fmt.Sprintf("10.0.0.%d", rank+1),
		Resources: agentapi.NodeResources{CPUs: 4, MemoryGB: 8}, SelfEnd: "exit", IdleCheck: 50 * time.Millisecond,
	}
	n.env = []string{"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "SKYPILOT_LEFT=over", "CUDA_VISIBLE_DEVICES=9"}
	for _, o := range opts {
		o(&n.cfg, &n.env)
	}
	b, _ := json.Marshal(n.cfg)
	if err := os.WriteFile(n.conf, b, 0o600); err != nil {
		t.Fatal(err)
	}
	n.api = agentapi.NewUnix(n.cfg.Socket)
	t.Cleanup(func() {
		n.stop()
		if t.Failed() {
			log, _ := os.ReadFile(n.conf + ".log")
			t.Logf("agent log of rank %d:\n%s", rank, log)
		}
		os.RemoveAll(dir)
	})
	n.start()
	return n
}

func (n *testNode) start() {
	n.t.Helper()
	log, err := os.OpenFile(n.conf+".log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	n.cmd = exec.Command(binary, "init", "--config", n.conf)
	n.cmd.Env, n.cmd.Stdout, n.cmd.Stderr = n.env, log, log
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	isolate(n.cmd, n.cfg.Isolated)
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.ready()
}

// stop ends the node as a provider would.
func (n *testNode) stop() {
	if n.cmd == nil {
		return
	}
	n.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { n.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		n.t.Error("init did not end")
		n.cmd.Process.Kill()
		<-done
	}
	n.cmd = nil
}

func (n *testNode) ready() {
	n.t.Helper()
	n.eventually("the agent answers", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := n.api.Info(ctx)
		return err == nil
	})
}

func (n *testNode) eventually(what string, f func() bool) {
	n.t.Helper()
	end := time.Now().Add(time.Minute)
	for pause := time.Millisecond; !f(); pause = min(2*pause, 50*time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(pause)
	}
}

func (n *testNode) info() agentapi.Info {
	n.t.Helper()
	i, err := n.api.Info(ctx(n.t))
	if err != nil {
		n.t.Fatal(err)
	}
	return i
}

// kill9 kills serve and waits for the next one.
func (n *testNode) kill9() {
	n.t.Helper()
	old := n.info().PID
	pid := old
	if n.cfg.Isolated {
		pid = outerPID(n.cmd.Process.Pid)
	}
	syscall.Kill(pid, syscall.SIGKILL)
	n.eventually("another agent answers", func() bool {
		i, err := n.api.Info(context.Background())
		return err == nil && i.PID != old
	})
}

func ctx(t *testing.T) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return c
}

// form makes a cluster of nodes, head first.
func form(t *testing.T, epoch int64, nodes ...*testNode) agentapi.ClusterSpec {
	t.Helper()
	spec := agentapi.ClusterSpec{Name: "c", Hash: hash, Epoch: epoch, Cloud: "local", Region: "local", UserName: "ann", Secret: secret, Resources: nodes[0].cfg.Resources}
	for i, n := range nodes {
		addr := "unix:" + n.cfg.Socket
		if n.cfg.Listen != "" {
			addr = "https://" + n.cfg.Listen
		}
		spec.Nodes = append(spec.Nodes, agentapi.Peer{NodeID: n.cfg.NodeID, Rank: i, IP: n.cfg.IP, Addr: addr})
	}
	for _, n := range nodes {
		if err := n.api.Configure(ctx(t), spec); err != nil {
			t.Fatal(err)
		}
	}
	return spec
}

// cluster starts and forms a cluster.
func cluster(t *testing.T, n int, opts ...nodeOption) []*testNode {
	t.Helper()
	var nodes []*testNode
	for i := range n {
		nodes = append(nodes, newNode(t, i, opts...))
	}
	form(t, 1, nodes...)
	return nodes
}

var keys atomic.Int64

func (n *testNode) submit(s agentapi.JobSpec) api.Job {
	n.t.Helper()
	if s.Key == "" {
		s.Key = fmt.Sprintf("key-%d", keys.Add(1))
	}
	if s.Epoch == 0 {
		s.Epoch = 1
	}
	if s.Name == "" {
		s.Name = "job"
	}
	j, err := n.api.Submit(ctx(n.t), s)
	if err != nil {
		n.t.Fatalf("submit: %v", err)
	}
	return j
}

func (n *testNode) run(script string) api.Job {
	n.t.Helper()
	return n.submit(agentapi.JobSpec{Run: script})
}

func (n *testNode) job(id int64) api.Job {
	n.t.Helper()
	j, err := n.api.Job(ctx(n.t), id)
	if err != nil {
		n.t.Fatal(err)
	}
	return j
}

// reaches waits until a job has a status.
func (n *testNode) reaches(id int64, want api.JobStatus) api.Job {
	n.t.Helper()
	var j api.Job
	n.eventually(fmt.Sprintf("job %d is %s", id, want), func() bool {
		var err error
		j, err = n.api.Job(context.Background(), id)
		if err == nil && j.Status.Terminal() && j.Status != want {
			n.t.Fatalf("job %d is %s (%s), not %s", id, j.Status, j.Reason, want)
		}
		return err == nil && j.Status == want
	})
	return j
}

// output reads the raw log of a phase on this node, following it to its end.
func (n *testNode) output(id int64, q agentapi.LogQuery) (setup, run string, end api.LogFrame) {
	n.t.Helper()
	body, err := n.api.Logs(ctx(n.t), id, q)
	if err != nil {
		n.t.Fatal(err)
	}
	defer body.Close()
	var out [2]bytes.Buffer
	r := agentapi.NewLogReader(body)
	for {
		f, data, err := r.Next()
		if err == io.EOF {
			return out[0].String(), out[1].String(), end
		}
		if err != nil {
			n.t.Fatal(err)
		}
		to := &out[1]
		if f.Phase == "setup" {
			to = &out[0]
		}
		if f.Len > 0 {
			base := q.Offsets[f.Phase]
			if q.Tail == 0 && f.Offset != base+int64(to.Len()) {
				n.t.Fatalf("frame at offset %d, expected %d", f.Offset, base+int64(to.Len()))
			}
		}
		io.Copy(to, data)
		end = f
	}
}

func (n *testNode) log(id int64) string {
	n.t.Helper()
	_, run, _ := n.output(id, agentapi.LogQuery{Follow: true})
	return run
}

func (n *testNode) file(name string) string {
	b, _ := os.ReadFile(filepath.Join(n.cfg.Home, name))
	return string(b)
}

// alive counts processes whose command line holds a word that is unique to a test.
func alive(t *testing.T, word string) int {
	t.Helper()
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	count := 0
	for _, d := range dirs {
		if b, err := os.ReadFile(d); err == nil && bytes.Contains(b, []byte(word)) && !strings.Contains(d, fmt.Sprint("/", os.Getpid(), "/")) {
			count++
		}
	}
	return count
}

// release lets a job go on that waits for ~/go-<id>.
func release(n *testNode, id int64) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(n.cfg.Home, fmt.Sprint("go-", id)), nil, 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func shell(dir, script string) ([]byte, error) {
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "HOME="+dir)
	return cmd.CombinedOutput()
}

// killMatching kills the processes whose command line holds both words.
func killMatching(t *testing.T, words ...string) {
	t.Helper()
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
next:
	for _, d := range dirs {
		b, _ := os.ReadFile(d)
		for _, w := range words {
			if !bytes.Contains(b, []byte(w)) {
				continue next
			}
		}
		var pid int
		fmt.Sscanf(d, "/proc/%d/", &pid)
		syscall.Kill(pid, syscall.SIGKILL)
	}
}
