package ssh

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/tests/lab"
)

func cluster(name string) providers.ClusterRef {
	return providers.ClusterRef{Installation: installation, Name: name, Hash: nonce()[:8]}
}

func request(ref providers.ClusterRef, nodes int, s providers.NodeSpec) providers.CreateRequest {
	s.Region = "lab"
	return providers.CreateRequest{Cluster: ref, Token: "t-" + ref.Hash, NumNodes: nodes, Spec: s, User: "tester"}
}

var small = providers.NodeSpec{CPUs: 1, MemoryGB: 1}

func create(t *testing.T, p *Provider, ref providers.ClusterRef, nodes int, s providers.NodeSpec) []providers.Node {
	t.Helper()
	ns, err := p.Create(t.Context(), request(ref, nodes, s))
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	return ns
}

func list(t *testing.T, p *Provider, ref providers.ClusterRef) map[int]providers.Node {
	t.Helper()
	ns, err := p.List(t.Context(), ref.Tag())
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	out := map[int]providers.Node{}
	for _, n := range ns {
		out[n.Rank] = n
	}
	return out
}

func until(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not so after %v: %s", limit, what)
		}
	}
}

// impatient does not wait long for hosts that are cut off, but long enough for those of a busy machine.
func impatient(o *Options) { o.ConnectTimeout = 5 * time.Second }

// claimsOn counts the claims on a host.
func claimsOn(t *testing.T, h *lab.Host) int {
	t.Helper()
	out, err := h.Run(context.Background(), "ls /var/tmp/skyloom-claims 2>/dev/null | grep -c json; true")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	fmt.Sscan(out, &n)
	return n
}

func info2(t *testing.T, p *Provider, n providers.Node) (agentapi.Info, error) {
	t.Helper()
	tr, err := p.Transport(t.Context(), n)
	if err != nil {
		return agentapi.Info{}, err
	}
	c := agentapi.New(tr.DialAgent)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	return c.Info(ctx)
}

// TestSilentHost: a host that is cut off is not taken for empty, and is no reason to lose the others.
func TestSilentHost(t *testing.T) {
	t.Parallel()
	l := labOf(t, lab.Options{Hosts: 3, Host: lab.HostSpec{CPUs: 4, MemoryMB: 4 << 10}})
	p := open(t, l, impatient)
	ref := cluster("silent")
	ns := create(t, p, ref, 2, small)
	before, err := info2(t, p, ns[1])
	if err != nil {
		t.Fatal(err)
	}
	h := hostOfNode(t, l, ns[1])
	if err := h.Cut(); err != nil {
		t.Fatal(err)
	}
	got := list(t, p, ref)
	if len(got) != 2 || got[0].State != providers.NodeRunning || got[1].State != providers.NodeRunning || !strings.Contains(got[1].Reason, "does not answer") {
		t.Errorf("listed %+v", got)
	}
	err = p.Delete(t.Context(), ref, nil)
	if err == nil || providers.Is(err, providers.NotFound) || !strings.Contains(err.Error(), h.Addr) {
		t.Errorf("delete beside a host that is cut off: %v", err)
	}
	// Others go on: a node goes to a host that answers.
	other := cluster("other")
	if on := hostOfNode(t, l, create(t, p, other, 1, small)[0]); on == h {
		t.Error("a node was made on a host that is cut off")
	}
	if err := h.Join(); err != nil {
		t.Fatal(err)
	}
	until(t, 30*time.Second, "the node answers again", func() bool {
		after, err := info2(t, p, ns[1])
		return err == nil && after.StartedAt.Equal(before.StartedAt)
	})
	until(t, 30*time.Second, "the cluster is deleted", func() bool {
		return providers.Is(p.Delete(t.Context(), ref, nil), providers.NotFound)
	})
	if n := claimsOn(t, h); n != 0 {
		t.Errorf("%d claims are left", n)
	}
	if err := p.Delete(t.Context(), other, nil); err != nil {
		t.Error(err)
	}
}

// TestGoneForGood: a host that is no more is given up once it is taken out of the pools file.
func TestGoneForGood(t *testing.T) {
	t.Parallel()
	l := labOf(t, lab.Options{Hosts: 2})
	p := open(t, l, impatient)
	ref := cluster("lost")
	n := create(t, p, ref, 2, small)[1]
	h := hostOfNode(t, l, n)
	if err := h.Terminate(); err != nil {
		t.Fatal(err)
	}
	until(t, time.Minute, "the delete says what is wrong", func() bool {
		err := p.Delete(t.Context(), ref, nil)
		return err != nil && strings.Contains(err.Error(), h.Addr) && !providers.Is(err, providers.NotFound)
	})
	text := l.PoolsYAML("lab")
	i := strings.Index(text, "    - ip: "+h.Addr)
	text = text[:i]
	if err := os.WriteFile(filepath.Join(p.o.Home, PoolsFile), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, time.Minute, "the node is gone", func() bool { return list(t, p, ref)[1].State == providers.NodeGone || len(list(t, p, ref)) == 0 })
	until(t, time.Minute, "the cluster is deleted", func() bool { return providers.Is(p.Delete(t.Context(), ref, nil), providers.NotFound) })
}

// TestTurnsUpAgain: a host that was given up for gone was only cut off. Once it is back its nodes are listed, and can be deleted.
func TestTurnsUpAgain(t *testing.T) {
	t.Parallel()
	l := labOf(t, lab.Options{Hosts: 2})
	p := open(t, l, impatient)
	ref := cluster("lost")
	h := hostOfNode(t, l, create(t, p, ref, 2, small)[1])
	if err := h.Cut(); err != nil {
		t.Fatal(err)
	}
	all := l.PoolsYAML("lab")
	write := func(text string) {
		if err := os.WriteFile(filepath.Join(p.o.Home, PoolsFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(all[:strings.Index(all, "    - ip: "+h.Addr)])
	until(t, time.Minute, "the cluster is deleted", func() bool { return providers.Is(p.Delete(t.Context(), ref, nil), providers.NotFound) })
	if err := h.Join(); err != nil {
		t.Fatal(err)
	}
	write(all)
	until(t, time.Minute, "the node on it is listed", func() bool {
		nodes, err := p.List(t.Context(), providers.Tag{Installation: installation})
		return err == nil && len(nodes) == 1 && nodes[0].Rank == 1
	})
	if err := p.Delete(t.Context(), ref, nil); err != nil {
		t.Error(err)
	}
	if n := claimsOn(t, h); n != 0 {
		t.Errorf("%d claims are left", n)
	}
}

// TestFallsSilentWhileMaking: the node of a host that goes away in the middle is made elsewhere, and removed once the host is back.
func TestFallsSilentWhileMaking(t *testing.T) {
	t.Parallel()
	l := labOf(t, lab.Options{Hosts: 2})
	p := open(t, l, impatient)
	hosts, err := p.pool("lab")
	if err != nil {
		t.Fatal(err)
	}
	ref := cluster("midway")
	req := request(ref, 1, small)
	n, err := p.existing(t.Context(), req, []int{0}, false)
	if err != nil {
		t.Fatal(err)
	}
	b := &bringUp{p: p, ctx: t.Context(), req: req, ranks: []int{0}, n: n, hosts: hosts, failed: map[*link]bool{}}
	found := b.prepare(1)
	if len(found) != 1 {
		t.Fatalf("prepared %v", found)
	}
	first, second := l.Host(0), l.Host(1)
	if found[0].Name != first.Addr { // of a busy machine the second may be ready first
		first, second = second, first
	}
	// The node is made, and the answer never arrives.
	n.Ranks[0] = &noted{Host: found[0].Host}
	if err := p.keep(n); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.one(attempt{0, found[0]}); err != nil {
		t.Fatal(err)
	}
	if err := first.Cut(); err != nil {
		t.Fatal(err)
	}
	if err := b.make([]attempt{{0, found[0]}}); err != nil {
		t.Fatal(err)
	}
	ns, err := b.run()
	if err != nil || len(ns) != 1 || ns[0].ExternalIP != second.Addr {
		t.Fatalf("it went on to %+v, %v", ns, err)
	}
	if err := first.Join(); err != nil {
		t.Fatal(err)
	}
	until(t, time.Minute, "the first node is removed", func() bool {
		got := list(t, p, ref)
		if len(got) != 1 || got[0].ExternalIP != second.Addr {
			t.Errorf("listed %+v", got)
		}
		return claimsOn(t, first) == 0
	})
	if err := p.Delete(t.Context(), ref, nil); err != nil {
		t.Error(err)
	}
}

// TestReboot: after a restart of the machine its nodes are stopped, their shares free, and they can be started again.
func TestReboot(t *testing.T) {
	t.Parallel()
	l := labOf(t, lab.Options{Specs: []lab.HostSpec{{Name: "g", CPUs: 4, MemoryMB: 4 << 10, GPUs: []lab.GPU{{Name: "H100", Count: 1, MemoryMB: 81920}}}}})
	p := open(t, l, impatient)
	s := small
	s.Accelerator, s.AcceleratorCount = "H100", 1
	ref := cluster("reboot")
	n := create(t, p, ref, 1, s)[0]
	h := l.Host(0)
	if err := h.Kill(); err != nil {
		t.Fatal(err)
	}
	if got := list(t, p, ref)[0]; got.State != providers.NodeRunning || got.Reason == "" {
		t.Errorf("while its host is off it is %s (%s)", got.State, got.Reason)
	}
	if err := h.Boot(); err != nil {
		t.Fatal(err)
	}
	until(t, time.Minute, "it is stopped", func() bool { return list(t, p, ref)[0].State == providers.NodeStopped })
	other := cluster("taker")
	create(t, p, other, 1, s) // the share is free
	_, err := p.Start(t.Context(), ref, "s1", nil)
	if !providers.Is(err, providers.NoCapacity) || !strings.Contains(err.Error(), "held by taker of tester") {
		t.Errorf("start beside the taker: %v", err)
	}
	if err := p.Delete(t.Context(), other, nil); err != nil {
		t.Fatal(err)
	}
	back, err := p.Start(t.Context(), ref, "s2", nil)
	if err != nil || len(back) != 1 || back[0].ID != n.ID || back[0].State != providers.NodeRunning {
		t.Fatalf("start: %+v, %v", back, err)
	}
	if _, err := info2(t, p, back[0]); err != nil {
		t.Error(err)
	}
	if err := p.Delete(t.Context(), ref, nil); err != nil {
		t.Error(err)
	}
}

// TestAllOrNone: a gang that finds too little room leaves nothing behind, and is told why by host.
func TestAllOrNone(t *testing.T) {
	t.Parallel()
	l := labOf(t, lab.Options{Hosts: 3, Host: lab.HostSpec{CPUs: 4, MemoryMB: 4 << 10}})
	p := open(t, l, nil)
	// Another server's cluster, which this one has not heard of, fills a host.
	q := openAt(t, l, homeOf(t, l), nil)
	hog := providers.ClusterRef{Installation: "another", Name: "hog", Hash: nonce()[:8]}
	on := hostOfNode(t, l, create(t, q, hog, 1, providers.NodeSpec{CPUs: 4, MemoryGB: 4})[0])
	ref := cluster("gang")
	_, err := p.Create(t.Context(), request(ref, 3, providers.NodeSpec{CPUs: 2, MemoryGB: 1}))
	if !providers.Is(err, providers.NoCapacity) || !strings.Contains(err.Error(), on.Addr+": 0 CPUs of 4 free, 2 asked for; held by hog of tester") {
		t.Errorf("create: %v", err)
	}
	for _, h := range l.Hosts() {
		if n := claimsOn(t, h); (n != 0) != (h == on) {
			t.Errorf("%d claims on %s", n, h.Name)
		}
	}
	if got := list(t, p, ref); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	if _, err := p.Create(t.Context(), request(cluster("many"), 4, small)); !providers.Is(err, providers.NoCapacity) || !strings.Contains(err.Error(), "has 3 host(s), 4 nodes need as many") {
		t.Errorf("four nodes on three hosts: %v", err)
	}
	if _, err := p.Create(t.Context(), request(cluster("huge"), 1, providers.NodeSpec{CPUs: 64, MemoryGB: 1})); !providers.Is(err, providers.Invalid) {
		t.Errorf("more than any host has: %v", err)
	}
	if err := q.Delete(t.Context(), hog, nil); err != nil {
		t.Error(err)
	}
}

// homeOf is another server's home with the same pool.
func homeOf(t *testing.T, l *lab.Lab) string {
	t.Helper()
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, PoolsFile), []byte(l.PoolsYAML("lab")), 0o600); err != nil {
		t.Fatal(err)
	}
	return home
}

// TestNewKey: a machine that was installed anew is refused until its old key is forgotten.
func TestNewKey(t *testing.T) {
	t.Parallel()
	l := labOf(t, lab.Options{Hosts: 1})
	p := open(t, l, impatient)
	ref := cluster("key")
	create(t, p, ref, 1, small)
	if err := l.Host(0).Recreate(); err != nil {
		t.Fatal(err)
	}
	var err error
	until(t, time.Minute, "the new key is noticed", func() bool {
		_, err = p.Create(t.Context(), request(cluster("next"), 1, small))
		return err != nil && strings.Contains(err.Error(), "has changed")
	})
	if !providers.Is(err, providers.NoCapacity) {
		t.Errorf("create: %v", err)
	}
	if err := os.Remove(filepath.Join(p.o.Home, "ssh", "known_hosts_pools")); err != nil {
		t.Fatal(err)
	}
	// Now the host says itself that the node is not there.
	until(t, time.Minute, "the lost node is gone", func() bool { return providers.Is(p.Delete(t.Context(), ref, nil), providers.NotFound) })
	next := cluster("next")
	create(t, p, next, 1, small)
	if err := p.Delete(t.Context(), next, nil); err != nil {
		t.Error(err)
	}
}

// TestOnlyLooking: checks and listings leave nothing on a host.
func TestOnlyLooking(t *testing.T) {
	t.Parallel()
	l := labOf(t, lab.Options{Specs: []lab.HostSpec{{Name: "g", CPUs: 4, MemoryMB: 4 << 10, GPUs: []lab.GPU{{Name: "H100", Count: 2, MemoryMB: 81920}}}}})
	p := open(t, l, nil)
	if r, err := p.Check(t.Context()); err != nil || !strings.Contains(strings.Join(r.Details, "\n"), "4 of 4 CPUs, 4.0 of 4.0 GB of memory free, 2 of 2 H100 free") {
		t.Errorf("check: %+v, %v", r, err)
	}
	offers, err := p.Offers(t.Context(), providers.OfferFilter{})
	if err != nil || len(offers) != 1 || offers[0].Accelerator != "H100" || offers[0].AcceleratorCount != 2 || offers[0].DeviceMemGB != 80 || offers[0].MaxNodes != 1 || offers[0].Arch != "amd64" {
		t.Errorf("offers: %+v, %v", offers, err)
	}
	if ns, err := p.List(t.Context(), providers.Tag{Installation: installation}); err != nil || len(ns) != 0 {
		t.Errorf("list: %v, %v", ns, err)
	}
	if err := p.Delete(t.Context(), cluster("never"), nil); !providers.Is(err, providers.NotFound) {
		t.Errorf("delete: %v", err)
	}
	changed, err := l.Host(0).Changes()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range changed {
		if strings.Contains(c, "skyloom") {
			t.Errorf("left: %s", c)
		}
	}
}

// TestEndsItself: a node that nobody answers when its idle time is over ends by itself, and its share is free.
func TestEndsItself(t *testing.T) {
	t.Parallel()
	l := labOf(t, lab.Options{Hosts: 1, Host: lab.HostSpec{CPUs: 2, MemoryMB: 2 << 10}})
	p := open(t, l, func(o *Options) { o.Tune = []byte(`{"autostop_grace": 200000000, "idle_check": 100000000}`) })
	ref := cluster("idle")
	n := create(t, p, ref, 1, providers.NodeSpec{CPUs: 2, MemoryGB: 2})[0]
	tr, err := p.Transport(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	c := agentapi.New(tr.DialAgent)
	defer c.Close()
	if err := c.Configure(t.Context(), agentapi.ClusterSpec{Name: ref.Name, Hash: ref.Hash, Epoch: 1, Nodes: []agentapi.Peer{{NodeID: n.ID, IP: n.InternalIP, Addr: n.AgentAddr}}, Resources: n.Resources}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetAutostop(t.Context(), agentapi.Autostop{Generation: 1, IdleSeconds: 0.2}); err != nil {
		t.Fatal(err)
	}
	until(t, time.Minute, "it has stopped", func() bool { return list(t, p, ref)[0].State == providers.NodeStopped })
	other := cluster("next")
	until(t, 30*time.Second, "its share is free", func() bool {
		_, err := p.Create(t.Context(), request(other, 1, providers.NodeSpec{CPUs: 2, MemoryGB: 2}))
		return err == nil
	})
	for _, r := range []providers.ClusterRef{ref, other} {
		if err := p.Delete(t.Context(), r, nil); err != nil {
			t.Error(err)
		}
	}
}

// TestLimits: a node can use no more memory than it claimed.
func TestLimits(t *testing.T) {
	t.Parallel()
	l := labOf(t, lab.Options{Hosts: 1, Host: lab.HostSpec{CPUs: 2, MemoryMB: 2 << 10}})
	p := open(t, l, nil)
	ref := cluster("limits")
	n := create(t, p, ref, 1, providers.NodeSpec{CPUs: 0.5, MemoryGB: 0.25})[0]
	out, err := l.Host(0).Run(t.Context(), `for f in $(find /sys/fs/cgroup -path "*skyloom/*" \( -name memory.limit_in_bytes -o -name memory.max -o -name cpu.cfs_quota_us -o -name cpu.max \)); do echo $(basename $f)=$(cat $f); done`)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "=268435456") || !strings.Contains(out, "=50000") {
		t.Errorf("limits of node %s:\n%s", n.ID, out)
	}
	if err := p.Delete(t.Context(), ref, nil); err != nil {
		t.Error(err)
	}
	if out, err := l.Host(0).Run(t.Context(), `find /sys/fs/cgroup -name "*skyloom*"`); err != nil || out != "" {
		t.Errorf("cgroups are left: %s %v", out, err)
	}
}
