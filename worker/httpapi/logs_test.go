package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

// logEnv is a cluster c1 with one fake agent per node, and job 3.
func logEnv(t *testing.T, nodes int) (*env, []*fakeAgent, api.Cluster) {
	e := newEnv(t)
	c := e.putCluster(api.Cluster{Name: "c1", Nodes: nodes})
	e.putJob(c, api.Job{ID: 3, Name: "train", Status: api.JobRunning, NumNodes: nodes, SubmittedAt: time.Now(), Seq: 1})
	agents := make([]*fakeAgent, nodes)
	clients := make([]NodeClient, nodes)
	for i := range agents {
		agents[i] = newFakeAgent(t, 3)
		name := "head"
		if i > 0 {
			name = fmt.Sprintf("worker%d", i)
		}
		clients[i] = NodeClient{Rank: i, Node: name, Client: agentapi.NewUnix(agents[i].socket)}
	}
	e.be.nodes = func(string) ([]NodeClient, error) { return clients, nil }
	return e, agents, c
}

// collector gathers a log by rank and phase.
type collector struct {
	mu  sync.Mutex
	got map[string]string
	sum map[string]int
}

func newCollector() *collector { return &collector{got: map[string]string{}} }

func (c *collector) take(k api.LogChunk) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.Lost > 0 {
		return fmt.Errorf("lost %d bytes", k.Lost)
	}
	if k.Len > 0 {
		c.got[fmt.Sprintf("%s/%d/%s", k.Node, k.Rank, k.Phase)] += string(k.Data)
	}
	return nil
}

func (c *collector) size(key string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.got[key])
}

func TestLogsMerged(t *testing.T) {
	e, agents, _ := logEnv(t, 3)
	for i, a := range agents {
		a.write("setup", fmt.Sprintf("setup %d\n", i))
		a.write("run", fmt.Sprintf("run %d\x00\xff\n", i))
		a.end(api.JobSucceeded)
	}
	want := map[string]string{
		"head/0/setup": "setup 0\n", "head/0/run": "run 0\x00\xff\n", "worker1/1/setup": "setup 1\n", "worker1/1/run": "run 1\x00\xff\n",
		"worker2/2/setup": "setup 2\n", "worker2/2/run": "run 2\x00\xff\n",
	}
	for _, follow := range []bool{false, true} {
		for _, id := range []int64{0, 3} {
			got := newCollector()
			end, err := e.client().JobLogs(t.Context(), "c1", api.LogFilter{JobID: id, Follow: follow}, got.take)
			if err != nil || end.Status != api.JobSucceeded || end.JobID != 3 || end.JobName != "train" {
				t.Fatalf("%+v %v", end, err)
			}
			if fmt.Sprint(got.got) != fmt.Sprint(want) {
				t.Errorf("follow %v: %q", follow, got.got)
			}
		}
	}
	// Not followed, the same call gives the same stream, byte by byte.
	_, one := e.call("GET", "/api/v1/clusters/c1/logs?job_id=3", "")
	_, two := e.call("GET", "/api/v1/clusters/c1/logs?job_id=3", "")
	if one != two || !strings.HasPrefix(one, `{"rank":0,"offset":0,"len":0,"job_id":3,"job_name":"train","nodes":3}`+"\n") {
		t.Errorf("%q\n%q", one, two)
	}
	_, rest := e.call("GET", "/api/v1/clusters/c1/logs?job_id=3&cursor=0/setup:8,0/run:2,1/run:8,2/setup:8,2/run:4", "")
	if strings.Contains(rest, "setup ") || strings.Contains(rest, "run") && !strings.Contains(rest, `"phase":"run"`) || strings.Contains(rest, "worker1") {
		t.Errorf("resumed: %q", rest)
	}
}

func TestLogsTail(t *testing.T) {
	e, agents, _ := logEnv(t, 1)
	agents[0].write("setup", "s1\ns2\n")
	agents[0].write("run", "r1\nr2\nr3\n")
	got := newCollector()
	end, err := e.client().JobLogs(t.Context(), "c1", api.LogFilter{Tail: 2}, got.take)
	if err != nil || end.Status != api.JobRunning || fmt.Sprint(got.got) != "map[head/0/run:r2\nr3\n]" {
		t.Fatalf("%q %+v %v", got.got, end, err)
	}
	// Resumed in the middle of the run, what was skipped stays skipped.
	_, rest := e.call("GET", "/api/v1/clusters/c1/logs?cursor=0/run:6", "")
	if strings.Contains(rest, "s1") || !strings.Contains(rest, "r3\n") || strings.Contains(rest, "r2") {
		t.Errorf("%q", rest)
	}
}

// Connections to the agents break in mid-frame, agents restart, and the connection of the reader breaks: no byte is
// lost or repeated.
func TestLogsFollowedOverCuts(t *testing.T) {
	e, agents, _ := logEnv(t, 2)
	const lines = 4000
	want := [2]strings.Builder{}
	agents[0].cut, agents[1].cut = 9_000, 70_000
	cut := cutter(t, e.url, 50_000)
	got := newCollector()
	result := make(chan error, 1)
	go func() {
		c := api.NewClient(cut, testToken, api.WithPatience(2*time.Minute), api.WithSleep(func(context.Context, time.Duration) error { return nil }))
		end, err := c.JobLogs(t.Context(), "c1", api.LogFilter{Follow: true}, got.take)
		if err == nil && end.Status != api.JobFailed {
			err = fmt.Errorf("ended as %+v", end)
		}
		result <- err
	}()
	for i := range lines {
		for r, a := range agents {
			line := fmt.Sprintf("rank %d line %d of the log\n", r, i)
			want[r].WriteString(line)
			a.write("run", line)
		}
		if i == lines/2 { // the head's agent restarts
			within(t, "half of it", func() bool { return got.size("head/0/run") > 10_000 })
			agents[0].stop()
			time.Sleep(20 * time.Millisecond)
			agents[0].start()
		}
	}
	agents[1].end(api.JobFailed)
	agents[0].end(api.JobFailed)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	for r, key := range []string{"head/0/run", "worker1/1/run"} {
		if got.got[key] != want[r].String() {
			t.Errorf("%s: %d bytes, want %d", key, len(got.got[key]), want[r].Len())
		}
	}
	if agents[0].opened.Load() < 5 {
		t.Errorf("the head was read over %d connections only", agents[0].opened.Load())
	}
}

// A node that does not know the job (yet) does not hold the others up, nor the end.
func TestLogsOfANodeThatKnowsNothing(t *testing.T) {
	e, agents, _ := logEnv(t, 3)
	agents[1].jobID = 99
	agents[2].jobID, agents[2].patient = 99, true
	agents[0].write("run", "x\n")
	got := newCollector()
	result := make(chan error, 1)
	go func() {
		_, err := e.client().JobLogs(t.Context(), "c1", api.LogFilter{Follow: true}, got.take)
		result <- err
	}()
	within(t, "the head's line", func() bool { return got.size("head/0/run") == 2 })
	agents[0].end(api.JobSucceeded)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

// What a node writes after its own part has ended, and before the job has, is not lost.
func TestLogsEndOfAWorker(t *testing.T) {
	e, agents, _ := logEnv(t, 2)
	agents[0].write("run", "h\n")
	agents[1].write("run", "w\n")
	got := newCollector()
	result := make(chan error, 1)
	go func() {
		_, err := e.client().JobLogs(t.Context(), "c1", api.LogFilter{Follow: true}, got.take)
		result <- err
	}()
	within(t, "both lines", func() bool { return got.size("head/0/run") == 2 && got.size("worker1/1/run") == 2 })
	agents[0].end(api.JobSucceeded) // the head is done first
	within(t, "the head's end", func() bool { return agents[1].opened.Load() >= 1 })
	agents[1].write("run", "late\n")
	agents[1].end(api.JobSucceeded)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if got.got["worker1/1/run"] != "w\nlate\n" {
		t.Errorf("%q", got.got)
	}
}

// The cluster goes down while its log is followed: the stream ends with what the store says of the job.
func TestLogsOfAClusterThatGoes(t *testing.T) {
	e, agents, c := logEnv(t, 2)
	agents[0].write("run", "x\n")
	agents[1].write("run", "y\n")
	got := newCollector()
	type res struct {
		end *api.LogEnd
		err error
	}
	result := make(chan res, 1)
	go func() {
		end, err := e.client().JobLogs(t.Context(), "c1", api.LogFilter{Follow: true}, got.take)
		result <- res{end, err}
	}()
	within(t, "the lines", func() bool { return got.size("head/0/run") == 2 && got.size("worker1/1/run") == 2 })
	agents[0].stop()
	agents[1].stop()
	c.Seq += 10
	c.Status = api.ClusterStopped
	err := e.st.Write(t.Context(), store.Batch{Clusters: []api.Cluster{c},
		EndJobs: []store.EndJobs{{Hash: c.Hash, Status: api.JobFailedDriver, Reason: "the cluster was stopped", At: time.Now()}}})
	if err != nil {
		t.Fatal(err)
	}
	r := <-result
	if r.err != nil || r.end.Status != api.JobFailedDriver || !strings.Contains(r.end.Reason, "stopped") {
		t.Fatalf("%+v %v", r.end, r.err)
	}
}

// A worker's agent is away for good; the job has ended.
func TestLogsOfALostWorker(t *testing.T) {
	e, agents, c := logEnv(t, 2)
	e.s.lostAfter = 50 * time.Millisecond
	agents[1].stop()
	agents[0].write("run", "x\n")
	agents[0].end(api.JobFailed)
	e.putJob(c, api.Job{ID: 3, Name: "train", Status: api.JobFailed, NumNodes: 2, SubmittedAt: time.Now(), Seq: 2})
	for _, follow := range []bool{true, false} { // without: it is not waited for as long as it takes
		got, cut := newCollector(), ""
		end, err := e.client().JobLogs(t.Context(), "c1", api.LogFilter{Follow: follow}, func(ch api.LogChunk) error {
			if ch.Cut != "" {
				cut += fmt.Sprintf("%d %s: %s", ch.Rank, ch.Node, ch.Cut)
			}
			return got.take(ch)
		})
		if err != nil || end.Status != api.JobFailed || cut != "1 worker1: "+cutSince || got.size("head/0/run") != 2 {
			t.Errorf("follow %v: %+v %v, cut %q", follow, end, err, cut)
		}
	}
}

// A node is found again on the same cluster only: what has its name by now is another one's.
func TestLogsOfAnHeir(t *testing.T) {
	e, _, c := logEnv(t, 2)
	old := agentapi.NewUnix("/nowhere")
	r := &rankLog{rank: 1, node: "worker1", client: old}
	m := &logMerge{s: e.s, cluster: api.Cluster{Name: c.Name, Hash: "before"}}
	if m.renew(t.Context(), r) || r.client != old {
		t.Error("another cluster's node was taken")
	}
	m.cluster = c
	if !m.renew(t.Context(), r) || r.client == old {
		t.Error("the node was not found again")
	}
}

func TestLogsRefused(t *testing.T) {
	e, agents, _ := logEnv(t, 1)
	get := func(path string, status int, kind, detail string) {
		t.Helper()
		resp, body := e.call("GET", "/api/v1/clusters/"+path, "")
		e.refused(resp, body, status, kind, detail)
	}
	get("nope/logs", 404, api.ErrClusterDoesNotExist, "nope")
	get("c1/logs?job_id=4", 404, api.ErrJobNotFound, "no job 4")
	get("c1/logs?job_id=4&follow=true", 404, api.ErrJobNotFound, "no job 4")
	get("c1/logs?job_id=x", 422, api.ErrInvalid, "job_id")
	for _, bad := range []string{"x", "0/run", "0/run:x", "-1/run:0", "0/run:-1", "0/evil:1", "0/run:1,,", "99999999999999999999/run:1"} {
		get("c1/logs?cursor="+bad, 400, api.ErrInvalid, "cursor")
	}
	e.putCluster(api.Cluster{Name: "c2"})
	e.be.nodes = func(string) ([]NodeClient, error) {
		return []NodeClient{{Client: agentapi.NewUnix(agents[0].socket)}}, nil
	}
	agents[0].stop()
	get("c1/logs", 503, api.ErrUnavailable, "can't be reached")
	get("c2/logs", 503, api.ErrUnavailable, "can't be reached")
	e.be.nodes = nil
	get("c1/logs", 409, api.ErrClusterNotUp, "STOPPED")
	e.be.nodes = func(string) ([]NodeClient, error) { return nil, errors.New("inner") }
	get("c1/logs", 500, api.ErrInternal, "internal")
}

// Three readers of a large log: memory does not grow with it.
func TestLogsConstantMemory(t *testing.T) {
	e, agents, _ := logEnv(t, 2)
	const size = 32 << 20
	block := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	for _, a := range agents {
		a.change(func() { a.log["run"] = block })
		a.end(api.JobSucceeded)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var peak atomic.Uint64
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			n := 0
			_, err := e.client().JobLogs(t.Context(), "c1", api.LogFilter{Follow: true}, func(k api.LogChunk) error {
				n += k.Len
				if n%(8<<20) < k.Len {
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					peak.Store(max(peak.Load(), m.HeapInuse))
				}
				return nil
			})
			if err != nil || n != 2*size {
				t.Errorf("%d bytes, %v", n, err)
			}
		})
	}
	wg.Wait()
	runtime.ReadMemStats(&after)
	if grown := int64(peak.Load()) - int64(before.HeapInuse); grown > 24<<20 {
		t.Errorf("the heap grew by %d MB over %d MB of log", grown>>20, 6*size>>20)
	}
}

func TestHookAndProvisionLogs(t *testing.T) {
	e, agents, c := logEnv(t, 2)
	agents[0].hooks = map[string]string{"preemption": "saved\n"}
	var b bytes.Buffer
	cl := e.client()
	if err := cl.HookLogs(t.Context(), "c1", "", &b); err != nil || b.String() != "saved\n" {
		t.Errorf("%q %v", b.String(), err)
	}
	resp, body := e.call("GET", "/api/v1/clusters/c1/hook_logs?event=stop", "")
	e.refused(resp, body, 404, api.ErrNotFound, "no stop hook")
	resp, body = e.call("GET", "/api/v1/clusters/c1/hook_logs?event=../x", "")
	e.refused(resp, body, 422, api.ErrInvalid, "event")

	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	e.event("1", api.Event{Time: at, Cluster: "c1", Hash: c.Hash, Kind: api.EventStep, Step: "provision", Message: "2 nodes"})
	e.event("2", api.Event{Time: at, Cluster: "c1", Hash: c.Hash, Kind: api.EventError, Step: "provision", Attempt: 2, Message: "node 1:\nno", Data: json.RawMessage(`{"rank":1}`)})
	e.event("3", api.Event{Time: at, Cluster: "c1", Hash: c.Hash, Kind: api.EventStep, Step: "submit", Message: "job 1"})
	b.Reset()
	if err := cl.ProvisionLogs(t.Context(), "c1", 0, true, &b); err != nil {
		t.Error(err)
	}
	want := "2026-01-02 03:04:05 [provision] 2 nodes\n2026-01-02 03:04:05 [provision] attempt 2: error: node 1:\n    no\n"
	if b.String() != want {
		t.Errorf("%q", b.String())
	}
	b.Reset()
	if err := cl.ProvisionLogs(t.Context(), "c1", 1, false, &b); err != nil || !strings.Contains(b.String(), "node 1") || strings.Contains(b.String(), "2 nodes") {
		t.Errorf("%q %v", b.String(), err)
	}
	resp, body = e.call("GET", "/api/v1/clusters/c1/provision_logs?worker=2", "")
	e.refused(resp, body, 404, api.ErrNotFound, "no worker 2")
}

// While a cluster comes up, its provision log is followed until it is up.
func TestProvisionLogsFollow(t *testing.T) {
	e := newEnv(t)
	c := e.putCluster(api.Cluster{Name: "c1", Status: api.ClusterInit})
	e.event("1", api.Event{Cluster: "c1", Hash: c.Hash, Kind: api.EventStep, Message: "one"})
	got := &lockedBuffer{}
	result := make(chan error, 1)
	go func() { result <- e.client().ProvisionLogs(t.Context(), "c1", 0, true, got) }()
	within(t, "the first line", func() bool { return strings.Contains(got.String(), "one") })
	c.Status = api.ClusterUp
	c.Seq++
	err := e.st.Write(t.Context(), store.Batch{Clusters: []api.Cluster{c},
		Events: []store.Event{{Key: "2", Event: api.Event{Time: time.Now(), Cluster: "c1", Hash: c.Hash, Kind: api.EventStatus, Message: "two"}}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil || !strings.Contains(got.String(), "two") {
		t.Errorf("%q %v", got.String(), err)
	}
}
