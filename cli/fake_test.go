package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/console"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/internal/filesync"
)

var testNow = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// fake is a server that keeps what it was asked and answers from plain values.
type fake struct {
	*httptest.Server
	t *testing.T

	mu       sync.Mutex
	clusters []api.Cluster
	jobs     map[string][]api.Job
	jobErrs  map[string]string
	requests []api.Request
	costs    []api.CostRow
	gpus     api.GPUList
	plans    []*api.Plan // one per call of optimize, the last one again and again
	planErr  *api.Error
	events   []api.Event           // of every request
	outcome  api.Request           // of every request
	logs     map[int64]string      // by job id: the log of rank 0
	status   api.JobStatus         // of each log's end
	refuse   map[string]*api.Error // by verb, once
	hang     bool                  // requests never end
	logGate  chan struct{}         // logs begin once it is closed; nil: at once
	blobs    map[string]bool
	managed  []api.ManagedJob
	// managedLogs is, by job id, the frames of its log and their bytes.
	managedLogs map[string][]managedFrame
	cancelled   api.JobsCancelReply
	schedules   []api.JobSchedule

	calls  []string // METHOD path?query
	bodies map[string][]byte
	last   string // id of the request that came last
	holder *ctxHolder
}

func newFake(t *testing.T) *fake {
	f := &fake{t: t, jobs: map[string][]api.Job{}, logs: map[int64]string{}, status: api.JobSucceeded, bodies: map[string][]byte{},
		refuse: map[string]*api.Error{}, blobs: map[string]bool{}, outcome: api.Request{Status: api.RequestSucceeded},
		plans: []*api.Plan{{Hash: "p1", NumNodes: 1, Candidates: []api.Candidate{
			{Infra: "local", InstanceType: "this-machine", CPUs: 2, MemoryGB: 8, Chosen: true},
			{Infra: "aws (us-east-1)", InstanceType: "p3.2xlarge", CPUs: 8, MemoryGB: 61, Accelerators: "V100:1", PricePerHour: 3.06, Spot: true}}}}}
	f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(f.Close)
	return f
}

func problem(w http.ResponseWriter, status int, e *api.Error) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(api.Problem{Type: e.Kind, Detail: e.Message, Hint: e.Hint, Details: e.Details})
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	p := strings.TrimPrefix(r.URL.Path, "/api/v1/")
	f.mu.Lock()
	call := r.Method + " " + p
	if q := r.URL.Query().Encode(); q != "" {
		call += "?" + q
	}
	f.calls = append(f.calls, call)
	f.bodies[p] = body
	f.mu.Unlock()
	q := r.URL.Query()
	switch parts := strings.Split(p, "/"); {
	case p == "health":
		reply(w, api.Health{Product: api.Product, Status: "healthy", Version: "9.9", APIVersion: 1})
	case p == "info":
		if a := r.Header.Get("Authorization"); a != "Bearer sky_good" && a != "" {
			problem(w, 401, &api.Error{Kind: api.ErrAuth, Message: "wrong token"})
			return
		}
		reply(w, api.Info{Health: api.Health{Product: api.Product, Status: "healthy", Version: "9.9", Commit: "abc", APIVersion: 1}, URL: f.URL, PID: 7,
			StartedAt: testNow.Add(-time.Hour), User: "ana", Temporal: api.EngineInfo{Address: "127.0.0.1:7233", Namespace: "skyloom", TaskQueue: "sky", Embedded: true, Auth: "API key", TokenFile: "/h/api-key"}})
	case p == "clusters":
		f.listClusters(w, q["name"])
	case len(parts) == 2 && parts[0] == "clusters":
		for _, c := range f.clusters {
			if c.Name == parts[1] {
				reply(w, c)
				return
			}
		}
		problem(w, 404, &api.Error{Kind: api.ErrClusterDoesNotExist, Message: fmt.Sprintf("cluster %q does not exist", parts[1])})
	case p == "jobs/queue":
		f.listManaged(w, q)
	case p == "jobs/webhook-secret":
		reply(w, api.WebhookSecret{Secret: "whsec_x"})
	case p == "jobs/schedules" && r.Method == "GET":
		ids, _ := api.ParseIDs(r.URL.Query().Get("ids"))
		reply(w, api.JobScheduleList{Schedules: slices.DeleteFunc(slices.Clone(f.schedules), func(s api.JobSchedule) bool { return ids != nil && !slices.Contains(ids, s.ID) })})
	case p == "jobs/schedules":
		reply(w, api.SchedulesChangeReply{})
	case p == "jobs/cancel" && f.refuse[p] == nil:
		reply(w, f.cancelled)
	case len(parts) == 3 && parts[2] == "logs" && f.closedGate(r):
		return // the reader is gone
	case len(parts) == 3 && parts[0] == "jobs" && parts[2] == "logs":
		f.sendManagedLog(w, parts[1])
	case len(parts) == 3 && parts[0] == "jobs" && parts[2] == "events" && q.Get("follow") == "":
		reply(w, map[string]any{"events": f.events})
	case p == "jobs":
		out := api.JobLists{Clusters: map[string][]api.Job{}, Errors: f.jobErrs}
		for _, n := range q["cluster"] {
			if js, ok := f.jobs[n]; ok {
				out.Clusters[n] = js
			}
		}
		reply(w, out)
	case len(parts) == 3 && parts[2] == "logs":
		f.sendLog(w, q.Get("job_id"))
	case len(parts) == 3 && strings.HasSuffix(parts[2], "_logs"):
		io.WriteString(w, parts[2]+" of "+parts[1]+"\n")
	case p == "requests":
		reply(w, map[string]any{"requests": f.requests})
	case p == "requests/cancel":
		reply(w, api.CancelRequestsReply{Cancelled: []string{"11111111-x"}})
	case len(parts) == 3 && parts[2] == "events":
		f.sendEvents(w, r)
	case len(parts) == 2 && parts[0] == "requests":
		for _, rq := range f.requests {
			if strings.HasPrefix(rq.ID, parts[1]) {
				reply(w, rq)
				return
			}
		}
		problem(w, 404, &api.Error{Kind: api.ErrNotFound, Message: "there is no request " + parts[1]})
	case p == "events":
		reply(w, map[string]any{"events": f.events})
	case p == "optimize":
		f.optimize(w)
	case p == "gpus":
		reply(w, f.gpus)
	case p == "cost-report":
		reply(w, map[string]any{"rows": f.costs})
	case p == "login-link":
		reply(w, map[string]string{"url": f.URL + "/login?code=1"})
	case p == "manifests":
		m, err := filesync.Decode(bytes.NewReader(body), filesync.Limits{})
		if err != nil {
			problem(w, 400, &api.Error{Kind: api.ErrInvalid, Message: err.Error()})
			return
		}
		missing := []string{}
		for _, h := range m.Hashes() {
			if !f.blobs[h] {
				missing = append(missing, h)
			}
		}
		reply(w, api.ManifestReply{ID: m.ID(), Missing: missing})
	case p == "blobs":
		_, err := filesync.ReadPack(r.Context(), bytes.NewReader(body), filesync.PackLimits{}, func(h string, n int64, rd io.Reader) error {
			_, err := io.Copy(io.Discard, rd)
			f.blobs[h] = true
			return err
		})
		if err != nil {
			problem(w, 400, &api.Error{Kind: api.ErrInvalid, Message: err.Error()})
			return
		}
		reply(w, map[string]int{})
	case len(parts) == 2 && parts[0] == "completion":
		reply(w, []string{q.Get("incomplete") + "-one", q.Get("incomplete") + "-two"})
	case r.Method == "POST":
		f.accept(w, p, body)
	default:
		http.NotFound(w, r)
	}
}

// closedGate waits until logs may begin; it is true if the reader went first.
func (f *fake) closedGate(r *http.Request) bool {
	if f.logGate == nil {
		return false
	}
	select {
	case <-f.logGate:
		return false
	case <-r.Context().Done():
		return true
	}
}

func (f *fake) listClusters(w http.ResponseWriter, names []string) {
	out := api.ClusterList{Clusters: []api.Cluster{}, EnabledInfra: []string{"local", "aws"}}
	for _, c := range f.clusters {
		hit := len(names) == 0
		for _, n := range names {
			ok, _ := path.Match(n, c.Name)
			hit = hit || ok
		}
		if hit {
			out.Clusters = append(out.Clusters, c)
		}
	}
	reply(w, out)
}

func (f *fake) optimize(w http.ResponseWriter) {
	if f.planErr != nil {
		problem(w, 503, f.planErr)
		return
	}
	f.mu.Lock()
	p := f.plans[0]
	if len(f.plans) > 1 {
		f.plans = f.plans[1:]
	}
	f.mu.Unlock()
	reply(w, p)
}

func (f *fake) accept(w http.ResponseWriter, verb string, body []byte) {
	if e := f.refuse[verb]; e != nil {
		delete(f.refuse, verb)
		problem(w, 409, e)
		return
	}
	var b struct {
		RequestID string `json:"request_id"`
		Cluster   string `json:"cluster_name"`
	}
	if err := json.Unmarshal(body, &b); err != nil || len(b.RequestID) != 36 {
		problem(w, 400, &api.Error{Kind: api.ErrInvalid, Message: "no request id"})
		return
	}
	f.mu.Lock()
	f.last = b.RequestID
	f.mu.Unlock()
	w.WriteHeader(202)
	reply(w, api.Ref{RequestID: b.RequestID, Name: "sky." + strings.ReplaceAll(verb, "/", "."), Cluster: b.Cluster, Status: api.RequestPending})
}

func (f *fake) sendEvents(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	send := func(e api.Event) {
		b, _ := json.Marshal(e)
		fmt.Fprintf(w, "id: %d\ndata: %s\n\n", e.ID, b)
	}
	for _, e := range f.events {
		send(e)
	}
	if f.hang {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return
	}
	done := f.outcome
	done.ID = strings.Split(r.URL.Path, "/")[4]
	b, _ := json.Marshal(done)
	send(api.Event{ID: 1000, Kind: api.EventDone, Data: b})
}

func (f *fake) sendLog(w http.ResponseWriter, job string) {
	var id int64
	fmt.Sscan(job, &id)
	if id == 0 {
		for k := range f.logs {
			id = max(id, k)
		}
	}
	text, ok := f.logs[id]
	if !ok {
		problem(w, 404, &api.Error{Kind: api.ErrJobNotFound, Message: fmt.Sprintf("job %d not found", id)})
		return
	}
	w.Header().Set("Content-Type", api.LogMediaType)
	enc := json.NewEncoder(w)
	_ = enc.Encode(api.LogFrame{JobID: id, JobName: "sky-cmd", Nodes: 1})
	_ = enc.Encode(api.LogFrame{Phase: "run", PID: 42, Len: len(text)})
	io.WriteString(w, text)
	_ = enc.Encode(api.LogFrame{End: true, Status: f.status})
}

// called tells whether a call was made, by its beginning.
func (f *fake) called(prefix string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if strings.HasPrefix(c, prefix) {
			return true
		}
	}
	return false
}

// body decodes what was sent to a path last.
func body[T any](t *testing.T, f *fake, p string) T {
	t.Helper()
	var v T
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := json.Unmarshal(f.bodies[p], &v); err != nil {
		t.Fatalf("%s: %v in %q", p, err, f.bodies[p])
	}
	return v
}

// ran is one finished command.
type ran struct {
	code     int
	out, err string
}

// sky runs a command against the fake. Options change its session before.
func (f *fake) sky(stdin string, args []string, opts ...func(*session.Session)) ran {
	f.t.Helper()
	var out, errb bytes.Buffer
	home := f.t.TempDir()
	env := map[string]string{session.EnvEndpoint: f.URL, session.EnvUser: "ana", session.EnvUserID: "0a0a0a0a", "SHELL": "/bin/bash"}
	s := &session.Session{
		IO:          &console.Console{In: strings.NewReader(stdin), Out: &out, Err: &syncWriter{w: &errb}},
		Now:         func() time.Time { return testNow },
		Args:        args,
		LookupEnv:   func(k string) (string, bool) { v, ok := env[k]; return v, ok },
		Environ:     os.Environ(),
		Dir:         home,
		UserHome:    home,
		LoadConfig:  session.LoadConfig,
		OpenBrowser: func(string) error { return nil },
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	testCtx := &ctxHolder{ctx: ctx, cancel: cancel, env: env}
	f.mu.Lock()
	f.holder = testCtx
	f.mu.Unlock()
	for _, o := range opts {
		o(s)
	}
	code := Run(ctx, s)
	return ran{code, out.String(), errb.String()}
}

type ctxHolder struct {
	ctx    context.Context
	cancel context.CancelFunc
	env    map[string]string
}

type syncWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *syncWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

// words splits a command line at spaces.
func words(s string) []string { return strings.Fields(s) }
