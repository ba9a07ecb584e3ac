package managed

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/client"
	sdkworker "go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/testserver"
	"github.com/skyloom/skyloom/worker"
)

// job is the number of the job that a workflow carries.
func job(t *testing.T, s *testserver.Server, workflowID string) int64 {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(30 * time.Millisecond) {
		l, err := s.Client.ManagedJobs(context.Background(), api.ManagedFilter{})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range l.Jobs { // the newest first
			if r.Workflow == workflowID {
				return r.ID
			}
		}
		if time.Now().After(end) {
			t.Fatalf("no job is carried by %s", workflowID)
		}
	}
}

func running(r api.ManagedJob) bool { return r.Status == api.ManagedRunning }

// A job whose workflow bears an id that others have chosen waits for admission and is let in, and is cancelled, as any other.
func TestForeignWorkflowID(t *testing.T) {
	s := testserver.Start(t, config+"jobs: {limits: {running: 1}}\n")
	c, queue := engine(t, s)
	ctx := context.Background()
	start := func(id string) int64 {
		if _, err := c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: id, TaskQueue: queue}, "ManagedJob", map[string]any{"body": map[string]any{"task": "name: long\nrun: sleep 1000"}}); err != nil {
			t.Fatal(err)
		}
		return job(t, s, id)
	}
	first := start("nightly/train")
	until(t, s, first, "running", running)
	second := start("nightly/check")
	until(t, s, second, "waiting", func(r api.ManagedJob) bool { return r.Status == api.ManagedPending && r.Details != "" })
	cancel := func(id int64) *api.JobsCancelReply {
		rep, err := s.Client.CancelManagedJobs(ctx, &api.JobsCancelBody{JobIDs: []int64{id}})
		if err != nil {
			t.Fatal(err)
		}
		return rep
	}
	if rep := cancel(first); !slices.Equal(rep.Cancelled, []int64{first}) {
		t.Fatalf("cancelled %v, finished %v", rep.Cancelled, rep.Finished)
	}
	ended(t, s, first, api.ManagedCancelled)
	until(t, s, second, "let in", running) // nudged: by itself it would look an hour later
	// Its workflow is gone, and the id is used again: a cancel of the one is none of the other.
	if err := c.TerminateWorkflow(ctx, "nightly/check", "", "the test ends it"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: "nightly/check", TaskQueue: queue}, "ManagedJob", map[string]any{"body": map[string]any{"task": "run: sleep 1000"}}); err != nil {
		t.Fatal(err)
	}
	third := second
	for end := time.Now().Add(patience); third == second; time.Sleep(30 * time.Millisecond) {
		if third = job(t, s, "nightly/check"); time.Now().After(end) {
			t.Fatal("the third job is not there")
		}
	}
	if rep := cancel(second); !slices.Equal(rep.Finished, []int64{second}) {
		t.Errorf("a job whose workflow is gone: cancelled %v, finished %v", rep.Cancelled, rep.Finished)
	}
	if rep := cancel(third); !slices.Equal(rep.Cancelled, []int64{third}) {
		t.Errorf("the third: cancelled %v, finished %v", rep.Cancelled, rep.Finished)
	}
	ended(t, s, third, api.ManagedCancelled)
	// An id that is this server's to give is refused.
	r, err := c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: "job/77", TaskQueue: queue}, "ManagedJob", map[string]any{"body": map[string]any{"task": "run: 'true'"}})
	if err != nil {
		t.Fatal(err)
	}
	if e := said(r.Get(ctx, nil)); e.Kind != api.ErrInvalid || !strings.Contains(e.Message, "job/77") {
		t.Errorf("job/77: %+v", e)
	}
}

// nightly is a workflow of others, which has a managed job as its child.
func nightly(ctx workflow.Context, queue, id, task string) error {
	ctx = workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{WorkflowID: id, TaskQueue: queue})
	return workflow.ExecuteChildWorkflow(ctx, "ManagedJob", map[string]any{"body": map[string]any{"task": task}}).Get(ctx, nil)
}

// A parent is terminated, and takes its children along, which can't clean up: the reaper takes down what runs, ends the jobs' rows, and
// gives their places to others.
func TestTerminatedParent(t *testing.T) {
	s := testserver.Start(t, config+"jobs: {limits: {running: 2}}\n", func(o *worker.Options) { o.ReapAge = 2 * time.Second })
	c, queue := engine(t, s)
	w := sdkworker.New(c, "others", sdkworker.Options{})
	w.RegisterWorkflow(nightly)
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	ctx := context.Background()
	var ids []int64
	var parents []client.WorkflowRun
	for i, task := range []string{"name: one\nrun: sleep 1000", "name: g\nexecution: parallel\n---\nname: a\nrun: sleep 1000\n---\nname: b\nrun: sleep 1000\n", "name: late\nrun: sleep 1000"} {
		child := fmt.Sprintf("child-%d", i)
		p, err := c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{TaskQueue: "others"}, nightly, queue, child, task)
		if err != nil {
			t.Fatal(err)
		}
		id := job(t, s, child)
		ids, parents = append(ids, id), append(parents, p)
		if i < 2 {
			until(t, s, id, "running", running)
		}
	}
	waits(t, s, ids[2], "")
	for _, p := range parents[:2] {
		if err := c.TerminateWorkflow(ctx, p.GetID(), "", "the test ends the parent"); err != nil {
			t.Fatal(err)
		}
	}
	reap := func() {
		r, err := c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{TaskQueue: queue}, "Reaper")
		if err == nil {
			err = r.Get(ctx, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(patience); !row(t, s, ids[0]).Status.Terminal() || !row(t, s, ids[1]).Status.Terminal(); time.Sleep(time.Second) {
		if reap(); time.Now().After(end) {
			t.Fatalf("not ended: %+v", row(t, s, ids[0]))
		}
	}
	for _, id := range ids[:2] {
		l, err := s.Client.ManagedJobs(ctx, api.ManagedFilter{IDs: []int64{id}})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range l.Jobs {
			if r.Status != api.ManagedCancelled || !strings.Contains(r.FailureReason, "was terminated") || r.EndAt == nil || r.RunningSince != nil {
				t.Errorf("job %d, task %d: %s (%s)", id, r.TaskID, r.Status, r.FailureReason)
			}
		}
		if told := story(t, s, id); !strings.Contains(told, "its workflow child-") {
			t.Errorf("job %d tells nothing: %s", id, told)
		}
	}
	// There is room again, and who lives is left alone.
	until(t, s, ids[2], "let in", running)
	reap()
	if r := row(t, s, ids[2]); !running(r) {
		t.Errorf("the job that lives is %s (%s)", r.Status, r.FailureReason)
	}
	if _, err := s.Client.CancelManagedJobs(ctx, &api.JobsCancelBody{JobIDs: []int64{ids[2]}}); err != nil {
		t.Fatal(err)
	}
	ended(t, s, ids[2], api.ManagedCancelled)
	list, err := s.Client.Clusters(ctx, api.ClusterFilter{AllUsers: true, Names: []string{fmt.Sprintf("one-%d", ids[0]), fmt.Sprintf("a-%d-0", ids[1]), fmt.Sprintf("b-%d-1", ids[1])}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list.Clusters {
		t.Errorf("cluster %s is left: %s", c.Name, c.Status)
	}
}
