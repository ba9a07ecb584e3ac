package world

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/secret"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/providers/memory"
	"github.com/skyloom/skyloom/worker"
)

// debug prints what the world's parts log.
var debug = os.Getenv("SKYLOOM_WORLD_DEBUG") != ""

// Options of a world.
type Options struct {
	Seed  int64
	Rates Rates
	Cloud memory.Config
	// ReapEvery is how often the reaper comes round; 0: when called only.
	ReapEvery time.Duration
}

// World is a server over a simulated cloud.
type World struct {
	T         testing.TB
	Store     *store.Store
	Secrets   *secret.Store
	Cloud     *memory.Cloud
	Registry  *providers.Registry
	Acts      *activities.Activities
	Client    client.Client
	Began     time.Time
	Submitted []string // ids of all requests, in order

	ctx    context.Context
	cancel context.CancelFunc
	log    *slog.Logger
	faults *faults
	sim    *simEngine  // nil: a real engine
	engine *realEngine // nil: a simulated one
	wg     sync.WaitGroup

	mu       sync.Mutex
	bodies   map[string]submission
	ended    map[string]api.RequestStatus // the first terminal status seen
	breaches []string
	unsent   map[string]bool // accepted into the store, but not handed to the engine
}

type submission struct {
	kind string
	body any
}

// Run runs f in a world of fake time: time jumps ahead whenever everybody waits. It fails the test if anything is left
// running.
func Run(t *testing.T, o Options, f func(w *World)) {
	t.Helper()
	dir := fastDir(t)
	synctest.Test(t, func(t *testing.T) {
		w := open(t, dir, o)
		names := worker.Workflows()
		w.sim = newSimEngine(w.faults, w.Acts, names)
		w.Client, w.Acts.Engine = w.sim, w.sim
		done := make(chan struct{})
		w.goes(func() { worker.Watch(w.ctx, w.Store, w.Registry, w.Client, w.log, time.Minute) })
		if o.ReapEvery > 0 {
			w.goes(func() {
				for sleep(w.ctx, o.ReapEvery) == nil {
					w.Reap()
				}
			})
		}
		go func() {
			defer close(done)
			defer w.close()
			f(w)
		}()
		w.sim.run()
		<-done
	})
}

// fastDir is a folder for a database that need not survive: in memory where there is such a place.
func fastDir(t testing.TB) string {
	const shm = "/dev/shm"
	if dir, err := os.MkdirTemp(shm, "skyloom-world-"); err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		return dir
	}
	return t.TempDir()
}

func open(t testing.TB, dir string, o Options) *World {
	ctx, cancel := context.WithCancel(context.Background())
	w := &World{T: t, ctx: ctx, cancel: cancel, Began: time.Now(), bodies: map[string]submission{}, ended: map[string]api.RequestStatus{}, unsent: map[string]bool{}}
	level := slog.LevelError + 1
	if debug {
		level = slog.LevelDebug
	}
	w.log = slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: level}))
	w.faults = newFaults(ctx, o.Seed, o.Rates)
	var err error
	if w.Store, err = store.Open(ctx, filepath.Join(dir, "sky.db"), store.Options{Logger: w.log}); err != nil {
		t.Fatal(err)
	}
	ring, err := secret.LoadRing(filepath.Join(dir, "keys.json"))
	if err != nil {
		t.Fatal(err)
	}
	w.Secrets = secret.New(w.Store, ring)
	o.Cloud.Seed = o.Seed
	if w.Cloud, err = memory.New(o.Cloud, memory.WithLogger(w.log)); err != nil {
		t.Fatal(err)
	}
	w.Registry = providers.NewRegistry(w.Cloud)
	w.Acts = &activities.Activities{Store: w.Store, Secrets: w.Secrets, Providers: w.Registry, Log: w.log}
	return w
}

func (w *World) goes(f func()) {
	w.wg.Add(1)
	go func() {
		defer w.wg.Done()
		f()
	}()
}

func (w *World) close() {
	w.faults.stop()
	w.cancel()
	w.wg.Wait()
	w.faults.wg.Wait()
	if w.sim != nil {
		w.sim.stop()
	}
	if err := w.Cloud.Close(); err != nil {
		w.T.Error(err)
	}
	if err := w.Store.Close(); err != nil {
		w.T.Error(err)
	}
}

// StopFaults ends all faults; what is broken stays so until it is repaired.
func (w *World) StopFaults() {
	w.faults.stop()
	w.Cloud.StopFaults()
}

// Interrupt makes the server die after the next n attempts of an activity have taken effect.
func (w *World) Interrupt(activity string, n int) {
	w.faults.mu.Lock()
	defer w.faults.mu.Unlock()
	w.faults.losses[activity] = n
}

// Sleep lets time pass.
func (w *World) Sleep(d time.Duration) { time.Sleep(d) }

// workflowOf names the workflow of a kind of request.
var workflowOf = map[string]string{
	"launch": "Launch", "exec": "Exec", "start": "Start", "stop": "Stop", "down": "Down", "autostop": "Autostop",
	"cancel": "CancelJobs", "preempt": "Preempt", "check": "Check", "refresh": "Refresh",
}

// User is who asks.
const User = "ada"

// base fills in what every request has.
func base(b *api.Base) {
	if b.RequestID == "" {
		b.RequestID = uuid.NewString()
	}
	b.User, b.UserHash = User, "u1"
}

// Launch, Exec and so on submit a request, as the API does, and return its id.
func (w *World) Launch(b api.LaunchBody) string {
	base(&b.Base)
	return w.submit("launch", b.Base, b.Cluster, b)
}

// Exec submits a task to a cluster.
func (w *World) Exec(b api.ExecBody) string {
	base(&b.Base)
	return w.submit("exec", b.Base, b.Cluster, b)
}

// Start starts a stopped cluster.
func (w *World) Start(b api.StartBody) string {
	base(&b.Base)
	return w.submit("start", b.Base, b.Cluster, b)
}

// Stop stops a cluster.
func (w *World) Stop(name string) string { return w.end("stop", api.StopOrDownBody{Cluster: name}) }

// Down removes a cluster.
func (w *World) Down(name string) string { return w.end("down", api.StopOrDownBody{Cluster: name}) }

// Purge removes a cluster even if its infra can't be reached.
func (w *World) Purge(name string) string {
	return w.end("down", api.StopOrDownBody{Cluster: name, Purge: true})
}

func (w *World) end(kind string, b api.StopOrDownBody) string {
	base(&b.Base)
	return w.submit(kind, b.Base, b.Cluster, b)
}

// Autostop sets a cluster's idle rule.
func (w *World) Autostop(name string, minutes int, down bool) string {
	b := api.AutostopBody{Cluster: name, IdleMinutes: minutes, Down: down}
	base(&b.Base)
	return w.submit("autostop", b.Base, name, b)
}

// CancelJobs cancels jobs: all of a cluster, or those named, or the latest.
func (w *World) CancelJobs(name string, all bool, ids ...int64) string {
	b := api.CancelBody{Cluster: name, All: all, JobIDs: ids}
	base(&b.Base)
	return w.submit("cancel", b.Base, name, b)
}

// Preempt takes a spot node away; a negative rank means all.
func (w *World) Preempt(name string, rank, notice int) string {
	b := api.PreemptBody{Cluster: name, NoticeSeconds: notice}
	if rank >= 0 {
		b.Node = &rank
	}
	base(&b.Base)
	return w.submit("preempt", b.Base, name, b)
}

// Refresh asks the infra about clusters; none named means all.
func (w *World) Refresh(names ...string) string {
	b := api.RefreshBody{Clusters: names, AllUsers: true}
	base(&b.Base)
	return w.submit("refresh", b.Base, "", b)
}

// Check asks which infra can be used.
func (w *World) Check() string {
	b := api.CheckBody{}
	base(&b.Base)
	return w.submit("check", b.Base, "", b)
}

// submit accepts a request into the store and hands it to the engine, as the API does.
func (w *World) submit(kind string, b api.Base, name string, body any) string {
	w.Accept(kind, b, name, body)
	w.Hand(b.RequestID)
	return b.RequestID
}

// Accept writes a request's row only: the server dies right after it has answered.
func (w *World) Accept(kind string, b api.Base, name string, body any) {
	raw, err := json.Marshal(body)
	if err != nil {
		w.T.Fatal(err)
	}
	_, existed, err := w.Store.CreateRequest(context.Background(), store.NewRequest{Kind: kind, Body: raw, BodyHash: w.Secrets.Digest(raw),
		Request: api.Request{ID: b.RequestID, Name: "sky." + kind, Status: api.RequestPending, Cluster: name, User: b.User, UserHash: b.UserHash, CreatedAt: time.Now().UTC()}})
	if err != nil {
		w.T.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !existed {
		w.Submitted = append(w.Submitted, b.RequestID)
	}
	w.bodies[b.RequestID] = submission{kind, body}
	w.unsent[b.RequestID] = true
}

// Hand starts the workflow of an accepted request. Doing it again changes nothing.
func (w *World) Hand(id string) {
	w.mu.Lock()
	s := w.bodies[id]
	w.mu.Unlock()
	for {
		_, err := w.Client.ExecuteWorkflow(context.Background(), client.StartWorkflowOptions{ID: activities.RequestWorkflowID(id), TaskQueue: activities.QueueMain,
			WorkflowTaskTimeout: activities.WorkflowTaskTimeout, WorkflowExecutionErrorWhenAlreadyStarted: true, WorkflowIDReusePolicy: rejectDuplicate}, workflowOf[s.kind], s.body)
		var dup *serviceerror.WorkflowExecutionAlreadyStarted
		if err == nil || errors.As(err, &dup) {
			break
		}
		if w.sim != nil {
			w.T.Errorf("request %s not started: %v", id, err)
			return
		}
		time.Sleep(100 * time.Millisecond) // the engine restarts
	}
	w.mu.Lock()
	delete(w.unsent, id)
	w.mu.Unlock()
}

// Resume hands over what was accepted and not yet started, as a server does at its start.
func (w *World) Resume() {
	w.mu.Lock()
	var ids []string
	for _, id := range w.Submitted {
		if w.unsent[id] {
			ids = append(ids, id)
		}
	}
	w.mu.Unlock()
	for _, id := range ids {
		w.Hand(id)
	}
}

// Repeat starts a second workflow for a request, as the retried child of a foreign parent does.
func (w *World) Repeat(id string) string {
	w.mu.Lock()
	s := w.bodies[id]
	w.mu.Unlock()
	wid := "foreign/" + uuid.NewString()
	_, err := w.Client.ExecuteWorkflow(context.Background(), client.StartWorkflowOptions{ID: wid, TaskQueue: activities.QueueMain, WorkflowTaskTimeout: activities.WorkflowTaskTimeout}, workflowOf[s.kind], s.body)
	if err != nil && w.sim != nil {
		w.T.Errorf("repeat %s: %v", id, err)
	}
	return wid
}

// Cancel cancels a request, as `sky api cancel` does.
func (w *World) Cancel(id string) {
	row := w.Request(id)
	if row.Status.Terminal() {
		return
	}
	err := w.Client.CancelWorkflow(context.Background(), activities.RequestWorkflowID(id), "")
	var missing *serviceerror.NotFound
	if errors.As(err, &missing) && row.Cluster != "" {
		_, err = w.Acts.CancelOp(context.Background(), row.Cluster, id)
	}
	if err != nil && w.sim != nil && !errors.As(err, &missing) {
		w.T.Logf("cancel of %s: %v", id, err)
	}
}

// Request reads a request's row, and notes if its status ever leaves a terminal one.
func (w *World) Request(id string) api.Request {
	r, err := w.Store.Request(context.Background(), id)
	if err != nil {
		w.T.Errorf("request %s: %v", id, err)
		return api.Request{}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if was, ok := w.ended[id]; ok && was != r.Status {
		w.breaches = append(w.breaches, fmt.Sprintf("I13: request %s was %s and is %s", id, was, r.Status))
	}
	if r.Status.Terminal() {
		w.ended[id] = r.Status
	}
	return r
}

// Wait waits until a request has ended, at most so long.
func (w *World) Wait(id string, atMost time.Duration) api.Request {
	w.T.Helper()
	end := time.Now().Add(atMost)
	for pause := 50 * time.Millisecond; ; pause = min(pause*2, 10*time.Second) {
		r := w.Request(id)
		if r.Status.Terminal() {
			return r
		}
		if time.Now().After(end) {
			w.T.Errorf("%s %s has not ended after %s: %s %s", r.Name, id, atMost, r.Status, r.StatusMsg)
			return r
		}
		time.Sleep(pause)
	}
}

// Done waits for a request that must succeed.
func (w *World) Done(id string) api.Request {
	w.T.Helper()
	r := w.Wait(id, 2*time.Hour)
	if r.Status != api.RequestSucceeded {
		w.T.Errorf("%s %s is %s: %s", r.Name, id, r.Status, errText(r.Error))
	}
	return r
}

// Result is what a launch or exec that succeeded answered.
func (w *World) Result(id string) api.LaunchResult {
	w.T.Helper()
	var res api.LaunchResult
	if r := w.Done(id); r.Status == api.RequestSucceeded {
		if err := json.Unmarshal(r.Result, &res); err != nil {
			w.T.Errorf("result of %s: %v", id, err)
		}
	}
	return res
}

// Cluster reads a cluster's row; ok is false if there is none.
func (w *World) Cluster(name string) (row api.Cluster, ok bool) {
	row, err := w.Store.Cluster(context.Background(), name)
	if errors.Is(err, store.ErrNotFound) {
		return row, false
	}
	if err != nil {
		w.T.Errorf("cluster %s: %v", name, err)
	}
	return row, err == nil
}

// Jobs reads the mirrored jobs of a cluster, and of its former incarnations if its hash is given.
func (w *World) Jobs(name, hash string) []api.Job {
	f := store.JobFilter{Hash: hash}
	if hash == "" {
		f.Clusters = []string{name}
	}
	jobs, err := w.Store.Jobs(context.Background(), f)
	if err != nil {
		w.T.Errorf("jobs of %s: %v", name, err)
	}
	return jobs
}

// Events reads a timeline, as text.
func (w *World) Events(f store.EventFilter) []string {
	evs, err := w.Store.Events(context.Background(), f)
	if err != nil {
		w.T.Errorf("events: %v", err)
	}
	var out []string
	for _, ev := range evs {
		out = append(out, fmt.Sprintf("%s %-6s %-9s %s", ev.Time.Format(time.TimeOnly), ev.Kind, ev.Step, ev.Message))
	}
	return out
}

// Reap runs one round of the reaper and returns its workflow's id.
func (w *World) Reap() string {
	id := "reaper/" + uuid.NewString()
	ctx := context.Background()
	_, err := w.Client.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: id, TaskQueue: activities.QueueMain}, "Reaper")
	if err == nil && w.sim != nil {
		_, err = w.sim.outcome(ctx, id)
	} else if err == nil {
		err = w.Client.GetWorkflow(ctx, id, "").Get(ctx, nil)
	}
	if err != nil && w.sim != nil {
		w.T.Logf("reaper: %v", err)
	}
	return id
}

// Tally counts what happened, by kind: requests by their end, faults that struck, nodes by how they ended.
func (w *World) Tally() map[string]int {
	t := map[string]int{}
	w.faults.mu.Lock()
	for k, n := range w.faults.hits {
		t["fault: "+k] = n
	}
	w.faults.mu.Unlock()
	for _, id := range w.Submitted {
		r := w.Request(id)
		what := string(r.Status)
		if r.Error != nil {
			what += " " + r.Error.Kind
		}
		t[r.Name+": "+what]++
	}
	for _, e := range w.Cloud.Ledger().Entries {
		t["node: "+e.Reason]++
	}
	evs, err := w.Store.Events(context.Background(), store.EventFilter{})
	if err != nil {
		w.T.Error(err)
	}
	for _, ev := range evs {
		switch {
		case ev.Step == "reap":
			t["reaped"]++
		case ev.Kind == api.EventRetry:
			t["waited for room"]++
		case ev.Kind == api.EventError:
			t["error event: "+ev.Step]++
		}
	}
	if w.sim != nil {
		t["continued as new"] = w.sim.continued
	}
	return t
}

func errText(e *api.Error) string {
	if e == nil {
		return ""
	}
	s := e.Kind + ": " + e.Message
	for _, d := range e.Details {
		s += "\n    " + d
	}
	return s
}
