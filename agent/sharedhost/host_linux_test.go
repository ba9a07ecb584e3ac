package sharedhost_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/proctree"
	"github.com/skyloom/skyloom/agent/sharedhost"
)

var program string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "sh-agent-*")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "sky-agent")
		if out, err := exec.Command("go", "build", "-o", program, "github.com/skyloom/skyloom/cmd/sky-agent").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the agent: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// machine is this machine as a shared host: folders of the test's own, and GPUs that a script makes up.
type machine struct {
	*testing.T
	root, claims, bin string
}

func newMachine(t *testing.T, gpus int) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "sh") // short: sockets are below
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t, filepath.Join(dir, "root"), filepath.Join(dir, "claims"), filepath.Join(dir, "bin")}
	for _, d := range []string{m.root, m.bin} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	script := "#!/bin/sh\n"
	for i := range gpus {
		script += fmt.Sprintf("echo 'NVIDIA H100 80GB HBM3, 81559, GPU-%d'\n", i)
	}
	if err := os.WriteFile(filepath.Join(m.bin, "nvidia-smi"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r := m.call(sharedhost.VerbList, m.request("", nil)); r.Error == nil {
			for _, n := range r.Nodes {
				m.call(sharedhost.VerbDelete, sharedhost.Request{Installation: "i", Cluster: n.Cluster, Hash: n.Hash})
			}
		}
		if left := m.processes(); len(left) > 0 {
			t.Errorf("processes are left: %v", left)
			for _, p := range left {
				p.Signal(syscall.SIGKILL)
			}
		}
		if es, _ := os.ReadDir(m.claims); len(es) > 0 {
			t.Errorf("claims are left: %v", es)
		}
		os.RemoveAll(dir)
	})
	return m
}

// processes are those of nodes below the root.
func (m *machine) processes() (out []proctree.Proc) {
	for _, e := range proctree.Table() {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", e.PID))
		if !e.Zombie && bytes.Contains(b, []byte(m.root+"/nodes/")) {
			out = append(out, e.Proc)
		}
	}
	return out
}

func (m *machine) request(cluster string, c *sharedhost.Create) sharedhost.Request {
	r := sharedhost.Request{Roots: []string{m.root}, Claims: m.claims, Installation: "i", Cluster: cluster, Hash: "ab12", Token: "t", Addr: "127.0.0.1", Create: c}
	if cluster == "" {
		r.Hash = ""
	}
	return r
}

func ask(cluster string, cpus, gpus float64) *sharedhost.Create {
	c := &sharedhost.Create{ID: cluster + "-ab12-0", Nodes: 1, User: "alice", Spec: json.RawMessage(`{"x":1}`), CPUs: cpus, MemoryGB: 0.5}
	if gpus > 0 {
		c.Accelerator, c.AcceleratorCount = "H100", gpus
	}
	return c
}

func (m *machine) call(verb string, req sharedhost.Request, env ...string) sharedhost.Reply {
	m.Helper()
	if req.Roots == nil {
		req.Roots, req.Claims = []string{m.root}, m.claims
	}
	b, err := json.Marshal(req)
	if err != nil {
		m.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "host", verb, "N")
	cmd.Stdin = bytes.NewReader(b)
	cmd.Env = append(os.Environ(), "PATH="+m.bin+":"+os.Getenv("PATH"))
	cmd.Env = append(cmd.Env, env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	_, rest, ok := strings.Cut(string(out), sharedhost.Begin("N")+"\n")
	text, _, ok2 := strings.Cut(rest, "\n"+sharedhost.End("N"))
	if !ok || !ok2 {
		return sharedhost.Reply{Error: &sharedhost.Error{Kind: "died", Msg: fmt.Sprint(err, " ", stderr.String(), string(out))}}
	}
	var r sharedhost.Reply
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		m.Fatal(err)
	}
	return r
}

func (m *machine) create(cluster string, cpus, gpus float64, env ...string) sharedhost.Reply {
	m.Helper()
	return m.call(sharedhost.VerbCreate, m.request(cluster, ask(cluster, cpus, gpus)), env...)
}

func (m *machine) good(r sharedhost.Reply) sharedhost.Reply {
	m.Helper()
	if r.Error != nil {
		m.Fatalf("%s: %s", r.Error.Kind, r.Error.Msg)
	}
	return r
}

func (m *machine) bad(r sharedhost.Reply, kind, text string) {
	m.Helper()
	if r.Error == nil || r.Error.Kind != kind || !strings.Contains(r.Error.Msg, text) {
		m.Errorf("got %+v, want an error %s with %q", r.Error, kind, text)
	}
}

func (m *machine) held() (ids []string) {
	m.Helper()
	for _, c := range m.good(m.call(sharedhost.VerbProbe, m.request("", nil))).Info.Claims {
		ids = append(ids, c.Cluster)
	}
	slices.Sort(ids)
	return ids
}

func (m *machine) state(cluster string) string {
	m.Helper()
	for _, n := range m.good(m.call(sharedhost.VerbList, m.request("", nil))).Nodes {
		if n.Cluster == cluster {
			return n.State
		}
	}
	return "none"
}

func TestLife(t *testing.T) {
	m := newMachine(t, 2)
	i := m.good(m.call(sharedhost.VerbProbe, m.request("", nil))).Info
	if i.CPUs <= 0 || i.MemoryGB <= 0 || len(i.GPUs) != 2 || i.GPUs[0].Name != "H100" || len(i.FreeGPUs) != 2 {
		t.Fatalf("%+v", i)
	}
	n := m.good(m.create("a", 0.5, 1)).Nodes[0]
	if n.State != sharedhost.StateRunning || n.Adopted || len(n.Resources.DeviceIDs) != 1 {
		t.Fatalf("%+v", n)
	}
	c := agentapi.NewUnix(n.Socket)
	defer c.Close()
	if info, err := c.Info(t.Context()); err != nil || info.NodeID != n.ID {
		t.Fatalf("the agent: %+v, %v", info, err)
	}
	if again := m.good(m.create("a", 0.5, 1)).Nodes[0]; !again.Adopted || again.Socket != n.Socket {
		t.Errorf("the same token again: %+v", again)
	}
	other := m.request("a", ask("a", 0.5, 1))
	other.Token = "u"
	m.bad(m.call(sharedhost.VerbCreate, other), sharedhost.KindConflict, "another token")
	other.Token, other.Installation = "t", "j"
	m.bad(m.call(sharedhost.VerbCreate, other), sharedhost.KindConflict, "another installation")
	m.bad(m.create("b", 0.5, 2), sharedhost.KindFull, "1 H100 of 2 free, 2 asked for; held by a of alice")
	m.bad(m.create("b", 0.5, 3), sharedhost.KindUnfit, "it has 2 × H100, 3 asked for")
	m.bad(m.create("b", 10000, 0), sharedhost.KindUnfit, "CPUs")
	m.good(m.create("b", 0.5, 1))

	if s := m.good(m.call(sharedhost.VerbStop, m.request("a", nil))).Nodes[0].State; s != sharedhost.StateStopped {
		t.Errorf("stopped it is %s", s)
	}
	if got := m.held(); !slices.Equal(got, []string{"b"}) {
		t.Errorf("held by %v", got)
	}
	m.good(m.create("c", 0.5, 1))
	m.bad(m.call(sharedhost.VerbStart, m.request("a", nil)), sharedhost.KindFull, "held by b of alice, c of alice")
	if s := m.state("a"); s != sharedhost.StateStopped {
		t.Errorf("after a start that found no room it is %s", s)
	}
	m.good(m.call(sharedhost.VerbDelete, m.request("c", nil)))
	back := m.good(m.call(sharedhost.VerbStart, m.request("a", nil))).Nodes[0]
	if back.State != sharedhost.StateRunning || back.ID != n.ID {
		t.Errorf("%+v", back)
	}
	if info, err := agentapi.NewUnix(back.Socket).Info(t.Context()); err != nil || info.NodeID != n.ID {
		t.Errorf("the agent after the start: %+v, %v", info, err)
	}
	if kept := m.good(m.call(sharedhost.VerbClean, m.request("", nil))).Kept; len(kept) != 2 {
		t.Errorf("clean beside two nodes kept %v", kept)
	}
	for _, c := range []string{"a", "b"} {
		m.good(m.call(sharedhost.VerbDelete, m.request(c, nil)))
	}
	m.bad(m.call(sharedhost.VerbDelete, m.request("a", nil)), sharedhost.KindNotFound, "no node of a-ab12")
	if kept := m.good(m.call(sharedhost.VerbClean, m.request("", nil))).Kept; len(kept) != 0 {
		t.Errorf("clean kept %v", kept)
	}
	if _, err := os.Stat(m.root); !os.IsNotExist(err) {
		t.Errorf("after clean the root is there: %v", err)
	}
	if _, err := os.Stat(m.claims); !os.IsNotExist(err) {
		t.Errorf("after clean the ledger is there: %v", err)
	}
}

// TestKilledCalls kills a call at each of its moments; the same call again brings it to its end.
func TestKilledCalls(t *testing.T) {
	for _, point := range []string{"host.create-after-claim", "host.create-after-record", "host.create-after-start"} {
		t.Run(point, func(t *testing.T) {
			m := newMachine(t, 1)
			env := []string{"SKYLOOM_FAILPOINTS=" + point + "=kill", "SKYLOOM_FAILPOINT_DIR=" + t.TempDir()}
			m.bad(m.create("a", 0.5, 1, env...), "died", "")
			// Meanwhile nobody else gets the device of a node that may have been started.
			if r := m.create("b", 0.5, 1); r.Error == nil {
				if point != "host.create-after-claim" && point != "host.create-after-record" {
					t.Error("the device of a node that runs was given to another")
				}
				m.good(m.call(sharedhost.VerbDelete, m.request("b", nil)))
			}
			n := m.good(m.create("a", 0.5, 1)).Nodes[0]
			if n.State != sharedhost.StateRunning {
				t.Errorf("%+v", n)
			}
			if got := m.held(); !slices.Equal(got, []string{"a"}) {
				t.Errorf("held by %v", got)
			}
		})
	}
	for _, point := range []string{"host.delete-after-kill", "host.delete-after-free"} {
		t.Run(point, func(t *testing.T) {
			m := newMachine(t, 1)
			m.good(m.create("a", 0.5, 1))
			env := []string{"SKYLOOM_FAILPOINTS=" + point + "=kill", "SKYLOOM_FAILPOINT_DIR=" + t.TempDir()}
			m.bad(m.call(sharedhost.VerbDelete, m.request("a", nil), env...), "died", "")
			m.good(m.call(sharedhost.VerbDelete, m.request("a", nil)))
			if s := m.state("a"); s != "none" {
				t.Errorf("it is %s", s)
			}
		})
	}
}

// TestRace has calls for one device come at the same time: one gets it.
func TestRace(t *testing.T) {
	m := newMachine(t, 1)
	var mu sync.Mutex
	var won []string
	var wg sync.WaitGroup
	for i := range 6 {
		c := fmt.Sprint("r", i)
		wg.Go(func() {
			r := m.create(c, 0.1, 1)
			mu.Lock()
			defer mu.Unlock()
			if r.Error == nil {
				won = append(won, c)
			} else if r.Error.Kind != sharedhost.KindFull {
				t.Errorf("%s: %+v", c, r.Error)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Errorf("one device was given to %v", won)
	}
}

// TestDeadNode: a node whose init was killed is gone, its share is free, and it can be deleted.
func TestDeadNode(t *testing.T) {
	m := newMachine(t, 1)
	n := m.good(m.create("a", 0.5, 1)).Nodes[0]
	for _, p := range m.processes() {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID))
		if strings.Contains(string(b), "init\x00--config\x00"+n.Dir) {
			p.Signal(syscall.SIGKILL)
		}
	}
	deadline := time.Now().Add(time.Minute)
	for m.state("a") != sharedhost.StateGone && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	if s := m.state("a"); s != sharedhost.StateGone {
		t.Fatalf("it is %s", s)
	}
	time.Sleep(2100 * time.Millisecond) // a young claim counts whatever is seen
	m.good(m.create("b", 0.5, 1))
	m.bad(m.call(sharedhost.VerbStart, m.request("a", nil)), sharedhost.KindConflict, "gone")
	m.good(m.call(sharedhost.VerbDelete, m.request("a", nil)))
	if got := m.held(); !slices.Equal(got, []string{"b"}) {
		t.Errorf("held by %v", got)
	}
}

func TestDamagedRecord(t *testing.T) {
	m := newMachine(t, 0)
	n := m.good(m.create("a", 0.5, 0)).Nodes[0]
	var made struct{ Cgroups []string }
	if b, err := os.ReadFile(filepath.Join(n.Dir, "record.json")); err != nil || json.Unmarshal(b, &made) != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.Dir, "record.json"), []byte(`{"id":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := m.state("a"); s != sharedhost.StateRunning {
		t.Errorf("it is %s", s)
	}
	m.good(m.call(sharedhost.VerbDelete, m.request("a", nil)))
	for _, dir := range made.Cgroups {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("left behind: %s", dir)
		}
	}
}

func TestInvalid(t *testing.T) {
	m := newMachine(t, 0)
	bad := m.request("a", ask("a", 1, 0))
	bad.Create.ID = "../x"
	m.bad(m.call(sharedhost.VerbCreate, bad), sharedhost.KindInvalid, "")
	bad = m.request("a", ask("a", 0, 0))
	m.bad(m.call(sharedhost.VerbCreate, bad), sharedhost.KindInvalid, "CPUs and memory")
	m.bad(m.call(sharedhost.VerbDelete, sharedhost.Request{}), sharedhost.KindInvalid, "no cluster")
	m.bad(m.call("frobnicate", m.request("", nil)), sharedhost.KindInvalid, "frobnicate")
}
