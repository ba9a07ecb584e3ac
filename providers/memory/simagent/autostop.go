package simagent

import (
	"fmt"
	"strings"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
)

// setAutostop takes an idle rule unless a later one is in force.
func (a *agent) setAutostop(r agentapi.Autostop) agentapi.Autostop {
	s := &a.state
	if s.Autostop != nil && r.Generation < s.Autostop.Generation {
		return *s.Autostop
	}
	if s.Autostop == nil || r.Generation > s.Autostop.Generation {
		s.Autostop, s.Drain, s.IdleSince = &r, nil, a.now()
		a.dirty = true
	}
	return *s.Autostop
}

// idleEnd is when the idle rule stops the cluster if nothing happens; zero if it does not.
func (a *agent) idleEnd() time.Time {
	r := a.state.Autostop
	if r == nil || a.state.Node.Rank != 0 || r.IdleMinutes < 0 && r.IdleSeconds <= 0 {
		return time.Time{}
	}
	if r.WaitFor != "none" {
		for _, j := range a.state.Jobs {
			if !j.Row.Status.Terminal() && !j.Lost {
				return time.Time{}
			}
		}
	}
	d := time.Duration(r.IdleMinutes) * time.Minute
	if r.IdleSeconds > 0 {
		d = time.Duration(r.IdleSeconds * float64(time.Second))
	}
	return a.state.IdleSince.Add(d)
}

// runAutostop announces a stop that is due, and carries out one that nobody answered.
func (a *agent) runAutostop(now time.Time) {
	s := &a.state
	if s.Drain == nil {
		if at := a.idleEnd(); at.IsZero() || at.After(now) {
			return
		}
		s.Drain = &drain{Generation: s.Autostop.Generation, Until: now.Add(a.fleet.o.Grace)}
		rule := *s.Autostop
		a.emit(agentapi.Event{Type: agentapi.EventAutostop, Autostop: &rule, Message: "idle: asks to be stopped"})
		return
	}
	if s.Drain.Until.After(now) {
		return
	}
	s.Drain.Until = time.Time{}
	a.dirty = true
	down, id := s.Autostop != nil && s.Autostop.Down, s.Node.ID
	if end := a.fleet.o.SelfEnd; end != nil {
		a.after = append(a.after, func() { go end(id, down) }) // our caller may hold a lock of the cloud's
	}
}

// drain answers an announced stop.
func (a *agent) drain(d agentapi.Drain) error {
	s := &a.state
	if s.Autostop == nil || d.Generation != s.Autostop.Generation {
		return fail(agentapi.KindConflict, "generation %d is not the one in force", d.Generation)
	}
	if s.Drain == nil {
		if d.Undo {
			return nil
		}
		return fail(agentapi.KindConflict, "the node is not draining")
	}
	a.dirty = true
	if d.Undo {
		s.Drain, s.IdleSince = nil, a.now()
		return nil
	}
	s.Drain.Until = a.now().Add(10 * time.Minute)
	return nil
}

// runHooks starts the hooks of an event, once per key.
func (a *agent) runHooks(event string, r agentapi.HookRun) (agentapi.HookState, error) {
	if h := a.state.Hooks[event]; h != nil && h.State.Key == r.Key {
		return h.State, nil
	}
	for ev, h := range a.state.Hooks {
		if !h.State.Done {
			return agentapi.HookState{}, fail(agentapi.KindConflict, "the hooks for %s are running", ev)
		}
	}
	hooks := r.Hooks
	if len(hooks) == 0 && a.state.Autostop != nil {
		hooks = a.state.Autostop.Hooks
	}
	run := &hookRun{State: agentapi.HookState{Event: event, Key: r.Key}}
	var takes time.Duration
	var log strings.Builder
	for _, h := range hooks {
		if !contains(h.Events, event) {
			continue
		}
		p := read(h.Run, 0)
		limit := time.Duration(h.Timeout) * time.Second
		if limit > 0 && p.takes > limit {
			p.takes = limit
			run.Error = fmt.Sprintf("hook ran out of its %d s", h.Timeout)
		} else if p.code != 0 {
			run.Error = fmt.Sprintf("hook ended with code %d", p.code)
		}
		log.WriteString(p.until(p.takes))
		takes += p.takes
	}
	run.Log, run.EndAt = log.String(), a.now().Add(takes)
	if a.state.Hooks == nil {
		a.state.Hooks = map[string]*hookRun{}
	}
	a.state.Hooks[event] = run
	a.dirty = true
	a.advance()
	return run.State, nil
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// notice takes a spot notice: an event, and the preemption hooks.
func (a *agent) notice(d time.Duration) {
	a.emit(agentapi.Event{Type: agentapi.EventNotice, Message: fmt.Sprintf("this node is taken away in %d s", int(d.Seconds()))})
	a.runHooks("preemption", agentapi.HookRun{Key: fmt.Sprintf("notice-%d", a.state.Seq)})
}
