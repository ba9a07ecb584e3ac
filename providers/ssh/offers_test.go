package ssh

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/tests/lab"
)

// TestSlowHost: a host that was found to be down holds up no offer, while another will do; a check waits for it.
func TestSlowHost(t *testing.T) {
	t.Parallel()
	l := labOf(t, lab.Options{Hosts: 2, Host: lab.HostSpec{CPUs: 2, MemoryMB: 2 << 10}})
	const asked = 30 * time.Second
	hold := make(chan struct{})
	down := l.Host(1).Addr + ":22"
	first := true
	p := open(t, l, func(o *Options) {
		o.ConnectTimeout = asked
		o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr != down {
				return l.Dial(ctx, network, addr)
			}
			if first {
				first = false
				return nil, errors.New("no route")
			}
			select { // it neither answers nor refuses
			case <-hold:
				return l.Dial(ctx, network, addr)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	})
	most := func() int {
		offers, err := p.Offers(t.Context(), providers.OfferFilter{})
		if err != nil || len(offers) != 1 {
			t.Fatalf("offers: %+v, %v", offers, err)
		}
		return offers[0].MaxNodes
	}
	if n := most(); n != 1 {
		t.Errorf("at first %d hosts can take nodes", n)
	}
	// The failure is old now, and the host is asked again.
	hosts, err := p.pool("lab")
	if err != nil {
		t.Fatal(err)
	}
	hosts[1].state.mu.Lock()
	hosts[1].state.when = time.Now().Add(-time.Hour)
	hosts[1].state.mu.Unlock()
	hosts[1].link.again()
	began := time.Now()
	if n := most(); n != 1 {
		t.Errorf("while one host is silent %d can take nodes", n)
	}
	if took := time.Since(began); took > asked/2 {
		t.Errorf("a silent host held the offers up for %v", took)
	}
	close(hold)
	until(t, time.Minute, "it counts once it has answered", func() bool { return most() == 2 })
}
