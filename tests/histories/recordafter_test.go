package histories

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/faults/world"
	"github.com/skyloom/skyloom/worker"
	"github.com/skyloom/skyloom/workflows"
)

// recordAfter records jobs that wait for others.
func recordAfter(t *testing.T) {
	w := world.NewReal(t, world.Options{Seed: 4})
	w.Acts.Home = t.TempDir() // for the logs that are kept
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		worker.Afters(ctx, w.Store, w.Client, slog.New(slog.DiscardHandler))
	}()
	defer func() { stop(); <-done }()
	n := 0
	start := func(task string, after ...string) client.WorkflowRun {
		t.Helper()
		n++
		b := api.JobsLaunchBody{Base: api.Base{RequestID: fmt.Sprintf("00000000-0000-4000-8000-%012d", n), User: "ana", UserHash: "u"}, Task: task, After: after}
		ids, err := w.Store.JobNumbers(ctx, b.RequestID, 1)
		if err != nil {
			t.Fatal(err)
		}
		r, err := w.Client.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: activities.ManagedWorkflowID(ids[0]), TaskQueue: activities.QueueMain}, "ManagedJob", workflows.ManagedInput{ID: ids[0], NumJobs: 1, Body: b})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := start("name: first\n" + long)
	after := start("name: after\n"+quick, "1:any")
	never := start("name: p\n---\nname: one\n"+quick+"---\nname: two\n"+quick, "1:ok")
	given := start("name: given-up\n"+quick, "1")
	time.Sleep(time.Second)
	for _, r := range []client.WorkflowRun{given, first} {
		if err := w.Client.CancelWorkflow(ctx, r.GetID(), ""); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range []struct {
		story string
		run   client.WorkflowRun
		ok    bool
	}{{"job-after", after, true}, {"job-after-never", never, false}, {"job-after-cancelled", given, false}} {
		ended, cancel := context.WithTimeout(ctx, time.Minute)
		var res workflows.ManagedResult
		err := x.run.Get(ended, &res)
		cancel()
		if (err == nil) != x.ok || ended.Err() != context.Canceled {
			t.Fatalf("%s: %+v %v", x.story, res, err)
		}
		save(t, w, x.story, x.run.GetID(), "")
	}
}

// recordScheduled records firings of a schedule, one after it was deleted, and a job of one.
func recordScheduled(t *testing.T) {
	w := world.NewReal(t, world.Options{Seed: 5})
	w.Acts.Home = t.TempDir()
	ctx := context.Background()
	body, err := json.Marshal(api.JobsLaunchBody{Base: api.Base{User: "ana", UserHash: "u"}, Task: "name: scheduled\n" + quick, NumJobs: 2})
	if err != nil {
		t.Fatal(err)
	}
	id, err := w.Store.CreateSchedule(ctx, api.JobSchedule{Name: "scheduled", RequestID: api.NewRequestID(), User: "ana", UserHash: "u", NumJobs: 2}, body)
	if err != nil {
		t.Fatal(err)
	}
	fire := func(story string) (res workflows.ScheduledResult) {
		t.Helper()
		r, err := w.Client.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: story, TaskQueue: activities.QueueMain}, "ScheduledJobs", workflows.ScheduledInput{Schedule: id})
		if err == nil {
			err = r.Get(ctx, &res)
		}
		if err != nil {
			t.Fatal(err)
		}
		save(t, w, story, story, "")
		return res
	}
	res := fire("schedule")
	if len(res.JobIDs) != 2 {
		t.Fatalf("%+v", res)
	}
	save(t, w, "job-scheduled", activities.ManagedWorkflowID(res.JobIDs[1]), "")
	if err := w.Store.DeleteSchedule(ctx, id); err != nil {
		t.Fatal(err)
	}
	fire("schedule-deleted")
}
