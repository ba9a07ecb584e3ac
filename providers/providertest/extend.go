package providertest

import (
	"slices"

	"github.com/skyloom/skyloom/providers"
)

// extend makes nodes of ranks under a token of its own.
func (e *env) extend(ref providers.ClusterRef, token string, nodes int, ranks ...int) ([]providers.Node, error) {
	r := e.request(ref, nodes, e.spec())
	r.Token = token + "-" + ref.Hash
	return e.features.Extend.Extend(e.ctx, r, ranks)
}

func (e *env) needExtend() {
	if e.features.Extend == nil {
		e.Skip("the provider adds no nodes to a cluster")
	}
}

// testExtendReplace gives a cluster a node in place of one it has lost.
func testExtendReplace(e *env) {
	e.needExtend()
	e.need("Kill", e.Kill != nil)
	ref := e.cluster("suite-replace")
	made := e.up(ref, 2, e.spec())
	e.Kill(e.T, made[1])
	e.until("it is gone", func() bool {
		return !slices.ContainsFunc(e.list(ref), func(n providers.Node) bool { return n.Rank == 1 && n.State != providers.NodeGone })
	})
	if err := e.Provider.Delete(e.ctx, ref, []string{made[1].ID}); err != nil && !providers.Is(err, providers.NotFound) {
		e.Fatal(err)
	}
	for range 2 {
		got, err := e.extend(ref, "more", 2, 1)
		if err != nil || len(got) != 1 || got[0].Rank != 1 {
			e.Fatalf("extend: %+v, %v", got, err)
		}
	}
	now := e.running(ref, 2)
	if now[0].ID != made[0].ID || !now[0].CreatedAt.Equal(made[0].CreatedAt) || now[1].Rank != 1 || now[1].Token == made[1].Token {
		e.Errorf("had %v, now %v", ids(made), ids(now))
	}
	_, err := e.extend(ref, "others", 2, 1)
	e.wantKind("a rank that has a node under another token", err, providers.Conflict)
	if got := e.running(ref, 2); !same(got, now) {
		e.Errorf("listed %v, want %v", ids(got), ids(now))
	}
}

// testExtendGrow gives a cluster more nodes.
func testExtendGrow(e *env) {
	e.needExtend()
	ref := e.cluster("suite-grow")
	made := e.up(ref, 2, e.spec())
	_, err := e.extend(ref, "bad", 2, 2)
	e.wantKind("a rank outside the cluster", err, providers.Invalid)
	got, err := e.extend(ref, "more", 3, 2)
	if err != nil || len(got) != 1 || got[0].Rank != 2 {
		e.Fatalf("extend: %+v, %v", got, err)
	}
	now := e.running(ref, 3)
	if now[0].ID != made[0].ID || now[1].ID != made[1].ID {
		e.Errorf("had %v, now %v", ids(made), ids(now))
	}
	if e.features.Stop != nil {
		if err := e.features.Stop.Stop(e.ctx, ref, nil); err != nil {
			e.Fatal(err)
		}
		e.until("all are stopped", func() bool {
			ns := e.list(ref)
			return len(ns) == 3 && !slices.ContainsFunc(ns, func(n providers.Node) bool { return n.State != providers.NodeStopped })
		})
		if _, err := e.features.Stop.Start(e.ctx, ref, "start-"+ref.Hash, e.Agent); err != nil {
			e.Fatal(err)
		}
		if again := e.running(ref, 3); !same(again, now) {
			e.Errorf("after stop and start %v, want %v", ids(again), ids(now))
		}
	}
	e.destroy(ref)
	e.until("nothing is listed", func() bool { return len(e.list(ref)) == 0 })
}
