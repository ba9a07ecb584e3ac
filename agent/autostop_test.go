package agent_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/supervisor"
	"github.com/skyloom/skyloom/api"
)

func grace(d time.Duration) nodeOption {
	return config(func(c *agentapi.NodeConfig) { c.AutostopGrace = d })
}

// event waits for an event of a type.
func (n *testNode) event(typ agentapi.EventType) (ev agentapi.Event) {
	n.t.Helper()
	err := n.api.Events(ctx(n.t), 0, func(e agentapi.Event) error {
		ev = e
		if e.Type == typ {
			return agentapi.ErrStop
		}
		return nil
	})
	if err != nil {
		n.t.Fatalf("no event %s: %v", typ, err)
	}
	return ev
}

func (n *testNode) autostop(a agentapi.Autostop) {
	n.t.Helper()
	if got, err := n.api.SetAutostop(ctx(n.t), a); err != nil || got.Generation != a.Generation {
		n.t.Fatalf("%+v, %v", got, err)
	}
}

func TestAutostopAnswered(t *testing.T) {
	t.Parallel()
	n := cluster(t, 1, quick, grace(time.Hour))[0]
	// A job keeps it awake.
	j := n.run("while [ ! -e ~/go-1 ]; do sleep 0.02; done")
	n.autostop(agentapi.Autostop{Generation: 3, IdleSeconds: 0.3, Down: true})
	if got, err := n.api.SetAutostop(ctx(t), agentapi.Autostop{Generation: 2, IdleMinutes: -1}); err != nil || got.Generation != 3 {
		t.Errorf("a lower generation took: %+v, %v", got, err)
	}
	time.Sleep(700 * time.Millisecond)
	if n.info().Draining {
		t.Fatal("it drains under a running job")
	}
	release(n, 1)
	n.reaches(j.ID, api.JobSucceeded)
	ev := n.event(agentapi.EventAutostop)
	if ev.Autostop == nil || ev.Autostop.Generation != 3 || !ev.Autostop.Down {
		t.Errorf("event: %+v", ev)
	}
	refused := func() bool {
		_, err := n.api.Submit(ctx(t), agentapi.JobSpec{Key: "late", Epoch: 1, Run: "true"})
		return agentapi.IsKind(err, agentapi.KindDraining)
	}
	if !refused() {
		t.Error("a draining node took a job")
	}
	if again, err := n.api.Submit(ctx(t), agentapi.JobSpec{Key: j.Key, Epoch: 1, Run: "true"}); err != nil || again.ID != j.ID {
		t.Errorf("a repeated submission while draining: %+v, %v", again, err)
	}
	n.kill9()
	if !n.info().Draining || !refused() {
		t.Error("draining was forgotten")
	}
	if err := n.api.Drain(ctx(t), agentapi.Drain{Generation: 2, Undo: true}); !agentapi.IsKind(err, agentapi.KindConflict) {
		t.Errorf("undo of another generation: %v", err)
	}
	if err := n.api.Drain(ctx(t), agentapi.Drain{Generation: 3}); err != nil {
		t.Errorf("taken over: %v", err)
	}
	n.autostop(agentapi.Autostop{Generation: 4, IdleMinutes: -1})
	if err := n.api.Drain(ctx(t), agentapi.Drain{Generation: 3, Undo: true}); err != nil {
		t.Fatal(err)
	}
	n.reaches(n.run("true").ID, api.JobSucceeded)
}

func TestAutostopAlone(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 2, quick, grace(200*time.Millisecond))
	head, worker := nodes[0], nodes[1]
	head.run("exec -a autostop-none-d77 sleep 300") // wait_for none looks at no job
	head.autostop(agentapi.Autostop{Generation: 1, IdleSeconds: 0.5, WaitFor: "none", Hooks: []agentapi.Hook{
		{Run: "echo $SKYPILOT_HOOK_EVENT >> ~/hooked; exit 1", Events: []string{"stop"}},
		{Run: "echo second >> ~/hooked", Events: []string{"stop", "down"}},
		{Run: "echo never >> ~/hooked", Events: []string{"down"}},
	}})
	for _, n := range nodes {
		done := make(chan error, 1)
		cmd := n.cmd
		n.cmd = nil
		go func() { done <- cmd.Wait() }()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("init: %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("the node did not end")
		}
		e := supervisor.ReadEnded(n.cfg.Dir)
		if e == nil || !strings.Contains(e.Reason, "autostop") || (n == head && e.Generation != 1) {
			t.Errorf("ended.json: %+v", e)
		}
	}
	if got := head.file("hooked"); got != "stop\nsecond\n" {
		t.Errorf("hooks: %q", got)
	}
	if alive(t, "autostop-none-d77") != 0 {
		t.Error("processes are left")
	}
	// Started again it works, files kept.
	head.start()
	worker.start()
	form(t, 2, nodes...) // the idle rule is kept; it is only told anew after a stop by the server
	head.autostop(agentapi.Autostop{Generation: 2, IdleMinutes: -1})
	if supervisor.ReadEnded(head.cfg.Dir) != nil || head.info().Draining {
		t.Error("the end is not forgotten")
	}
	j := head.submit(agentapi.JobSpec{Run: "cat ~/hooked", Epoch: 2})
	if head.log(j.ID) != "stop\nsecond\n" {
		t.Error("files are gone")
	}
}

func TestClockSkew(t *testing.T) {
	n := cluster(t, 1, config(func(c *agentapi.NodeConfig) { c.ClockOffset = 5 * time.Minute }))[0]
	n.autostop(agentapi.Autostop{Generation: 1, IdleMinutes: 1})
	n.kill9()
	time.Sleep(200 * time.Millisecond)
	i := n.info()
	if i.Draining {
		t.Error("it expired early")
	}
	if off := time.Until(i.Now); off < 4*time.Minute || off > 6*time.Minute {
		t.Errorf("the offset is not in force: %v", off)
	}
}

func TestHooks(t *testing.T) {
	n := cluster(t, 1, quick)[0]
	if _, err := n.api.HookState(ctx(t), "stop"); !agentapi.IsKind(err, agentapi.KindNotFound) {
		t.Errorf("before: %v", err)
	}
	run := agentapi.HookRun{Key: "k1", Hooks: []agentapi.Hook{
		{Run: "echo one $SKYPILOT_HOOK_EVENT; while [ ! -e ~/go ]; do sleep 0.02; done", Events: []string{"stop"}},
		{Run: "trap '' TERM; exec -a slow-hook-4e8 sleep 300", Events: []string{"stop"}, Timeout: 1},
		{Run: "echo three", Events: []string{"stop"}},
	}}
	for range 2 {
		if st, err := n.api.RunHooks(ctx(t), "stop", run); err != nil || st.Done {
			t.Fatalf("%+v, %v", st, err)
		}
	}
	if _, err := n.api.RunHooks(ctx(t), "preemption", agentapi.HookRun{Key: "k2"}); !agentapi.IsKind(err, agentapi.KindConflict) {
		t.Errorf("two at once: %v", err)
	}
	if _, err := n.api.RunHooks(ctx(t), "lunch", run); !agentapi.IsKind(err, agentapi.KindNotFound) {
		t.Errorf("unknown event: %v", err)
	}
	n.kill9() // hooks go on
	os.WriteFile(filepath.Join(n.cfg.Home, "go"), nil, 0o644)
	ev := n.event(agentapi.EventHook)
	if ev.Hook == nil || ev.Hook.Key != "k1" || !ev.Hook.Done || !strings.Contains(ev.Hook.Error, "hook 2 did not end within 1s") {
		t.Errorf("event: %+v", ev.Hook)
	}
	log, err := n.api.HookLog(ctx(t), "stop")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(log)
	log.Close()
	if string(b) != "one stop\nthree\n" || n.file(".sky/hooks/stop.log") != string(b) {
		t.Errorf("log: %q", b)
	}
	if alive(t, "slow-hook-4e8") != 0 {
		t.Error("a hook is left")
	}
	n.autostop(agentapi.Autostop{Generation: 1, IdleMinutes: -1, Hooks: []agentapi.Hook{{Run: "echo saved > ~/saved", Events: []string{"preemption"}}}})
	if err := n.api.Notice(ctx(t), 120); err != nil {
		t.Fatal(err)
	}
	if ev := n.event(agentapi.EventNotice); !strings.Contains(ev.Message, "120 s") {
		t.Errorf("notice: %+v", ev)
	}
	n.eventually("the preemption hook ran", func() bool { return n.file("saved") == "saved\n" })
}
