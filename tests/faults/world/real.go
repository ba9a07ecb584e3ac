package world

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/temporal"
	sdkworker "go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/worker"
	"github.com/skyloom/skyloom/worker/engine"
)

// realEngine is the embedded engine with our workers, which can be restarted.
type realEngine struct {
	dir    string
	faults *faults
	log    *slog.Logger
	engine *engine.Engine
	stop   func()
	client swapped
}

// NewReal makes a world on the embedded engine, in real time. It ends with the test.
func NewReal(t testing.TB, o Options) *World {
	t.Helper()
	dir := fastDir(t)
	w := open(t, dir, o)
	w.faults.real = true
	w.engine = &realEngine{dir: filepath.Join(dir, "engine"), faults: w.faults, log: w.log}
	w.engine.client.faults = w.faults
	w.Client, w.Acts.Engine = &w.engine.client, &w.engine.client
	w.up()
	w.goes(func() { worker.Watch(w.ctx, w.Store, w.Registry, w.Client, w.log, 6*time.Second) })
	t.Cleanup(func() {
		w.close()
		w.down()
	})
	return w
}

func (w *World) up() {
	e := w.engine
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	if e.engine, err = engine.Start(ctx, engine.Options{Dir: e.dir, Logger: e.log}); err != nil {
		w.T.Fatal(err)
	}
	o := e.engine.DialOptions()
	o.DataConverter = converter.GetDefaultDataConverter()
	o.FailureConverter = temporal.GetDefaultFailureConverter()
	o.Identity = "world" // a recorded history names no machine
	o.Interceptors = []interceptor.ClientInterceptor{&realFaults{f: e.faults}}
	c, err := client.DialContext(ctx, o)
	if err != nil {
		w.T.Fatal(err)
	}
	if e.stop, err = worker.Work(c, w.Acts); err != nil {
		w.T.Fatal(err)
	}
	e.client.set(c)
}

func (w *World) down() {
	e := w.engine
	c := e.client.set(nil)
	e.stop()
	c.Close()
	if err := e.engine.Stop(); err != nil {
		w.T.Errorf("stop of the engine: %v", err)
	}
}

// Restart stops the workers and the engine and starts them again.
func (w *World) Restart() {
	w.down()
	w.up()
}

// History reads the history of a workflow; run "" is the latest.
func (w *World) History(id, run string) (*historypb.History, error) {
	var h historypb.History
	it := w.Client.GetWorkflowHistory(context.Background(), id, run, false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for it.HasNext() {
		ev, err := it.Next()
		if err != nil {
			return nil, err
		}
		h.Events = append(h.Events, ev)
	}
	return &h, nil
}

// Replay replays the histories of all requests and of the clusters' workflows, over all their runs, on the present code
// (I15). It returns how many there were.
func (w *World) Replay(names ...string) (n int) {
	w.T.Helper()
	ids := []string{}
	for _, id := range w.Submitted {
		ids = append(ids, activities.RequestWorkflowID(id))
	}
	for _, name := range names {
		ids = append(ids, activities.ClusterWorkflowID(name))
	}
	r := sdkworker.NewWorkflowReplayer()
	for name, f := range worker.Workflows() {
		r.RegisterWorkflowWithOptions(f, workflow.RegisterOptions{Name: name})
	}
	for _, id := range ids {
		for run, more := "", true; more; n++ {
			h, err := w.History(id, run)
			var missing *serviceerror.NotFound
			if errors.As(err, &missing) {
				break // a cluster that was never launched
			}
			if err != nil {
				w.T.Errorf("history of %s: %v", id, err)
				break
			}
			if err := r.ReplayWorkflowHistory(quiet{}, h); err != nil {
				w.T.Errorf("I15: %s does not replay: %v", id, err)
			}
			run = h.Events[0].GetWorkflowExecutionStartedEventAttributes().GetContinuedExecutionRunId()
			more = run != ""
		}
	}
	return n
}

// realFaults makes some attempts of activities die, before or after their effect; the engine retries them.
type realFaults struct {
	interceptor.InterceptorBase
	f *faults
}

func (r *realFaults) InterceptActivity(_ context.Context, next interceptor.ActivityInboundInterceptor) interceptor.ActivityInboundInterceptor {
	return &activityFaults{ActivityInboundInterceptorBase: interceptor.ActivityInboundInterceptorBase{Next: next}, f: r.f}
}

// swapped is a client of an engine that may be down.
type swapped struct {
	client.Client
	faults *faults

	mu  sync.RWMutex
	now client.Client
}

func (s *swapped) set(c client.Client) (old client.Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, s.now = s.now, c
	return old
}

func (s *swapped) get() (client.Client, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.now == nil {
		return nil, serviceerror.NewUnavailable("the engine is down")
	}
	return s.now, nil
}

func (s *swapped) ExecuteWorkflow(ctx context.Context, o client.StartWorkflowOptions, typ any, args ...any) (client.WorkflowRun, error) {
	c, err := s.get()
	if err != nil {
		return nil, err
	}
	return c.ExecuteWorkflow(ctx, o, typ, args...)
}

func (s *swapped) SignalWorkflow(ctx context.Context, id, run, name string, arg any) error {
	return s.faults.signal(ctx, id+"/"+name, func() (func(), error) {
		c, err := s.get()
		if err != nil {
			return nil, err
		}
		return func() { c.SignalWorkflow(ctx, id, run, name, arg) }, c.SignalWorkflow(ctx, id, run, name, arg)
	})
}

func (s *swapped) SignalWithStartWorkflow(ctx context.Context, id, name string, arg any, o client.StartWorkflowOptions, typ any, args ...any) (client.WorkflowRun, error) {
	var run client.WorkflowRun
	err := s.faults.signal(ctx, id+"/"+name, func() (func(), error) {
		c, err := s.get()
		if err != nil {
			return nil, err
		}
		run, err = c.SignalWithStartWorkflow(ctx, id, name, arg, o, typ, args...)
		return func() { c.SignalWorkflow(ctx, id, "", name, arg) }, err
	})
	return run, err
}

func (s *swapped) CancelWorkflow(ctx context.Context, id, run string) error {
	c, err := s.get()
	if err != nil {
		return err
	}
	return c.CancelWorkflow(ctx, id, run)
}

func (s *swapped) DescribeWorkflowExecution(ctx context.Context, id, run string) (*workflowservice.DescribeWorkflowExecutionResponse, error) {
	c, err := s.get()
	if err != nil {
		return nil, err
	}
	return c.DescribeWorkflowExecution(ctx, id, run)
}

func (s *swapped) QueryWorkflow(ctx context.Context, id, run, query string, args ...any) (converter.EncodedValue, error) {
	c, err := s.get()
	if err != nil {
		return nil, err
	}
	return c.QueryWorkflow(ctx, id, run, query, args...)
}

func (s *swapped) GetWorkflow(ctx context.Context, id, run string) client.WorkflowRun {
	c, err := s.get()
	if err != nil {
		return failedRun{err: err}
	}
	return c.GetWorkflow(ctx, id, run)
}

func (s *swapped) GetWorkflowHistory(ctx context.Context, id, run string, wait bool, filter enumspb.HistoryEventFilterType) client.HistoryEventIterator {
	c, err := s.get()
	if err != nil {
		panic(err)
	}
	return c.GetWorkflowHistory(ctx, id, run, wait, filter)
}

func (s *swapped) ScheduleClient() client.ScheduleClient {
	c, err := s.get()
	if err != nil {
		panic(err)
	}
	return c.ScheduleClient()
}

// failedRun is the run of an engine that is down.
type failedRun struct {
	client.WorkflowRun
	err error
}

func (r failedRun) Get(context.Context, any) error { return r.err }
