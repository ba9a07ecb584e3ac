package agent_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

// pushed gathers what a reader of events gets of a log.
type pushed struct {
	mu    sync.Mutex
	text  map[string]string
	count int
	jobs  []api.JobStatus
}

func (p *pushed) take(t *testing.T, ev agentapi.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ev.Type == agentapi.EventJob {
		p.jobs = append(p.jobs, ev.Job.Status)
	}
	if ev.Type != agentapi.EventLog {
		return
	}
	if ev.Seq != 0 || int(ev.Log.Offset) != len(p.text[ev.Log.Phase]) {
		t.Errorf("%d bytes of %s at %d, seq %d; there are %d", len(ev.Log.Data), ev.Log.Phase, ev.Log.Offset, ev.Seq, len(p.text[ev.Log.Phase]))
	}
	p.text[ev.Log.Phase] += string(ev.Log.Data)
	p.count++
}

func (p *pushed) is(phase, text string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text[phase] == text
}

func TestLogPush(t *testing.T) {
	n := cluster(t, 1, quick)[0]
	got := &pushed{text: map[string]string{}}
	read := func(at map[string]int64) (stop func()) {
		c, cancel := context.WithCancel(ctx(t))
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = n.api.EventsAndLog(c, 0, 0, agentapi.LogFollow{JobID: 1, Every: time.Second, Offsets: at}, func(ev agentapi.Event) error {
				got.take(t, ev)
				return nil
			})
		}()
		return func() { cancel(); <-done }
	}
	stop := read(nil) // before there is such a job
	big := strings.Repeat("0123456789abcdef", 40_000)
	j := n.submit(agentapi.JobSpec{Epoch: 1, Setup: "echo prepared", Run: `echo one; until [ -e two ]; do sleep 0.05; done
echo two; until [ -e big ]; do sleep 0.05; done
i=0; while [ $i -lt 40000 ]; do printf 0123456789abcdef; i=$((i+1)); done
until [ -e end ]; do sleep 0.05; done`})
	n.eventually("the first line", func() bool { return got.is("setup", "prepared\n") && got.is("run", "one\n") })
	stop()
	// Another reader goes on where the first one was.
	touch(t, n, "two")
	stop = read(map[string]int64{"setup": 9, "run": 4})
	n.eventually("the second line", func() bool { return got.is("run", "one\ntwo\n") })
	touch(t, n, "big")
	n.eventually("what takes several pieces", func() bool { return got.is("run", "one\ntwo\n"+big) })
	touch(t, n, "end")
	n.reaches(j.ID, api.JobSucceeded)
	n.eventually("the events in between", func() bool {
		got.mu.Lock()
		defer got.mu.Unlock()
		return len(got.jobs) > 0 && got.jobs[len(got.jobs)-1] == api.JobSucceeded
	})
	stop()
	if got.count > 40 {
		t.Errorf("%d pushes", got.count)
	}
}

func touch(t *testing.T, n *testNode, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(n.cfg.Home, name), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}
