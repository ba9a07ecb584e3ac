package agent

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/agent/supervisor"
)

// What autostop waits for.
const (
	waitJobsAndSSH = "jobs_and_ssh"
	waitJobs       = "jobs"
	waitNone       = "none"
)

// defaultGrace is how long an announced stop waits for the server; takenGrace is how long it then waits besides the
// time its hooks may take.
const (
	defaultGrace = 2 * time.Minute
	takenGrace   = 10 * time.Minute
)

// idleClock counts idleness. It holds monotonic time only, so that a wall clock that jumps lets nothing expire; the
// agent's own start resets it.
type idleClock struct {
	last time.Time // last sign of life
	kick chan struct{}
}

// idleView is what the idle rule looks at.
type idleView struct {
	Rule     agentapi.Autostop
	Jobs     int // unfinished
	Sessions int
	Since    time.Duration // since the last sign of life
}

// limit is how long the cluster may be idle; 0: for ever.
func limit(r agentapi.Autostop) time.Duration {
	switch {
	case r.IdleSeconds > 0:
		return time.Duration(r.IdleSeconds * float64(time.Second))
	case r.IdleMinutes < 0:
		return 0
	}
	return time.Duration(min(max(r.IdleMinutes, 1), mostIdleMinutes)) * time.Minute
}

// mostIdleMinutes keeps an idle time from running over: a hundred years.
const mostIdleMinutes = 100 * 366 * 24 * 60

// judgeIdle is the idle rule, a pure function: whether this look counts as a sign of life, and if not whether it is time.
func judgeIdle(v idleView) (alive, due bool) {
	switch v.Rule.WaitFor {
	case waitNone:
	case waitJobs:
		alive = v.Jobs > 0
	default:
		alive = v.Jobs > 0 || v.Sessions > 0
	}
	l := limit(v.Rule)
	return alive, !alive && l > 0 && v.Since >= l
}

// resetIdle starts idleness anew. The caller holds a.mu.
func (a *Agent) resetIdle() {
	a.idle.last = time.Now()
	a.wakeIdle()
}

func (a *Agent) wakeIdle() {
	select {
	case a.idle.kick <- struct{}{}:
	default:
	}
}

// idleSince is how long nothing happened; false while jobs are unfinished. The caller holds a.mu.
func (a *Agent) idleSince() (time.Duration, bool) {
	return time.Since(a.idle.last), len(a.open) == 0 && !a.idle.last.IsZero()
}

// SetAutostop takes an idle rule and answers the one in force.
func (a *Agent) SetAutostop(r agentapi.Autostop) (agentapi.Autostop, error) {
	switch r.WaitFor {
	case "":
		r.WaitFor = waitJobsAndSSH
	case waitJobsAndSSH, waitJobs, waitNone:
	default:
		return r, invalid("autostop cannot wait for %q: give jobs_and_ssh, jobs or none", r.WaitFor)
	}
	if math.IsNaN(r.IdleSeconds) || r.IdleSeconds < 0 {
		return r, invalid("idle_seconds is %v", r.IdleSeconds)
	}
	for _, h := range r.Hooks {
		if err := checkHook(h); err != nil {
			return r, err
		}
	}
	a.mu.Lock()
	if a.autostop != nil && r.Generation < a.autostop.Generation {
		defer a.mu.Unlock()
		return *a.autostop, nil
	}
	b := &durable.Batch{}
	b.Put(keyAutostop, r)
	if err := a.tryCommit(b); err != nil {
		a.mu.Unlock()
		return r, err
	}
	a.autostop = &r
	a.resetIdle()
	a.mu.Unlock()
	return r, diskError(a.journal.Sync())
}

// Autostop gives the idle rule in force, nil if there never was one.
func (a *Agent) Autostop() *agentapi.Autostop {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.autostop
}

// idleLoop looks at idleness while there is a rule. Without one it sleeps.
func (a *Agent) idleLoop() {
	for {
		var tick <-chan time.Time
		if d := a.nextLook(); d > 0 {
			tick = time.After(d)
		}
		select {
		case <-tick:
			a.look()
		case <-a.idle.kick:
		case <-a.stop:
			return
		}
	}
}

// nextLook is when idleness is to be looked at again; 0: not before something changes.
func (a *Agent) nextLook() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	every := a.cfg.IdleCheck
	if every <= 0 {
		every = 5 * time.Second
	}
	if a.held {
		return 0
	}
	if a.drain != nil && !a.drain.Requested {
		if a.dueAt.IsZero() {
			a.dueAt = time.Now().Add(a.grace())
		}
		return clamp(time.Until(a.dueAt), every)
	}
	if a.autostop == nil || limit(*a.autostop) == 0 || a.cfg.Rank != 0 || a.ending {
		return 0
	}
	return clamp(limit(*a.autostop)-time.Since(a.idle.last), every)
}

func clamp(d, most time.Duration) time.Duration { return min(max(d, 10*time.Millisecond), most) }

func (a *Agent) grace() time.Duration {
	if a.cfg.AutostopGrace > 0 {
		return a.cfg.AutostopGrace
	}
	return defaultGrace
}

// look judges idleness once, and announces the stop or acts when it is time.
func (a *Agent) look() {
	sessions := 0
	if a.Sessions != nil {
		sessions = a.Sessions()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ending || a.held {
		return
	}
	if a.drain != nil && !a.drain.Requested {
		if a.hooksRunning() {
			a.dueAt = time.Now().Add(a.grace())
		} else if !a.dueAt.IsZero() && !time.Now().Before(a.dueAt) {
			a.dueAt = time.Now().Add(takenGrace) // tried again if it comes to nothing
			go a.actAlone(*a.drain)
		}
		return
	}
	if a.autostop == nil {
		return
	}
	alive, due := judgeIdle(idleView{*a.autostop, len(a.open), sessions, time.Since(a.idle.last)})
	if alive {
		a.idle.last = time.Now()
	}
	if !due {
		return
	}
	a.failpoint("drain-before-journal")
	rule := *a.autostop
	a.drain = &drainRecord{Generation: rule.Generation, Down: rule.Down, Since: a.now()}
	a.dueAt = time.Now().Add(a.grace())
	b := &durable.Batch{}
	b.Put(keyDrain, a.drain)
	a.addEvent(b, agentapi.Event{Type: agentapi.EventAutostop, Autostop: &rule,
		Message: fmt.Sprintf("idle for %s", time.Since(a.idle.last).Round(time.Second))})
	a.commit(b)
	a.failpoint("drain-after-journal")
}

// Drain takes the server's answer to an announced stop, or its wish that no more work be taken.
func (a *Agent) Drain(d agentapi.Drain) error {
	a.mu.Lock()
	b := &durable.Batch{}
	switch {
	case a.ending:
		defer a.mu.Unlock()
		return conflict("the node is ending already")
	case a.drain == nil && d.Undo:
		a.mu.Unlock()
		return nil
	case a.drain == nil:
		a.drain = &drainRecord{Generation: d.Generation, Since: a.now(), Requested: true}
		b.Put(keyDrain, a.drain)
	case a.drain.Generation != d.Generation:
		defer a.mu.Unlock()
		return conflict("the node drains by generation %d, not %d", a.drain.Generation, d.Generation)
	case d.Undo:
		a.drain, a.dueAt = nil, time.Time{}
		b.Delete(keyDrain)
		a.resetIdle()
	default:
		a.drain.Taken = true
		b.Put(keyDrain, a.drain)
		a.dueAt = time.Now().Add(takenGrace + a.hookTime(outcomeEvent(a.drain.Down)))
	}
	a.commit(b)
	a.notify()
	a.wakeIdle()
	a.mu.Unlock()
	a.wakeScheduler()
	return diskError(a.journal.Sync())
}

// outcomeEvent names the hooks of a stop.
func outcomeEvent(down bool) string {
	if down {
		return "down"
	}
	return "stop"
}

// actAlone ends the cluster without the server: hooks first, then the workers, then this node.
func (a *Agent) actAlone(d drainRecord) {
	event := outcomeEvent(d.Down)
	a.log.Info("nobody answered the announced stop: the node acts alone", "generation", d.Generation)
	ctx, cancel := a.context()
	defer cancel()
	key := fmt.Sprintf("autostop-%d", d.Generation)
	a.mu.Lock()
	h := a.hooks[event]
	ran := h != nil && h.Done && h.Drain == d.Generation // the server had them run before it fell silent
	a.mu.Unlock()
	if !ran {
		if _, err := a.RunHooks(event, agentapi.HookRun{Key: key}); err != nil {
			a.log.Warn("hooks", "error", err)
		}
		a.awaitHooks(ctx, event)
	}
	a.mu.Lock()
	if a.drain == nil || a.drain.Generation != d.Generation || ctx.Err() != nil {
		a.mu.Unlock()
		return // undone meanwhile
	}
	if a.cfg.SelfEnd != "" {
		a.ending = true
	}
	a.mu.Unlock()
	a.endNode("autostop: idle, and the server did not answer", d.Down, d.Generation)
}

// endNode ends this node, if it may; the head ends the workers before itself.
func (a *Agent) endNode(reason string, down bool, generation int64) {
	if a.cfg.SelfEnd == "" {
		a.mu.Lock()
		a.addEvent(nil, agentapi.Event{Type: agentapi.EventNode, Message: "the node is to end but cannot end itself; end it from outside"})
		a.mu.Unlock()
		return
	}
	a.mu.Lock()
	a.ending = true
	var peers []remoteNode
	if a.cluster != nil && a.cfg.Rank == 0 {
		for _, p := range a.cluster.Spec.Nodes {
			if p.NodeID != a.cfg.NodeID {
				peers = append(peers, remoteNode{a.peers.client(a, p.Addr), a.cluster.Spec.Secret})
			}
		}
	}
	a.mu.Unlock()
	done := make(chan struct{}, len(peers))
	for _, p := range peers {
		go func() {
			for range 3 {
				ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
				err := p.end(ctx, peerCall{Reason: reason, Down: down, Generation: generation})
				cancel()
				if err == nil {
					break
				}
				time.Sleep(500 * time.Millisecond)
			}
			done <- struct{}{}
		}()
	}
	for range peers {
		<-done
	}
	a.failpoint("self-end")
	e := supervisor.Ended{Time: a.now(), Reason: reason, Down: down, Generation: generation}
	if err := durable.WriteJSON(a.path(supervisor.EndedFile), e); err != nil {
		a.log.Warn("the reason of the end was not written", "error", err)
	}
	a.Stop(supervisor.ExitEnd)
}
