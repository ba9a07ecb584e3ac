package world

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	sdkworker "go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/workflows"
)

// simEngine runs many workflows in one test environment: the environment's own workflow starts each as its child, and
// carries signals to them. It is the client.Client that activities and tests use.
type simEngine struct {
	client.Client // nil: a call that is not overridden below panics

	env    *testsuite.TestWorkflowEnvironment
	faults *faults
	begun  chan struct{} // closed once it takes calls
	over   chan struct{} // closed once the environment has ended
	rest   chan struct{} // closed to end the activity that keeps time running

	mu         sync.Mutex
	calls      map[int]*engineCall
	seq        int
	runs       map[string]*simRun // by workflow id, the newest
	continued  int                // as new
	activities int                // begun
	// full is the info of a workflow whose history has grown enough to continue as new.
	full workflow.Info
}

// engineCall is a call to be carried out within the environment.
type engineCall struct {
	do   func(workflow.Context)
	done chan struct{}
}

// simRun is one execution.
type simRun struct {
	cancel workflow.CancelFunc
	open   bool // not completed
	ready  bool // takes signals
	err    error
	result converter.RawValue
	ended  []chan struct{}
}

func newSimEngine(f *faults, acts *activities.Activities, names map[string]any) *simEngine {
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(quiet{})
	e := &simEngine{env: suite.NewTestWorkflowEnvironment(), faults: f, begun: make(chan struct{}), over: make(chan struct{}), rest: make(chan struct{}), calls: map[int]*engineCall{}, runs: map[string]*simRun{}}
	e.env.SetTestTimeout(24 * 365 * time.Hour)
	e.env.SetWorkflowRunTimeout(0)
	e.env.SetCurrentHistoryLength(1 << 20)
	e.env.SetContinueAsNewSuggested(true)
	e.env.SetDetachedChildWait(false)
	e.env.SetWorkerOptions(sdkworker.Options{Interceptors: []interceptor.WorkerInterceptor{&tracer{e: e}}, DeadlockDetectionTimeout: time.Hour})
	for name, f := range names {
		if name == activities.ClusterWorkflow {
			f = e.cluster
		}
		e.env.RegisterWorkflowWithOptions(f, workflow.RegisterOptions{Name: name})
	}
	e.env.RegisterWorkflowWithOptions(e.root, workflow.RegisterOptions{Name: rootName})
	e.env.RegisterActivityWithOptions(acts, activity.RegisterOptions{SkipInvalidStructFunctions: true})
	e.env.RegisterActivity(e.KeepTime)
	return e
}

const rootName = "world"

// tick is how far a workflow's clock lags behind at most: the environment moves it only when a timer fires.
const tick = 5 * time.Second

// run carries out calls until stop. It returns once every workflow has ended.
func (e *simEngine) run() {
	defer close(e.over)
	e.env.ExecuteWorkflow(rootName)
}

func (e *simEngine) stop() {
	close(e.rest)
	<-e.begun
	e.env.SignalWorkflow("call", 0)
	<-e.over
}

// KeepTime is an activity that runs all the while: as long as one does, the environment lets time pass as the wall
// clock does, which in a bubble jumps ahead as soon as everything waits.
func (e *simEngine) KeepTime(ctx context.Context) error {
	<-e.rest
	return nil
}

func (e *simEngine) root(ctx workflow.Context) error {
	e.full = *workflow.GetInfo(ctx)
	close(e.begun)
	keep := workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: 10 * 365 * 24 * time.Hour})
	workflow.ExecuteActivity(keep, e.KeepTime)
	ending := false
	workflow.Go(ctx, func(ctx workflow.Context) {
		for !ending && ctx.Err() == nil {
			if workflow.Sleep(ctx, tick) != nil {
				return
			}
		}
	})
	calls := workflow.GetSignalChannel(ctx, "call")
	for {
		var n int
		calls.Receive(ctx, &n)
		if n == 0 {
			ending = true
			return nil
		}
		e.mu.Lock()
		c := e.calls[n]
		delete(e.calls, n)
		e.mu.Unlock()
		c.do(ctx)
		close(c.done)
	}
}

// within runs f in the environment's own workflow.
func (e *simEngine) within(ctx context.Context, f func(workflow.Context)) error {
	c := &engineCall{do: f, done: make(chan struct{})}
	select {
	case <-e.begun: // before, the environment has nobody to signal
	case <-e.over:
		return serviceerror.NewUnavailable("the engine has ended")
	case <-ctx.Done():
		return ctx.Err()
	}
	e.mu.Lock()
	e.seq++
	n := e.seq
	e.calls[n] = c
	e.mu.Unlock()
	e.env.SignalWorkflow("call", n)
	select {
	case <-c.done:
		return nil
	case <-e.over:
		return serviceerror.NewUnavailable("the engine has ended")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// cluster is the entity as the environment runs it: it begins once the signal that started it is there. One run follows
// the other within the same execution, with nothing carried over but the input and the signals that wait.
func (e *simEngine) cluster(ctx workflow.Context, st cluster.State) error {
	ops := workflow.GetSignalChannel(ctx, activities.SignalOp)
	if err := workflow.Await(ctx, func() bool { return ops.Len() > 0 }); err != nil {
		return err
	}
	for {
		err := workflows.Cluster(ctx, st)
		var next *workflow.ContinueAsNewError
		if !errors.As(err, &next) {
			return err
		}
		e.continued++
		st = cluster.State{}
		if err := converter.GetDefaultDataConverter().FromPayloads(next.Input, &st); err != nil {
			return err
		}
	}
}

func (e *simEngine) start(ctx workflow.Context, id, typ string, args []any) error {
	if r := e.runs[id]; r != nil {
		if err := workflow.Await(ctx, func() bool { return !r.open || r.ready }); err != nil {
			return err
		}
		if r.open {
			return serviceerror.NewWorkflowExecutionAlreadyStarted("it runs", "", "")
		}
	}
	r := &simRun{open: true}
	e.runs[id] = r
	cctx := workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{WorkflowID: id, TaskQueue: activities.QueueMain, WaitForCancellation: true,
		ParentClosePolicy: enumspb.PARENT_CLOSE_POLICY_TERMINATE, WorkflowIDReusePolicy: enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE})
	cctx, r.cancel = workflow.WithCancel(cctx)
	child := workflow.ExecuteChildWorkflow(cctx, typ, args...)
	if err := child.GetChildWorkflowExecution().Get(ctx, nil); err != nil {
		r.open = false
		return err
	}
	workflow.Go(ctx, func(ctx workflow.Context) {
		r.err = child.Get(ctx, &r.result)
		r.open = false
		if debug {
			fmt.Println("workflow ended:", id, r.err)
		}
		for _, c := range r.ended {
			close(c)
		}
	})
	return nil
}

// signal delivers a signal at once. run narrows it to one execution, unless it is nil.
func (e *simEngine) signal(ctx workflow.Context, id, name string, arg any, run *simRun) (*simRun, error) {
	missing := serviceerror.NewNotFound("workflow " + id + " does not run")
	for {
		r := e.runs[id]
		if r == nil || !r.open || run != nil && r != run {
			return nil, missing
		}
		if !r.ready {
			if err := workflow.Sleep(ctx, time.Millisecond); err != nil {
				return nil, err
			}
			continue
		}
		if err := workflow.SignalExternalWorkflow(ctx, id, "", name, arg).Get(ctx, nil); err != nil {
			// It has completed and nobody told us yet.
			if err := workflow.Await(ctx, func() bool { return !r.open || r.ready }); err != nil {
				return nil, err
			}
			if r.open {
				continue
			}
			return nil, missing
		}
		return r, nil
	}
}

// ExecuteWorkflow starts a workflow; an id that was used is refused.
func (e *simEngine) ExecuteWorkflow(ctx context.Context, o client.StartWorkflowOptions, typ any, args ...any) (client.WorkflowRun, error) {
	var err error
	werr := e.within(ctx, func(wctx workflow.Context) {
		if e.runs[o.ID] != nil {
			err = serviceerror.NewWorkflowExecutionAlreadyStarted("it was started before", "", "")
			return
		}
		err = e.start(wctx, o.ID, typ.(string), args)
	})
	if werr != nil {
		return nil, werr
	}
	return nil, err
}

// SignalWorkflow delivers a signal, under the faults of the seed.
func (e *simEngine) SignalWorkflow(ctx context.Context, id, _, name string, arg any) error {
	return e.faults.signal(ctx, id+"/"+name, func() (again func(), err error) {
		var r *simRun
		if werr := e.within(ctx, func(wctx workflow.Context) { r, err = e.signal(wctx, id, name, arg, nil) }); werr != nil {
			return nil, werr
		}
		return e.again(id, name, arg, r), err
	})
}

// again delivers a signal once more to the same execution.
func (e *simEngine) again(id, name string, arg any, r *simRun) func() {
	if r == nil {
		return func() {}
	}
	return func() {
		e.within(context.Background(), func(wctx workflow.Context) { e.signal(wctx, id, name, arg, r) })
	}
}

// SignalWithStartWorkflow delivers a signal, to a new workflow if none runs.
func (e *simEngine) SignalWithStartWorkflow(ctx context.Context, id, name string, arg any, _ client.StartWorkflowOptions, typ any, args ...any) (client.WorkflowRun, error) {
	return nil, e.faults.signal(ctx, id+"/"+name, func() (again func(), err error) {
		var r *simRun
		werr := e.within(ctx, func(wctx workflow.Context) {
			if r, err = e.signal(wctx, id, name, arg, nil); err == nil {
				return
			}
			if err = e.start(wctx, id, typ.(string), args); err == nil {
				r, err = e.signal(wctx, id, name, arg, nil)
			}
		})
		if werr != nil {
			return nil, werr
		}
		return e.again(id, name, arg, r), err
	})
}

// CancelWorkflow asks a workflow to end.
func (e *simEngine) CancelWorkflow(ctx context.Context, id, _ string) error {
	var err error
	werr := e.within(ctx, func(workflow.Context) {
		r := e.runs[id]
		if r == nil || !r.open {
			err = serviceerror.NewNotFound("workflow " + id + " does not run")
			return
		}
		r.cancel()
	})
	if werr != nil {
		return werr
	}
	return err
}

// DescribeWorkflowExecution tells whether a workflow runs.
func (e *simEngine) DescribeWorkflowExecution(ctx context.Context, id, _ string) (*workflowservice.DescribeWorkflowExecutionResponse, error) {
	var d *workflowservice.DescribeWorkflowExecutionResponse
	var err error
	werr := e.within(ctx, func(workflow.Context) {
		r := e.runs[id]
		if r == nil {
			err = serviceerror.NewNotFound("there is no workflow " + id)
			return
		}
		st := enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING
		switch {
		case r.open:
		case r.err == nil:
			st = enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED
		case temporal.IsCanceledError(r.err):
			st = enumspb.WORKFLOW_EXECUTION_STATUS_CANCELED
		default:
			st = enumspb.WORKFLOW_EXECUTION_STATUS_FAILED
		}
		d = &workflowservice.DescribeWorkflowExecutionResponse{WorkflowExecutionInfo: &workflowpb.WorkflowExecutionInfo{Status: st}}
	})
	if werr != nil {
		return nil, werr
	}
	return d, err
}

// QueryWorkflow asks a running workflow.
func (e *simEngine) QueryWorkflow(ctx context.Context, id, _, query string, args ...any) (converter.EncodedValue, error) {
	var v converter.EncodedValue
	var err error
	werr := e.within(ctx, func(wctx workflow.Context) {
		r := e.runs[id]
		if r == nil || !r.open {
			err = serviceerror.NewNotFound("workflow " + id + " does not run")
			return
		}
		if err = workflow.Await(wctx, func() bool { return r.ready || !r.open }); err != nil {
			return
		}
		if !r.open {
			err = serviceerror.NewNotFound("workflow " + id + " does not run")
			return
		}
		v, err = e.env.QueryWorkflowByID(id, query, args...)
	})
	if werr != nil {
		return nil, werr
	}
	return v, err
}

// outcome waits for a workflow's end.
func (e *simEngine) outcome(ctx context.Context, id string) (out converter.RawValue, err error) {
	var r *simRun
	c := make(chan struct{})
	if werr := e.within(ctx, func(workflow.Context) {
		if r = e.runs[id]; r == nil || !r.open {
			close(c)
			return
		}
		r.ended = append(r.ended, c)
	}); werr != nil {
		return out, werr
	}
	select {
	case <-c:
	case <-e.over:
		return out, serviceerror.NewUnavailable("the engine has ended")
	case <-ctx.Done():
		return out, ctx.Err()
	}
	if r == nil {
		return out, serviceerror.NewNotFound("there is no workflow " + id)
	}
	return r.result, r.err
}

// running lists the workflows that have not ended.
func (e *simEngine) running(ctx context.Context) (ids []string) {
	e.within(ctx, func(workflow.Context) {
		for id, r := range e.runs {
			if r.open {
				ids = append(ids, id)
			}
		}
	})
	return ids
}

// tracer puts the engine between the workflows and the environment.
type tracer struct {
	interceptor.WorkerInterceptorBase
	e *simEngine
}

func (t *tracer) InterceptActivity(_ context.Context, next interceptor.ActivityInboundInterceptor) interceptor.ActivityInboundInterceptor {
	return &activityFaults{ActivityInboundInterceptorBase: interceptor.ActivityInboundInterceptorBase{Next: next}, f: t.e.faults}
}

func (t *tracer) InterceptWorkflow(_ workflow.Context, next interceptor.WorkflowInboundInterceptor) interceptor.WorkflowInboundInterceptor {
	return &workflowIn{WorkflowInboundInterceptorBase: interceptor.WorkflowInboundInterceptorBase{Next: next}, e: t.e}
}

type workflowIn struct {
	interceptor.WorkflowInboundInterceptorBase
	e *simEngine
}

func (w *workflowIn) Init(out interceptor.WorkflowOutboundInterceptor) error {
	return w.Next.Init(&workflowOut{WorkflowOutboundInterceptorBase: interceptor.WorkflowOutboundInterceptorBase{Next: out}, e: w.e})
}

func (w *workflowIn) ExecuteWorkflow(ctx workflow.Context, in *interceptor.ExecuteWorkflowInput) (any, error) {
	info := workflow.GetInfo(ctx)
	r := w.e.runs[info.WorkflowExecution.ID]
	if r == nil {
		return w.Next.ExecuteWorkflow(ctx, in) // the environment's own
	}
	r.ready = true
	defer func() { r.ready = false }()
	return w.Next.ExecuteWorkflow(ctx, in)
}

type workflowOut struct {
	interceptor.WorkflowOutboundInterceptorBase
	e *simEngine
}

// GetInfo fills in what the environment leaves out, and now and then says that the history has grown long.
func (w *workflowOut) GetInfo(ctx workflow.Context) *workflow.Info {
	info := *w.Next.GetInfo(ctx)
	if info.FirstRunID == "" {
		info.FirstRunID = info.WorkflowExecution.ID + "/" + info.WorkflowExecution.RunID
	}
	if info.WorkflowType.Name != activities.ClusterWorkflow {
		return &info
	}
	if w.e.faults.roll("history", info.WorkflowExecution.ID) < w.e.faults.rates.ContinueAsNew {
		// What says so is not exported: it comes along with the info of one that has.
		full := w.e.full
		full.WorkflowExecution, full.WorkflowType, full.FirstRunID, full.Namespace = info.WorkflowExecution, info.WorkflowType, info.FirstRunID, info.Namespace
		full.TaskQueueName, full.WorkflowStartTime = info.TaskQueueName, info.WorkflowStartTime
		full.WorkflowExecutionTimeout, full.WorkflowRunTimeout, full.WorkflowTaskTimeout = info.WorkflowExecutionTimeout, info.WorkflowRunTimeout, info.WorkflowTaskTimeout
		full.Attempt, full.ParentWorkflowExecution, full.ParentWorkflowNamespace, full.RootWorkflowExecution = info.Attempt, info.ParentWorkflowExecution, info.ParentWorkflowNamespace, info.RootWorkflowExecution
		return &full
	}
	return &info
}

// ExecuteActivity leaves retries and time limits to activityFaults: the environment gives up after ten attempts and
// does not retry what timed out.
func (w *workflowOut) ExecuteActivity(ctx workflow.Context, typ string, args ...any) workflow.Future {
	o := workflow.GetActivityOptions(ctx)
	if o.StartToCloseTimeout > 0 && o.StartToCloseTimeout < farOff {
		w.e.faults.remember(workflow.GetInfo(ctx).WorkflowExecution.ID, typ, o)
		o.StartToCloseTimeout, o.ScheduleToCloseTimeout, o.HeartbeatTimeout = farOff, 0, 0
		o.RetryPolicy = &temporal.RetryPolicy{MaximumAttempts: 1}
		// A cancelled activity is asked to end and waited for; the environment would not wait.
		w.e.activities++
		o.ActivityID = fmt.Sprintf("a%d", w.e.activities)
		key := workflow.GetInfo(ctx).WorkflowExecution.ID + "|" + o.ActivityID
		root, _ := workflow.NewDisconnectedContext(ctx)
		if done := ctx.Done(); done != nil {
			workflow.Go(root, func(ctx workflow.Context) {
				done.Receive(ctx, nil)
				w.e.faults.cancel(key)
			})
		}
		ctx = workflow.WithActivityOptions(root, o)
	}
	return w.Next.ExecuteActivity(ctx, typ, args...)
}

// farOff is longer than any test.
const farOff = 10 * 365 * 24 * time.Hour

type quiet struct{}

func (quiet) Debug(string, ...any) {}
func (quiet) Info(string, ...any)  {}
func (quiet) Warn(string, ...any)  {}
func (quiet) Error(msg string, kv ...any) {
	if debug {
		fmt.Println("engine:", msg, kv)
	}
}

var _ log.Logger = quiet{}
