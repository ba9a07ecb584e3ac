package faults

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/tests/faults/world"
	"github.com/skyloom/skyloom/worker"
	"github.com/skyloom/skyloom/workflows"
)

// Jobs that wait for each other in a random order end as their conditions say, each exactly so, though activities die,
// signals come late, twice or without an answer, and engine and workers are restarted all the while.
func TestManagedAfter(t *testing.T) {
	if testing.Short() {
		t.Skip("30 jobs in real time")
	}
	const jobs = 30
	seed := int64(number(t, "SKYLOOM_FIRST_SEED", 1))
	w := world.NewReal(t, world.RealOptions(seed))
	w.Acts.Home = t.TempDir()
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { // the server's loop, which dies now and then
		r := rand.New(rand.NewPCG(uint64(seed), 6))
		for ctx.Err() == nil {
			life, end := context.WithTimeout(ctx, time.Second+time.Duration(r.IntN(3000))*time.Millisecond)
			worker.Afters(life, w.Store, w.Client, slog.New(slog.DiscardHandler))
			end()
		}
	})
	r := rand.New(rand.NewPCG(uint64(seed), 7))
	want := map[int64]api.ManagedStatus{}
	after := map[int64][]string{}
	for id := int64(1); id <= jobs; id++ {
		b := api.JobsLaunchBody{Base: api.Base{RequestID: api.NewRequestID(), User: "u", UserHash: "00000001"}, Task: fmt.Sprintf("name: j%d\nresources: {cpus: 2+}\nrun: sleep 1\n", id)}
		want[id] = api.ManagedSucceeded
		if r.IntN(4) == 0 {
			b.Task = fmt.Sprintf("name: j%d\nresources: {cpus: 2+}\nrun: exit 3\n", id)
			want[id] = api.ManagedFailed
		}
		for range min(int64(r.IntN(4)), id-1) {
			a := api.AfterJob{JobID: 1 + r.Int64N(id-1), Any: r.IntN(2) == 0}
			b.After = append(b.After, a.String())
			if !a.Any && want[a.JobID] != api.ManagedSucceeded {
				want[id] = api.ManagedCancelled
			}
		}
		after[id] = b.After
		ids, err := w.Store.JobNumbers(ctx, b.RequestID, 1)
		if err != nil || ids[0] != id {
			t.Fatal(ids, err)
		}
		for { // as a client that repeats its call
			_, err := w.Client.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: activities.ManagedWorkflowID(id), TaskQueue: activities.QueueMain,
				WorkflowTaskTimeout: activities.WorkflowTaskTimeout}, "ManagedJob", workflows.ManagedInput{ID: id, NumJobs: 1, Body: b})
			if err == nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	ended := func() (n int, all []api.ManagedJob) {
		all, _, _, err := w.Store.ManagedJobs(ctx, store.ManagedFilter{})
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range all {
			if j.Status.Terminal() {
				n++
			}
		}
		return n, all
	}
	restarts := 0
	for end := time.Now().Add(4 * time.Minute); ; {
		n, all := ended()
		if n == jobs {
			break
		}
		if time.Now().After(end) {
			for _, j := range all {
				t.Logf("job %d after %v: %s %s%s", j.ID, after[j.ID], j.Status, j.Details, j.FailureReason)
			}
			t.Fatalf("%d of %d jobs have ended", n, jobs)
		}
		time.Sleep(time.Second + time.Duration(r.IntN(3000))*time.Millisecond)
		if restarts++; restarts > 5 {
			w.StopFaults()
		} else {
			w.Restart()
		}
	}
	_, all := ended()
	for _, j := range all {
		if j.Status != want[j.ID] {
			t.Errorf("job %d after %v ended %s (%s), want %s", j.ID, after[j.ID], j.Status, j.FailureReason, want[j.ID])
		}
		if j.Status == api.ManagedCancelled && j.Attempt > 0 {
			t.Errorf("job %d was begun, and its condition could not come true", j.ID)
		}
	}
	due, err := w.Store.DueWaits(ctx)
	if err != nil || len(due) > 0 {
		t.Errorf("%v are still to be told; %v", due, err)
	}
	t.Logf("%v, %d restarts", w.Tally(), restarts)
}
