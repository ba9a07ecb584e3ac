package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/artifact"
	"github.com/skyloom/skyloom/internal/store"
)

const testToken = "a-token-of-the-instance-for-tests"

// fakeBackend records what reaches it.
type fakeBackend struct {
	mu        sync.Mutex
	submitted []submitted
	submitErr error
	cancelled api.CancelRequestsBody
	optimized api.OptimizeBody
	gpus      GPUFilter
	nodes     func(cluster string) ([]NodeClient, error)
	shutdown  chan struct{}

	jobsCancelled api.JobsCancelBody
	waitErr       error
	schedules     func(userHash string, ids []int64) []api.JobSchedule
	stored        func(jobID int64, taskID, attempt int) ([]StoredLog, error)
	batches       string // folder with the output of arrays
	setups        []int  // attempts of an array's setup that were kept
}

type submitted struct {
	kind    string
	base    api.Base
	cluster string
	body    any
}

func (b *fakeBackend) Submit(_ context.Context, kind string, base api.Base, cluster string, body any) (api.Ref, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.submitted = append(b.submitted, submitted{kind, base, cluster, body})
	return api.Ref{Status: api.RequestPending}, b.submitErr
}

func (b *fakeBackend) calls() []submitted {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]submitted(nil), b.submitted...)
}

func (b *fakeBackend) CancelRequests(_ context.Context, c api.CancelRequestsBody) ([]string, error) {
	b.cancelled = c
	return c.RequestIDs, nil
}

func (b *fakeBackend) Optimize(_ context.Context, o api.OptimizeBody) (api.Plan, error) {
	b.optimized = o
	if o.Task == "panic" {
		panic("boom")
	}
	return api.Plan{Hash: "h", NumNodes: 1}, nil
}

func (b *fakeBackend) GPUs(_ context.Context, f GPUFilter) (api.GPUList, error) {
	b.gpus = f
	return api.GPUList{}, nil
}

func (b *fakeBackend) EnabledInfra(context.Context) []string { return []string{"local"} }

func (b *fakeBackend) NodeClients(_ context.Context, cluster string) ([]NodeClient, error) {
	if b.nodes == nil {
		return nil, &api.Error{Kind: api.ErrClusterNotUp, Message: "cluster " + cluster + " is STOPPED", Hint: "sky start " + cluster}
	}
	return b.nodes(cluster)
}

func (b *fakeBackend) CancelManagedJobs(_ context.Context, c api.JobsCancelBody) (api.JobsCancelReply, error) {
	b.jobsCancelled = c
	return api.JobsCancelReply{Cancelled: c.JobIDs}, nil
}

func (b *fakeBackend) WaitReasons(_ context.Context, ids []int64) (map[int64]string, error) {
	out := map[int64]string{}
	for _, id := range ids {
		out[id] = fmt.Sprintf("%d asked", id)
	}
	return out, b.waitErr
}

func (b *fakeBackend) Schedules(_ context.Context, userHash string, ids []int64) ([]api.JobSchedule, error) {
	if b.schedules == nil {
		return nil, nil
	}
	return b.schedules(userHash, ids), nil
}

func (b *fakeBackend) ChangeSchedules(_ context.Context, c api.SchedulesChangeBody) (api.SchedulesChangeReply, error) {
	return api.SchedulesChangeReply{IDs: c.IDs}, nil
}

func (b *fakeBackend) WebhookSecret(context.Context) (string, error) { return "whsec_c2VjcmV0", nil }

func (b *fakeBackend) BatchLogs(int64) string { return b.batches }

func (b *fakeBackend) StoredAttempts(context.Context, int64, int) ([]int, error) {
	return b.setups, nil
}

func (b *fakeBackend) StoredLog(_ context.Context, jobID int64, taskID, attempt int) ([]StoredLog, error) {
	if b.stored == nil {
		return nil, nil
	}
	return b.stored(jobID, taskID, attempt)
}

func (b *fakeBackend) SSHHosts(ctx context.Context, cluster string) (api.SSHHosts, error) {
	nodes, err := b.NodeClients(ctx, cluster)
	out := api.SSHHosts{Cluster: cluster, Hash: "h1", Hosts: []api.SSHHost{}}
	for _, n := range nodes {
		out.Hosts = append(out.Hosts, api.SSHHost{Rank: n.Rank, Node: n.Node, HostKey: "ssh-ed25519 HOST"})
	}
	return out, err
}

func (b *fakeBackend) DialSSH(ctx context.Context, cluster string, rank int, key string) (io.ReadWriteCloser, api.SSHHost, error) {
	nodes, err := b.NodeClients(ctx, cluster)
	if err != nil {
		return nil, api.SSHHost{}, err
	}
	conn, err := nodes[rank].Client.DialSSH(ctx, key)
	return conn, api.SSHHost{HostKey: "ssh-ed25519 HOST"}, err
}

func (b *fakeBackend) Info() api.Info {
	return api.Info{Temporal: api.EngineInfo{Namespace: "skyloom", TaskQueue: "requests"}}
}

func (b *fakeBackend) Shutdown() { close(b.shutdown) }

// env is a server with a real store behind an HTTP listener.
type env struct {
	t    *testing.T
	s    *Server
	be   *fakeBackend
	st   *store.Store
	art  *artifact.Store
	url  string
	home string
	logs *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newEnv(t testing.TB, change ...func(*Options)) *env {
	t.Helper()
	home := t.TempDir()
	st, err := store.Open(context.Background(), filepath.Join(home, "state.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	art, err := artifact.Open(filepath.Join(home, "artifacts"), artifact.Options{})
	if err != nil {
		t.Fatal(err)
	}
	logs := &lockedBuffer{}
	be := &fakeBackend{shutdown: make(chan struct{})}
	o := Options{Backend: be, Store: st, Artifacts: art, Home: home, Token: testToken, Version: "1.2.3",
		Logger: slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, c := range change {
		c(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s.Handler())
	t.Cleanup(srv.Close)
	t.Cleanup(s.Drain) // before Close, which waits for streams
	e := &env{s: s, be: be, st: st, art: art, url: srv.URL, home: home, logs: logs}
	e.t, _ = t.(*testing.T)
	return e
}

func (e *env) client() *api.Client {
	return api.NewClient(e.url, testToken, api.WithPatience(2*time.Minute))
}

// call sends a request with the token; headers come as name, value pairs. Host replaces the Host header.
func (e *env) call(method, path, body string, headers ...string) (*http.Response, string) {
	e.t.Helper()
	return e.send(method, path, strings.NewReader(body), append([]string{"Authorization", "Bearer " + testToken, "Content-Type", "application/json"}, headers...)...)
}

func (e *env) send(method, path string, body io.Reader, headers ...string) (*http.Response, string) {
	e.t.Helper()
	req, err := http.NewRequest(method, e.url+path, body)
	if err != nil {
		e.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		} else if headers[i+1] == "" {
			req.Header.Del(headers[i])
		} else {
			req.Header.Set(headers[i], headers[i+1])
		}
	}
	tr := &http.Transport{DisableKeepAlives: true}
	c := &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := c.Do(req)
	if err != nil {
		e.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp, string(b)
}

// refused expects a problem document.
func (e *env) refused(resp *http.Response, body string, status int, kind, detail string) api.Problem {
	e.t.Helper()
	var p api.Problem
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		e.t.Fatalf("status %d, not a problem document: %.300s", resp.StatusCode, body)
	}
	if resp.StatusCode != status || p.Status != status || p.Type != kind || !strings.Contains(p.Detail, detail) {
		e.t.Fatalf("got %d %+v; want %d %s %q", resp.StatusCode, p, status, kind, detail)
	}
	if ct := resp.Header.Get("Content-Type"); ct != problemMedia {
		e.t.Fatalf("content type %q", ct)
	}
	return p
}

func (e *env) putCluster(c api.Cluster) api.Cluster {
	e.t.Helper()
	if c.Hash == "" {
		c.Hash = c.Name + "-hash"
	}
	if c.Status == "" {
		c.Status = api.ClusterUp
	}
	c.Seq++
	if err := e.st.PutCluster(context.Background(), c); err != nil {
		e.t.Fatal(err)
	}
	return c
}

func (e *env) putJob(c api.Cluster, j api.Job) {
	e.t.Helper()
	if err := e.st.PutJobs(context.Background(), c.Name, c.Hash, []api.Job{j}); err != nil {
		e.t.Fatal(err)
	}
}

func (e *env) createRequest(id string, cluster string) {
	e.t.Helper()
	_, _, err := e.st.CreateRequest(context.Background(), store.NewRequest{Kind: "launch", BodyHash: "h",
		Request: api.Request{ID: id, Name: "sky.launch", Status: api.RequestPending, Cluster: cluster, CreatedAt: time.Now().UTC()}})
	if err != nil {
		e.t.Fatal(err)
	}
}

func (e *env) event(key string, ev api.Event) {
	e.t.Helper()
	if ev.Time.IsZero() {
		ev.Time = time.Now().UTC()
	}
	if err := e.st.AppendEvents(context.Background(), store.Event{Key: key, Event: ev}); err != nil {
		e.t.Fatal(err)
	}
}

func within(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}
