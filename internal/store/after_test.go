package store

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/api"
)

// numbers gives jobs 1 to n their numbers.
func numbers(t *testing.T, s *Store, n int) {
	t.Helper()
	_, err := s.JobNumbers(t.Context(), "req", n)
	must(t, err)
}

func ok(ids ...int64) (on []api.AfterJob) {
	for _, id := range ids {
		on = append(on, api.AfterJob{JobID: id})
	}
	return on
}

func states(ws []JobWait) string {
	var out []string
	for _, w := range ws {
		out = append(out, fmt.Sprintf("%s=%s", w.On, w.State))
	}
	return strings.Join(out, " ")
}

func due(t *testing.T, s *Store) string {
	t.Helper()
	ws, err := s.DueWaits(t.Context())
	must(t, err)
	return fmt.Sprint(ws)
}

func TestJobWaits(t *testing.T) {
	s, _ := open(t)
	ctx := t.Context()
	numbers(t, s, 9)
	wait := func(id int64, on ...api.AfterJob) string {
		t.Helper()
		ws, err := s.WaitForJobs(ctx, id, fmt.Sprint("wf", id), on)
		must(t, err)
		return states(ws)
	}
	// A number without rows is of a job that was just submitted.
	if got := wait(5, ok(1)...); got != "1:ok=open" {
		t.Fatal(got)
	}
	must(t, s.PutManagedJobs(ctx, managed(1, 0, api.ManagedPending, 1), managed(1, 1, api.ManagedPending, 1), managed(2, 0, api.ManagedRunning, 1)))
	if got := wait(6, api.AfterJob{JobID: 1, Any: true}, api.AfterJob{JobID: 2}); got != "1:any=open 2:ok=open" {
		t.Fatal(got)
	}
	if got := wait(7, api.AfterJob{JobID: 1, Any: true}); got != "1:any=open" {
		t.Fatal(got)
	}
	told, stop := s.Subscribe(WaitTopic)
	defer stop()
	all, stopAll := s.Subscribe(AllTopic)
	defer stopAll()
	// One of two tasks has ended: nobody is told.
	must(t, s.PutManagedJobs(ctx, managed(1, 0, api.ManagedFailed, 2)))
	if got := due(t, s); got != "[]" {
		t.Fatal(got)
	}
	ws, err := s.JobWaits(ctx, 5, 6, 9)
	must(t, err)
	if got := WaitWords(ws[6]); len(ws) != 2 || got != "waits for job 1 to end (now FAILED), job 2 to succeed (now RUNNING)" {
		t.Fatalf("%v %q", ws, got)
	}
	<-all
	must(t, s.PutManagedJobs(ctx, managed(1, 1, api.ManagedCancelled, 2)))
	<-told
	// 5 can never begin, 7 can; 6 waits for another one still.
	if got := due(t, s); got != "[{5 wf5} {7 wf7}]" {
		t.Fatal(got)
	}
	if got := wait(5, ok(1)...); got != "1:ok=never" {
		t.Fatal(got)
	}
	ws5, err := s.WaitForJobs(ctx, 5, "wf5", ok(1))
	must(t, err)
	if got := NeverWords(ws5); got != "job 1, which had to succeed first (--after 1:ok), ended FAILED" {
		t.Fatal(got)
	}
	must(t, s.WaitTold(ctx, 7))
	if got := due(t, s); got != "[]" {
		t.Fatal(got)
	}
	must(t, s.PutManagedJobs(ctx, managed(2, 0, api.ManagedSucceeded, 2)))
	if got := due(t, s); got != "[{6 wf6}]" {
		t.Fatal(got)
	}
	if got := wait(6, api.AfterJob{JobID: 1, Any: true}, api.AfterJob{JobID: 2}); got != "1:any=met 2:ok=met" {
		t.Fatal(got)
	}
	must(t, s.ForgetWait(ctx, 7))
	// What ends in any other way waits no more.
	if got := wait(8, ok(3)...); got != "3:ok=open" {
		t.Fatal(got)
	}
	must(t, s.PutManagedJobs(ctx, managed(8, 0, api.ManagedCancelled, 1)))
	var left int
	must(t, s.row(ctx, "SELECT count(*) FROM managed_waits").Scan(&left))
	if left != 0 {
		t.Errorf("%d waits are left", left)
	}
}

func TestJobWaitsFanIn(t *testing.T) {
	s, _ := open(t)
	ctx := t.Context()
	numbers(t, s, 101)
	var on []int64
	for id := range int64(100) {
		on = append(on, id+1)
	}
	_, err := s.WaitForJobs(ctx, 101, "wf", ok(on...))
	must(t, err)
	for _, id := range on {
		if got := due(t, s); got != "[]" {
			t.Fatalf("told before job %d ended: %s", id, got)
		}
		must(t, s.PutManagedJobs(ctx, managed(id, 0, api.ManagedSucceeded, 1)))
	}
	if got := due(t, s); got != "[{101 wf}]" {
		t.Error(got)
	}
}

func TestJobWaitsOnNothing(t *testing.T) {
	s, _ := open(t)
	ctx := t.Context()
	numbers(t, s, 4)
	for _, on := range []int64{4, 5, 3} { // unknown, a later one, itself
		ws, err := s.WaitForJobs(ctx, 3, "wf", ok(on))
		must(t, err)
		if got := NeverWords(ws); !strings.Contains(got, fmt.Sprintf("there is no managed job %d to wait for", on)) {
			t.Errorf("%d: %q", on, got)
		}
	}
	for req, want := range map[string]string{"new": "[7 9]", "req": "[]"} {
		ids, err := s.UnknownJobs(context.Background(), req, ok(1, 7, 9))
		must(t, err)
		if fmt.Sprint(ids) != want {
			t.Errorf("%s: %v, want %s", req, ids, want)
		}
	}
}
