package workflows_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/arrays"
	"github.com/skyloom/skyloom/internal/optimizer"
	"github.com/skyloom/skyloom/internal/secret"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/workflows"
)

// farm stands for the infra, its nodes and their agents: what was handed out ends after a while, and the store is told.
type farm struct {
	t    *testing.T
	acts *activities.Activities
	env  *testsuite.TestWorkflowEnvironment

	mu      sync.Mutex
	takes   time.Duration // a batch
	fails   func(element, run int) bool
	room    int             // clusters that can be had; negative: any number
	up      map[string]bool // by hash
	most    int             // clusters that were up at once
	handed  map[int64]activities.HandInput
	lost    map[string]bool // by hash: taken away
	ran     map[int]int     // by element: runs that ended by themselves
	onBatch func(activities.HandInput)
}

// fieldHands are the activities, those on the infra and the nodes replaced by the farm's.
type fieldHands struct {
	*activities.Activities
	*farm
}

func newFarm(t *testing.T) *farm {
	dir := t.TempDir()
	s, err := store.Open(t.Context(), filepath.Join(dir, "sky.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	ring, err := secret.LoadRing(filepath.Join(dir, "keys.json"))
	if err != nil {
		t.Fatal(err)
	}
	return &farm{t: t, acts: &activities.Activities{Store: s, Secrets: secret.New(s, ring)}, takes: time.Minute, room: -1, fails: func(int, int) bool { return false },
		up: map[string]bool{}, handed: map[int64]activities.HandInput{}, lost: map[string]bool{}, ran: map[int]int{}}
}

// run executes the workflow until it ends or continues as new.
func (f *farm) run(in workflows.ManagedInput, long bool, also ...func(*testsuite.TestWorkflowEnvironment)) error {
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(log.NewStructuredLogger(slog.New(slog.DiscardHandler)))
	env := suite.NewTestWorkflowEnvironment()
	env.SetTestTimeout(10 * time.Minute)
	env.SetWorkerOptions(worker.Options{BuildID: "test", DeadlockDetectionTimeout: time.Minute}) // a busy machine is no deadlock
	env.SetContinueAsNewSuggested(long)
	env.RegisterWorkflowWithOptions(workflows.ManagedJob, workflow.RegisterOptions{Name: "ManagedJob"})
	env.RegisterActivityWithOptions(&fieldHands{f.acts, f}, activity.RegisterOptions{SkipInvalidStructFunctions: true})
	f.env = env
	for n := range f.handed { // of an earlier run of the workflow
		f.endsLater(f.handed[n])
	}
	for _, do := range also {
		do(env)
	}
	env.ExecuteWorkflow("ManagedJob", in)
	err := env.GetWorkflowError()
	var p *temporal.PanicError
	if errors.As(err, &p) {
		f.t.Log(p.StackTrace())
	}
	return err
}

func (f *fieldHands) Plan(_ context.Context, in activities.PlanInput) (activities.PlanOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.room >= 0 && len(f.up) >= f.room {
		return activities.PlanOutput{Error: &api.Error{Kind: api.ErrResourcesUnavailable, Message: "no room anywhere"}, Retry: true}, nil
	}
	hash := strings.ReplaceAll(in.RequestID, "/", "-")
	f.up[hash] = true
	f.most = max(f.most, len(f.up))
	return activities.PlanOutput{Hash: hash, Installation: "i", Choice: &optimizer.Choice{Provider: "memory", Spec: providers.NodeSpec{Region: "east"}}, Task: activities.TaskSummary{NumNodes: 1, HasRun: true}}, nil
}

func (f *fieldHands) Provision(_ context.Context, in activities.ProvisionInput) (activities.ProvisionOutput, error) {
	return activities.ProvisionOutput{Ready: true, Nodes: []providers.Node{{ID: in.Ref.Hash}}}, nil
}

func (f *fieldHands) EndAttempt(_ context.Context, in activities.EndInput) (activities.NodesOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.up, in.Nodes.Ref.Hash)
	return activities.NodesOutput{}, nil
}

func (f *fieldHands) HandOut(_ context.Context, in activities.HandInput) (activities.HandOutput, error) {
	f.mu.Lock()
	f.handed[in.Batch] = in
	on := f.onBatch
	f.mu.Unlock()
	f.endsLater(in)
	if on != nil {
		on(in)
	}
	return activities.HandOutput{Slots: 2}, nil
}

func (f *farm) endsLater(in activities.HandInput) {
	env := f.env
	env.RegisterDelayedCallback(func() {
		f.mu.Lock()
		gone := f.lost[in.Submit.Ref.Hash]
		f.mu.Unlock()
		if !gone {
			env.SignalWorkflow(activities.SignalObserved, activities.Observed{Hash: in.Submit.Ref.Hash, Kind: activities.ObservedBatch, Batch: in.Batch})
		}
	}, f.takes)
}

func (f *fieldHands) Settle(_ context.Context, in activities.SettleInput) (activities.SettleOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.handed, in.Batch)
	out := activities.SettleOutput{}
	in.Elements.All(func(i int) bool {
		switch {
		case in.Cancel:
			out.Cancelled++
		case in.Lost != "":
			out.Again = out.Again.Union(arrays.Of(i))
		default:
			f.ran[i]++
			out.Timed++
			out.Seconds += f.takes.Seconds()
			switch {
			case !f.fails(i, f.ran[i]):
				out.Succeeded++
			case f.ran[i] <= in.Policy.MaxRestarts:
				out.Again = out.Again.Union(arrays.Of(i))
			default:
				out.Failed++
				out.Bad = append(out.Bad, i)
			}
		}
		return true
	})
	return out, nil
}

func (f *fieldHands) LookAtLane(_ context.Context, in activities.LookInput) (activities.LookOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lost[in.Nodes.Ref.Hash] {
		return activities.LookOutput{Lost: "preempted"}, nil
	}
	return activities.LookOutput{}, nil
}

// take takes a cluster away and lets its workflow look.
func (f *farm) take(hash string) {
	f.mu.Lock()
	f.lost[hash] = true
	f.mu.Unlock()
	f.env.SignalWorkflow(activities.SignalObserved, activities.Observed{Hash: hash, Kind: activities.ObservedNodes})
}

func (f *farm) row() api.ManagedJob {
	f.t.Helper()
	rows, err := f.acts.Store.ManagedJob(context.Background(), 7)
	if err != nil || len(rows) != 1 {
		f.t.Fatalf("%v %+v", err, rows)
	}
	return rows[0]
}

// each says that every element ran to its end so many times, and nothing is up.
func (f *farm) each(count, times int) {
	f.t.Helper()
	for i := range count {
		if f.ran[i] != times {
			f.t.Errorf("element %d ran %d times, want %d", i, f.ran[i], times)
		}
	}
	if len(f.up) > 0 || len(f.handed) > 0 {
		f.t.Errorf("left: clusters %v, batches %v", f.up, f.handed)
	}
}

func arrayInput(rest string) workflows.ManagedInput {
	return workflows.ManagedInput{ID: 7, Body: api.JobsLaunchBody{Base: api.Base{RequestID: api.NewRequestID(), User: "u", UserHash: "00000001"}, Task: "name: n\nrun: echo hello\n" + rest}}
}

func TestArraySlides(t *testing.T) {
	f := newFarm(t)
	if err := f.run(arrayInput("array: {count: 500, parallel: 4}\n"), false); err != nil {
		t.Fatal(err)
	}
	f.each(500, 1)
	if r := f.row(); r.Status != api.ManagedSucceeded || r.Recoveries != 0 || r.StartAt == nil || r.RunSeconds == 0 || f.most != 4 {
		t.Errorf("%d clusters at most, %+v", f.most, r)
	}
}

func TestArrayTakesWhatThereIs(t *testing.T) {
	f := newFarm(t)
	f.room = 2
	if err := f.run(arrayInput("array: {count: 100, parallel: 10}\n"), false); err != nil {
		t.Fatal(err)
	}
	f.each(100, 1)
	if f.most != 2 || f.row().Status != api.ManagedSucceeded {
		t.Errorf("%d clusters at most, %+v", f.most, f.row())
	}
	// Elements that one cluster holds at once bring up no second one.
	f = newFarm(t)
	if err := f.run(arrayInput("array: {count: 1, parallel: 10}\n"), false); err != nil || f.most != 1 {
		t.Errorf("%v, %d clusters", err, f.most)
	}
}

func TestArrayRetriesSingleElements(t *testing.T) {
	f := newFarm(t)
	f.fails = func(i, run int) bool { return i%10 == 3 && (run == 1 || i == 23) }
	err := f.run(arrayInput("array: {count: 50, parallel: 3, retries: 1}\n"), false)
	if err == nil || f.row().Status != api.ManagedFailed || !strings.Contains(f.row().FailureReason, "1 of 50 elements failed: 23") {
		t.Errorf("%v %+v", err, f.row())
	}
	for i := range 50 {
		want := 1
		if i%10 == 3 {
			want = 2
		}
		if f.ran[i] != want {
			t.Errorf("element %d ran %d times, want %d", i, f.ran[i], want)
		}
	}
}

func TestArrayPreemptedInTheMiddle(t *testing.T) {
	f := newFarm(t)
	taken := 0
	f.onBatch = func(in activities.HandInput) {
		if in.Batch == 5 || in.Batch == 9 {
			taken++
			env := f.env
			env.RegisterDelayedCallback(func() { f.take(in.Submit.Ref.Hash) }, f.takes/2)
		}
	}
	if err := f.run(arrayInput("array: {count: 300, parallel: 3}\n"), false); err != nil {
		t.Fatal(err)
	}
	f.each(300, 1)
	if r := f.row(); r.Status != api.ManagedSucceeded || r.Recoveries < 1 || taken == 0 {
		t.Errorf("%d taken, %+v", taken, r)
	}
}

func TestArrayCancelIsFinal(t *testing.T) {
	f := newFarm(t)
	err := f.run(arrayInput("array: {count: 10000, parallel: 5}\n"), false, func(env *testsuite.TestWorkflowEnvironment) {
		env.RegisterDelayedCallback(env.CancelWorkflow, 10*time.Minute)
	})
	if err == nil || f.row().Status != api.ManagedCancelled || len(f.up) > 0 || len(f.handed) > 0 {
		t.Errorf("%v %v %v %+v", err, f.up, f.handed, f.row())
	}
}

// An array whose history grows long goes on in a new run, with the clusters it has and the batches they hold.
func TestArrayContinuesAsNew(t *testing.T) {
	f := newFarm(t)
	in := arrayInput("array: {count: 400, parallel: 3}\n")
	for runs := 0; ; runs++ {
		err := f.run(in, runs < 3)
		var again *workflow.ContinueAsNewError
		if !errors.As(err, &again) {
			if err != nil || runs != 3 {
				t.Fatalf("run %d: %v", runs, err)
			}
			break
		}
		var next workflows.ManagedInput
		if err := converter.GetDefaultDataConverter().FromPayloads(again.Input, &next); err != nil {
			t.Fatal(err)
		}
		if next.Carried == nil || next.Carried.Array == nil {
			t.Fatalf("it carries on with %+v", next)
		}
		in = next
	}
	f.each(400, 1)
	if f.row().Status != api.ManagedSucceeded || f.most != 3 {
		t.Errorf("%d clusters, %+v", f.most, f.row())
	}
}
