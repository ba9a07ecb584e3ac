package providertest

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/providers"
)

func testListBulk(e *env) {
	a, b := e.cluster("suite-a"), e.cluster("suite-b")
	inA, inB := e.up(a, 2, e.spec()), e.up(b, 1, e.spec())
	all, err := e.Provider.List(e.ctx, providers.Tag{Installation: e.Installation})
	if err != nil {
		e.Fatal(err)
	}
	byHash := map[string][]providers.Node{}
	for _, n := range all {
		if n.Cluster.Installation != e.Installation {
			e.Errorf("listed node %s of installation %s", n.ID, n.Cluster.Installation)
		}
		byHash[n.Cluster.Hash] = append(byHash[n.Cluster.Hash], n)
	}
	if !same(byHash[a.Hash], inA) || !same(byHash[b.Hash], inB) {
		e.Errorf("in bulk: %v and %v; want %v and %v", ids(byHash[a.Hash]), ids(byHash[b.Hash]), ids(inA), ids(inB))
	}
	if none, err := e.Provider.List(e.ctx, providers.Tag{Installation: e.Installation, ClusterHash: "ffffffff"}); err != nil || len(none) > 0 {
		e.Errorf("of an unknown cluster: %v, %v", ids(none), err)
	}
	if none, err := e.Provider.List(e.ctx, providers.Tag{Installation: "another-" + random()}); err != nil || len(none) > 0 {
		e.Errorf("of an unknown installation: %v, %v", ids(none), err)
	}
}

func testDelayedVisibility(e *env) {
	e.need("HideNew", e.HideNew != nil)
	appear := e.HideNew(e.T)
	ref := e.cluster("suite-hidden")
	made := e.create(ref, 2, e.spec())
	if ns := e.list(ref); len(ns) > 0 {
		e.Fatalf("already listed: %v", ids(ns))
	}
	if again := e.create(ref, 2, e.spec()); !same(made, again) {
		e.Errorf("the retry of a create that listings do not show yet made %v besides %v", ids(again), ids(made))
	}
	appear()
	if ns := e.running(ref, 2); !same(ns, made) {
		e.Errorf("listed %v, want %v", ids(ns), ids(made))
	}
}

func testStrangers(e *env) {
	ref := e.cluster("suite-mine")
	foreign := providers.ClusterRef{Installation: "stranger-" + random(), Name: ref.Name, Hash: random()}
	untouched := func() bool {
		ns, err := e.Provider.List(e.ctx, foreign.Tag())
		return err == nil && len(ns) == 1 && ns[0].State != providers.NodeGone
	}
	if e.Stranger != nil {
		untouched = e.Stranger(e.T, ref)
	} else {
		e.Cleanup(func() { e.destroy(foreign) })
		e.up(foreign, 1, e.spec())
	}
	e.wantKind("delete before anything of ours is there", e.Provider.Delete(e.ctx, ref, nil), providers.NotFound)
	mine := e.up(ref, 1, e.spec())
	if all, err := e.Provider.List(e.ctx, providers.Tag{Installation: e.Installation}); err != nil {
		e.Fatal(err)
	} else {
		for _, n := range all {
			if n.Cluster.Name == ref.Name && n.ID != mine[0].ID {
				e.Errorf("listed the stranger %s", n.ID)
			}
		}
	}
	e.destroy(ref)
	if !untouched() {
		e.Error("the stranger's machine was touched")
	}
}

func testDeleteIdempotent(e *env) {
	ref := e.cluster("suite-del")
	e.wantKind("delete of what never was", e.Provider.Delete(e.ctx, ref, nil), providers.NotFound)
	e.up(ref, 2, e.spec())
	// Two at once, as a retried activity beside a late first try.
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if err := e.Provider.Delete(e.ctx, ref, nil); err != nil && !providers.Is(err, providers.NotFound) {
				e.Errorf("delete: %v", err)
			}
		})
	}
	wg.Wait()
	e.destroy(ref)
	e.wantKind("delete again", e.Provider.Delete(e.ctx, ref, nil), providers.NotFound)
	e.until("nothing is listed", func() bool { return len(e.list(ref)) == 0 })
}

func testDeletePartial(e *env) {
	ref := e.cluster("suite-part")
	ns := e.up(ref, 3, e.spec())
	if err := e.Provider.Delete(e.ctx, ref, []string{ns[1].ID}); err != nil {
		e.Fatal(err)
	}
	e.until("rank 1 is gone, the others live", func() bool {
		left := 0
		for _, n := range e.list(ref) {
			if n.State == providers.NodeRunning {
				left++
			}
		}
		return e.gone(ns[1]) && left == 2
	})
	e.wantKind("delete of an id that is not there", e.Provider.Delete(e.ctx, ref, []string{"no-such-node"}), providers.NotFound)
}

func testDeleteForeignIDs(e *env) {
	a, b := e.cluster("suite-own"), e.cluster("suite-other")
	e.up(a, 1, e.spec())
	other := e.up(b, 1, e.spec())
	e.wantKind("delete of another cluster's node", e.Provider.Delete(e.ctx, a, ids(other)), providers.NotFound, providers.Invalid)
	if e.gone(other[0]) {
		e.Error("another cluster's node was deleted")
	}
	if got := e.list(a); len(got) != 1 || got[0].State == providers.NodeGone {
		e.Errorf("the own node was deleted instead: %v", got)
	}
}

func testTransport(e *env) {
	ref := e.cluster("suite-agent")
	ns := e.up(ref, 2, e.spec())
	for _, n := range ns {
		e.ready(e.Provider, n)
	}
}

func testTransportGone(e *env) {
	ref := e.cluster("suite-noagent")
	ns := e.up(ref, 1, e.spec())
	e.ready(e.Provider, ns[0])
	e.destroy(ref)
	tr, err := e.Provider.Transport(e.ctx, ns[0])
	if err != nil {
		return
	}
	defer tr.Close()
	ctx, cancel := context.WithTimeout(e.ctx, 5*time.Second)
	defer cancel()
	if c, err := tr.DialAgent(ctx); err == nil {
		c.Close()
		e.Error("the agent of a deleted node can be reached")
	}
}

func testStopStart(e *env) {
	stop := e.features.Stop
	if stop == nil {
		e.Skip("the provider cannot stop")
	}
	ref := e.cluster("suite-stop")
	ns := e.up(ref, 2, e.spec())
	for range 2 {
		if err := stop.Stop(e.ctx, ref, nil); err != nil {
			e.Fatalf("stop: %v", err)
		}
	}
	e.until("all nodes are stopped", func() bool {
		got := e.list(ref)
		for _, n := range got {
			if n.State != providers.NodeStopped {
				return false
			}
		}
		return same(got, ns)
	})
	if again, err := e.Provider.Create(e.ctx, e.request(ref, 2, e.spec())); err == nil && !same(again, ns) {
		e.Errorf("create by the same token made %v beside the stopped %v", ids(again), ids(ns))
	}
	e.until("all nodes are stopped", func() bool {
		for _, n := range e.list(ref) {
			if n.State != providers.NodeStopped {
				return false
			}
		}
		return true
	})
	for range 2 {
		back, err := stop.Start(e.ctx, ref, "start-1", e.Agent)
		if err != nil {
			e.Fatalf("start: %v", err)
		}
		if !same(back, ns) {
			e.Fatalf("start gave %v, want %v", ids(back), ids(ns))
		}
	}
	for _, n := range e.running(ref, 2) {
		e.ready(e.Provider, n)
	}
	_, err := stop.Start(e.ctx, e.cluster("suite-never"), "start-2", e.Agent)
	e.wantKind("start of what is not there", err, providers.NotFound)
	e.wantKind("stop of what is not there", stop.Stop(e.ctx, e.cluster("suite-never"), nil), providers.NotFound)
}

func testStopPartial(e *env) {
	stop := e.features.Stop
	if stop == nil {
		e.Skip("the provider cannot stop")
	}
	ref := e.cluster("suite-stopone")
	ns := e.up(ref, 2, e.spec())
	if err := stop.Stop(e.ctx, ref, []string{ns[1].ID}); err != nil {
		e.Fatal(err)
	}
	e.until("rank 1 is stopped, rank 0 runs", func() bool {
		got := e.list(ref)
		return len(got) == 2 && got[0].State == providers.NodeRunning && got[1].State == providers.NodeStopped
	})
	if _, err := stop.Start(e.ctx, ref, "start-1", e.Agent); err != nil {
		e.Fatal(err)
	}
	e.running(ref, 2)
}

func testPreemptOnDemand(e *env) {
	pre := e.features.Preempt
	if pre == nil {
		e.Skip("the provider cannot preempt")
	}
	ref := e.cluster("suite-od")
	ns := e.up(ref, 1, e.spec())
	e.wantKind("preempt of an on-demand node", pre.Preempt(e.ctx, ref, ns[0].ID, 0), providers.Invalid, providers.Unsupported)
	if e.gone(ns[0]) {
		e.Error("it was taken away all the same")
	}
	e.wantKind("preempt of an unknown node", pre.Preempt(e.ctx, ref, "no-such-node", 0), providers.NotFound)
}

func testPreemptSpot(e *env) {
	pre := e.features.Preempt
	if pre == nil {
		e.Skip("the provider cannot preempt")
	}
	ref := e.cluster("suite-spot")
	ns := e.up(ref, 2, e.spotSpec())
	if !ns[0].Spot {
		e.Error("a spot node is not marked as one")
	}
	for range 2 {
		if err := pre.Preempt(e.ctx, ref, ns[0].ID, 0); err != nil && !providers.Is(err, providers.NotFound) {
			e.Fatal(err)
		}
	}
	e.until("the node is gone", func() bool { return e.gone(ns[0]) })
	for _, n := range e.list(ref) {
		if n.ID == ns[0].ID && n.Reason == "" {
			e.Error("a preempted node is listed without a reason")
		}
		if n.ID == ns[1].ID && n.State != providers.NodeRunning {
			e.Errorf("the other node is %s", n.State)
		}
	}
}

func testPreemptNotice(e *env) {
	pre := e.features.Preempt
	if pre == nil {
		e.Skip("the provider cannot preempt")
	}
	ref := e.cluster("suite-notice")
	ns := e.up(ref, 1, e.spotSpec())
	c, info := e.ready(e.Provider, ns[0])
	heard := make(chan agentapi.Event, 1)
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	go c.Events(ctx, info.LastEvent, func(ev agentapi.Event) error {
		if ev.Type != agentapi.EventNotice {
			return nil
		}
		select {
		case heard <- ev:
		default:
		}
		return agentapi.ErrStop
	})
	if err := pre.Preempt(e.ctx, ref, ns[0].ID, 2*time.Second); err != nil {
		e.Fatal(err)
	}
	select {
	case <-heard:
	case <-time.After(e.Timeout):
		e.Fatal("the agent was told nothing")
	}
	e.until("the node is gone", func() bool { return e.gone(ns[0]) })
}

func testKilledNode(e *env) {
	e.need("Kill", e.Kill != nil)
	ref := e.cluster("suite-kill")
	ns := e.up(ref, 2, e.spec())
	e.Kill(e.T, ns[1])
	e.until("the killed node is gone or not listed", func() bool { return e.gone(ns[1]) })
	if got := e.list(ref); got[0].ID != ns[0].ID || got[0].State != providers.NodeRunning {
		e.Errorf("the other node: %+v", got[0])
	}
}

func testSameNameNewHash(e *env) {
	old := e.cluster("suite-again")
	first := e.up(old, 1, e.spec())
	// The next incarnation may come while the last one still goes.
	next := e.cluster("suite-again")
	second := e.up(next, 1, e.spec())
	if same(first, second) {
		e.Fatalf("two incarnations share node %v", ids(first))
	}
	e.destroy(old)
	if got := e.list(next); !same(got, second) || got[0].State != providers.NodeRunning {
		e.Errorf("deleting the old incarnation changed the new one: %+v", got)
	}
}

func testReopen(e *env) {
	e.need("Reopen", e.Reopen != nil)
	ref := e.cluster("suite-reopen")
	ns := e.up(ref, 2, e.spec())
	p := e.Reopen(e.T)
	got, err := p.List(e.ctx, ref.Tag())
	if err != nil || !same(got, ns) {
		e.Fatalf("after reopening: %v, %v; want %v", ids(got), err, ids(ns))
	}
	for _, n := range got {
		if n.State != providers.NodeRunning {
			e.Errorf("after reopening node %s is %s (%s)", n.ID, n.State, n.Reason)
		}
		e.ready(p, n)
	}
	again, err := p.Create(e.ctx, e.request(ref, 2, e.spec()))
	if err != nil || !same(again, ns) {
		e.Errorf("after reopening the same token gave %v, %v", ids(again), err)
	}
	e.Provider = p
	e.destroy(ref)
	e.until("nothing is listed", func() bool { return len(e.list(ref)) == 0 })
}

func testWatch(e *env) {
	w := e.features.Watch
	if w == nil {
		e.Skip("the provider cannot be watched")
	}
	ref := e.cluster("suite-watch")
	var mu sync.Mutex
	last := map[string]providers.NodeState{}
	ctx, cancel := context.WithCancel(e.ctx)
	done := make(chan error, 1)
	go func() {
		done <- w.WatchNodes(ctx, providers.Tag{Installation: e.Installation}, func(n providers.Node) {
			mu.Lock()
			defer mu.Unlock()
			if n.Cluster == ref {
				last[n.ID] = n.State
			}
		})
	}()
	told := func(n providers.Node, states ...providers.NodeState) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			for _, s := range states {
				if last[n.ID] == s {
					return true
				}
			}
			return false
		}
	}
	ns := e.up(ref, 2, e.spec())
	e.until("the watch tells that the nodes run", func() bool {
		return told(ns[0], providers.NodeRunning)() && told(ns[1], providers.NodeRunning)()
	})
	if e.Kill != nil {
		e.Kill(e.T, ns[1])
		e.until("the watch tells that a killed node is gone", told(ns[1], providers.NodeGone))
	}
	e.destroy(ref)
	e.until("the watch tells that a deleted node is gone", told(ns[0], providers.NodeGone))
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			e.Errorf("the watch ended with %v", err)
		}
	case <-time.After(e.Timeout):
		e.Error("the watch does not end with its context")
	}
}
