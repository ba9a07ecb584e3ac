package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
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
	o := Options{Root: filepath.Join(t.TempDir(), "local"), Installation: installation, Agent: theAgent, GPUs: []GPU{}}
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
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
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

func TestGPUsAreReserved(t *testing.T) {
	ctx := context.Background()
	gpus := []GPU{{ID: "GPU-0", Name: "A100"}, {ID: "GPU-1", Name: "A100"}, {ID: "GPU-2", Name: "A100"}, {ID: "GPU-3", Name: "T4"}}
	p := open(t, func(o *Options) { o.GPUs = gpus })
	q := func(hash, acc string, count float64, nodes int) providers.CreateRequest {
		r := request(ref("g", hash), nodes)
		r.Spec.Accelerator, r.Spec.AcceleratorCount = acc, count
		return r
	}
	two := create(t, p, q("d1", "a100", 1, 2))
	if got := two[0].Resources.DeviceIDs[0] + " " + two[1].Resources.DeviceIDs[0]; got != "GPU-0 GPU-1" {
		t.Errorf("devices %s", got)
	}
	_, err := p.Create(ctx, q("d2", "A100", 2, 1))
	wantKind(t, err, providers.NoCapacity)
	_, err = p.Create(ctx, q("d2", "A100", 4, 1))
	wantKind(t, err, providers.Invalid)
	_, err = p.Create(ctx, q("d2", "H100", 1, 1))
	wantKind(t, err, providers.Invalid)
	if exists(p.clusterDir(ref("g", "d2"))) {
		t.Error("a refused create left a folder")
	}
	half := create(t, p, q("d3", "T4", 0.5, 1)) // holds the whole device
	if half[0].Resources.AcceleratorCount != 1 {
		t.Errorf("%+v", half[0].Resources)
	}
	pools, err := p.Pools(ctx)
	if err != nil || len(pools) != 2 || pools[0].Free != 1 || pools[0].Total != 3 || pools[1].Free != 0 {
		t.Errorf("%+v, %v", pools, err)
	}
	// A stop gives them back; the start takes what is free then.
	if err := p.Stop(ctx, ref("g", "d1"), nil); err != nil {
		t.Fatal(err)
	}
	create(t, p, q("d4", "A100", 1, 1)) // takes GPU-0
	back, err := p.Start(ctx, ref("g", "d1"), "s", theAgent)
	if err != nil || back[0].Resources.DeviceIDs[0] != "GPU-1" || back[1].Resources.DeviceIDs[0] != "GPU-2" {
		t.Fatalf("%+v, %v", back, err)
	}
	var c agentapi.NodeConfig
	b, _ := os.ReadFile(find(t, p, back[1].ID).config())
	if json.Unmarshal(b, &c); c.Resources.DeviceIDs[0] != "GPU-2" {
		t.Errorf("the agent is told %+v", c.Resources)
	}
	if err := p.Stop(ctx, ref("g", "d4"), nil); err != nil {
		t.Fatal(err)
	}
	create(t, p, q("d5", "A100", 1, 1))
	_, err = p.Start(ctx, ref("g", "d4"), "s", theAgent)
	wantKind(t, err, providers.NoCapacity)
	if ns := list(t, p, ref("g", "d4")); ns[0].State != providers.NodeStopped {
		t.Errorf("%+v", ns[0])
	}
}

func TestNodesHaveTheirOwn(t *testing.T) {
	p := open(t, nil)
	a, b := create(t, p, request(ref("own", "e1"), 2)), create(t, p, request(ref("own", "e2"), 1))
	seen := map[string]bool{}
	for _, n := range append(a, b...) {
		h, err := parseHandle(n)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range []string{h.Socket, fmt.Sprint(n.InternalIP, ":", h.Port), h.Dir} {
			if seen[x] {
				t.Errorf("%s twice", x)
			}
			seen[x] = true
		}
		if n.AgentAddr != "unix:"+h.Socket || len(h.Socket) > maxSocket {
			t.Errorf("%+v", n)
		}
		if st, _ := os.Stat(filepath.Join(h.Dir, "node.json")); st == nil || st.Mode().Perm() != 0o600 {
			t.Error("node.json may be read by others")
		}
		if runtime.GOOS == "linux" && (!strings.HasPrefix(n.InternalIP, "127.") || seen[n.InternalIP]) {
			t.Errorf("address %s", n.InternalIP)
		}
		seen[n.InternalIP] = true
		rec := find(t, p, n.ID)
		if canIsolate() && cgroupMount() != "" {
			mine, _ := os.Readlink(fmt.Sprintf("/proc/self/ns/pid"))
			theirs, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid_for_children", rec.Init.PID))
			if mine == theirs || rec.Cgroup == "" {
				t.Errorf("no namespace (%s) or cgroup (%q)", theirs, rec.Cgroup)
			}
		}
	}
}

func TestSecretsOfTheServerStay(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hidden")
	t.Setenv("HTTPS_PROXY", "http://proxy:3128")
	p := open(t, nil)
	ns := create(t, p, request(ref("env", "f1"), 1))
	run(t, client(t, p, ns[0]), ns[0], `env > ~/env; echo "$HOME" > ~/home; mv ~/env ~/done`)
	dir := find(t, p, ns[0].ID).dir
	until(t, "the job ended", func() bool { return exists(filepath.Join(dir, "home", "done")) })
	b, _ := os.ReadFile(filepath.Join(dir, "home", "done"))
	if strings.Contains(string(b), "hidden") || !strings.Contains(string(b), "proxy:3128") {
		t.Errorf("environment of a job:\n%s", b)
	}
	if h, _ := os.ReadFile(filepath.Join(dir, "home", "home")); strings.TrimSpace(string(h)) != filepath.Join(dir, "home") {
		t.Errorf("HOME is %s", h)
	}
}

func TestStopKeepsFiles(t *testing.T) {
	ctx := context.Background()
	p := open(t, nil)
	r := ref("files", "g1")
	ns := create(t, p, request(r, 1))
	client(t, p, ns[0])
	file := filepath.Join(find(t, p, ns[0].ID).dir, "home", "model")
	os.WriteFile(file, []byte("weights"), 0o600)
	if err := p.Stop(ctx, r, nil); err != nil {
		t.Fatal(err)
	}
	if ns := list(t, p, r); ns[0].State != providers.NodeStopped {
		t.Fatalf("%+v", ns[0])
	}
	back, err := p.Start(ctx, r, "s", theAgent)
	if err != nil {
		t.Fatal(err)
	}
	client(t, p, back[0])
	if b, _ := os.ReadFile(file); string(b) != "weights" {
		t.Error("the file is gone")
	}
}

func TestNodeThatEndedItself(t *testing.T) {
	for down, want := range map[bool]providers.NodeState{false: providers.NodeStopped, true: providers.NodeGone} {
		p := open(t, nil)
		r := ref("idle", "h1")
		ns := create(t, p, request(r, 1))
		client(t, p, ns[0])
		rec := find(t, p, ns[0].ID)
		os.WriteFile(filepath.Join(rec.agentDir(), "ended.json"), fmt.Appendf(nil, `{"reason":"idle","down":%v}`, down), 0o600)
		kill(t, p, ns[0])
		until(t, string(want), func() bool { n := list(t, p, r)[0]; return n.State == want && n.Reason == "idle" })
		if !down {
			if _, err := p.Start(context.Background(), r, "s", theAgent); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestMachineRestarted(t *testing.T) {
	p := open(t, nil)
	r := ref("boot", "i1")
	ns := create(t, p, request(r, 1))
	kill(t, p, ns[0])
	rec := find(t, p, ns[0].ID)
	until(t, "it is gone", func() bool { return list(t, p, r)[0].State == providers.NodeGone })
	rec.Boot = "another"
	rec.save()
	if n := list(t, p, r)[0]; n.State != providers.NodeStopped {
		t.Errorf("%+v", n)
	}
	if back, err := p.Start(context.Background(), r, "s", theAgent); err != nil || back[0].State != providers.NodeRunning {
		t.Errorf("%+v, %v", back, err)
	}
}

func TestLongRoot(t *testing.T) {
	p := open(t, func(o *Options) { o.Root = filepath.Join(t.TempDir(), strings.Repeat("deep/", 20), "local") })
	r := ref("long", "j1")
	ns := create(t, p, request(r, 1))
	client(t, p, ns[0])
	h, _ := parseHandle(ns[0])
	if strings.HasPrefix(h.Socket, p.root) {
		t.Errorf("socket %s", h.Socket)
	}
	if err := p.Delete(context.Background(), r, nil); err != nil || exists(filepath.Dir(h.Socket)) {
		t.Errorf("%v; folder of sockets is left: %v", err, exists(filepath.Dir(h.Socket)))
	}
}

func TestOwnTmp(t *testing.T) {
	if !canIsolate() {
		t.Skip("a /tmp of the node's own needs root")
	}
	outside, err := os.MkdirTemp("/var/tmp", "sky-test-*") // a Root below /tmp shares /tmp
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(outside) })
	p := open(t, func(o *Options) { o.Root = outside })
	ns := create(t, p, request(ref("tmp", "l1"), 1))
	run(t, client(t, p, ns[0]), ns[0], "touch /tmp/"+filepath.Base(outside)+"; touch ~/done")
	dir := find(t, p, ns[0].ID).dir
	until(t, "the job ended", func() bool { return exists(filepath.Join(dir, "home", "done")) })
	if !exists(filepath.Join(dir, "tmp", filepath.Base(outside))) || exists("/tmp/"+filepath.Base(outside)) {
		t.Error("the job wrote into the machine's /tmp")
	}
}

func TestBadNames(t *testing.T) {
	p := open(t, nil)
	for _, r := range []providers.ClusterRef{ref("../x", "h"), ref("x", "../h"), ref("", "h"), ref("a/b", "h"), ref(".", "h"), {Name: "a", Hash: "h"}} {
		_, err := p.Create(context.Background(), request(r, 1))
		wantKind(t, err, providers.Invalid)
		wantKind(t, p.Delete(context.Background(), r, nil), providers.Invalid)
	}
}

func TestTooBig(t *testing.T) {
	p := open(t, func(o *Options) { o.CPUs, o.MemoryGB = 4, 8 })
	for name, change := range map[string]func(*providers.NodeSpec){
		"cpus":   func(s *providers.NodeSpec) { s.CPUs = 5 },
		"memory": func(s *providers.NodeSpec) { s.MemoryGB = 9 },
		"image":  func(s *providers.NodeSpec) { s.ImageID = "docker:ubuntu" },
		"zone":   func(s *providers.NodeSpec) { s.Zone = "a" },
	} {
		q := request(ref("big", "k1"), 1)
		change(&q.Spec)
		_, err := p.Create(context.Background(), q)
		if !providers.Is(err, providers.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
