package engine_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/worker/codec"
	"github.com/skyloom/skyloom/worker/engine"
)

const (
	queue  = "engine-test"
	secret = "s3cr3t-plain-text"
)

// Greet waits for a name and greets it: one local activity, one activity, one signal.
func Greet(ctx workflow.Context, greeting string) (string, error) {
	workflow.SetCurrentDetails(ctx, "waiting for a name, "+secret)
	var name string
	workflow.GetSignalChannel(ctx, "name").Receive(ctx, &name)
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: 10 * time.Second, Summary: "join " + secret})
	var out string
	err := workflow.ExecuteActivity(ctx, Join, greeting, name).Get(ctx, &out)
	return out, err
}

func Join(_ context.Context, a, b string) (string, error) { return a + " " + b, nil }

// testLogger writes warnings and errors into the test's log.
func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(logWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type logWriter struct{ t testing.TB }

func (w logWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func start(t testing.TB, dir string) *engine.Engine {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	began := time.Now()
	var stopped atomic.Bool
	quiet := slog.New(slog.NewTextHandler(gate{logWriter{t}, &stopped}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	e, err := engine.Start(ctx, engine.Options{Dir: dir, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("started in %v", time.Since(began).Round(time.Millisecond))
	t.Cleanup(func() {
		began := time.Now()
		if err := e.Stop(); err != nil {
			t.Error(err)
		}
		t.Logf("stopped in %v", time.Since(began).Round(time.Millisecond))
		stopped.Store(true)
	})
	return e
}

// gate drops what is logged after the test: goroutines of a stopped engine may still have something to say.
type gate struct {
	to     logWriter
	closed *atomic.Bool
}

func (g gate) Write(p []byte) (int, error) {
	if g.closed.Load() {
		return len(p), nil
	}
	return g.to.Write(p)
}

func dial(t testing.TB, e *engine.Engine, ring *codec.Ring) client.Client {
	t.Helper()
	dc := codec.New(ring)
	c, err := e.Dial(context.Background(), dc, codec.FailureConverter(dc))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func work(t testing.TB, c client.Client) worker.Worker {
	t.Helper()
	w := worker.New(c, queue, worker.Options{WorkerStopTimeout: time.Second})
	w.RegisterWorkflow(Greet)
	w.RegisterActivity(Join)
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	return w
}

func greet(t testing.TB, c client.Client, id string) client.WorkflowRun {
	t.Helper()
	run, err := c.ExecuteWorkflow(context.Background(), client.StartWorkflowOptions{
		ID: id, TaskQueue: queue, EnableEagerStart: true,
		StaticSummary: "summary " + secret, StaticDetails: "details " + secret,
		TypedSearchAttributes: temporal.NewSearchAttributes(
			engine.Kind.ValueSet("test"), engine.Name.ValueSet(id), engine.Workspace.ValueSet("default"), engine.User.ValueSet("tester")),
	}, Greet, "hello "+secret)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

// eventually repeats a check whose truth needs a moment.
func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func listed(c client.Client, query string) ([]string, error) {
	resp, err := c.ListWorkflow(context.Background(), &workflowservice.ListWorkflowExecutionsRequest{Query: query})
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range resp.GetExecutions() {
		ids = append(ids, e.GetExecution().GetWorkflowId())
	}
	return ids, nil
}

func TestWorkflowSurvivesRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b#c%d?") // nobody promised us a nice SKY_HOME
	ring, err := codec.LoadRing(filepath.Join(t.TempDir(), "keys.json"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()

	first := start(t, dir)
	c := dial(t, first, ring)
	w := work(t, c)
	done := greet(t, c, "greet/done")
	waiting := greet(t, c, "greet/waiting")
	if err := c.SignalWorkflow(ctx, "greet/done", "", "name", "world"); err != nil {
		t.Fatal(err)
	}
	var out string
	if err := done.Get(ctx, &out); err != nil || out != "hello "+secret+" world" {
		t.Fatalf("%q, %v", out, err)
	}
	eventually(t, "list by search attribute", func() error {
		ids, err := listed(c, "SkyName = 'greet/waiting' AND SkyKind = 'test' AND SkyWorkspace = 'default' AND SkyUser = 'tester'")
		if err == nil && (len(ids) != 1 || ids[0] != "greet/waiting") {
			err = fmt.Errorf("listed %v", ids)
		}
		return err
	})
	w.Stop()
	c.Close()
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}

	second := start(t, dir)
	if second.Address() != first.Address() || second.Token() != first.Token() {
		t.Errorf("address %s and key must outlive a restart, got %s", first.Address(), second.Address())
	}
	c = dial(t, second, ring)
	work(t, c)
	history := c.GetWorkflowHistory(ctx, "greet/done", "", false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	var events int
	for history.HasNext() {
		event, err := history.Next()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(event.String(), secret) {
			t.Errorf("plain text in the history: %v", event)
		}
		events++
	}
	if events < 8 {
		t.Fatalf("%d events in the history", events)
	}
	if err := c.SignalWorkflow(ctx, "greet/waiting", "", "name", "again"); err != nil {
		t.Fatal(err)
	}
	if err := c.GetWorkflow(ctx, "greet/waiting", waiting.GetRunID()).Get(ctx, &out); err != nil || out != "hello "+secret+" again" {
		t.Fatalf("%q, %v", out, err)
	}

	for _, name := range []string{"engine.db", "engine.db-wal"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if strings.Contains(string(data), secret) {
			t.Errorf("plain text in %s", name)
		}
	}
}

func TestScheduleRuns(t *testing.T) {
	e := shared(t)
	c := dial(t, e, sharedRing(t))
	work(t, c)
	ctx := context.Background()
	handle, err := c.ScheduleClient().Create(ctx, client.ScheduleOptions{
		ID:     "greet",
		Spec:   client.ScheduleSpec{Intervals: []client.ScheduleIntervalSpec{{Every: time.Hour}}},
		Action: &client.ScheduleWorkflowAction{ID: "greet/scheduled", Workflow: Greet, Args: []any{"hello"}, TaskQueue: queue},
		// Once at once, for the test.
		TriggerImmediately: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the schedule starts its workflow", func() error {
		d, err := handle.Describe(ctx)
		if err == nil && d.Info.NumActions == 0 {
			err = errors.New("no action taken")
		}
		return err
	})
	if err := handle.Delete(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	e := shared(t)
	_, err := engine.Start(context.Background(), engine.Options{Dir: filepath.Dir(e.TokenFile())})
	var locked *engine.LockedError
	if !errors.As(err, &locked) || locked.PID != os.Getpid() {
		t.Fatalf("%v", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for want, o := range map[string]engine.Options{
		"no folder": {},
		"retention": {Dir: t.TempDir(), Retention: time.Minute},
	} {
		if _, err := engine.Start(context.Background(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}
