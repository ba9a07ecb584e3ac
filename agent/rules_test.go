package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

func TestPlace(t *testing.T) {
	res := agentapi.NodeResources{CPUs: 2, Accelerator: "A100", AcceleratorCount: 2}
	node := func(cpus float64, devices ...float64) load { return load{cpus, devices} }
	for _, c := range []struct {
		name  string
		d     demand
		nodes []load
		lost  int
		want  []slot
		why   string
	}{
		{"half a CPU fits four times", demand{Nodes: 1, CPUs: 0.5}, []load{node(1.5, 0, 0)}, -1, []slot{{Node: 0}}, ""},
		{"a fifth time it does not", demand{Nodes: 1, CPUs: 0.5}, []load{node(2, 0, 0)}, -1, nil, "CPUs on 1 node"},
		{"no demand fits always", demand{Nodes: 1}, []load{node(2, 1, 1)}, -1, []slot{{Node: 0}}, ""},
		{"the second node", demand{Nodes: 1, CPUs: 0.5, Accelerators: 1}, []load{node(0, 1, 0.5), node(0, 0, 1)}, -1, []slot{{1, []deviceShare{{0, 1}}}}, ""},
		{"a share goes to the fullest", demand{Nodes: 1, Accelerators: 0.5}, []load{node(0, 0, 0.5)}, -1, []slot{{0, []deviceShare{{1, 0.5}}}}, ""},
		{"a share that is too big for the fullest", demand{Nodes: 1, Accelerators: 0.6}, []load{node(0, 0, 0.5)}, -1, []slot{{0, []deviceShare{{0, 0.6}}}}, ""},
		{"thirds add up", demand{Nodes: 1, Accelerators: 1.0 / 3}, []load{node(0, 2.0/3, 1)}, -1, []slot{{0, []deviceShare{{0, 1.0 / 3}}}}, ""},
		{"whole ones are not shared", demand{Nodes: 1, Accelerators: 2}, []load{node(0, 0.1, 0)}, -1, nil, "accelerators"},
		{"a gang takes distinct nodes", demand{Nodes: 2, CPUs: 0.5}, []load{node(2), node(0), node(0)}, -1, []slot{{Node: 1}, {Node: 2}}, ""},
		{"a gang is placed whole or not", demand{Nodes: 2, CPUs: 0.5}, []load{node(2), node(0)}, -1, nil, "waiting for room on 2 nodes"},
		{"lost nodes are passed over", demand{Nodes: 1, CPUs: 0.5}, []load{node(0), node(0)}, 0, []slot{{Node: 1}}, ""},
		{"and said to be missing", demand{Nodes: 2}, []load{node(0), node(0)}, 0, nil, "1 lost node"},
	} {
		got, why := place(c.d, res, c.nodes, func(n int) bool { return n != c.lost })
		if !reflect.DeepEqual(got, c.want) || (c.why == "") != (why == "") || !strings.Contains(why, c.why) {
			t.Errorf("%s: %v %q", c.name, got, why)
		}
	}
}

func TestDemand(t *testing.T) {
	res := agentapi.NodeResources{CPUs: 4, Accelerator: "A100", AcceleratorCount: 2}
	for _, c := range []struct {
		name string
		s    agentapi.JobSpec
		want demand
		kind string
	}{
		{"plain", agentapi.JobSpec{Run: "x"}, demand{Nodes: 1, CPUs: 0.5}, ""},
		{"none", agentapi.JobSpec{Run: "x", CPUs: -1}, demand{Nodes: 1}, ""},
		{"given", agentapi.JobSpec{Run: "x", CPUs: 0.25, NumNodes: 2}, demand{Nodes: 2, CPUs: 0.25}, ""},
		{"setup alone", agentapi.JobSpec{Setup: "x", AcceleratorCount: 2}, demand{Nodes: 1}, ""},
		{"any accelerator", agentapi.JobSpec{Run: "x", AcceleratorCount: 2}, demand{Nodes: 1, CPUs: 0.5, Accelerators: 2}, ""},
		{"too many", agentapi.JobSpec{Run: "x", AcceleratorCount: 3}, demand{}, agentapi.KindUnfit},
		{"another", agentapi.JobSpec{Run: "x", Accelerator: "T4", AcceleratorCount: 1}, demand{}, agentapi.KindUnfit},
		{"negative", agentapi.JobSpec{Run: "x", AcceleratorCount: -1}, demand{}, agentapi.KindInvalid},
		{"too many nodes", agentapi.JobSpec{Setup: "x", NumNodes: 3}, demand{}, agentapi.KindUnfit},
	} {
		got, err := demandOf(c.s, res, 2)
		if c.kind != "" {
			if !agentapi.IsKind(err, c.kind) {
				t.Errorf("%s: %v", c.name, err)
			}
		} else if err != nil || got != c.want {
			t.Errorf("%s: %+v %v", c.name, got, err)
		}
	}
	if d, err := demandOf(agentapi.JobSpec{Run: "x"}, agentapi.NodeResources{CPUs: 0.25}, 1); err != nil || d.CPUs != 0.25 {
		t.Errorf("a tiny node runs nothing: %+v %v", d, err)
	}
}

func TestJudgeIdle(t *testing.T) {
	rule := func(minutes int, wait string) agentapi.Autostop {
		return agentapi.Autostop{IdleMinutes: minutes, WaitFor: wait}
	}
	for _, c := range []struct {
		name       string
		v          idleView
		alive, due bool
	}{
		{"off", idleView{rule(-1, ""), 0, 0, time.Hour}, false, false},
		{"not yet", idleView{rule(5, ""), 0, 0, 5*time.Minute - 1}, false, false},
		{"due", idleView{rule(5, ""), 0, 0, 5 * time.Minute}, false, true},
		{"zero is one minute", idleView{rule(0, ""), 0, 0, 59 * time.Second}, false, false},
		{"more minutes than a duration holds", idleView{rule(1<<31, ""), 0, 0, 365 * 24 * time.Hour}, false, false},
		{"a job", idleView{rule(5, ""), 1, 0, time.Hour}, true, false},
		{"a session", idleView{rule(5, waitJobsAndSSH), 0, 1, time.Hour}, true, false},
		{"sessions do not count", idleView{rule(5, waitJobs), 0, 1, time.Hour}, false, true},
		{"nothing counts", idleView{rule(5, waitNone), 3, 1, time.Hour}, false, true},
	} {
		if alive, due := judgeIdle(c.v); alive != c.alive || due != c.due {
			t.Errorf("%s: alive %v, due %v", c.name, alive, due)
		}
	}
}

func TestVerdict(t *testing.T) {
	now := time.Now()
	ok := result{natural: true}
	bad := func(code int, after time.Duration) result {
		return result{code: code, natural: true, first: now.Add(after)}
	}
	killed := result{code: killedCode}
	for _, c := range []struct {
		name   string
		phase  string
		res    []result
		cause  error
		status api.JobStatus
		codes  []int
		reason string
	}{
		{"first failure counts", phaseRun, []result{bad(2, 2), bad(3, 1)}, errRankFailed, api.JobFailed, []int{2, 3}, "rank 1 (worker1) exited with code 3"},
		{"others are killed", phaseRun, []result{bad(139, 0), killed}, errRankFailed, api.JobFailed, []int{139, 137}, "segmentation"},
		{"setup", phaseSetup, []result{ok, bad(1, 0)}, errRankFailed, api.JobFailedSetup, []int{0, 1}, "setup failed on worker1"},
		{"cancelled", phaseRun, []result{killed, ok}, errCancelled, api.JobCancelled, []int{137, 0}, "cancelled"},
		{"failed by itself before the cancel", phaseRun, []result{bad(4, 0), ok}, errCancelled, api.JobFailed, []int{4, 0}, "code 4"},
		{"lost", phaseRun, []result{killed, {code: killedCode, lost: true}}, errLost{1, "preempted"}, api.JobFailedDriver, []int{137, 137}, "worker1 was lost: preempted"},
		{"vanished", phaseRun, []result{{code: killedCode, vanished: true, first: now}, killed}, errRankFailed, api.JobFailedDriver, []int{137, 137}, "vanished"},
		{"ended from outside", phaseRun, []result{{code: 143, first: now}, killed}, errRankFailed, api.JobFailedDriver, []int{143, 137}, "from outside"},
		{"killed for another before a restart", phaseRun, []result{{code: killedCode, ordered: true}, {code: 9, natural: true}}, errRankFailed, api.JobFailed, []int{137, 9}, "rank 1 (worker1) exited with code 9"},
		{"ended by its node", phaseRun, []result{{code: killedCode, ordered: true}, killed}, errRankFailed, api.JobFailedDriver, []int{137, 137}, "head had been told"},
		{"refused", phaseRun, []result{{code: 0, err: errors.New("no such thing")}, killed}, errRankFailed, api.JobFailedDriver, []int{0, 137}, "no such thing"},
		{"stopped", phaseRun, []result{killed, killed}, errRestarted, api.JobFailed, []int{137, 137}, "stopped"},
	} {
		o := verdict(c.phase, []int{0, 1}, c.res, c.cause)
		if o.status != c.status || !slices.Equal(o.codes, c.codes) || !strings.Contains(o.reason, c.reason) {
			t.Errorf("%s: %+v", c.name, o)
		}
	}
}

func TestTailOffset(t *testing.T) {
	long := strings.Repeat("x", 3*logChunk)
	for i, c := range []struct {
		content string
		n       int
		want    string
		lines   int
	}{
		{"", 3, "", 0},
		{"a\nb\nc\n", 2, "b\nc\n", 2},
		{"a\nb\nc", 2, "b\nc", 2},
		{"a\nb\nc\n", 9, "a\nb\nc\n", 3},
		{"a\n" + long + "\nb\n", 2, long + "\nb\n", 2},
		{long, 1, long, 1},
		{"\n\n\n", 2, "\n\n", 2},
		{long[:logChunk-1] + "\n" + "b\n", 1, "b\n", 1},
	} {
		path := filepath.Join(t.TempDir(), "f")
		os.WriteFile(path, []byte(c.content), 0o600)
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		off, lines, err := tailOffset(f, c.n)
		f.Close()
		if err != nil || c.content[off:] != c.want || lines != c.lines {
			t.Errorf("%d: offset %d, %d lines, %v", i, off, lines, err)
		}
	}
}

func TestLastWins(t *testing.T) {
	got := lastWins([]string{"A=1", "B=2", "A=3", "C="})
	if !slices.Equal(got, []string{"B=2", "A=3", "C="}) {
		t.Errorf("%v", got)
	}
}

func TestCoalesce(t *testing.T) {
	cfg := agentapi.NodeConfig{NodeID: "n", ClusterHash: "h", Dir: t.TempDir(), Home: t.TempDir(), Socket: "/none"}
	a, err := Open(cfg, discard())
	if err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	a.coalesceAt = 50
	a.mu.Unlock()
	for i := range 200 {
		a.mu.Lock()
		a.addEvent(nil, agentapi.Event{Type: agentapi.EventJob, Job: &api.Job{ID: int64(i % 7), Name: fmt.Sprint(i)}})
		if len(a.events) == 50 {
			a.coalesceAt = 50
		}
		a.mu.Unlock()
	}
	newest := func(a *Agent) map[int64]string {
		out := map[int64]string{}
		last := int64(0)
		for _, ev := range a.events {
			if ev.Seq <= last {
				t.Errorf("event %d after %d", ev.Seq, last)
			}
			last = ev.Seq
			out[ev.Job.ID] = ev.Job.Name
		}
		return out
	}
	want := newest(a)
	kept := len(a.events)
	a.journal.Close()
	b, err := Open(cfg, discard())
	if err != nil {
		t.Fatal(err)
	}
	defer b.journal.Close()
	if got := newest(b); !reflect.DeepEqual(got, want) || len(b.events) != kept || b.meta.LastEvent != 200 || len(want) != 7 || want[3] != "199" {
		t.Errorf("%d events of %d, last %d: %v, expected %v", len(b.events), kept, b.meta.LastEvent, got, want)
	}
}

func TestAgentapiLogReader(t *testing.T) {
	stream := `{"rank":0,"job_id":1,"len":0}` + "\n" + `{"rank":0,"phase":"run","offset":0,"len":5}` + "\nab\ncd" + `{"rank":0,"len":0,"end":true,"status":"SUCCEEDED"}` + "\n"
	r := agentapi.NewLogReader(strings.NewReader(stream))
	var out bytes.Buffer
	for {
		f, data, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		out.ReadFrom(data)
		if f.End {
			break
		}
	}
	if out.String() != "ab\ncd" {
		t.Errorf("%q", out.String())
	}
	for cut := 1; cut < len(stream); cut++ {
		r := agentapi.NewLogReader(strings.NewReader(stream[:cut]))
		var err error
		for err == nil {
			_, _, err = r.Next()
		}
		if err.Error() == "EOF" {
			t.Fatalf("a stream cut at %d passes for whole", cut)
		}
	}
}
