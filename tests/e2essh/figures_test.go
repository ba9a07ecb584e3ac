package e2essh

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/skyloom/skyloom/tests/lab"
)

// TestFigures tells how long a launch takes on a lab host that has nothing of ours, beside the same on this machine. It fails
// on no time: the machine may be busy.
func TestFigures(t *testing.T) {
	needLong(t)
	const n = 5
	l := lab.New(t, lab.Options{Hosts: n, Host: lab.HostSpec{CPUs: 4, MemoryMB: 4 << 10}})
	pools := ""
	for i := range n {
		h := l.Host(i)
		pools += fmt.Sprintf("p%d:\n  user: %s\n  identity_file: %s\n  hosts: [%s]\n", i, h.User, l.KeyFile, h.Addr)
	}
	s := newSite(t, l, pools)
	// The first launch of a server is slower; and with an infra check behind it.
	s.sky("launch", "-y", "-c", "warm", "--infra", "local", "true")
	var local, fresh, again, exec []time.Duration
	for i := range n {
		local = append(local, s.sky("launch", "-y", "-c", fmt.Sprint("l", i), "--infra", "local", "true").took)
		fresh = append(fresh, s.sky("launch", "-y", "-c", fmt.Sprint("s", i), "--infra", fmt.Sprint("ssh/p", i), "true").took)
		exec = append(exec, s.sky("exec", fmt.Sprint("s", i), "true").took)
		s.sky("down", "-y", fmt.Sprint("s", i))
		again = append(again, s.sky("launch", "-y", "-c", fmt.Sprint("a", i), "--infra", fmt.Sprint("ssh/p", i), "true").took)
	}
	mid := func(ds []time.Duration) time.Duration {
		slices.Sort(ds)
		return ds[len(ds)/2].Round(time.Millisecond)
	}
	t.Logf("launch of true, median of %d: local %v, fresh host %v, prepared host %v; exec on ssh %v", n, mid(local), mid(fresh), mid(again), mid(exec))
}
