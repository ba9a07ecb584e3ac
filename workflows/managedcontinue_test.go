package workflows_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/secret"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/workflows"
)

// A job whose history grows long goes on in a new run with what it knows: the same rows, later versions, nothing read anew.
func TestManagedJobContinuesAsNew(t *testing.T) {
	dir := t.TempDir()
	s, err := store.Open(t.Context(), filepath.Join(dir, "sky.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ring, err := secret.LoadRing(filepath.Join(dir, "keys.json"))
	if err != nil {
		t.Fatal(err)
	}
	acts := &activities.Activities{Store: s, Secrets: secret.New(s, ring)}
	run := func(in workflows.ManagedInput, long bool) error {
		var suite testsuite.WorkflowTestSuite
		env := suite.NewTestWorkflowEnvironment()
		env.SetTestTimeout(10 * time.Minute)
		env.SetWorkerOptions(worker.Options{BuildID: "test", DeadlockDetectionTimeout: time.Minute}) // a busy machine is no deadlock
		env.SetContinueAsNewSuggested(long)
		env.RegisterWorkflowWithOptions(workflows.ManagedJob, workflow.RegisterOptions{Name: "ManagedJob"})
		env.RegisterActivityWithOptions(acts, activity.RegisterOptions{SkipInvalidStructFunctions: true})
		env.ExecuteWorkflow("ManagedJob", in)
		return env.GetWorkflowError()
	}
	in := workflows.ManagedInput{ID: 7, Body: api.JobsLaunchBody{Base: api.Base{RequestID: api.NewRequestID(), User: "u", UserHash: "00000001"}, Task: "name: n\nrun: echo hello\n"}}
	err = run(in, true)
	var again *workflow.ContinueAsNewError
	if !errors.As(err, &again) {
		t.Fatalf("a job with a long history ended with: %v", err)
	}
	var next workflows.ManagedInput
	if err := converter.GetDefaultDataConverter().FromPayloads(again.Input, &next); err != nil {
		t.Fatal(err)
	}
	if next.ID != 7 || next.Carried == nil || len(next.Carried.Runs) != 1 || next.Carried.Runs[0].Row.Name != "n" {
		t.Fatalf("it carries on with %+v", next)
	}
	// The task's text is not read again: what the first run made of it counts.
	next.Body.Task = "this is no task"
	next.Carried.Spec.Tasks[0].HasRun = false
	next.Carried.Runs[0].Row.Recoveries = 3
	if err := run(next, false); err != nil {
		t.Fatal(err)
	}
	rows, err := s.ManagedJob(context.Background(), 7)
	if err != nil || len(rows) != 1 || rows[0].Status != api.ManagedSucceeded || rows[0].Recoveries != 3 || !rows[0].SubmittedAt.Equal(next.Carried.Began) {
		t.Errorf("%v %+v", err, rows)
	}
}
