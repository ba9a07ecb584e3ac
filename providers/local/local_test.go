package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/gpus"
	"github.com/skyloom/skyloom/agent/proctree"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/providers/providertest"
)

// agentFile is a real agent, built for these tests.
type agentFile struct{ path, sha string }

func (a agentFile) Path(goos, goarch string) (string, string, error) { return a.path, a.sha, nil }

var theAgent agentFile

// installation and the clusters' hashes are the same in every run, and runs go on side by side: they must not meet.
const installation = "test"

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Getenv(helperEnv) != "" {
			return m.Run() // it is told of the agent
		}
		dir, err := os.MkdirTemp("", "sky-agent-*")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		theAgent.path = filepath.Join(dir, "sky-agent")
		if built := os.Getenv("SKYLOOM_TEST_AGENT"); built != "" { // where this runs without a Go toolchain, as another user say
			theAgent.path = built
		} else if out, err := exec.Command("go", "build", "-o", theAgent.path, "github.com/skyloom/skyloom/cmd/sky-agent").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the agent: %v\n%s", err, out)
			return 1
		}
		b, _ := os.ReadFile(theAgent.path)
		sum := sha256.Sum256(b)
		theAgent.sha = hex.EncodeToString(sum[:])
		return m.Run()
	}())
}

// open makes a provider on a folder of the test's, and proves at the end that nothing is left.
func open(t *testing.T, change func(*Options)) *Provider {
	t.Helper()
	dir := t.TempDir()
	o := Options{Root: filepath.Join(dir, "local"), Installation: installation, Agent: theAgent, GPUs: []gpus.GPU{}, Claims: filepath.Join(dir, "claims")}
	if change != nil {
		change(&o)
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Close()
		recs, err := p.records("")
		if err != nil {
			t.Error(err)
		}
		for _, r := range recs {
			if err := p.remove(context.Background(), r); err != nil {
				t.Error(err)
			}
		}
		for pid, args := range commandLines() {
			if slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, p.root) }) {
				t.Errorf("process %d is left: %v", pid, args)
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	return p
}

func harness(t *testing.T, change func(*Options)) providertest.Harness {
	p := open(t, change)
	return providertest.Harness{Provider: p, Agent: theAgent, Installation: installation,
		Kill: func(t *testing.T, n providers.Node) { kill(t, p, n) },
		Reopen: func(t *testing.T) providers.Provider {
			p.Close()
			o := p.o
			next, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { next.Close() })
			return next
		},
	}
}

func kill(t *testing.T, p *Provider, n providers.Node) {
	t.Helper()
	r := find(t, p, n.ID)
	proc := p.findInit(r, newTable())
	if proc == nil {
		t.Fatalf("node %s does not run", n.ID)
	}
	syscall.Kill(proc.PID, syscall.SIGKILL)
}

func find(t *testing.T, p *Provider, id string) *record {
	t.Helper()
	recs, err := p.records("")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range recs {
		if r.ID == id {
			return r
		}
	}
	t.Fatalf("no record of %s", id)
	return nil
}

var skips = map[string]string{
	"CreateUnknownOutcome": "a create here does not time out; TestServerKilledBetweenWritingDownAndStart shows the same",
	"ErrorKinds":           "there are no quotas, credentials or rate limits; TestGPUsAreReserved and TestTooBig show the kinds there are",
	"DelayedVisibility":    "what is written down is listed at once",
}

func TestConformance(t *testing.T) {
	providertest.Run(t, providertest.Options{Skips: skips, New: func(t *testing.T) providertest.Harness { return harness(t, nil) }})
}

func TestConformanceWithoutNamespaces(t *testing.T) {
	if !canIsolate() {
		t.Skip("not root: the plain run was without namespaces already")
	}
	providertest.Run(t, providertest.Options{Skips: skips, New: func(t *testing.T) providertest.Harness {
		return harness(t, func(o *Options) { o.NoIsolation = true })
	}})
}

func ref(name, hash string) providers.ClusterRef {
	return providers.ClusterRef{Installation: installation, Name: name, Hash: hash}
}

func request(r providers.ClusterRef, n int) providers.CreateRequest {
	return providers.CreateRequest{Cluster: r, Token: "t-" + r.Hash, NumNodes: n, Spec: providers.NodeSpec{CPUs: 1, MemoryGB: 1}, Agent: theAgent}
}

func create(t *testing.T, p *Provider, q providers.CreateRequest) []providers.Node {
	t.Helper()
	ns, err := p.Create(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// client waits until a node's agent answers.
func client(t *testing.T, p *Provider, n providers.Node) *agentapi.Client {
	t.Helper()
	tr, err := p.Transport(context.Background(), n)
	if err != nil {
		t.Fatal(err)
	}
	c := agentapi.New(tr.DialAgent)
	t.Cleanup(c.Close)
	t.Cleanup(func() {
		if t.Failed() {
			h, _ := parseHandle(n)
			b, _ := os.ReadFile(filepath.Join(h.Dir, "init.log"))
			t.Logf("log of %s:\n%s", n.ID, b)
		}
	})
	until(t, "the agent answers", func() bool { _, err := c.Info(context.Background()); return err == nil })
	return c
}

func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so: %s", what)
		}
	}
}

func list(t *testing.T, p *Provider, r providers.ClusterRef) []providers.Node {
	t.Helper()
	ns, err := p.List(context.Background(), r.Tag())
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func wantKind(t *testing.T, err error, k providers.Kind) {
	t.Helper()
	if !providers.Is(err, k) {
		t.Errorf("got %v (%s), want %s", err, providers.KindOf(err), k)
	}
}

// run submits a job to a one-node cluster.
func run(t *testing.T, c *agentapi.Client, n providers.Node, script string) {
	t.Helper()
	ctx := context.Background()
	err := c.Configure(ctx, agentapi.ClusterSpec{Name: n.Cluster.Name, Hash: n.Cluster.Hash, Epoch: 1, Secret: "s",
		Nodes: []agentapi.Peer{{NodeID: n.ID, IP: n.InternalIP, Addr: n.AgentAddr}}, Resources: n.Resources})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Submit(ctx, agentapi.JobSpec{Key: "k", Epoch: 1, Name: "j", NumNodes: 1, Run: script}); err != nil {
		t.Fatal(err)
	}
}

// ofNode finds a node's processes by their mark.
func ofNode(r *record) (out []proctree.Proc) {
	for _, q := range proctree.WithEnv("SKYLOOM_NODE=" + r.mark()) {
		if !r.stranger(q) {
			out = append(out, q)
		}
	}
	return out
}

// daemons is a job that leaves processes which ignore SIGTERM, forked away twice, and says so.
const daemons = `
(trap '' TERM; setsid sh -c 'trap "" TERM; (trap "" TERM; while :; do sleep 1; done) & while :; do sleep 1; done' & ) &
trap '' TERM
touch ~/started
while :; do sleep 1; done`

func TestTheWholeTreeDies(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("NoIsolation=%v", plain), func(t *testing.T) {
			p := open(t, func(o *Options) { o.NoIsolation = plain })
			r := ref("tree", "a1")
			ns := create(t, p, request(r, 1))
			run(t, client(t, p, ns[0]), ns[0], daemons)
			rec := find(t, p, ns[0].ID)
			until(t, "the job runs", func() bool { return exists(filepath.Join(rec.dir, "home", "started")) })
			until(t, "its daemons are there", func() bool { return runtime.GOOS != "linux" || len(ofNode(rec)) >= 5 })
			if err := p.Delete(context.Background(), r, nil); err != nil {
				t.Fatal(err)
			}
			if left := ofNode(rec); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			if exists(rec.dir) || exists(rec.Socket) || rec.Cgroup != "" && exists(rec.Cgroup) || exists(filepath.Dir(rec.dir)) {
				t.Error("files of the node are left")
			}
		})
	}
}

func TestGoneMeansThatNothingRuns(t *testing.T) {
	p := open(t, func(o *Options) { o.NoIsolation = true })
	r := ref("orphans", "a2")
	ns := create(t, p, request(r, 1))
	run(t, client(t, p, ns[0]), ns[0], daemons)
	rec := find(t, p, ns[0].ID)
	until(t, "the job runs", func() bool { return exists(filepath.Join(rec.dir, "home", "started")) })
	kill(t, p, ns[0]) // its agent and jobs live on
	until(t, "the node is gone", func() bool { return list(t, p, r)[0].State == providers.NodeGone })
	if left := ofNode(rec); len(left) > 0 {
		t.Errorf("a node is told to be gone and runs %v", left)
	}
}

func TestDamagedRecord(t *testing.T) {
	p := open(t, nil)
	r := ref("torn", "m1")
	ns := create(t, p, request(r, 1))
	os.WriteFile(filepath.Join(find(t, p, ns[0].ID).dir, "record.json"), nil, 0o600)
	if got := list(t, p, r); len(got) != 1 || got[0].ID != ns[0].ID || got[0].State != providers.NodeRunning {
		t.Errorf("%+v", got)
	}
	if err := p.Delete(context.Background(), r, nil); err != nil {
		t.Error(err)
	}
}

func TestOldProgramsAreSwept(t *testing.T) {
	p := open(t, nil)
	create(t, p, request(ref("sweep", "n1"), 1))
	old := filepath.Join(p.root, "bin", "0123456789abcdef")
	os.Mkdir(old, 0o700)
	programs, _ := filepath.Glob(filepath.Join(p.root, "bin", "*"))
	for _, d := range programs {
		os.Chtimes(d, time.Time{}, time.Now().Add(-2*time.Hour))
	}
	p.sweep()
	if left, _ := filepath.Glob(filepath.Join(p.root, "bin", "*")); len(left) != 1 || left[0] == old {
		t.Errorf("%v", left)
	}
}

func TestServerKilledBetweenWritingDownAndStart(t *testing.T) {
	p := open(t, nil)
	r := ref("intent", "b1")
	ns := create(t, p, request(r, 2))
	// As if the server had been killed after it started rank 0 and before it wrote so, and before it started rank 1.
	for rank, n := range ns {
		rec := find(t, p, n.ID)
		if rank == 1 {
			p.end(context.Background(), rec, 0)
			os.Remove(filepath.Join(rec.agentDir(), "init.json"))
		}
		rec.Init = proctree.Proc{}
		if err := rec.save(); err != nil {
			t.Fatal(err)
		}
	}
	next, err := New(p.o)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	got := list(t, next, r)
	if len(got) != 2 || got[0].State != providers.NodeRunning || got[1].State != providers.NodePending {
		t.Fatalf("%+v", got)
	}
	before := next.findInit(find(t, next, ns[0].ID), newTable())
	create(t, next, request(r, 2))
	if after := next.findInit(find(t, next, ns[0].ID), newTable()); *after != *before {
		t.Errorf("rank 0 was started again: %v, then %v", before, after)
	}
	for _, n := range list(t, next, r) {
		client(t, next, n)
	}
	if err := next.Delete(context.Background(), r, nil); err != nil {
		t.Fatal(err)
	}
}

func TestHalfDoneWorkIsTakenUp(t *testing.T) {
	p := open(t, nil)
	r := ref("half", "c1")
	q := request(r, 3)
	q.Spec.Spot = true
	ns := create(t, p, q)
	// A server wrote down what was to be and was killed: a stop, a preemption, a notice that has run out.
	for rank, change := range []func(*record){
		func(r *record) { r.Want = wantStopped },
		func(r *record) { r.Want, r.Reason = wantGone, ReasonPreempted },
		func(r *record) { r.PreemptAt = time.Now().Add(-time.Second) },
	} {
		rec := find(t, p, ns[rank].ID)
		change(rec)
		if err := rec.save(); err != nil {
			t.Fatal(err)
		}
	}
	p.Close()
	next, err := New(p.o)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	want := []string{"stopped ", "gone preempted", "gone preempted"}
	var got []string
	until(t, strings.Join(want, ", "), func() bool {
		got = got[:0]
		for _, n := range list(t, next, r) {
			got = append(got, string(n.State)+" "+n.Reason)
		}
		return slices.Equal(got, want)
	})
}
