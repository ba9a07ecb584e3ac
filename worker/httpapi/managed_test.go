package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/secret"
	"github.com/skyloom/skyloom/internal/store"
)

func TestLaunchJobs(t *testing.T) {
	var secrets *secret.Store
	e := newEnv(t, func(o *Options) {
		ring, err := secret.LoadRing(o.Home + "/ring.json")
		if err != nil {
			t.Fatal(err)
		}
		secrets = secret.New(o.Store, ring)
		o.Secrets = secrets
	})
	b := api.JobsLaunchBody{Task: "run: x", NumJobs: 2, Secrets: map[string]string{"KEY": "hunter2"}, FileMounts: map[int][]api.FileMount{1: {{Dst: "~/x", Manifest: "m"}}}, After: []string{"3:ok"}}
	ref, err := e.client().LaunchJobs(t.Context(), &b)
	if err != nil || ref.RequestID != b.RequestID || ref.Name != "sky.jobs.launch" {
		t.Fatalf("%+v %v", ref, err)
	}
	calls := e.be.calls()
	got, ok := calls[0].body.(api.JobsLaunchBody)
	if len(calls) != 1 || calls[0].kind != "jobs.launch" || !ok || got.Secrets != nil || got.NumJobs != 2 || len(got.FileMounts[1]) != 1 || got.After[0] != "3:ok" {
		t.Fatalf("%+v", calls)
	}
	if v, err := secrets.Get(t.Context(), got.SecretRefs["KEY"]); err != nil || v != "hunter2" {
		t.Fatal(v, err)
	}
	open, err := e.st.OpenRequests(t.Context(), "jobs.launch")
	if err != nil || len(open) != 1 || strings.Contains(string(open[0].Body), "hunter2") || !strings.Contains(string(open[0].Body), "secret://") {
		t.Fatalf("%s %v", open[0].Body, err)
	}
	// The secrets are the jobs', not the request's.
	if err := secrets.DeleteScope(t.Context(), secret.RequestScope(b.RequestID)); err != nil {
		t.Fatal(err)
	}
	if _, err := secrets.Get(t.Context(), got.SecretRefs["KEY"]); err != nil {
		t.Fatal(err)
	}
	if err := secrets.DeleteScope(t.Context(), secret.JobsScope(b.RequestID)); err != nil {
		t.Fatal(err)
	}
	if _, err := secrets.Get(t.Context(), got.SecretRefs["KEY"]); err == nil {
		t.Fatal("the secret was kept elsewhere")
	}
}

func (e *env) putManaged(rows ...api.ManagedJob) {
	e.t.Helper()
	if err := e.st.PutManagedJobs(context.Background(), rows...); err != nil {
		e.t.Fatal(err)
	}
}

func TestManagedQueue(t *testing.T) {
	e := newEnv(t)
	at := func(h int) time.Time { return time.Date(2026, 1, 1, h, 0, 0, 0, time.UTC) }
	for i := range 4 {
		e.putManaged(api.ManagedJob{ID: int64(i + 1), Name: fmt.Sprint("n", i/2), Status: []api.ManagedStatus{api.ManagedPending, api.ManagedFailed}[i%2], UserHash: fmt.Sprint("u", i%2), Seq: 1, SubmittedAt: at(i), UserYAML: "run: x\n"})
	}
	since, before := at(1), at(3)
	for _, c := range []struct {
		f     api.ManagedFilter
		want  []int64
		total int
	}{
		{api.ManagedFilter{}, []int64{4, 3, 2, 1}, 4}, {api.ManagedFilter{Limit: 1}, []int64{4}, 4}, {api.ManagedFilter{IDs: []int64{1, 2, 9}}, []int64{2, 1}, 2}, {api.ManagedFilter{Name: "n1"}, []int64{4, 3}, 2},
		{api.ManagedFilter{UserHash: "u0"}, []int64{3, 1}, 2}, {api.ManagedFilter{SkipFinished: true}, []int64{3, 1}, 2}, {api.ManagedFilter{Statuses: []api.ManagedStatus{"FAILED", "RUNNING"}}, []int64{4, 2}, 2},
		{api.ManagedFilter{Since: &since, Before: &before}, []int64{3, 2}, 2}, {api.ManagedFilter{Name: "x"}, nil, 0},
	} {
		l, err := e.client().ManagedJobs(t.Context(), c.f)
		if err != nil {
			t.Fatal(err)
		}
		var ids []int64
		for _, j := range l.Jobs {
			ids = append(ids, j.ID)
			if j.UserYAML != "" {
				t.Errorf("%+v: with its YAML", c.f)
			}
		}
		if !slices.Equal(ids, c.want) || l.Total != c.total || l.Jobs == nil || l.Counts == nil {
			t.Errorf("%+v: %v of %d %v, want %v of %d", c.f, ids, l.Total, l.Counts, c.want, c.total)
		}
	}
	for _, want := range []string{"1 asked", "at the time"} {
		e.putManaged(api.ManagedJob{ID: 1, Name: "n0", Status: api.ManagedPending, Details: "at the time", UserHash: "u0", Seq: 2, SubmittedAt: at(0)})
		if l, err := e.client().ManagedJobs(t.Context(), api.ManagedFilter{IDs: []int64{1}}); err != nil || l.Jobs[0].Details != want {
			t.Errorf("%+v %v", l, err)
		}
		e.be.waitErr = errors.New("no")
	}
	if l, err := e.client().ManagedJobs(t.Context(), api.ManagedFilter{}); err != nil || l.Counts[api.ManagedPending] != 2 || l.Counts[api.ManagedFailed] != 2 {
		t.Errorf("%+v %v", l, err)
	}
	if j, err := e.client().ManagedJob(t.Context(), 2); err != nil || j[0].UserYAML != "run: x\n" {
		t.Errorf("%+v %v", j, err)
	}
	var ae *api.Error
	if _, err := e.client().ManagedJob(t.Context(), 77); !errors.As(err, &ae) || ae.Kind != api.ErrJobNotFound {
		t.Error(err)
	}
	for _, c := range []struct{ q, says string }{{"ids=x", "job id"}, {"ids=1-1000000", "too many"}, {"since=yesterday", "since"}, {"before=1", "before"}, {"status=RUNNING,NOPE", "no state \"NOPE\""}} {
		resp, body := e.call("GET", "/api/v1/jobs/queue?"+c.q, "")
		e.refused(resp, body, 400, api.ErrInvalid, c.says)
	}
	resp, body := e.call("GET", "/api/v1/jobs/queue?limit=-1", "")
	e.refused(resp, body, 422, api.ErrInvalid, "limit")
	names, err := e.client().Complete(t.Context(), "managed_job", "")
	if err != nil || !slices.Equal(names, []string{"3", "1"}) {
		t.Error(names, err)
	}
	if names, err = e.client().Complete(t.Context(), "managed_job_name", "n0"); err != nil || !slices.Equal(names, []string{"n0"}) {
		t.Error(names, err)
	}
}

func TestCancelManaged(t *testing.T) {
	e := newEnv(t)
	r, err := e.client().CancelManagedJobs(t.Context(), &api.JobsCancelBody{JobIDs: []int64{3, 4}})
	if err != nil || !slices.Equal(r.Cancelled, []int64{3, 4}) || !slices.Equal(e.be.jobsCancelled.JobIDs, []int64{3, 4}) {
		t.Fatalf("%+v %v", r, err)
	}
	for _, c := range []struct{ body, says string }{{`{}`, "nothing to cancel"}, {`{"job_ids":[1],"all_users":true}`, "one of these"}, {`{"name":"x","job_ids":[1]}`, "one of these"}, {`{"all":true}`, "user_hash"}} {
		var b map[string]any
		if err := json.Unmarshal([]byte(c.body), &b); err != nil {
			t.Fatal(err)
		}
		b["request_id"] = api.NewRequestID()
		body, _ := json.Marshal(b)
		resp, text := e.call("POST", "/api/v1/jobs/cancel", string(body))
		e.refused(resp, text, 400, api.ErrInvalid, c.says)
	}
}

func TestManagedEvents(t *testing.T) {
	e := newEnv(t)
	e.putManaged(api.ManagedJob{ID: 5, Status: api.ManagedRunning, Seq: 1})
	e.event("1", api.Event{JobID: 5, Kind: api.EventStatus, Message: "one"})
	e.event("2", api.Event{JobID: 6, Kind: api.EventStatus, Message: "another's"})
	es, err := e.client().ManagedEvents(t.Context(), 5, 0, 0)
	if err != nil || len(es) != 1 || es[0].Message != "one" || es[0].JobID != 5 {
		t.Fatalf("%+v %v", es, err)
	}
	resp, body := e.call("GET", "/api/v1/jobs/99/events", "")
	e.refused(resp, body, 404, api.ErrJobNotFound, "no managed job 99")
	done := errors.New("done")
	var got []string
	err = e.client().FollowManagedEvents(t.Context(), 5, 0, 0, func(ev api.Event) error {
		if got = append(got, ev.Message); len(got) == 1 {
			e.event("3", api.Event{JobID: 5, Kind: api.EventStatus, Message: "three"})
			return nil
		}
		return done
	})
	if !errors.Is(err, done) || fmt.Sprint(got) != "[one three]" {
		t.Fatal(got, err)
	}
}

// A cluster of a managed job is not among the user's clusters, unless it is named.
func TestClustersOfJobsAreApart(t *testing.T) {
	e := newEnv(t)
	e.putCluster(api.Cluster{Name: "mine"})
	e.putCluster(api.Cluster{Name: "train-1", Managed: true})
	for _, c := range []struct {
		names []string
		want  int
	}{{nil, 1}, {[]string{"*"}, 1}, {[]string{"train-1"}, 1}, {[]string{"train-1", "mine"}, 2}} {
		l, err := e.client().Clusters(t.Context(), api.ClusterFilter{Names: c.names})
		if err != nil || len(l.Clusters) != c.want {
			t.Errorf("%v: %+v %v", c.names, l.Clusters, err)
		}
	}
}

func TestManagedCursor(t *testing.T) {
	for _, bad := range []string{"x", "0@", "0.0@", "-1.1@", "0.1@0/evil:3", "0.1@x", "0.1", "0.1@0/run:1,"} {
		if _, err := parseManagedCursor(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	got, err := parseManagedCursor("0.1@0/run:3,0.2@,0.2@1/setup:4,0.2@1/run:5,1.7@")
	if err != nil || len(got) != 2 || got[0].attempt != 2 || fmt.Sprint(got[0].at) != "map[1:map[run:5 setup:4]]" || got[1].attempt != 7 || len(got[1].at) != 0 {
		t.Errorf("%+v %v", got, err)
	}
}

// keptLogs is what a backend has kept: by task and attempt, by "rank-phase".
type keptLogs map[string]map[string]string

type memFile struct{ *bytes.Reader }

func (memFile) Close() error { return nil }

func (k keptLogs) open(_ int64, task, attempt int) (out []StoredLog, err error) {
	for name, text := range k[fmt.Sprintf("%d.%d", task, attempt)] {
		var rank int
		var phase string
		fmt.Sscanf(strings.Replace(name, "-", " ", 1), "%d %s", &rank, &phase)
		if phase == "cut" {
			out = append(out, StoredLog{Rank: rank, Cut: text})
			continue
		}
		out = append(out, StoredLog{rank, phase, "", func() (io.ReadSeekCloser, error) { return memFile{bytes.NewReader([]byte(text))}, nil }})
	}
	return out, nil
}

// story gathers a managed log as one text per task and attempt.
func (c *collector) story(k api.LogChunk) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.Lost > 0 {
		return fmt.Errorf("lost %d bytes", k.Lost)
	}
	if k.Cut != "" {
		c.got[fmt.Sprintf("%d.%d/%d is cut", k.Task, k.Attempt, k.Rank)] += k.Cut
	} else if k.Len > 0 {
		c.got[fmt.Sprintf("%d.%d/%d-%s", k.Task, k.Attempt, k.Rank, k.Phase)] += string(k.Data)
	} else if k.Attempt > 0 {
		c.got["attempts"] += fmt.Sprintf("%d.%d ", k.Task, k.Attempt)
	}
	return nil
}

func TestManagedLogsKept(t *testing.T) {
	e := newEnv(t)
	e.be.stored = keptLogs{"0.1": {"0-setup": "s\n", "0-run": "a1\n", "1-run": "w\n", "1-cut": "no route"}, "0.3": {"0-run": "b1\nb2\nb3\n"}, "1.1": {"0-run": "second\n"}}.open
	e.putManaged(api.ManagedJob{ID: 1, NumTasks: 2, Name: "p", TaskName: "one", Status: api.ManagedSucceeded, Attempt: 3, Seq: 1},
		api.ManagedJob{ID: 1, TaskID: 1, NumTasks: 2, Name: "p", TaskName: "two", Status: api.ManagedFailed, FailureReason: "exit 3", Attempt: 1, Seq: 1})
	all := map[string]string{"attempts": "0.1 0.3 1.1 ", "0.1/0-setup": "s\n", "0.1/0-run": "a1\n", "0.1/1-run": "w\n", "0.1/1 is cut": "no route", "0.3/0-run": "b1\nb2\nb3\n", "1.1/0-run": "second\n"}
	for _, c := range []struct {
		f      api.ManagedLogFilter
		want   map[string]string
		status api.ManagedStatus
	}{
		{api.ManagedLogFilter{}, all, api.ManagedFailed}, {api.ManagedLogFilter{Follow: true}, all, api.ManagedFailed},
		{api.ManagedLogFilter{Task: "two"}, map[string]string{"attempts": "1.1 ", "1.1/0-run": "second\n"}, api.ManagedFailed},
		{api.ManagedLogFilter{Task: "0", Tail: 2}, map[string]string{"attempts": "0.3 ", "0.3/0-run": "b2\nb3\n"}, api.ManagedSucceeded},
	} {
		got := newCollector()
		end, err := e.client().ManagedLogs(t.Context(), 1, c.f, got.story)
		if err != nil || end.Status != c.status || fmt.Sprint(got.got) != fmt.Sprint(c.want) {
			t.Errorf("%+v: %q %+v %v; want %q", c.f, got.got, end, err, c.want)
		}
	}
	resp, body := e.call("GET", "/api/v1/jobs/1/logs?task=nope", "")
	e.refused(resp, body, 404, api.ErrNotFound, "has no task nope")
	resp, body = e.call("GET", "/api/v1/jobs/9/logs", "")
	e.refused(resp, body, 404, api.ErrJobNotFound, "no managed job 9")
	resp, body = e.call("GET", "/api/v1/jobs/1/logs?cursor=x", "")
	e.refused(resp, body, 400, api.ErrInvalid, "cursor")
	// Read on in the middle of a pipeline: what comes before is past.
	_, rest := e.call("GET", "/api/v1/jobs/1/logs?cursor=0.3@,0.3@0/run:9,1.1@0/run:3", "")
	if strings.Contains(rest, "a1") || strings.Contains(rest, "b3") || !strings.Contains(rest, "ond\n") {
		t.Errorf("%q", rest)
	}
}

// A job from its submission over a lost cluster to its end, followed over connections that break all the time.
// A node is lost and nothing of that is known yet: a reader who does not follow gets the rest, and is told.
func TestManagedLogsOfALostNode(t *testing.T) {
	e, agents, c := logEnv(t, 2)
	e.s.lostAfter = 50 * time.Millisecond
	e.putManaged(api.ManagedJob{ID: 1, NumTasks: 1, Name: "gang", Status: api.ManagedRunning, Attempt: 1, Cluster: c.Name, ClusterHash: c.Hash, ClusterJobID: 3, Seq: 1})
	agents[0].write("run", "x\n")
	agents[1].stop()
	got := newCollector()
	end, err := e.client().ManagedLogs(t.Context(), 1, api.ManagedLogFilter{}, got.story)
	if err != nil || end.Status != api.ManagedRunning || got.got["0.1/0-run"] != "x\n" || got.got["0.1/1 is cut"] != cutSince {
		t.Errorf("%+v %v %q", end, err, got.got)
	}
}

func TestManagedLogsFollowed(t *testing.T) {
	e := newEnv(t)
	ids, err := e.st.JobNumbers(t.Context(), "r", 1)
	if err != nil {
		t.Fatal(err)
	}
	id := ids[0]
	agents := map[string]*fakeAgent{}
	e.be.nodes = func(c string) ([]NodeClient, error) {
		if a := agents[c]; a != nil {
			return []NodeClient{{Rank: 0, Node: "head", Client: agentapi.NewUnix(a.socket)}}, nil
		}
		return nil, &api.Error{Kind: api.ErrClusterDoesNotExist, Message: "gone"}
	}
	agents["c1"], agents["c2"] = newFakeAgent(t, 1), newFakeAgent(t, 1)
	kept := keptLogs{}
	e.be.stored = func(j int64, task, attempt int) ([]StoredLog, error) {
		e.be.mu.Lock()
		defer e.be.mu.Unlock()
		return kept.open(j, task, attempt)
	}
	keep := func(attempt, text string) {
		e.be.mu.Lock()
		defer e.be.mu.Unlock()
		kept[attempt] = map[string]string{"0-run": text, "0-cut": "gone"}
		if attempt == "0.3" {
			delete(kept[attempt], "0-cut")
		}
	}
	seq := int64(0)
	put := func(st api.ManagedStatus, attempt int, cluster string) {
		seq++
		row := api.ManagedJob{ID: id, NumTasks: 1, Name: "train", Status: st, Attempt: attempt, Seq: seq}
		if cluster != "" {
			row.Cluster, row.ClusterHash, row.ClusterJobID = cluster, cluster+"-hash", 1
		}
		e.putManaged(row)
	}
	cut := cutter(t, e.url, 700)
	got := newCollector()
	type res struct {
		end *api.ManagedLogEnd
		err error
	}
	result := make(chan res, 1)
	go func() {
		c := api.NewClient(cut, testToken, api.WithPatience(2*time.Minute), api.WithSleep(func(context.Context, time.Duration) error { return nil }))
		end, err := c.ManagedLogs(t.Context(), id, api.ManagedLogFilter{Follow: true}, got.story)
		result <- res{end, err}
	}()
	has := func(key string, n int) func() bool { return func() bool { return got.size(key) == n } }
	put(api.ManagedPending, 0, "")
	put(api.ManagedStarting, 1, "")
	c1 := e.putCluster(api.Cluster{Name: "c1", Managed: true})
	put(api.ManagedRunning, 1, "c1")
	agents["c1"].write("run", "one\n")
	within(t, "the first attempt's line", has("0.1/0-run", 4))
	agents["c1"].write("run", "two\n")
	within(t, "its second line", has("0.1/0-run", 8))
	// The cluster is lost; more of its log was kept than was read.
	agents["c1"].stop()
	if err := e.st.RemoveCluster(t.Context(), store.Removal{Name: "c1", Hash: c1.Hash}); err != nil {
		t.Fatal(err)
	}
	keep("0.1", "one\ntwo\nthree\n")
	put(api.ManagedRecovering, 1, "")
	within(t, "what was kept", has("0.1/0-run", 14))
	put(api.ManagedRecovering, 2, "") // a round that finds no room
	put(api.ManagedRecovering, 3, "")
	e.putCluster(api.Cluster{Name: "c2", Managed: true})
	put(api.ManagedRunning, 3, "c2")
	long := strings.Repeat("x", 500) + "\n"
	for range 20 {
		agents["c2"].write("run", long)
	}
	agents["c2"].end(api.JobSucceeded)
	within(t, "the last attempt", has("0.3/0-run", 20*len(long)))
	keep("0.3", strings.Repeat(long, 20))
	put(api.ManagedSucceeded, 3, "")
	r := <-result
	if r.err != nil || r.end.Status != api.ManagedSucceeded || r.end.JobID != id {
		t.Fatalf("%+v %v", r.end, r.err)
	}
	want := map[string]string{"attempts": "0.1 0.3 ", "0.1/0-run": "one\ntwo\nthree\n", "0.1/0 is cut": "gone", "0.3/0-run": strings.Repeat(long, 20)}
	if fmt.Sprint(got.got) != fmt.Sprint(want) {
		t.Errorf("%.300q", got.got)
	}
}

// While a job waits, a log that is not followed ends at once, and says how the job stands.
func TestManagedLogsWaiting(t *testing.T) {
	e := newEnv(t)
	ids, err := e.st.JobNumbers(t.Context(), "r", 2)
	if err != nil {
		t.Fatal(err)
	}
	e.putManaged(api.ManagedJob{ID: ids[1], Status: api.ManagedStarting, Details: "being brought up", Attempt: 1, Seq: 1})
	for i, want := range []api.ManagedStatus{api.ManagedPending, api.ManagedStarting} {
		end, err := e.client().ManagedLogs(t.Context(), ids[i], api.ManagedLogFilter{}, newCollector().story)
		if err != nil || end.Status != want {
			t.Errorf("%+v %v", end, err)
		}
	}
}

// The tasks of a group are followed at once.
func TestManagedLogsOfAGroup(t *testing.T) {
	e := newEnv(t)
	agents := map[string]*fakeAgent{"a": newFakeAgent(t, 1), "b": newFakeAgent(t, 1)}
	e.be.nodes = func(c string) ([]NodeClient, error) {
		return []NodeClient{{Rank: 0, Node: "head", Client: agentapi.NewUnix(agents[c].socket)}}, nil
	}
	row := func(task int, st api.ManagedStatus, seq int64) api.ManagedJob {
		name := string(rune('a' + task))
		return api.ManagedJob{ID: 1, TaskID: task, NumTasks: 2, Name: "g", TaskName: name, Group: true, Primary: task == 0, Status: st, Attempt: 1, Cluster: name, ClusterHash: name + "-hash", ClusterJobID: 1, Seq: seq}
	}
	e.putCluster(api.Cluster{Name: "a", Managed: true})
	e.putCluster(api.Cluster{Name: "b", Managed: true})
	e.putManaged(row(0, api.ManagedRunning, 1), row(1, api.ManagedRunning, 1))
	got := newCollector()
	result := make(chan error, 1)
	go func() {
		end, err := e.client().ManagedLogs(t.Context(), 1, api.ManagedLogFilter{Follow: true}, got.story)
		if err == nil && end.Status != api.ManagedSucceeded {
			err = fmt.Errorf("%+v", end)
		}
		result <- err
	}()
	agents["b"].write("run", "from b\n")
	within(t, "b's line, while a has none", func() bool { return got.size("1.1/0-run") == 7 })
	agents["a"].write("run", "from a\n")
	within(t, "a's line", func() bool { return got.size("0.1/0-run") == 7 })
	agents["a"].end(api.JobSucceeded)
	agents["b"].end(api.JobCancelled)
	e.putManaged(row(0, api.ManagedSucceeded, 2), row(1, api.ManagedCancelled, 2))
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}
