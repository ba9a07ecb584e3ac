package providertest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/providers"
)

// Harness is one provider under test and what the suite needs around it.
type Harness struct {
	Provider     providers.Provider
	Agent        providers.AgentSource // nil: creates carry none
	Installation string
	// Spec and Spot are what a node asks for; a zero value: the cheapest offer of that kind. A provider without spot
	// offers skips the tests that need one.
	Spec, Spot providers.NodeSpec
	// Settle lets some of the infra's time pass; nil: a short sleep.
	Settle func()
	// Timeout is how long a change may take, in the machine's time; 0: 30 s.
	Timeout time.Duration

	// Kill ends a node behind the provider's back.
	Kill func(t *testing.T, n providers.Node)
	// Stranger puts somebody else's machine with the cluster's name beside it, and gives a function that tells whether
	// it is still untouched. nil: a cluster of the same name and hash under another installation plays the stranger.
	Stranger func(t *testing.T, ref providers.ClusterRef) (untouched func() bool)
	// Reopen gives a new provider on the same infra, as a restarted server has it.
	Reopen func(t *testing.T) providers.Provider
	// HideNew makes nodes created from now on show up in listings only after a while, and gives a function that waits
	// until then.
	HideNew func(t *testing.T) (appear func())
	// FailCreate makes the next create fail with an error of the kind; after says that it takes effect all the same.
	FailCreate func(t *testing.T, kind providers.Kind, after bool)
}

// Options of a run.
type Options struct {
	// New makes a harness for one test.
	New func(t *testing.T) Harness
	// Skips names tests that the provider cannot pass, with the reason.
	Skips map[string]string
}

type test struct {
	name string
	run  func(e *env)
}

var tests = []test{
	{"Check", testCheck},
	{"Offers", testOffers},
	{"CreateListDelete", testCreateListDelete},
	{"CreateIdempotent", testCreateIdempotent},
	{"CreateConcurrent", testCreateConcurrent},
	{"CreateConflict", testCreateConflict},
	{"CreateInvalid", testCreateInvalid},
	{"CreateUnknownOutcome", testCreateUnknownOutcome},
	{"ErrorKinds", testErrorKinds},
	{"ListBulk", testListBulk},
	{"DelayedVisibility", testDelayedVisibility},
	{"Strangers", testStrangers},
	{"DeleteIdempotent", testDeleteIdempotent},
	{"DeletePartial", testDeletePartial},
	{"DeleteForeignIDs", testDeleteForeignIDs},
	{"Transport", testTransport},
	{"TransportGone", testTransportGone},
	{"StopStart", testStopStart},
	{"StopPartial", testStopPartial},
	{"ExtendReplace", testExtendReplace},
	{"ExtendGrow", testExtendGrow},
	{"PreemptOnDemand", testPreemptOnDemand},
	{"PreemptSpot", testPreemptSpot},
	{"PreemptNotice", testPreemptNotice},
	{"KilledNode", testKilledNode},
	{"SameNameNewHash", testSameNameNewHash},
	{"Reopen", testReopen},
	{"Watch", testWatch},
	{"Cancelled", testCancelled},
}

// Run runs the suite.
func Run(t *testing.T, o Options) {
	known := map[string]bool{}
	for _, tt := range tests {
		known[tt.name] = true
	}
	for name, why := range o.Skips {
		if !known[name] {
			t.Errorf("skip of unknown test %q", name)
		}
		if strings.TrimSpace(why) == "" {
			t.Errorf("skip of %s states no reason", name)
		}
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if why, ok := o.Skips[tt.name]; ok {
				t.Skip(why)
			}
			tt.run(newEnv(t, o.New(t)))
		})
	}
}

// env is a test and its harness.
type env struct {
	*testing.T
	Harness
	features providers.Features
	ctx      context.Context
}

func newEnv(t *testing.T, h Harness) *env {
	if h.Timeout == 0 {
		h.Timeout = 30 * time.Second
	}
	if h.Installation == "" {
		h.Installation = "suite"
	}
	if h.Settle == nil {
		h.Settle = func() { time.Sleep(10 * time.Millisecond) }
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*h.Timeout)
	t.Cleanup(cancel)
	return &env{T: t, Harness: h, features: providers.FeaturesOf(h.Provider), ctx: ctx}
}

// need fails a test whose hook is missing: it has to be skipped with a reason instead.
func (e *env) need(hook string, given bool) {
	e.Helper()
	if !given {
		e.Fatalf("the harness has no %s: give one, or name this test in Options.Skips with a reason", hook)
	}
}

// cluster names a new cluster, and deletes it at the end of the test.
func (e *env) cluster(name string) providers.ClusterRef {
	ref := providers.ClusterRef{Installation: e.Installation, Name: name, Hash: random()}
	e.Cleanup(func() { e.destroy(ref) })
	return ref
}

func random() string {
	b := make([]byte, 4)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// destroy deletes until nothing is left.
func (e *env) destroy(ref providers.ClusterRef) {
	e.Helper()
	e.until("cluster "+ref.NameOnCloud()+" is gone", func() bool {
		err := e.Provider.Delete(context.Background(), ref, nil)
		if err != nil && !providers.Is(err, providers.NotFound) {
			e.Logf("delete: %v", err)
			return false
		}
		return err != nil
	})
}

// until waits for a condition, letting the infra's time pass.
func (e *env) until(what string, cond func() bool) {
	e.Helper()
	deadline := time.Now().Add(e.Timeout)
	for !cond() {
		if time.Now().After(deadline) {
			e.Fatalf("not so after %v: %s", e.Timeout, what)
		}
		e.Settle()
	}
}

// spec is what a node asks for.
func (e *env) spec() providers.NodeSpec {
	e.Helper()
	if e.Spec.CPUs > 0 {
		return e.Spec
	}
	return e.cheapest(false)
}

// spotSpec is the same for spot; the test is skipped if there is none.
func (e *env) spotSpec() providers.NodeSpec {
	e.Helper()
	if !e.features.Spot {
		e.Skip("the provider has no spot nodes")
	}
	if e.Spot.CPUs > 0 {
		return e.Spot
	}
	return e.cheapest(true)
}

func (e *env) cheapest(spot bool) providers.NodeSpec {
	e.Helper()
	offers, err := e.Provider.Offers(e.ctx, providers.OfferFilter{Spot: &spot})
	if err != nil || len(offers) == 0 {
		e.Fatalf("offers (spot %v): %d, %v", spot, len(offers), err)
	}
	sort.SliceStable(offers, func(i, j int) bool { return offers[i].PricePerHour < offers[j].PricePerHour })
	o := offers[0]
	s := providers.NodeSpec{InstanceType: o.InstanceType, Region: o.Region, Zone: o.Zone, CPUs: o.CPUs, MemoryGB: o.MemoryGB,
		Accelerator: o.Accelerator, AcceleratorCount: o.AcceleratorCount, Spot: spot, PricePerHour: o.PricePerHour}
	if o.Flexible {
		s.CPUs, s.MemoryGB, s.Accelerator, s.AcceleratorCount = min(1, o.CPUs), min(1, o.MemoryGB), "", 0
	}
	return s
}

func (e *env) request(ref providers.ClusterRef, nodes int, s providers.NodeSpec) providers.CreateRequest {
	return providers.CreateRequest{Cluster: ref, Token: "token-" + ref.Hash, NumNodes: nodes, Spec: s, Agent: e.Agent, User: "tester"}
}

// create makes a cluster and checks what comes back.
func (e *env) create(ref providers.ClusterRef, nodes int, s providers.NodeSpec) []providers.Node {
	e.Helper()
	got, err := e.Provider.Create(e.ctx, e.request(ref, nodes, s))
	if err != nil {
		e.Fatalf("create: %v", err)
	}
	e.wellFormed(ref, got, nodes)
	return got
}

// up makes a cluster and waits until it runs.
func (e *env) up(ref providers.ClusterRef, nodes int, s providers.NodeSpec) []providers.Node {
	e.Helper()
	e.create(ref, nodes, s)
	return e.running(ref, nodes)
}

// running waits until so many nodes run.
func (e *env) running(ref providers.ClusterRef, nodes int) (out []providers.Node) {
	e.Helper()
	e.until("nodes run", func() bool {
		out = e.list(ref)
		n := 0
		for _, x := range out {
			if x.State == providers.NodeRunning {
				n++
			}
		}
		return n == nodes && len(out) == nodes
	})
	return out
}

// list gives the cluster's nodes by rank.
func (e *env) list(ref providers.ClusterRef) []providers.Node {
	e.Helper()
	ns, err := e.Provider.List(e.ctx, ref.Tag())
	if err != nil {
		e.Fatalf("list: %v", err)
	}
	for _, n := range ns {
		if n.Cluster != ref {
			e.Fatalf("listed node %s of %+v under the tag of %+v", n.ID, n.Cluster, ref)
		}
	}
	sort.Slice(ns, func(i, j int) bool { return ns[i].Rank < ns[j].Rank })
	return ns
}

// wellFormed checks a set of nodes as a create returns it.
func (e *env) wellFormed(ref providers.ClusterRef, ns []providers.Node, want int) {
	e.Helper()
	if len(ns) != want {
		e.Fatalf("%d nodes, want %d", len(ns), want)
	}
	ranks, idsSeen, zones := map[int]bool{}, map[string]bool{}, map[string]bool{}
	for _, n := range ns {
		if n.ID == "" || idsSeen[n.ID] {
			e.Errorf("node id %q is empty or not unique", n.ID)
		}
		if n.Rank < 0 || n.Rank >= want || ranks[n.Rank] {
			e.Errorf("rank %d is out of range or not unique", n.Rank)
		}
		if n.Cluster != ref {
			e.Errorf("node %s belongs to %+v, want %+v", n.ID, n.Cluster, ref)
		}
		if n.Token != "token-"+ref.Hash {
			e.Errorf("node %s bears token %q", n.ID, n.Token)
		}
		if n.CreatedAt.IsZero() {
			e.Errorf("node %s has no creation time", n.ID)
		}
		if n.State != providers.NodePending && n.State != providers.NodeRunning {
			e.Errorf("node %s is %s", n.ID, n.State)
		}
		idsSeen[n.ID], ranks[n.Rank], zones[n.Zone] = true, true, true
	}
	if len(zones) > 1 {
		e.Errorf("nodes stand in %d zones, want one", len(zones))
	}
}

func ids(ns []providers.Node) (out []string) {
	for _, n := range ns {
		out = append(out, n.ID)
	}
	sort.Strings(out)
	return out
}

func same(a, b []providers.Node) bool { return strings.Join(ids(a), " ") == strings.Join(ids(b), " ") }

// gone says that a node is not listed, or listed as gone.
func (e *env) gone(n providers.Node) bool {
	e.Helper()
	for _, x := range e.list(n.Cluster) {
		if x.ID == n.ID && x.State != providers.NodeGone {
			return false
		}
	}
	return true
}

// wantKind checks that an error is of one of the kinds.
func (e *env) wantKind(what string, err error, kinds ...providers.Kind) {
	e.Helper()
	for _, k := range kinds {
		if providers.Is(err, k) {
			var pe *providers.Error
			if !errors.As(err, &pe) || pe.Error() == "" || pe.Error() == string(k) {
				e.Errorf("%s: the error says nothing: %v", what, err)
			}
			return
		}
	}
	e.Errorf("%s: got %v (%s), want kind %v", what, err, providers.KindOf(err), kinds)
}

// agent gives a client for a node's agent.
func (e *env) agent(p providers.Provider, n providers.Node) *agentapi.Client {
	e.Helper()
	tr, err := p.Transport(e.ctx, n)
	if err != nil {
		e.Fatalf("transport to %s: %v", n.ID, err)
	}
	c := agentapi.New(tr.DialAgent)
	e.Cleanup(func() { c.Close(); tr.Close() })
	return c
}

// ready waits for a node's agent and checks that it is the right one.
func (e *env) ready(p providers.Provider, n providers.Node) (*agentapi.Client, agentapi.Info) {
	e.Helper()
	c := e.agent(p, n)
	var info agentapi.Info
	var err error
	e.until("the agent of "+n.ID+" answers", func() bool {
		info, err = c.Info(e.ctx)
		return err == nil
	})
	if info.ClusterHash != n.Cluster.Hash || info.Rank != n.Rank || info.NodeID != n.ID {
		e.Fatalf("the agent says it is node %s, rank %d of %s; want %s, %d, %s", info.NodeID, info.Rank, info.ClusterHash, n.ID, n.Rank, n.Cluster.Hash)
	}
	return c, info
}
