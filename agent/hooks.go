package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/agent/shim"
	"github.com/skyloom/skyloom/agent/supervisor"
)

// hookEvents are named by outcome.
var hookEvents = []string{"stop", "preemption", "down"}

// defaultHookTime bounds a hook that sets no time of its own.
const defaultHookTime = time.Hour

// hookRecord is the last run of an event's hooks.
type hookRecord struct {
	Event string          `json:"event"`
	Key   string          `json:"key"`
	Hooks []agentapi.Hook `json:"hooks"`
	Next  int             `json:"next"` // the first that has not ended
	Done  bool            `json:"done"`
	Error string          `json:"error,omitempty"`
	Nonce string          `json:"nonce"`
	// Drain is the generation by which the node was draining when they were started, 0 if it was not.
	Drain int64 `json:"drain,omitempty"`
}

func (h *hookRecord) state() agentapi.HookState {
	return agentapi.HookState{Event: h.Event, Key: h.Key, Done: h.Done, Error: h.Error}
}

func checkHook(h agentapi.Hook) error {
	if h.Run == "" {
		return invalid("a hook has nothing to run")
	}
	if h.Timeout < 0 {
		return invalid("a hook's timeout is %d s", h.Timeout)
	}
	for _, e := range h.Events {
		if !slices.Contains(hookEvents, e) {
			return invalid("hooks know no event %q: give stop, preemption or down", e)
		}
	}
	return nil
}

func hookTimeout(h agentapi.Hook) time.Duration {
	if h.Timeout <= 0 {
		return defaultHookTime
	}
	return time.Duration(h.Timeout) * time.Second
}

// forEvent chooses the hooks of an event; one that names no event runs at each.
func forEvent(hooks []agentapi.Hook, event string) []agentapi.Hook {
	var out []agentapi.Hook
	for _, h := range hooks {
		if len(h.Events) == 0 || slices.Contains(h.Events, event) {
			out = append(out, h)
		}
	}
	return out
}

// hookTime is the longest that an event's hooks may take. The caller holds a.mu.
func (a *Agent) hookTime(event string) time.Duration {
	var sum time.Duration
	if a.autostop != nil {
		for _, h := range forEvent(a.autostop.Hooks, event) {
			sum += hookTimeout(h)
		}
	}
	return sum
}

// hooksRunning says that hooks of any event are running. The caller holds a.mu.
func (a *Agent) hooksRunning() bool {
	for _, h := range a.hooks {
		if !h.Done {
			return true
		}
	}
	return false
}

// RunHooks starts the hooks of an event, once per key.
func (a *Agent) RunHooks(event string, run agentapi.HookRun) (agentapi.HookState, error) {
	if !slices.Contains(hookEvents, event) {
		return agentapi.HookState{}, notFound("hooks know no event %q: give stop, preemption or down", event)
	}
	if run.Key == "" {
		return agentapi.HookState{}, invalid("a run of hooks needs a key, by which a repetition is known")
	}
	for _, h := range run.Hooks {
		if err := checkHook(h); err != nil {
			return agentapi.HookState{}, err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if h := a.hooks[event]; h != nil && h.Key == run.Key {
		return h.state(), nil
	}
	for _, h := range a.hooks {
		if !h.Done {
			return agentapi.HookState{}, conflict("the %s hooks are running: only one end of a cluster runs hooks at a time", h.Event)
		}
	}
	hooks := run.Hooks
	if len(hooks) == 0 && a.autostop != nil {
		hooks = a.autostop.Hooks
	}
	h := &hookRecord{Event: event, Key: run.Key, Hooks: forEvent(hooks, event), Nonce: fmt.Sprint(time.Now().UnixNano())}
	if a.drain != nil {
		h.Drain = a.drain.Generation
	}
	b := &durable.Batch{}
	b.Put(keyHook+event, h)
	if err := a.tryCommit(b); err != nil {
		return agentapi.HookState{}, err
	}
	a.hooks[event] = h
	a.notify()
	os.MkdirAll(filepath.Dir(a.hookLog(event)), 0o755)
	os.Truncate(a.hookLog(event), 0)
	go a.playHooks(h)
	return h.state(), nil
}

// HookState tells how far an event's hooks are.
func (a *Agent) HookState(event string) (agentapi.HookState, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.hooks[event]
	if h == nil {
		return agentapi.HookState{}, notFound("no %s hooks were run here", event)
	}
	return h.state(), nil
}

func (a *Agent) hookLog(event string) string {
	return filepath.Join(a.cfg.Home, ".sky", "hooks", event+".log")
}

// resumeHooks goes on with hooks that were under way. The caller holds a.mu.
func (a *Agent) resumeHooks() {
	for _, h := range a.hooks {
		if !h.Done {
			go a.playHooks(h)
		}
	}
}

// playHooks runs hooks one after the other; one that fails is told of, and the next one runs.
func (a *Agent) playHooks(h *hookRecord) {
	for {
		a.mu.Lock()
		i := h.Next
		if i >= len(h.Hooks) {
			h.Done = true
			b := &durable.Batch{}
			b.Put(keyHook+h.Event, h)
			st := h.state()
			a.addEvent(b, agentapi.Event{Type: agentapi.EventHook, Hook: &st, Message: st.Error})
			a.commit(b)
			a.mu.Unlock()
			os.RemoveAll(a.path("hooks", h.Event))
			return
		}
		a.mu.Unlock()
		problem, ended := a.playHook(h, i)
		if !ended {
			return // the agent ends; the next one goes on
		}
		a.mu.Lock()
		h.Next++
		if problem != "" {
			h.Error = fmt.Sprintf("%s hook %d %s", h.Event, i+1, problem)
			a.log.Warn("a hook failed", "hook", h.Error)
		}
		b := &durable.Batch{}
		b.Put(keyHook+h.Event, h)
		a.commit(b)
		a.notify()
		a.mu.Unlock()
	}
}

// playHook runs one hook and says what went wrong. False: the agent ends before the hook.
func (a *Agent) playHook(rec *hookRecord, i int) (problem string, ended bool) {
	hook := rec.Hooks[i]
	dir := a.path("hooks", rec.Event, rec.Nonce)
	h := shim.Handle{Dir: dir, Name: fmt.Sprint("hook", i)}
	script := filepath.Join(dir, fmt.Sprint("hook", i, ".sh"))
	a.mu.Lock()
	var info string
	if a.cluster != nil {
		info = clusterInfo(a.cluster.Spec)
	}
	a.mu.Unlock()
	marker := fmt.Sprintf("%s-hook-%s-%s-%d", a.cfg.ClusterHash, rec.Event, rec.Nonce, a.cfg.Rank)
	env := append(baseEnv(a.cfg.Home), "SKYPILOT_HOOK_EVENT="+rec.Event, "SKYPILOT_CLUSTER_INFO="+info,
		shim.MarkerEnv+"="+marker, supervisor.EnvNode+"="+NodeMark(a.cfg))
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = os.WriteFile(script, []byte(hook.Run), 0o600)
	}
	if err == nil {
		err = h.Prepare(shim.Spec{Script: script, Env: lastWins(env), Cwd: a.cfg.Home, Log: a.hookLog(rec.Event), Marker: marker,
			Cgroup: a.cfg.CgroupRoot, Grace: a.cfg.KillGrace, Timeout: hookTimeout(hook)})
	}
	if err != nil {
		return "could not be started: " + err.Error(), true
	}
	a.failpoint("hook-before-start")
	gone, err := h.Start(a.exe)
	if err != nil {
		return err.Error(), true
	}
	a.failpoint("hook-after-start")
	select {
	case <-gone:
	case <-a.stop:
		return "", false
	}
	_, exit, _ := h.Inspect()
	switch {
	case exit == nil:
		return "vanished without a result", true
	case exit.TimedOut:
		return fmt.Sprintf("did not end within %s and was killed", hookTimeout(hook)), true
	case exit.Code != 0:
		return "exited with " + codeText(exit.Code), true
	}
	return "", true
}

// awaitHooks waits until an event's hooks are done.
func (a *Agent) awaitHooks(ctx context.Context, event string) {
	for {
		a.mu.Lock()
		h, more := a.hooks[event], a.changed
		done := h == nil || h.Done
		a.mu.Unlock()
		if done || !a.pause(ctx, more, 0) {
			return
		}
	}
}

// Notice takes a spot notice: an event, and the preemption hooks.
func (a *Agent) Notice(seconds int) error {
	a.mu.Lock()
	a.meta.Notices++
	key := fmt.Sprintf("notice-%d", a.meta.Notices)
	b := &durable.Batch{}
	b.Put(keyMeta, a.meta)
	a.addEvent(b, agentapi.Event{Type: agentapi.EventNotice, Seconds: seconds, Message: fmt.Sprintf("the node is taken away in %d s", seconds)})
	a.commit(b)
	head := a.cfg.Rank == 0
	a.mu.Unlock()
	if !head {
		return nil
	}
	if _, err := a.RunHooks("preemption", agentapi.HookRun{Key: key}); err != nil {
		a.log.Warn("preemption hooks were not run", "error", err)
	}
	return nil
}
