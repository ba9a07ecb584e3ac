//go:build linux

package labchaos

import (
	"fmt"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/lab"
	"github.com/skyloom/skyloom/tests/rig"
)

// strangers are clusters of another installation with the names of ours: one on each host, with a job that goes on for
// ever. Their server is not there while ours works. Nobody but a host itself may end them (I4).
type strangers struct {
	s     *site
	asks  map[string]*rig.Ask // by host
	names map[string]string   // of nodes, by host
}

func moveIn(t *testing.T, l *lab.Lab) *strangers {
	t.Helper()
	x := &strangers{s: open(t, l, "stranger", poolsOf(l, l.Hosts(), true), 46002), asks: map[string]*rig.Ask{}, names: map[string]string{}}
	for i, h := range l.Hosts() {
		x.s.infra = "ssh/" + h.Name
		a, r := x.s.Do("launch", clusterName(i), rig.Job{Sleep: "100000"}, rig.Succeeds)
		if r == nil || t.Failed() {
			t.FailNow()
		}
		x.asks[h.Name] = a
		x.s.Eventually("the stranger's job runs on "+h.Name, func() bool { return x.alive(h) })
		for _, p := range processesOf(t, h) {
			x.names[h.Name] = p.node()
		}
	}
	x.s.Stop()
	return x
}

// alive says that the job on a host runs.
func (x *strangers) alive(h *lab.Host) bool {
	for _, p := range processesOf(x.s.t, h) {
		if p.verb() == "" && p.Env("KEY") == x.asks[h.Name].ID {
			return true
		}
	}
	return false
}

// moveOut brings the strangers' server back: every cluster is there, running where its host was not restarted, and can be
// started and used where it was.
func (x *strangers) moveOut(w *world) {
	t := x.s.t
	for _, m := range w.machines() {
		if m.boots == 0 && !x.alive(m.Host) {
			t.Errorf("the stranger's job on %s was ended, and the host was not", m.Name)
		}
		if _, folders, _ := nodesOn(t, m.Host); folders[x.names[m.Name]] == 0 {
			t.Errorf("the stranger's node %s on %s is gone", x.names[m.Name], m.Name)
		}
	}
	x.s.begin()
	for i, m := range w.machines() {
		name := clusterName(i)
		want := api.ClusterUp
		if m.boots > 0 {
			want = api.ClusterStopped
		}
		x.s.Eventually(fmt.Sprintf("the stranger's cluster %s on %s is %s", name, m.Name, want), func() bool { return x.s.Status(name) == want })
		if want == api.ClusterStopped {
			x.s.infra = "ssh/" + m.Name
			x.s.Do("start", name, rig.Job{}, rig.Succeeds)
			a, r := x.s.Do("exec", name, rig.Job{}, rig.Succeeds)
			if r != nil {
				x.s.JobReaches(a, r, api.JobSucceeded)
			}
		}
		x.s.Do("down", name, rig.Job{}, rig.Succeeds)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		left := ""
		for _, m := range w.machines() {
			inits, folders, claims := nodesOn(t, m.Host)
			for _, of := range []map[string]int{inits, folders, claims} {
				for node := range of {
					left += fmt.Sprintf(" %s on %s", node, m.Name)
				}
			}
		}
		if left == "" {
			return
		}
		if time.Now().After(end) {
			t.Errorf("left when everybody has gone:%s", left)
			return
		}
	}
}
