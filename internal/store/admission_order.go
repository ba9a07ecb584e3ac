package store

import (
	"fmt"
	"strings"
)

// AdmissionLimits bound how many managed jobs are let in at once. Zero means no limit.
type AdmissionLimits struct {
	Launching int // whose cluster is being brought up
	Running   int // let in at all: launching and running ones
	// Infra bounds the jobs that named an infra, by its name.
	Infra map[string]InfraLimit
}

// InfraLimit is AdmissionLimits of one infra.
type InfraLimit struct{ Launching, Running int }

// waitingQueue is jobs that wait and differ only in their number. Those that hold a place are running ones that need
// another launch: they take no further place of Running.
type waitingQueue struct {
	priority int
	holds    bool
	user     string
	infra    string
	count    int
	ids      []int64 // ascending; the first ones are enough
}

type useKey struct{ infra, user string }

type use struct{ launching, running int }

// admissionUse is what was let in.
type admissionUse map[useKey]use

func (u admissionUse) total() (sum use) {
	for _, v := range u {
		sum.launching, sum.running = sum.launching+v.launching, sum.running+v.running
	}
	return sum
}

func (u admissionUse) infra(name string) (sum use) {
	for k, v := range u {
		if k.infra == name {
			sum.launching, sum.running = sum.launching+v.launching, sum.running+v.running
		}
	}
	return sum
}

func (u admissionUse) users() map[string]int {
	n := map[string]int{}
	for k, v := range u {
		n[k.user] += v.launching + v.running
	}
	return n
}

// noLimit stands for the room where there is no limit.
const noLimit = 1 << 30

// room says how many more may launch, and how many more may be let in.
func (u use) room(launching, running int) (launch, enter int) {
	launch, enter = noLimit, noLimit
	if launching > 0 {
		launch = max(0, launching-u.launching)
	}
	if running > 0 {
		enter = max(0, running-u.launching-u.running)
	}
	return launch, enter
}

// admit chooses who is let in now, in order, as long as there is room: the highest priority first, then those that hold a
// place, then users with fewer jobs let in, then the lowest number. A job whose infra has no room lets others pass.
func admit(queues []waitingQueue, in admissionUse, limits AdmissionLimits) []int64 {
	launch, enter := in.total().room(limits.Launching, limits.Running)
	users := in.users()
	type room struct{ launch, enter int }
	infras := map[string]*room{}
	next := make([]int, len(queues)) // by queue: index of its first job that still waits
	for _, q := range queues {
		if infras[q.infra] == nil {
			r := &room{}
			l := limits.Infra[q.infra]
			r.launch, r.enter = in.infra(q.infra).room(l.Launching, l.Running)
			infras[q.infra] = r
		}
	}
	var out []int64
	for launch > 0 {
		best := -1
		for i, q := range queues {
			r := infras[q.infra]
			if next[i] >= len(q.ids) || r.launch <= 0 || (!q.holds && (enter <= 0 || r.enter <= 0)) {
				continue
			}
			if best < 0 || before(q, q.ids[next[i]], queues[best], queues[best].ids[next[best]], users) {
				best = i
			}
		}
		if best < 0 {
			break
		}
		q := queues[best]
		out = append(out, q.ids[next[best]])
		next[best]++
		launch--
		infras[q.infra].launch--
		if !q.holds {
			enter--
			infras[q.infra].enter--
			users[q.user]++
		}
	}
	return out
}

// before is the order of precedence between the heads of two queues.
func before(a waitingQueue, aID int64, b waitingQueue, bID int64, users map[string]int) bool {
	switch {
	case a.priority != b.priority:
		return a.priority > b.priority
	case a.holds != b.holds:
		return a.holds
	case users[a.user] != users[b.user]:
		return users[a.user] < users[b.user]
	}
	return aID < bID
}

// ahead is about how many waiting jobs come before one: own is how many of its own user's, of the same priority, do. It
// leaves aside that infra may be full, and who of two users is first when both have as many jobs let in.
func ahead(queues []waitingQueue, in admissionUse, priority int, holds bool, user string, own int) int {
	users := in.users()
	peers := map[string]int{}
	n := own
	for _, q := range queues {
		switch {
		case q.priority > priority, q.priority == priority && q.holds && !holds:
			n += q.count
		case q.priority == priority && q.holds == holds && q.user != user:
			peers[q.user] += q.count
		}
	}
	level := users[user] + own
	for peer, count := range peers {
		switch {
		case !holds:
			n += min(count, max(0, level-users[peer]))
		case users[peer] < users[user]: // those that hold a place are counted already: the order of users stays
			n += count
		}
	}
	return n
}

// Why says in words why a waiting job waits; "" if it does not.
func (a AdmissionInfo) Why(l AdmissionLimits) string {
	if a.State != AdmissionWaiting {
		return ""
	}
	var parts []string
	holds := a.Phase == PhaseRunning
	say := func(u use, launching, running int, where string) {
		launch, enter := u.room(launching, running)
		switch {
		case launch == 0:
			parts = append(parts, fmt.Sprintf("%d of %d launches%s are under way", u.launching, launching, where))
		case enter == 0 && !holds:
			parts = append(parts, fmt.Sprintf("%d of %d jobs%s are running", u.launching+u.running, running, where))
		}
	}
	say(use{a.Launching, a.Running}, l.Launching, l.Running, "")
	if a.Infra != "" {
		il := l.Infra[a.Infra]
		say(use{a.InfraLaunching, a.InfraRunning}, il.Launching, il.Running, " on "+a.Infra)
	}
	switch n := a.Position - 1; {
	case n == 1:
		parts = append(parts, "1 job is ahead of it")
	case n > 1:
		parts = append(parts, fmt.Sprintf("%d jobs are ahead of it", n))
	case len(parts) == 0:
		parts = append(parts, "it is the next to start")
	}
	return strings.Join(parts, "; ")
}
