package memory

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/providers/providertest"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// open makes a cloud that stands at noon.
func open(t testing.TB, cfg Config) (*Cloud, *FakeClock) {
	t.Helper()
	clock := NewFakeClock(noon)
	c, err := New(cfg, WithClock(clock))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, clock
}

func harness(t *testing.T, cfg Config) providertest.Harness {
	c, clock := open(t, cfg)
	t.Cleanup(func() {
		if err := c.Ledger().Check(nil); err != nil && !strings.Contains(err.Error(), ForeignCall) {
			t.Errorf("the books after the test: %v", err)
		}
	})
	h := providertest.Harness{Provider: c, Installation: "inst", Timeout: 10 * time.Second,
		Settle: func() { clock.Advance(250 * time.Millisecond); time.Sleep(time.Millisecond) },
		Kill:   func(t *testing.T, n providers.Node) { c.Kill(n.ID) },
		Stranger: func(t *testing.T, ref providers.ClusterRef) func() bool {
			id := c.AddStranger(ref)
			return func() bool {
				for _, e := range c.Ledger().Entries {
					if e.NodeID == id {
						return e.Died.IsZero()
					}
				}
				return false
			}
		},
		HideNew: func(t *testing.T) func() {
			end := c.begin()
			c.cfg.VisibleAfter = Duration(20 * time.Second)
			end()
			return func() { clock.Advance(20 * time.Second) }
		},
		FailCreate: func(t *testing.T, k providers.Kind, after bool) {
			c.Script(Fault{Call: "create", Err: providers.Errorf(k, providers.ScopeZone, "scripted %s", k), AfterEffect: after})
		},
		Reopen: func(t *testing.T) providers.Provider { return c },
	}
	if cfg.StateFile != "" {
		h.Reopen = func(t *testing.T) providers.Provider {
			c.Close()
			next, err := New(cfg, WithClock(clock))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { next.Close() })
			c = next
			return next
		}
	}
	return h
}

func TestConformance(t *testing.T) {
	providertest.Run(t, providertest.Options{New: func(t *testing.T) providertest.Harness { return harness(t, Config{}) }})
}

func TestConformanceSlow(t *testing.T) {
	providertest.Run(t, providertest.Options{New: func(t *testing.T) providertest.Harness {
		return harness(t, Config{CreateDelay: Duration(2 * time.Second), AgentDelay: Duration(time.Second), DeleteLag: Duration(3 * time.Second),
			StopDelay: Duration(time.Second), StateFile: filepath.Join(t.TempDir(), "cloud")})
	}})
}

func ref(name, hash string) providers.ClusterRef {
	return providers.ClusterRef{Installation: "inst", Name: name, Hash: hash}
}

func request(r providers.ClusterRef, n int) providers.CreateRequest {
	return providers.CreateRequest{Cluster: r, Token: "t-" + r.Hash, NumNodes: n, Spec: providers.NodeSpec{InstanceType: "m-2", Region: "east-1", Zone: "east-1a", PricePerHour: 0.1}}
}

func kind(t *testing.T, err error, k providers.Kind) {
	t.Helper()
	if !providers.Is(err, k) {
		t.Errorf("got %v (%s), want %s", err, providers.KindOf(err), k)
	}
}

func TestPartialCreate(t *testing.T) {
	ctx := context.Background()
	c, _ := open(t, Config{})
	c.Script(Fault{Call: "create", Leave: 7})
	r := ref("a", "h1")
	_, err := c.Create(ctx, request(r, 8))
	kind(t, err, providers.NoCapacity)
	if ns, _ := c.List(ctx, r.Tag()); len(ns) != 7 {
		t.Fatalf("%d nodes were left, want 7", len(ns))
	}
	if err := c.Ledger().Check(nil); err == nil || !strings.Contains(err.Error(), Leak) {
		t.Errorf("a leak is not seen: %v", err)
	}
	if err := c.Ledger().Check(map[string]bool{"h1": true}); err != nil {
		t.Error(err)
	}
	// The same token makes up the missing ones only.
	if ns, err := c.Create(ctx, request(r, 8)); err != nil || len(ns) != 8 {
		t.Errorf("retry: %d, %v", len(ns), err)
	}
	if n := len(c.Ledger().Entries); n != 8 {
		t.Errorf("%d machines were ever made", n)
	}
	c.Delete(ctx, r, nil)
	kind(t, c.Delete(ctx, r, nil), providers.NotFound)
	_, err = c.Create(ctx, request(r, 8))
	kind(t, err, providers.Conflict) // the token stands for what was deleted
	if err := c.Ledger().Check(nil); err != nil {
		t.Error(err)
	}
}

func TestScript(t *testing.T) {
	ctx := context.Background()
	c, _ := open(t, Config{})
	boom := providers.Errorf(providers.RateLimited, providers.ScopeCloud, "slow down")
	c.Script(
		Fault{Call: "create", Zone: "west-1a", Err: boom},
		Fault{Call: "create", Cluster: "a", Skip: 1, Times: 2, Err: boom},
		Fault{Call: "delete", Lost: true},
	)
	var got []bool
	for i := range 4 {
		_, err := c.Create(ctx, request(ref("a", fmt.Sprint("h", i)), 1))
		got = append(got, err == nil)
	}
	if fmt.Sprint(got) != "[true false false true]" {
		t.Errorf("creates succeeded: %v", got)
	}
	if err := c.Delete(ctx, ref("a", "h0"), nil); err != nil {
		t.Error(err)
	}
	if ns, _ := c.List(ctx, ref("a", "h0").Tag()); len(ns) != 1 {
		t.Error("a lost delete took effect")
	}
	w := request(ref("b", "w"), 1)
	w.Spec.Region, w.Spec.Zone = "west-1", "west-1a"
	_, err := c.Create(ctx, w)
	kind(t, err, providers.RateLimited)
}

func TestCapacityAndQuota(t *testing.T) {
	ctx := context.Background()
	c, _ := open(t, Config{Regions: []Region{{Name: "r", Zones: []Zone{{Name: "ra", Capacity: map[string]int{"": 3}}, {Name: "rb", Capacity: map[string]int{"m-4": 1}}}}},
		Quotas: []Quota{{Region: "r", Nodes: 6}}})
	mk := func(hash, zone, typ string, n int) ([]providers.Node, error) {
		q := request(ref(hash, hash), n)
		q.Spec.Region, q.Spec.Zone, q.Spec.InstanceType = "r", zone, typ
		return c.Create(ctx, q)
	}
	_, err := mk("a", "ra", "m-2", 4)
	kind(t, err, providers.NoCapacity)
	if _, err = mk("b", "ra", "m-2", 2); err != nil {
		t.Fatal(err)
	}
	_, err = mk("c", "rb", "m-4", 2)
	kind(t, err, providers.NoCapacity)
	if ns, err := mk("d", "", "m-2", 2); err != nil || ns[0].Zone != "rb" {
		t.Errorf("zone left open: %v %v", ns, err)
	}
	_, err = mk("e", "rb", "m-2", 3)
	kind(t, err, providers.QuotaExceeded)
	kind(t, c.CheckQuota(ctx, providers.NodeSpec{InstanceType: "m-2", Region: "r"}, 3), providers.QuotaExceeded)
	if err := c.CheckQuota(ctx, providers.NodeSpec{InstanceType: "m-2", Region: "r"}, 2); err != nil {
		t.Error(err)
	}
	c.Withdraw("ra", "m-2")
	_, err = mk("f", "ra", "m-2", 1)
	kind(t, err, providers.Invalid)
	if _, err := mk("b", "ra", "m-2", 2); err != nil {
		t.Errorf("retry of what was made before the withdrawal: %v", err)
	}
}

func TestDeleteLagAndBills(t *testing.T) {
	ctx := context.Background()
	c, clock := open(t, Config{DeleteLag: Duration(time.Minute), StopDelay: Duration(time.Minute)})
	r := ref("a", "h")
	c.Create(ctx, request(r, 1))
	clock.Advance(time.Hour)
	c.Stop(ctx, r, nil)
	clock.Advance(10 * time.Hour)
	if _, err := c.Start(ctx, r, "s", nil); err != nil {
		t.Fatal(err)
	}
	clock.Advance(time.Hour)
	for range 3 {
		if err := c.Delete(ctx, r, nil); err != nil {
			t.Fatal(err)
		}
		clock.Advance(10 * time.Second) // deleting again does not put it off
	}
	clock.Advance(30 * time.Second)
	kind(t, c.Delete(ctx, r, nil), providers.NotFound)
	l := c.Ledger()
	if e := l.Entries[0]; e.Died.Sub(e.Born) != 12*time.Hour+time.Minute || len(e.Bills) != 2 {
		t.Errorf("lived %v, bills %v", e.Died.Sub(e.Born), e.Bills)
	}
	if got, want := l.Billed(), 0.1*(1+1.0/60+1+1.0/60); got < want-1e-9 || got > want+1e-9 {
		t.Errorf("billed $%v, want $%v", got, want)
	}
}

func TestSeededFaultsAreTheSame(t *testing.T) {
	ctx := context.Background()
	run := func(seed int64) string {
		c, clock := open(t, Config{Seed: seed, Rates: Rates{Create: 0.3, CreateAfter: 0.2, CreatePartial: 0.2, Delete: 0.3, List: 0.2, Preempt: 0.5, Lifetime: Duration(time.Minute)}})
		var b strings.Builder
		for i := range 20 {
			r := ref(fmt.Sprint("c", i%5), fmt.Sprint("h", i))
			q := request(r, 3)
			q.Spec.Spot = true
			_, err := c.Create(ctx, q)
			fmt.Fprintln(&b, err)
			clock.Advance(10 * time.Second)
			_, err = c.List(ctx, r.Tag())
			fmt.Fprintln(&b, err, c.Delete(ctx, r, nil))
		}
		for _, e := range c.Ledger().Entries {
			fmt.Fprintln(&b, e.NodeID, e.Reason, e.Died)
		}
		return b.String()
	}
	a, b := run(1), run(1)
	if a != b {
		t.Error("one seed gave two stories")
	}
	if a == run(2) {
		t.Error("two seeds gave one story")
	}
	for _, want := range []string{"no capacity", "timed out", "too many requests", ReasonPreempted} {
		if !strings.Contains(a, want) {
			t.Errorf("no %q in:\n%s", want, a)
		}
	}
}

func TestLedgerSeesBreaches(t *testing.T) {
	r := ref("a", "h")
	at := func(h int) time.Time { return noon.Add(time.Duration(h) * time.Hour) }
	live := map[string]bool{"h": true}
	cases := map[string]struct {
		entries []Entry
		want    string
	}{
		"balanced":      {[]Entry{{NodeID: "1", Owner: r, Token: "t", Born: at(0), Died: at(1)}, {NodeID: "2", Owner: r, Token: "u", Born: at(2)}}, ""},
		"one token":     {[]Entry{{NodeID: "1", Owner: r, Token: "t", Born: at(0), Died: at(1)}, {NodeID: "2", Owner: r, Token: "t", Born: at(2)}}, DoubleCreate},
		"two at once":   {[]Entry{{NodeID: "1", Owner: r, Token: "t", Born: at(0), Died: at(3)}, {NodeID: "2", Owner: r, Token: "u", Born: at(2)}}, DoubleCreate},
		"leak":          {[]Entry{{NodeID: "1", Owner: ref("b", "x"), Token: "t", Born: at(0)}}, Leak},
		"foreign death": {[]Entry{{NodeID: "1", Stranger: true, Born: at(0), Died: at(1), Reason: ReasonDeleted}}, ForeignDeath},
		"stranger":      {[]Entry{{NodeID: "1", Stranger: true, Owner: ref("b", "x"), Born: at(0)}}, ""},
	}
	for name, c := range cases {
		err := (&Ledger{At: at(9), Entries: c.entries}).Check(live)
		if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c, _ := open(t, Config{})
	ns, _ := c.Create(context.Background(), request(r, 1))
	kind(t, c.Delete(context.Background(), ref("b", "other"), []string{ns[0].ID}), providers.Invalid)
	var b Breach
	if err := c.Ledger().Check(live); !errors.As(err, &b) || b.Kind != ForeignCall {
		t.Errorf("%v", err)
	}
}

func TestZoneOutage(t *testing.T) {
	ctx := context.Background()
	c, _ := open(t, Config{})
	r := ref("a", "h")
	c.Create(ctx, request(r, 2))
	c.KillZone("east-1a")
	for _, n := range must(c.List(ctx, r.Tag())) {
		if n.State != providers.NodeGone || n.Reason != ReasonKilled {
			t.Errorf("%+v", n)
		}
	}
	_, err := c.Create(ctx, request(ref("b", "i"), 1))
	kind(t, err, providers.Invalid)
	c.Restore("east-1a")
	if _, err := c.Create(ctx, request(ref("b", "i"), 1)); err != nil {
		t.Error(err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestSurvivesTheProcess(t *testing.T) {
	ctx := context.Background()
	clock := NewFakeClock(noon)
	cfg := Config{StateFile: filepath.Join(t.TempDir(), "x", "cloud"), JobDuration: Duration(time.Minute)}
	a := must(New(cfg, WithClock(clock)))
	r := ref("a", "h")
	ns := must(a.Create(ctx, request(r, 1)))
	cl := client(t, a, ns[0])
	spec := agentapi.ClusterSpec{Name: "a", Hash: "h", Epoch: 1, Nodes: []agentapi.Peer{{NodeID: ns[0].ID}}}
	if err := cl.Configure(ctx, spec); err != nil {
		t.Fatal(err)
	}
	job := must(cl.Submit(ctx, agentapi.JobSpec{Key: "k", Epoch: 1, Run: "train"}))
	// No Close: the process was killed. Another one opens the same file.
	b := must(New(cfg, WithClock(clock)))
	defer b.Close()
	if got := must(b.List(ctx, r.Tag())); len(got) != 1 || got[0].ID != ns[0].ID || !got[0].CreatedAt.Equal(noon) {
		t.Fatalf("%+v", got)
	}
	cl = client(t, b, ns[0])
	if again := must(cl.Submit(ctx, agentapi.JobSpec{Key: "k", Epoch: 1, Run: "train"})); again.ID != job.ID || again.Status != "RUNNING" {
		t.Errorf("%+v", again)
	}
	clock.Advance(time.Minute)
	if j := must(cl.Job(ctx, job.ID)); j.Status != "SUCCEEDED" {
		t.Errorf("%+v", j)
	}
	// Two servers may use one cloud.
	if err := b.Delete(ctx, r, nil); err != nil {
		t.Fatal(err)
	}
	kind(t, a.Delete(ctx, r, nil), providers.NotFound)
	if err := a.Ledger().Check(nil); err != nil {
		t.Error(err)
	}
	a.Close()
	for i := range 1500 { // enough for the file to be compacted
		q := ref("c", fmt.Sprint("c", i%10, "-", i/10))
		must(b.Create(ctx, request(q, 1)))
		b.Delete(ctx, q, nil)
		b.Delete(ctx, q, nil)
	}
	c := must(New(cfg, WithClock(clock)))
	defer c.Close()
	if n, m := len(c.Ledger().Entries), len(b.Ledger().Entries); n != m || n != 1501 {
		t.Errorf("%d and %d entries", n, m)
	}
}

func client(t *testing.T, c *Cloud, n providers.Node) *agentapi.Client {
	t.Helper()
	tr := must(c.Transport(context.Background(), n))
	cl := agentapi.New(tr.DialAgent)
	t.Cleanup(cl.Close)
	return cl
}

func TestParseConfig(t *testing.T) {
	c, err := ParseConfig(map[string]any{"enabled": true, "seed": 7, "create_delay": "2s", "rates": map[string]any{"create": 0.1},
		"regions": []any{map[string]any{"name": "r", "zones": []any{map[string]any{"name": "z", "capacity": map[string]any{"m-2": 3}}}}}})
	if err != nil || !c.Enabled || time.Duration(c.CreateDelay) != 2*time.Second || c.Rates.Create != 0.1 || c.Regions[0].Zones[0].Capacity["m-2"] != 3 {
		t.Errorf("%+v, %v", c, err)
	}
	for _, bad := range []map[string]any{{"seeed": 1}, {"create_delay": "soon"}, {"rates": map[string]any{"create": 2}},
		{"regions": []any{map[string]any{"name": "r", "zones": []any{map[string]any{"name": "z"}, map[string]any{"name": "z"}}}}}} {
		_, err := ParseConfig(bad)
		kind(t, err, providers.Invalid)
	}
}
