package simagent

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
)

// agent is one simulated agent. What must survive is in state.
type agent struct {
	fleet *Fleet

	mu       sync.Mutex
	state    state
	dirty    bool
	conns    []*conn
	streams  []*stream
	changed  chan struct{} // closed at each change while somebody listens
	disarm   func() bool
	armedFor time.Time
	cutUntil time.Time
	cutOff   bool // for ever
	dead     bool
	after    []func() // to call once the lock is free
}

// state is what an agent keeps on its disk.
type state struct {
	Node      Node
	Gone      bool `json:",omitempty"`
	Spec      *agentapi.ClusterSpec
	Epoch     int64
	Restarted bool `json:",omitempty"` // since the last spec: unfinished jobs have lost their processes
	Jobs      []*job
	LastJob   int64    `json:",omitempty"`
	Batches   []*batch `json:",omitempty"`
	LastBatch int64    `json:",omitempty"`
	Seq       int64    // of the last event
	Acked     int64
	Events    []agentapi.Event
	Autostop  *agentapi.Autostop
	IdleSince time.Time
	Drain     *drain
	Hooks     map[string]*hookRun
	BinarySHA string
}

// drain is an announced autostop.
type drain struct {
	Generation int64
	Until      time.Time // the agent acts alone then
}

// hookRun is a run of an event's hooks.
type hookRun struct {
	State agentapi.HookState
	Log   string
	EndAt time.Time
	Error string
}

func newAgent(f *Fleet, n Node) *agent {
	now := f.o.Clock.Now()
	return &agent{fleet: f, state: state{Node: n, IdleSince: now, BinarySHA: n.BinarySHA}}
}

func (a *agent) now() time.Time { return a.fleet.o.Clock.Now() }

// begin takes the lock and lets happen what is due; the function it returns keeps what changed and wakes the streams.
func (a *agent) begin() (end func()) {
	a.mu.Lock()
	a.advance()
	return a.end
}

func (a *agent) end() {
	a.advance()
	if a.dirty && !a.dead {
		a.fleet.save(&a.state)
	}
	if a.dirty {
		for _, s := range a.streams {
			a.feed(s)
		}
		if a.changed != nil {
			close(a.changed)
			a.changed = nil
		}
	}
	a.dirty = false
	a.arm()
	after := a.after
	a.after = nil
	a.mu.Unlock()
	for _, f := range after {
		f()
	}
}

// listen gives a channel that is closed at the next change. The caller holds the lock.
func (a *agent) listen() <-chan struct{} {
	if a.changed == nil {
		a.changed = make(chan struct{})
	}
	return a.changed
}

// arm sets the timer to the next time something happens by itself.
func (a *agent) arm() {
	at := a.next()
	if a.dead {
		at = time.Time{}
	}
	if a.disarm != nil {
		if at.Equal(a.armedFor) {
			return
		}
		a.disarm()
		a.disarm = nil
	}
	a.armedFor = at
	if at.IsZero() {
		return
	}
	a.disarm = a.fleet.o.Clock.AfterFunc(at.Sub(a.now()), func() {
		a.mu.Lock()
		a.disarm, a.armedFor = nil, time.Time{}
		a.mu.Unlock()
		a.begin()()
	})
}

// next is when something happens by itself; zero if nothing does.
func (a *agent) next() (at time.Time) {
	sooner := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	for _, j := range a.state.Jobs {
		if !j.Row.Status.Terminal() && !j.Lost {
			sooner(j.nextChange())
		}
	}
	for _, h := range a.state.Hooks {
		if !h.State.Done {
			sooner(h.EndAt)
		}
	}
	if d := a.state.Drain; d != nil {
		sooner(d.Until)
	} else {
		sooner(a.idleEnd())
	}
	return at
}

// advance lets happen what is due.
func (a *agent) advance() {
	if a.dead {
		return
	}
	now := a.now()
	a.runJobs(now)
	for ev, h := range a.state.Hooks {
		if !h.State.Done && !h.EndAt.After(now) {
			h.State.Done, h.State.Error = true, h.Error
			st := h.State
			a.emit(agentapi.Event{Type: agentapi.EventHook, Hook: &st, Message: "hooks for " + ev + " ended"})
		}
	}
	a.runAutostop(now)
}

// emit adds an event.
func (a *agent) emit(ev agentapi.Event) {
	a.state.Seq++
	ev.Seq, ev.Time = a.state.Seq, a.now()
	a.state.Events = append(a.state.Events, ev)
	a.dirty = true
}

// connect takes a connection, unless the network is cut. A node that came up anew begins with lost processes.
func (a *agent) connect(c *conn, n Node) error {
	defer a.begin()()
	if a.dead {
		return timedOut(n.ID)
	}
	if a.cutOff || a.cutUntil.After(a.now()) {
		return timedOut(n.ID)
	}
	a.conns = append(a.conns, c)
	old := a.state.Node
	if !old.Started.Equal(n.Started) {
		a.state.Node = n
		if a.state.BinarySHA == "" {
			a.state.BinarySHA = n.BinarySHA
		}
		a.dirty = true
		if !old.Started.IsZero() {
			a.restarted()
		}
	}
	return nil
}

// restarted is what a node finds after a stop: the files, no processes, the idle rule dropped.
func (a *agent) restarted() {
	a.state.Restarted, a.state.Drain, a.state.Autostop = true, nil, nil
	a.state.IdleSince = a.now()
	for _, j := range a.state.Jobs {
		if !j.Row.Status.Terminal() {
			j.Lost = true
		}
	}
	a.emit(agentapi.Event{Type: agentapi.EventNode, Message: "the agent started"})
}

func (a *agent) disconnect(c *conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conns = slices.DeleteFunc(a.conns, func(o *conn) bool { return o == c })
	a.streams = slices.DeleteFunc(a.streams, func(s *stream) bool {
		if s.c == c {
			a.fleet.unfollow(s)
		}
		return s.c == c
	})
}

// hangUp breaks all connections. The caller holds the lock; closing takes it, so it is done later.
func (a *agent) hangUp() {
	for _, c := range a.conns {
		a.after = append(a.after, func() { c.Close() })
	}
}

func (a *agent) down(forget bool) {
	end := a.begin()
	a.state.Drain, a.state.Autostop = nil, nil // nothing runs that could act on them
	for _, j := range a.state.Jobs {
		if !j.Row.Status.Terminal() {
			j.Lost = true
		}
	}
	a.dirty = true
	a.state.Gone = forget
	if forget {
		// The next to come under this id, if ever, is another agent.
		a.fleet.save(&state{Node: a.state.Node, Gone: true})
		a.dead = true
	}
	a.hangUp()
	end()
}

func (a *agent) quit() {
	a.mu.Lock()
	a.dead = true
	a.hangUp()
	a.end()
}

func (a *agent) cut(d time.Duration) {
	defer a.begin()()
	a.cutOff = d < 0
	a.cutUntil = a.now().Add(d)
	if d != 0 {
		a.hangUp()
	}
}

func (a *agent) info() agentapi.Info {
	s := &a.state
	in := agentapi.Info{Version: "simulated", BinarySHA: s.BinarySHA, NodeID: s.Node.ID, ClusterHash: s.Node.ClusterHash, Rank: s.Node.Rank,
		Epoch: s.Epoch, PID: 1, StartedAt: s.Node.Started, Now: a.now(), Configured: s.Spec != nil && !s.Restarted, Draining: s.Drain != nil,
		LastEvent: s.Seq, Acked: s.Acked, Autostop: s.Autostop}
	for _, j := range s.Jobs {
		if !j.Row.Status.Terminal() {
			in.ActiveJobs++
			in.Unfinished = append(in.Unfinished, j.Row.ID)
		}
	}
	if in.ActiveJobs == 0 {
		t := s.IdleSince
		in.IdleSince = &t
	}
	return in
}

// configure takes the cluster's spec: a lower epoch is refused, the same one is a repeat.
func (a *agent) configure(spec agentapi.ClusterSpec) error {
	s := &a.state
	switch {
	case spec.Hash != s.Node.ClusterHash:
		return fail(agentapi.KindConflict, "this node belongs to cluster hash %s, not %s", s.Node.ClusterHash, spec.Hash)
	case spec.Epoch < s.Epoch:
		return fail(agentapi.KindStaleEpoch, "epoch %d is older than %d", spec.Epoch, s.Epoch)
	case spec.Epoch == s.Epoch && s.Spec != nil && !s.Restarted:
		return nil
	}
	spec.Secret = "" // nothing here needs it
	s.Spec, s.Epoch, s.Drain, s.IdleSince = &spec, spec.Epoch, nil, a.now()
	a.dirty = true
	why := "its process has vanished"
	if spec.Restarted {
		why = "the cluster was restarted"
	}
	for _, j := range s.Jobs {
		if !j.Row.Status.Terminal() && (spec.Restarted || j.Lost) {
			a.finish(j, "FAILED", 0, why)
		}
	}
	s.Restarted = false
	return nil
}

func fail(kind, format string, args ...any) error {
	status := map[string]int{agentapi.KindInvalid: 400, agentapi.KindNotFound: 404, agentapi.KindInternal: 500, agentapi.KindUnfit: 422, agentapi.KindDiskFull: 507}[kind]
	if status == 0 {
		status = 409
	}
	return &agentapi.Error{Kind: kind, Detail: fmt.Sprintf(format, args...), Status: status}
}
