package world

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/providers/memory"
)

// Script is a random course of operations and mishaps on a few clusters.
type Script struct {
	W     *World
	Rand  *rand.Rand
	Names []string
	Steps int
	// Pause is how long it waits between two steps at most.
	Pause time.Duration
	// Patient says that launches may wait for capacity, and idle rules run: minutes pass.
	Patient bool
	// Zones may lose their capacity for a while.
	Zones []string

	shape map[string]string // what tasks on a cluster ask for, most of the time
	ids   []string          // of the requests so far
}

// OptionsFor are the world's options for a seed: how much goes wrong, and how slow the cloud is.
func OptionsFor(seed int64) Options {
	r := rand.New(rand.NewPCG(uint64(seed), 1))
	pick := func(ds ...time.Duration) memory.Duration { return memory.Duration(ds[r.IntN(len(ds))]) }
	x := r.Float64() // some seeds are kind
	if r.IntN(4) == 0 {
		x = 0
	}
	y := r.Float64()
	if r.IntN(4) == 0 {
		y = 0
	}
	const s = time.Second
	return Options{
		Seed: seed, ReapEvery: 5 * time.Minute,
		Rates: Rates{Before: 0.05 * y, Midway: 0.08 * y, After: 0.08 * y, Zombie: 0.05 * y, Twice: 0.15 * y, Late: 0.1 * y, Slow: 0.1 * y, Unsure: 0.08 * y,
			ContinueAsNew: 0.3 * y},
		Cloud: memory.Config{CreateDelay: pick(0, 0, 2*s, 40*s), AgentDelay: pick(0, 0, 5*s), VisibleAfter: pick(0, 0, 5*s, 30*s), DeleteLag: pick(0, 0, s, 20*s),
			StopDelay: pick(0, 0, 10*s), JobDuration: pick(s, 30*s), Rates: cloudRates(x)},
	}
}

// RealOptions are the options for seeds on a real engine: the same mishaps in a short time.
func RealOptions(seed int64) Options {
	const ms = time.Millisecond
	return Options{
		Seed:  seed,
		Rates: Rates{Before: 0.03, After: 0.04, Twice: 0.08, Late: 0.05, Slow: 0.05, Unsure: 0.04},
		Cloud: memory.Config{CreateDelay: memory.Duration(200 * ms), AgentDelay: memory.Duration(100 * ms), DeleteLag: memory.Duration(200 * ms),
			StopDelay: memory.Duration(100 * ms), JobDuration: memory.Duration(300 * ms), Rates: cloudRates(0.5)},
	}
}

// Play runs the script's steps: a launch first, then what comes, now and then several at once.
func (s *Script) Play() {
	s.shape = map[string]string{}
	for _, n := range s.Names {
		s.launch(n)
	}
	for range s.Steps {
		if !s.chance(0.3) {
			s.W.Sleep(time.Duration(s.Rand.Float64() * s.Rand.Float64() * float64(s.Pause)))
		}
		s.step()
	}
}

func (s *Script) name() string { return s.Names[s.Rand.IntN(len(s.Names))] }

func (s *Script) chance(p float64) bool { return s.Rand.Float64() < p }

// task makes up a task for a cluster.
func (s *Script) task(name string) string {
	t := s.shape[name]
	if t == "" || s.chance(0.1) {
		t = "resources: {cpus: 2+"
		if s.chance(0.5) {
			t += ", use_spot: true"
		}
		t += "}\n"
		if n := s.Rand.IntN(5); n > 2 {
			t += fmt.Sprintf("num_nodes: %d\n", n-1)
		}
		s.shape[name] = t
	}
	if s.chance(0.3) {
		t += "setup: echo setup && sleep 2\n"
	}
	long := int(s.Pause.Seconds())
	switch s.Rand.IntN(6) {
	case 0:
		t += fmt.Sprintf("run: sleep %d\n", 1+s.Rand.IntN(4*long+1))
	case 1:
		t += "run: exit 3\n"
	case 2:
		t += "run: sleep 100000\n"
	case 3: // nothing to run
	default:
		t += "run: echo hello\n"
	}
	return t
}

func (s *Script) step() {
	w := s.W
	switch s.Rand.IntN(28) {
	case 0, 1, 2, 3, 4, 5, 6:
		s.launch(s.name())
	case 7, 8, 9, 10:
		name := s.name()
		s.note(w.Exec(api.ExecBody{Cluster: name, Task: s.task(name)}))
	case 11, 12:
		s.note(w.Stop(s.name()))
	case 13, 14:
		s.note(w.Start(api.StartBody{Cluster: s.name(), RetryUntilUp: s.Patient && s.chance(0.3), Force: s.chance(0.1)}))
	case 15, 16:
		if s.chance(0.1) {
			s.note(w.Purge(s.name()))
		} else {
			s.note(w.Down(s.name()))
		}
	case 17:
		minutes := -1
		if s.Patient && s.chance(0.8) {
			minutes = 1 + s.Rand.IntN(2)
		}
		s.note(w.Autostop(s.name(), minutes, s.chance(0.5)))
	case 18:
		s.note(w.CancelJobs(s.name(), s.chance(0.5)))
	case 19:
		s.note(w.Preempt(s.name(), s.Rand.IntN(3)-1, s.Rand.IntN(2)*5))
	case 20:
		s.note(w.Refresh(s.Names...))
	case 21, 22, 23:
		if n := len(s.ids); n > 0 {
			// One of the last: they are likely to be under way.
			w.Cancel(s.ids[max(0, n-1-s.Rand.IntN(4))])
		}
	case 24:
		if row, ok := w.Cluster(s.name()); ok && len(row.NodeNames) > 0 {
			w.Cloud.Kill(row.NodeNames[s.Rand.IntN(len(row.NodeNames))])
		}
	case 25:
		if row, ok := w.Cluster(s.name()); ok && len(row.NodeNames) > 0 {
			w.Cloud.Cut(row.NodeNames[s.Rand.IntN(len(row.NodeNames))], time.Duration(s.Rand.Float64()*float64(4*s.Pause)))
		}
	case 26:
		if len(s.Zones) == 0 {
			return
		}
		zone := s.Zones[s.Rand.IntN(len(s.Zones))]
		switch s.Rand.IntN(3) {
		case 0:
			w.Cloud.SetCapacity(zone, "", 0)
		case 1:
			w.Cloud.KillZone(zone)
		case 2: // nothing is left anywhere
			for _, z := range s.Zones {
				w.Cloud.SetCapacity(z, "", 0)
			}
		}
	case 27:
		switch n := len(s.ids); {
		case n > 0 && s.chance(0.5):
			w.Repeat(s.ids[s.Rand.IntN(n)])
		default:
			w.Resume()
			s.Heal()
		}
	}
}

func (s *Script) note(id string) { s.ids = append(s.ids, id) }

// launch launches on a cluster: once, twice, or with a server that dies between its answer and the engine.
func (s *Script) launch(name string) {
	w := s.W
	b := api.LaunchBody{Cluster: name, Task: s.task(name)}
	if s.Patient {
		b.RetryUntilUp = s.chance(0.4)
		if s.chance(0.2) {
			idle := 1 + s.Rand.IntN(3)
			b.IdleMinutes, b.Down = &idle, s.chance(0.6)
		}
	}
	base(&b.Base)
	s.note(b.RequestID)
	switch {
	case s.chance(0.1):
		w.Accept("launch", b.Base, b.Cluster, b)
	case s.chance(0.1):
		w.Launch(b)
		w.Launch(b)
	default:
		w.Launch(b)
	}
}

// Heal gives every zone its capacity back.
func (s *Script) Heal() {
	for _, z := range s.Zones {
		s.W.Cloud.SetCapacity(z, "", -1)
		s.W.Cloud.Restore(z)
	}
}
