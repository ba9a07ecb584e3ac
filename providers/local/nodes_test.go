package local

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/gpus"
	"github.com/skyloom/skyloom/providers"
)

func TestGPUsAreReserved(t *testing.T) {
	ctx := context.Background()
	devices := []gpus.GPU{{ID: "GPU-0", Name: "A100"}, {ID: "GPU-1", Name: "A100"}, {ID: "GPU-2", Name: "A100"}, {ID: "GPU-3", Name: "T4"}}
	p := open(t, func(o *Options) { o.GPUs = devices })
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

// Two installations on one machine see each other's GPUs, whatever happens to the nodes that hold them.
func TestGPUsOfOtherInstallations(t *testing.T) {
	ctx := context.Background()
	devices := []gpus.GPU{{ID: "GPU-0", Name: "A100"}, {ID: "GPU-1", Name: "A100"}, {ID: "GPU-2", Name: "A100"}}
	dir := filepath.Join(t.TempDir(), "claims")
	a := open(t, func(o *Options) { o.GPUs, o.Claims = devices, dir })
	b := open(t, func(o *Options) { o.GPUs, o.Claims, o.Installation = devices, dir, "other" })
	q := func(hash, in string, count float64) providers.CreateRequest {
		r := request(ref("g", hash), 1)
		r.Cluster.Installation = in
		r.Spec.Accelerator, r.Spec.AcceleratorCount = "A100", count
		return r
	}
	free := func(p *Provider) float64 {
		pools, err := p.Pools(ctx)
		if err != nil || len(pools) != 1 {
			t.Fatal(pools, err)
		}
		return pools[0].Free
	}
	create(t, a, q("f1", installation, 2))
	if n := free(b); n != 1 {
		t.Errorf("%v of 3 are free beside the other's", n)
	}
	_, err := b.Create(ctx, q("f1", "other", 2))
	wantKind(t, err, providers.NoCapacity)
	if !strings.Contains(err.Error(), "held by g of another installation") {
		t.Error(err)
	}
	mine := create(t, b, q("f2", "other", 1))
	if got := mine[0].Resources.DeviceIDs[0]; got != "GPU-2" {
		t.Errorf("got %s", got)
	}
	// A stop, a kill and a deletion each give them back.
	if err := a.Stop(ctx, ref("g", "f1"), nil); err != nil {
		t.Fatal(err)
	}
	two := create(t, b, q("f3", "other", 2))
	_, err = a.Start(ctx, ref("g", "f1"), "s", theAgent)
	wantKind(t, err, providers.NoCapacity)
	kill(t, b, two[0])
	until(t, "the killed node's GPUs are free", func() bool { return free(a) == 2 })
	if _, err := a.Start(ctx, ref("g", "f1"), "s", theAgent); err != nil {
		t.Fatal(err)
	}
	if err := a.Delete(ctx, ref("g", "f1"), nil); err != nil {
		t.Fatal(err)
	}
	if n := free(a); n != 2 {
		t.Errorf("%v of 3 are free after the deletion", n)
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
