package store

import (
	"context"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/arrays"
)

func TestElements(t *testing.T) {
	s, clock := open(t)
	ctx := context.Background()
	start := clock.now()
	tell := func(batch int64, index int, status api.ManagedStatus) {
		t.Helper()
		if err := s.PutElements(ctx, 7, []api.ArrayElement{{Index: index, Batch: batch, Status: status, StartAt: &start, ExitCodes: []int{3, 0}, Cluster: "c", ClusterHash: "h", ClusterJobID: 9}}); err != nil {
			t.Fatal(err)
		}
	}
	counts := func(want map[api.ManagedStatus]int) {
		t.Helper()
		got, err := s.ArrayCounts(ctx, 7)
		if err != nil || len(got[7]) != len(want) {
			t.Fatalf("%v %v, want %v", got, err, want)
		}
		for st, n := range want {
			if got[7][st] != n {
				t.Errorf("%v, want %v", got[7], want)
			}
		}
	}
	tell(1, 4, api.ManagedRunning)
	tell(1, 4, api.ManagedSucceeded)
	tell(1, 4, api.ManagedRunning) // late
	tell(1, 5, api.ManagedRunning)
	counts(map[api.ManagedStatus]int{api.ManagedSucceeded: 1, api.ManagedRunning: 1})

	settle := func() BatchOutcome {
		t.Helper()
		out, err := s.SettleBatch(ctx, 7, 1, arrays.Range(4, 6), nil, func(r ElementRow, heard bool) ElementRow {
			if heard != (r.Index < 6) {
				t.Errorf("element %d: heard %v", r.Index, heard)
			}
			if r.Status != api.ManagedSucceeded {
				r.Status, r.Restarts = api.ManagedPending, r.Restarts+1
			}
			return r
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for range 2 { // the second time what was decided is told again
		if out := settle(); out.Succeeded != 1 || out.Again.String() != "5-6" {
			t.Errorf("%+v", out)
		}
	}
	counts(map[api.ManagedStatus]int{api.ManagedSucceeded: 1, api.ManagedPending: 1})
	tell(1, 5, api.ManagedSucceeded) // of a batch that is settled
	counts(map[api.ManagedStatus]int{api.ManagedSucceeded: 1, api.ManagedPending: 1})
	tell(2, 5, api.ManagedRunning)
	e, err := s.Element(ctx, 7, 5)
	if err != nil || e == nil || e.Attempt != 2 || e.Restarts != 1 || e.Batch != 2 || len(e.Past) != 1 || e.Past[0] != 1 || !e.StartAt.Equal(start) || len(e.ExitCodes) != 2 {
		t.Errorf("%+v %v", e, err)
	}
	if e, err := s.Element(ctx, 7, 6); err != nil || e != nil {
		t.Errorf("an element that never began: %+v %v", e, err)
	}

	// The row of the job counts those that never began too, and collecting the job takes all of it along.
	end := start
	row := api.ManagedJob{ID: 7, Name: "n", Status: api.ManagedRunning, Seq: 1, SubmittedAt: start, Array: &api.ArrayProgress{Count: 10}}
	if err := s.PutManagedJobs(ctx, row); err != nil {
		t.Fatal(err)
	}
	rows, err := s.ManagedJob(ctx, 7)
	if n := rows[0].Array.Counts; err != nil || n[api.ManagedPending] != 8 || n[api.ManagedRunning] != 1 || n[api.ManagedSucceeded] != 1 {
		t.Errorf("%v %v", n, err)
	}
	row.Status, row.Seq, row.EndAt = api.ManagedCancelled, 2, &end
	if err := s.PutManagedJobs(ctx, row); err != nil {
		t.Fatal(err)
	}
	rows, err = s.ManagedJob(ctx, 7)
	if n := rows[0].Array.Counts; err != nil || n[api.ManagedCancelled] != 9 || len(n) != 2 {
		t.Errorf("%v %v", n, err)
	}
	clock.add(2 * time.Hour)
	if _, err := s.Collect(ctx, Retention{ManagedJobs: time.Hour}); err != nil {
		t.Fatal(err)
	}
	counts(map[api.ManagedStatus]int{})
	if e, err := s.Element(ctx, 7, 4); err != nil || e != nil {
		t.Errorf("left: %+v %v", e, err)
	}
}
