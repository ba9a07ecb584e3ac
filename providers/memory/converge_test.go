package memory

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/skyloom/skyloom/providers"
)

// controller is the least that a caller must do by the contract: try zones with fresh tokens, clean up by tag after every
// failure, adopt what an unknown outcome left, delete until nothing is left.
type controller struct {
	t     *testing.T
	c     *Cloud
	clock *FakeClock
}

// settle lets time pass until everything created shows up and everything deleted is gone.
func (k controller) settle() { k.clock.Advance(40 * time.Second) }

func (k controller) up(r providers.ClusterRef, nodes int) {
	ctx := context.Background()
	zones := []string{"east-1a", "east-1b", "west-1a", "north-1a"}
	for try := range 60 {
		q := request(r, nodes)
		q.Token = fmt.Sprint(r.Hash, "-", try)
		q.Spec.Zone, q.Spec.Region, q.Spec.Spot = zones[try%len(zones)], "", try%2 == 0
		_, err := k.c.Create(ctx, q)
		if providers.Is(err, providers.UnknownOutcome) || providers.Is(err, providers.RateLimited) || providers.Is(err, providers.Internal) {
			k.settle()
			_, err = k.c.Create(ctx, q) // the same token: one set
		}
		if err == nil {
			return
		}
		k.down(r)
	}
	k.t.Errorf("cluster %s never came up", r.Name)
}

func (k controller) down(r providers.ClusterRef) {
	ctx := context.Background()
	missing := 0
	for range 400 {
		k.settle()
		if providers.Is(k.c.Delete(ctx, r, nil), providers.NotFound) {
			if missing++; missing == 2 {
				return
			}
		}
	}
	k.t.Errorf("cluster %s cannot be deleted", r.Name)
}

func TestBooksBalanceUnderFaults(t *testing.T) {
	seeds := 300
	if testing.Short() {
		seeds = 30
	}
	for seed := range seeds {
		c, clock := open(t, Config{Seed: int64(seed), CreateDelay: Duration(3 * time.Second), VisibleAfter: Duration(30 * time.Second), DeleteLag: Duration(20 * time.Second),
			Rates: Rates{Create: 0.3, CreateAfter: 0.2, CreatePartial: 0.3, List: 0.2, Delete: 0.3, DeleteAfter: 0.2, DeleteLost: 0.2, Preempt: 0.3, Death: 0.1, Lifetime: Duration(10 * time.Minute)}})
		k := controller{t, c, clock}
		live := map[string]bool{}
		for i := range 6 {
			r := ref(fmt.Sprint("c", i%3), fmt.Sprint("h", i))
			live[r.Hash] = true
			k.up(r, 1+i%4)
			if i%2 == 0 {
				k.down(r)
				delete(live, r.Hash)
			}
			if err := c.Ledger().Check(live); err != nil {
				t.Errorf("seed %d, step %d: %v", seed, i, err)
			}
		}
		for i := range 6 {
			k.down(ref(fmt.Sprint("c", i%3), fmt.Sprint("h", i)))
		}
		if err := c.Ledger().Check(nil); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		for _, e := range c.Ledger().Entries {
			for _, b := range e.Bills {
				if b.To.IsZero() {
					t.Errorf("seed %d: %s is billed after its end", seed, e.NodeID)
				}
			}
		}
		c.Close()
	}
}
