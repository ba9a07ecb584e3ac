//go:build linux

package labchaos

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/tests/lab"
)

// machine is a host of the world and what befell it.
type machine struct {
	*lab.Host
	state string // up, cut, off; "gone": away for good, as far as its user knows, and not in the pools file
	boots int
	skew  time.Duration
	// ghosts are nodes that a host ran when it turned up again after it was given up for gone: until the reaper comes they
	// are nobody's.
	ghosts map[string]bool
}

// world makes hosts fail and mends them again.
type world struct {
	t    *testing.T
	s    *site
	pace pace
	most int // so many hosts are away at once
	rng  *rand.Rand

	mu     sync.Mutex
	hosts  []*machine
	wg     sync.WaitGroup
	over   chan struct{} // closed: who waits to mend a host does it now
	counts map[string]int
	// foreign are nodes of another installation: only a host's own fate is theirs too.
	foreign map[string]bool
	lines   atomic.Int64
	caused  atomic.Int64 // faults so far
}

func newWorld(t *testing.T, s *site, p pace, rng *rand.Rand) *world {
	w := &world{t: t, s: s, pace: p, most: 2, rng: rng, over: make(chan struct{}), counts: map[string]int{}, foreign: map[string]bool{}}
	for _, h := range s.lab.Hosts() {
		w.hosts = append(w.hosts, &machine{Host: h, state: "up"})
	}
	return w
}

// tell writes an event into the test's log.
func (w *world) tell(format string, args ...any) {
	w.t.Logf("%s %3d "+format, append([]any{time.Now().Format("15:04:05.000"), w.lines.Add(1)}, args...)...)
}

// fault is something that happens, unless it can't just now.
type fault struct {
	name   string
	weight int
	do     func() bool
}

// faults are all there are, the server's first.
func (w *world) faults() []fault {
	return []fault{
		{"server killed", 1, func() bool { w.s.Kill(); w.tell("the server is killed"); return true }},
		{"agent killed", 3, func() bool { return w.killProcess("serve") }},
		{"node killed", 1, func() bool { return w.killProcess("init") }},
		{"host rebooted", 3, func() bool { return w.outage("is rebooted", (*lab.Host).Kill, 0, (*lab.Host).Boot) }},
		{"host killed", 3, func() bool { return w.outage("is killed", (*lab.Host).Kill, w.upTo(w.pace.long), (*lab.Host).Boot) }},
		{"host cut", 3, func() bool { return w.outage("is cut off", (*lab.Host).Cut, w.pace.short, (*lab.Host).Join) }},
		{"host gone", 2, w.leave},
		{"clock", 2, w.shift},
	}
}

// cause makes so many faults happen, apart from each other. Every fourth is a kill of the server.
func (w *world) cause(n int) {
	all := w.faults()
	for i := range n {
		time.Sleep(w.pace.apart + time.Duration(w.rng.Int64N(int64(w.pace.apart/3))))
		if w.t.Failed() {
			break
		}
		among := all[1:]
		if i%4 == 1 {
			among = all[:1]
		}
		w.one(among)
		w.caused.Add(1)
	}
}

// one makes one fault happen.
func (w *world) one(among []fault) {
	for range 50 {
		total := 0
		for _, f := range among {
			total += f.weight
		}
		dice := w.rng.IntN(total)
		for _, f := range among {
			if dice -= f.weight; dice < 0 {
				if f.do() {
					w.counts[f.name]++
					return
				}
				break
			}
		}
	}
	w.s.Kill()
	w.counts["server killed"]++
	w.tell("the server is killed")
}

// upTo is between a second and the limit.
func (w *world) upTo(limit time.Duration) time.Duration {
	return time.Second + time.Duration(w.rng.Int64N(int64(limit)))
}

// take chooses a host that is up to be away, one that runs something of ours more often than not; nil if enough are away.
func (w *world) take(state string) *machine {
	busy := map[*machine]bool{}
	if w.rng.IntN(3) > 0 {
		for _, m := range w.machines() {
			busy[m] = slices.ContainsFunc(processesOf(w.t, m.Host), func(p process) bool { return !w.foreign[p.node()] })
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var up []*machine
	for _, m := range w.hosts {
		if m.state == "up" {
			up = append(up, m)
		}
	}
	if len(w.hosts)-len(up) >= w.most {
		return nil
	}
	if some := slices.DeleteFunc(slices.Clone(up), func(m *machine) bool { return !busy[m] }); len(some) > 0 {
		up = some
	}
	m := up[w.rng.IntN(len(up))]
	m.state = state
	return m
}

// later does something after a while, or at once when the faults are over.
func (w *world) later(d time.Duration, f func()) {
	w.wg.Add(1)
	go func() {
		defer w.wg.Done()
		select {
		case <-time.After(d):
		case <-w.over:
		}
		f()
	}()
}

func (w *world) check(m *machine, err error) {
	if err != nil {
		w.t.Errorf("host %s: %v", m.Name, err)
	}
}

// back says that a host is up again.
func (w *world) back(m *machine, booted bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m.state = "up"
	if booted {
		m.boots++
		m.skew = 0
	}
}

// outage takes a host away for a while.
func (w *world) outage(what string, away func(*lab.Host) error, d time.Duration, home func(*lab.Host) error) bool {
	state := "off"
	if what == "is cut off" {
		state = "cut"
	}
	m := w.take(state)
	if m == nil {
		return false
	}
	w.tell("%s %s for %v", m.Name, what, d.Round(100*time.Millisecond))
	w.check(m, away(m.Host))
	w.later(d, func() {
		w.check(m, home(m.Host))
		w.back(m, state == "off")
		w.tell("%s is back", m.Name)
	})
	return true
}

// leave cuts a host off or kills it for good: after a while its user takes it out of the pools file. Much later it is found
// to have been alive all the time, or is switched on again, and is put back.
func (w *world) leave() bool {
	m := w.take("gone")
	if m == nil {
		return false
	}
	cut := w.rng.IntN(2) == 0
	if cut {
		w.tell("%s is cut off for ever", m.Name)
		w.check(m, m.Cut())
	} else {
		w.tell("%s is killed for ever", m.Name)
		w.check(m, m.Kill())
	}
	w.later(w.pace.short, func() {
		w.list(m, false)
		w.tell("%s is taken out of the pools file", m.Name)
		w.later(w.pace.long+w.pace.apart, func() {
			if cut {
				ghosts := map[string]bool{}
				for _, p := range processesOf(w.t, m.Host) {
					ghosts[p.node()] = true
				}
				w.mu.Lock()
				m.ghosts = ghosts
				w.mu.Unlock()
				w.check(m, m.Join())
			} else {
				w.check(m, m.Boot())
			}
			w.list(m, true)
			w.back(m, !cut)
			w.tell("%s turns up again", m.Name)
		})
	})
	return true
}

// list puts a host into the pools file or takes it out.
func (w *world) list(m *machine, in bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if in {
		m.state = "up"
	} else {
		m.state = "unlisted"
	}
	var hosts []*lab.Host
	for _, x := range w.hosts {
		if x.state != "unlisted" {
			hosts = append(hosts, x.Host)
		}
	}
	w.s.write("ssh_node_pools.yaml", poolsOf(w.s.lab, hosts, false))
}

// killProcess kills an agent (its init starts it again), or the init of a node with all that is below it.
func (w *world) killProcess(verb string) bool {
	type target struct {
		m *machine
		p process
	}
	var all []target
	for _, m := range w.machines() {
		for _, p := range processesOf(w.t, m.Host) {
			if p.verb() == verb && !w.foreign[p.node()] {
				all = append(all, target{m, p})
			}
		}
	}
	if len(all) == 0 {
		return false
	}
	x := all[w.rng.IntN(len(all))]
	if _, err := x.m.Run(context.Background(), fmt.Sprintf("kill -%d %d", syscall.SIGKILL, x.p.PID)); err != nil {
		return false // it ended meanwhile
	}
	w.tell("%s: %s of %s is killed", x.m.Name, verb, x.p.node())
	return true
}

// missing says that a host is no more, as far as its user knows, and which of its nodes are nobody's.
func (w *world) missing(m *machine) (gone bool, ghosts map[string]bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return m.state == "gone" || m.state == "unlisted", m.ghosts
}

func (w *world) machines() []*machine {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.hosts)
}

// shift sets the clocks of a host's agents off by five minutes, or right again. They are restarted for it.
func (w *world) shift() bool {
	for _, i := range w.rng.Perm(len(w.hosts)) {
		m := w.hosts[i]
		w.mu.Lock()
		skew := []time.Duration{5 * time.Minute, -5 * time.Minute, 0}[w.rng.IntN(3)]
		same := skew == m.skew || m.state == "off"
		w.mu.Unlock()
		if same {
			continue
		}
		n := 0
		for _, p := range processesOf(w.t, m.Host) {
			if p.verb() == "serve" && !w.foreign[p.node()] && w.setClock(m, p, skew) {
				n++
			}
		}
		if n > 0 {
			w.mu.Lock()
			m.skew = skew
			w.mu.Unlock()
			w.tell("%s: the clocks of %d agent(s) are off by %v", m.Name, n, skew)
			return true
		}
	}
	return false
}

func (w *world) setClock(m *machine, p process, skew time.Duration) bool {
	conf := p.Args[len(p.Args)-1]
	b, err := m.ReadFile(conf)
	if err != nil {
		return false
	}
	var c agentapi.NodeConfig
	if json.Unmarshal(b, &c) != nil {
		return false
	}
	c.ClockOffset = skew
	if b, err = json.Marshal(c); err != nil {
		return false
	}
	// In place by a rename, as long as the node is there.
	if m.WriteFile(conf+".clock", b, 0o600) != nil {
		return false
	}
	_, err = m.Run(context.Background(), fmt.Sprintf("mv %s.clock %s && kill -9 %d", conf, conf, p.PID))
	return err == nil
}

// mend ends all faults: every host is up, joined and in the pools file.
func (w *world) mend() {
	close(w.over)
	w.wg.Wait()
	for _, m := range w.machines() {
		if m.state != "up" || !m.Up() {
			w.t.Errorf("host %s is %s at the end", m.Name, m.state)
		}
	}
	w.tell("the faults are over: %v", w.counts)
}

// process is one that belongs to a node on a host.
type process struct{ lab.Process }

// processesOf are those of nodes on a host, from the kernel.
func processesOf(t *testing.T, h *lab.Host) []process {
	ps, err := h.Processes()
	if err != nil {
		if h.Up() {
			t.Errorf("processes of %s: %v", h.Name, err)
		}
		return nil
	}
	var out []process
	for _, p := range ps {
		if p.State != "Z" && (p.Env("SKYLOOM_NODE") != "" || strings.Contains(strings.Join(p.Args, " "), "/nodes/")) {
			out = append(out, process{p})
		}
	}
	return out
}

// verb is what a process of the agent's program does: init, serve or job-shim; "" for others, such as jobs.
func (p process) verb() string {
	if len(p.Args) > 1 && filepath.Base(p.Args[0]) == "sky-agent" {
		return p.Args[1]
	}
	return ""
}

// node is the folder of its node, NAME-HASH-RANK.
func (p process) node() string {
	for _, a := range p.Args {
		if _, rest, ok := strings.Cut(a, "/nodes/"); ok {
			name, _, _ := strings.Cut(rest, "/")
			return name
		}
	}
	if _, rest, ok := strings.Cut(p.Env("HOME"), "/nodes/"); ok {
		name, _, _ := strings.Cut(rest, "/")
		return name
	}
	return ""
}
