package simagent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/providers/memory"
	"github.com/skyloom/skyloom/providers/memory/simagent"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// lab is a fleet whose clock the test moves.
type lab struct {
	t     *testing.T
	clock *memory.FakeClock
	fleet *simagent.Fleet
	ended chan string
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, clock: memory.NewFakeClock(noon), ended: make(chan string, 8)}
	var err error
	l.fleet, err = simagent.NewFleet(simagent.Options{Clock: l.clock, JobDuration: time.Minute,
		SelfEnd: func(id string, down bool) { l.ended <- fmt.Sprint(id, " ", down) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.fleet.Close() })
	return l
}

func node(rank int) simagent.Node {
	return simagent.Node{ID: fmt.Sprint("n", rank), ClusterName: "c", ClusterHash: "h", Rank: rank, Started: noon,
		Resources: agentapi.NodeResources{CPUs: 2, MemoryGB: 8, Accelerator: "A100", AcceleratorCount: 2}}
}

func (l *lab) client(n simagent.Node) *agentapi.Client {
	c := agentapi.New(func(ctx context.Context) (net.Conn, error) { return l.fleet.Dial(ctx, n) })
	l.t.Cleanup(c.Close)
	return c
}

// up gives the head of a cluster that was told of its nodes.
func (l *lab) up(nodes int) *agentapi.Client {
	l.t.Helper()
	var head *agentapi.Client
	spec := agentapi.ClusterSpec{Name: "c", Hash: "h", Epoch: 1}
	for r := range nodes {
		spec.Nodes = append(spec.Nodes, agentapi.Peer{NodeID: fmt.Sprint("n", r), Rank: r})
	}
	for r := range nodes {
		c := l.client(node(r))
		if err := c.Configure(context.Background(), spec); err != nil {
			l.t.Fatal(err)
		}
		if r == 0 {
			head = c
		}
	}
	return head
}

func (l *lab) submit(c *agentapi.Client, s agentapi.JobSpec) api.Job {
	l.t.Helper()
	s.Epoch = max(s.Epoch, 1)
	j, err := c.Submit(context.Background(), s)
	if err != nil {
		l.t.Fatal(err)
	}
	return j
}

func (l *lab) job(c *agentapi.Client, id int64) api.Job {
	l.t.Helper()
	j, err := c.Job(context.Background(), id)
	if err != nil {
		l.t.Fatal(err)
	}
	return j
}

func wantKind(t *testing.T, err error, kind string) {
	t.Helper()
	if !agentapi.IsKind(err, kind) {
		t.Errorf("got %v, want %s", err, kind)
	}
}

func TestJobs(t *testing.T) {
	l := newLab(t)
	c := l.up(2)
	j := l.submit(c, agentapi.JobSpec{Key: "a", NumNodes: 2, Setup: "echo installing\nsleep 5", Run: "echo begin; sleep 10 && echo end"})
	if j.ID != 1 || j.Status != api.JobSettingUp {
		t.Fatalf("%+v", j)
	}
	if again := l.submit(c, agentapi.JobSpec{Key: "a", Run: "other"}); again.ID != 1 {
		t.Errorf("the same key gave job %d", again.ID)
	}
	l.clock.Advance(5 * time.Second)
	if j = l.job(c, 1); j.Status != api.JobRunning || !j.StartAt.Equal(noon.Add(5*time.Second)) {
		t.Errorf("%+v", j)
	}
	l.clock.Advance(time.Hour)
	if j = l.job(c, 1); j.Status != api.JobSucceeded || !slices.Equal(j.ExitCodes, []int{0, 0}) || !j.EndAt.Equal(noon.Add(15*time.Second)) {
		t.Errorf("%+v", j)
	}
	for script, want := range map[string]api.JobStatus{"exit 3": api.JobFailed, "false": api.JobFailed, "true": api.JobSucceeded} {
		j := l.submit(c, agentapi.JobSpec{Key: script, Run: script})
		l.clock.Advance(time.Hour)
		if j = l.job(c, j.ID); j.Status != want {
			t.Errorf("%s: %s", script, j.Status)
		}
	}
	j = l.submit(c, agentapi.JobSpec{Key: "s", Setup: "exit 1", Run: "true"})
	if j.Status != api.JobFailedSetup {
		t.Errorf("%s", j.Status)
	}
}

func TestRefusals(t *testing.T) {
	ctx := context.Background()
	l := newLab(t)
	c := l.client(node(0))
	_, err := c.Submit(ctx, agentapi.JobSpec{Key: "a", Epoch: 1, Run: "true"})
	wantKind(t, err, agentapi.KindConflict) // not configured
	wantKind(t, c.Configure(ctx, agentapi.ClusterSpec{Hash: "other", Epoch: 1}), agentapi.KindConflict)
	for _, epoch := range []int64{2, 2, 1} {
		err := c.Configure(ctx, agentapi.ClusterSpec{Hash: "h", Epoch: epoch, Nodes: []agentapi.Peer{{NodeID: "n0"}}})
		if epoch == 1 {
			wantKind(t, err, agentapi.KindStaleEpoch)
		} else if err != nil {
			t.Error(err)
		}
	}
	for kind, s := range map[string]agentapi.JobSpec{
		agentapi.KindStaleEpoch: {Key: "a", Epoch: 1, Run: "true"},
		agentapi.KindUnfit:      {Key: "b", Epoch: 2, Run: "true", NumNodes: 2},
		agentapi.KindInvalid:    {Key: "c", Epoch: 2},
	} {
		_, err := c.Submit(ctx, s)
		wantKind(t, err, kind)
	}
	_, err = c.Submit(ctx, agentapi.JobSpec{Key: "d", Epoch: 2, Run: "true", Accelerator: "A100", AcceleratorCount: 3})
	wantKind(t, err, agentapi.KindUnfit)
	_, err = l.client(node(1)).Submit(ctx, agentapi.JobSpec{Key: "a", Epoch: 2, Run: "true"})
	wantKind(t, err, agentapi.KindConflict) // not the head
	_, err = c.Job(ctx, 7)
	wantKind(t, err, agentapi.KindNotFound)
}

func TestQueueIsStrict(t *testing.T) {
	l := newLab(t)
	c := l.up(1)
	gpu := func(key string, n float64) api.Job {
		return l.submit(c, agentapi.JobSpec{Key: key, Run: "sleep 10", Accelerator: "A100", AcceleratorCount: n})
	}
	got := []api.JobStatus{gpu("a", 1.5).Status, gpu("b", 1).Status, gpu("c", 0.5).Status}
	if !slices.Equal(got, []api.JobStatus{api.JobRunning, api.JobPending, api.JobPending}) {
		t.Errorf("%v: a job that fits passed one that does not", got)
	}
	l.clock.Advance(10 * time.Second)
	if l.job(c, 2).Status != api.JobRunning || l.job(c, 3).Status != api.JobRunning {
		t.Error("the others did not start")
	}
	r, err := c.Cancel(context.Background(), agentapi.CancelSpec{JobIDs: []int64{1, 2, 9}})
	if err != nil || !slices.Equal(r.Cancelled, []int64{2}) || !slices.Equal(r.Finished, []int64{1}) || !slices.Equal(r.Unknown, []int64{9}) {
		t.Errorf("%+v, %v", r, err)
	}
}

// follow collects events until it has seen n.
func follow(t *testing.T, c *agentapi.Client, after int64, n int) []agentapi.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var got []agentapi.Event
	err := c.Events(ctx, after, func(ev agentapi.Event) error {
		if got = append(got, ev); len(got) == n {
			return agentapi.ErrStop
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%d events, then %v", len(got), err)
	}
	return got
}

func TestEvents(t *testing.T) {
	ctx := context.Background()
	l := newLab(t)
	c := l.up(1)
	l.submit(c, agentapi.JobSpec{Key: "a", Run: "sleep 10"})
	live := make(chan []agentapi.Event)
	go func() { live <- follow(t, c, 0, 3) }()
	first := follow(t, c, 0, 2)
	if first[0].Job.Status != api.JobPending || first[1].Job.Status != api.JobRunning || first[0].Seq != 1 {
		t.Errorf("%+v", first)
	}
	l.clock.Advance(10 * time.Second)
	if evs := <-live; evs[2].Job.Status != api.JobSucceeded {
		t.Errorf("%+v", evs[2])
	}
	if err := c.Ack(ctx, 2); err != nil {
		t.Fatal(err)
	}
	if left := follow(t, c, 0, 1); left[0].Seq != 3 {
		t.Errorf("after the ack: %+v", left)
	}
	wantKind(t, c.Events(ctx, 99, nil), agentapi.KindConflict)
	wantKind(t, c.Ack(ctx, 99), agentapi.KindConflict)
}

// logOf reads a log to its end: the text by phase, and the status at the end.
func logOf(t *testing.T, c *agentapi.Client, id int64, q agentapi.LogQuery) (text map[string]string, st api.JobStatus) {
	t.Helper()
	body, err := c.Logs(context.Background(), id, q)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	text = map[string]string{}
	r := agentapi.NewLogReader(body)
	for {
		f, part, err := r.Next()
		if err == io.EOF {
			return text, st
		}
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(part)
		text[f.Phase] += string(b)
		if f.End {
			st = f.Status
		}
	}
}

func TestLogs(t *testing.T) {
	l := newLab(t)
	c := l.up(2)
	l.submit(c, agentapi.JobSpec{Key: "a", NumNodes: 2, Setup: "echo one", Run: "echo two; sleep 10; echo 'three'"})
	if text, st := logOf(t, c, 1, agentapi.LogQuery{}); text["setup"] != "one\n" || text["run"] != "two\n" || st != api.JobRunning {
		t.Errorf("%q %s", text, st)
	}
	type result struct {
		text map[string]string
		st   api.JobStatus
	}
	done := make(chan result)
	go func() {
		text, st := logOf(t, l.client(node(1)), 1, agentapi.LogQuery{Follow: true, Offsets: map[string]int64{"setup": 2}})
		done <- result{text, st}
	}()
	for {
		l.clock.Advance(time.Second)
		select {
		case r := <-done:
			if r.text["setup"] != "e\n" || r.text["run"] != "two\nthree\n" || r.st != api.JobSucceeded {
				t.Errorf("%q %s", r.text, r.st)
			}
			if text, _ := logOf(t, c, 1, agentapi.LogQuery{Tail: 2}); text["setup"]+text["run"] != "two\nthree\n" {
				t.Errorf("tail: %q", text)
			}
			return
		case <-time.After(time.Millisecond):
		}
	}
}

func TestAutostop(t *testing.T) {
	ctx := context.Background()
	l := newLab(t)
	c := l.up(1)
	rule, err := c.SetAutostop(ctx, agentapi.Autostop{Generation: 2, IdleMinutes: 5, Down: true})
	if err != nil || rule.Generation != 2 {
		t.Fatal(rule, err)
	}
	if old, _ := c.SetAutostop(ctx, agentapi.Autostop{Generation: 1, IdleMinutes: -1}); old.Generation != 2 {
		t.Errorf("a lower generation won: %+v", old)
	}
	l.submit(c, agentapi.JobSpec{Key: "a", Run: "sleep 600"})
	l.clock.Advance(11 * time.Minute)
	if in, _ := c.Info(ctx); in.Draining {
		t.Error("draining though it is idle for a minute only")
	}
	l.clock.Advance(4 * time.Minute)
	if in, _ := c.Info(ctx); !in.Draining {
		t.Fatal("not draining")
	}
	_, err = c.Submit(ctx, agentapi.JobSpec{Key: "b", Epoch: 1, Run: "true"})
	wantKind(t, err, agentapi.KindDraining)
	if again := l.submit(c, agentapi.JobSpec{Key: "a"}); again.ID != 1 {
		t.Error("a known key is refused while draining")
	}
	evs := follow(t, c, 3, 1)
	if evs[0].Type != agentapi.EventAutostop || !evs[0].Autostop.Down {
		t.Errorf("%+v", evs[0])
	}
	wantKind(t, c.Drain(ctx, agentapi.Drain{Generation: 1}), agentapi.KindConflict)
	if err := c.Drain(ctx, agentapi.Drain{Generation: 2, Undo: true}); err != nil {
		t.Fatal(err)
	}
	l.submit(c, agentapi.JobSpec{Key: "b", Run: "true"})
	l.clock.Advance(time.Minute + 5*time.Minute + 2*time.Minute) // the job, the idle time, and nobody answers
	select {
	case got := <-l.ended:
		if got != "n0 true" {
			t.Error(got)
		}
	case <-time.After(time.Minute):
		t.Error("the agent did not act alone")
	}
}

func TestHooksAndNotice(t *testing.T) {
	ctx := context.Background()
	l := newLab(t)
	c := l.up(1)
	c.SetAutostop(ctx, agentapi.Autostop{Generation: 1, IdleMinutes: -1, Hooks: []agentapi.Hook{
		{Run: "echo saving; sleep 3", Events: []string{"preemption"}}, {Run: "sleep 90", Events: []string{"down"}, Timeout: 10}}})
	l.fleet.Notice("n0", 30*time.Second)
	evs := follow(t, c, 0, 1)
	if evs[0].Type != agentapi.EventNotice || !strings.Contains(evs[0].Message, "30 s") {
		t.Errorf("%+v", evs[0])
	}
	if st, err := c.HookState(ctx, "preemption"); err != nil || st.Done {
		t.Errorf("%+v, %v", st, err)
	}
	_, err := c.RunHooks(ctx, "down", agentapi.HookRun{Key: "k"})
	wantKind(t, err, agentapi.KindConflict)
	l.clock.Advance(3 * time.Second)
	if st, _ := c.HookState(ctx, "preemption"); !st.Done || st.Error != "" {
		t.Errorf("%+v", st)
	}
	body, err := c.HookLog(ctx, "preemption")
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(body); string(b) != "saving\n" {
		t.Errorf("%q", b)
	}
	c.RunHooks(ctx, "down", agentapi.HookRun{Key: "k"})
	l.clock.Advance(10 * time.Second)
	if st, _ := c.RunHooks(ctx, "down", agentapi.HookRun{Key: "k"}); !st.Done || !strings.Contains(st.Error, "10 s") {
		t.Errorf("%+v", st)
	}
}

func TestStopStart(t *testing.T) {
	ctx := context.Background()
	l := newLab(t)
	c := l.up(1)
	l.submit(c, agentapi.JobSpec{Key: "a", Run: "sleep 100"})
	l.fleet.Down("n0", false)
	l.clock.Advance(time.Hour)
	back := node(0)
	back.Started = l.clock.Now()
	c = l.client(back)
	if in, err := c.Info(ctx); err != nil || in.Configured || !slices.Equal(in.Unfinished, []int64{1}) {
		t.Fatalf("%+v, %v", in, err)
	}
	if err := c.Configure(ctx, agentapi.ClusterSpec{Hash: "h", Epoch: 2, Restarted: true, Nodes: []agentapi.Peer{{NodeID: "n0"}}}); err != nil {
		t.Fatal(err)
	}
	if j := l.job(c, 1); j.Status != api.JobFailed {
		t.Errorf("%+v", j)
	}
	if j := l.submit(c, agentapi.JobSpec{Key: "b", Epoch: 2, Run: "true"}); j.ID != 2 || j.Status != api.JobRunning {
		t.Errorf("%+v", j)
	}
	l.fleet.Down("n0", true) // its files go: whatever comes under this id is another agent
	c = l.client(back)
	if in, err := c.Info(ctx); err != nil || in.LastEvent != 0 {
		t.Errorf("%+v, %v", in, err)
	}
}

func TestPeerLost(t *testing.T) {
	ctx := context.Background()
	l := newLab(t)
	c := l.up(2)
	l.submit(c, agentapi.JobSpec{Key: "both", NumNodes: 2, Run: "sleep 100"})
	l.submit(c, agentapi.JobSpec{Key: "head", NumNodes: 1, Run: "sleep 100"})
	if err := c.PeerLost(ctx, agentapi.PeerLost{NodeID: "n1", Reason: "preempted"}); err != nil {
		t.Fatal(err)
	}
	if a, b := l.job(c, 1), l.job(c, 2); a.Status != api.JobFailedDriver || b.Status != api.JobRunning {
		t.Errorf("%s %s", a.Status, b.Status)
	}
	wantKind(t, c.PeerLost(ctx, agentapi.PeerLost{NodeID: "n7"}), agentapi.KindNotFound)
}

func TestCut(t *testing.T) {
	ctx := context.Background()
	l := newLab(t)
	c := l.up(1)
	streams := make(chan error, 1)
	go func() { streams <- c.Events(ctx, 0, func(agentapi.Event) error { return nil }) }()
	l.submit(c, agentapi.JobSpec{Key: "a", Run: "sleep 5"})
	l.fleet.Cut("n0", 10*time.Second)
	var ae *agentapi.Error
	if err := <-streams; err == nil || errors.As(err, &ae) {
		t.Errorf("the stream ended with %v", err)
	}
	if _, err := c.Info(ctx); err == nil || errors.As(err, &ae) {
		t.Errorf("through a cut network: %v", err)
	}
	l.clock.Advance(10 * time.Second)
	if j := l.job(c, 1); j.Status != api.JobSucceeded { // it ended offline
		t.Errorf("%+v", j)
	}
}

func TestStateFile(t *testing.T) {
	o := simagent.Options{Clock: memory.NewFakeClock(noon), StateFile: filepath.Join(t.TempDir(), "agents")}
	ctx := context.Background()
	open := func() (*simagent.Fleet, *agentapi.Client) {
		f, err := simagent.NewFleet(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		c := agentapi.New(func(ctx context.Context) (net.Conn, error) { return f.Dial(ctx, node(0)) })
		t.Cleanup(c.Close)
		return f, c
	}
	f, c := open()
	c.Configure(ctx, agentapi.ClusterSpec{Hash: "h", Epoch: 3, Nodes: []agentapi.Peer{{NodeID: "n0"}}})
	c.SetAutostop(ctx, agentapi.Autostop{Generation: 4, IdleMinutes: 9})
	c.Submit(ctx, agentapi.JobSpec{Key: "a", Epoch: 3, Run: "sleep 9", Secrets: map[string]string{"TOKEN": "hidden"}})
	c.Ack(ctx, 1)
	f.Close()
	_, c = open()
	in, err := c.Info(ctx)
	if err != nil || in.Epoch != 3 || in.Autostop.Generation != 4 || in.Acked != 1 || in.LastEvent != 2 || in.ActiveJobs != 1 || !in.Configured {
		t.Errorf("%+v, %v", in, err)
	}
}

// An idle agent with an open event stream must be cheap: servers hold thousands.
func TestIdleAgentsAreCheap(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	const n = 500
	before := runtime.NumGoroutine()
	var m0, m1 runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m0)
	for i := range n {
		c := l.client(simagent.Node{ID: fmt.Sprint("idle", i), ClusterHash: "h", Started: noon})
		go c.Events(ctx, 0, func(agentapi.Event) error { return nil })
		if _, err := c.Info(ctx); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	runtime.GC()
	runtime.ReadMemStats(&m1)
	// The client has two goroutines per connection and ours one for Events; the agent's side has its server's two.
	if g := runtime.NumGoroutine() - before; g > 8*n {
		t.Errorf("%d goroutines for %d agents", g, n)
	}
	if kb := (int64(m1.HeapAlloc+m1.StackInuse) - int64(m0.HeapAlloc+m0.StackInuse)) / 1024 / n; kb > 120 {
		t.Errorf("%d KB for an agent, its stream and the client", kb)
	} else {
		t.Logf("%d KB for an agent, its stream and the client", kb)
	}
}
