package ssh

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/sharedhost"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/tests/lab"
)

func TestRival(t *testing.T) {
	i := &sharedhost.Info{Claims: []sharedhost.Holder{
		{Node: "old-aa-0", Installation: "a"},
		{Node: "two-bb-1", Installation: "b", Contends: true},
		{Node: "one-cc-0", Installation: "b", Contends: true},
	}}
	if got := rivalOf(i); got != "b/one-cc" {
		t.Errorf("the first in rank is %q", got)
	}
	if got := rivalOf(nil); got != "" {
		t.Errorf("on a host that told nothing: %q", got)
	}
	seen := map[string]bool{}
	for _, token := range []string{"a", "b", "c"} {
		for n := 1; n <= yieldsMost; n++ {
			d := yielding(token, n)
			if d < yieldPause || d > 4*yieldPause<<(n-1) {
				t.Errorf("after %d times it waits %v", n, d)
			}
			seen[d.String()] = true
		}
	}
	if len(seen) < 6 {
		t.Errorf("all wait alike: %v", seen)
	}
}

// TestRacingGangs: of gangs that race for the same hosts from two servers one gets all hosts, and the others leave nothing.
func TestRacingGangs(t *testing.T) {
	t.Parallel()
	l := labOf(t, lab.Options{Hosts: 3, Host: lab.HostSpec{CPUs: 4, MemoryMB: 4 << 10}})
	servers := []*Provider{open(t, l, nil), open(t, l, nil)}
	const gangs, rounds = 4, 2
	for fair, all := 0, 0; fair < rounds && !t.Failed(); all++ {
		if all == 6 {
			t.Skip("the machine is too busy: hosts take seconds to answer")
		}
		refs := make([]providers.ClusterRef, gangs)
		errs := make([]error, gangs)
		var wg sync.WaitGroup
		for i := range gangs {
			refs[i] = cluster("gang")
			p := servers[i%2]
			wg.Go(func() {
				_, errs[i] = p.Create(t.Context(), request(refs[i], 3, providers.NodeSpec{CPUs: 3, MemoryGB: 1}))
			})
		}
		wg.Wait()
		won, slow := 0, false
		for i, err := range errs {
			switch {
			case err == nil:
				won++
				if err := servers[i%2].Delete(t.Context(), refs[i], nil); err != nil {
					t.Error(err)
				}
			case !providers.Is(err, providers.NoCapacity):
				t.Error(err)
			case strings.Contains(err.Error(), "cut off") || strings.Contains(err.Error(), "in time"):
				slow = true
			}
		}
		switch {
		case won > 1 || won < 1 && !slow:
			t.Errorf("%d of %d gangs got the hosts: %v", won, gangs, errs)
		case won == 1:
			fair++
		}
		for _, h := range l.Hosts() {
			until(t, time.Minute, "no claims are left on "+h.Name, func() bool { return claimsOn(t, h) == 0 })
		}
	}
}
