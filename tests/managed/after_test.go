package managed

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.temporal.io/sdk/client"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/testserver"
)

const patience = 3 * time.Minute

// submit submits a job and gives its number.
func submit(t *testing.T, s *testserver.Server, task string, after ...string) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ref, err := s.Client.LaunchJobs(ctx, &api.JobsLaunchBody{Base: api.Base{RequestID: uuid.NewString(), User: "ana"}, Task: task, After: after})
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Client.WaitRequest(ctx, ref.RequestID)
	if err != nil {
		t.Fatal(err)
	}
	var res api.JobsLaunchResult
	if err := json.Unmarshal(r.Result, &res); err != nil || len(res.JobIDs) != 1 {
		t.Fatalf("%s %v", r.Result, err)
	}
	return res.JobIDs[0]
}

// row is a job's first row.
func row(t *testing.T, s *testserver.Server, id int64) api.ManagedJob {
	t.Helper()
	l, err := s.Client.ManagedJobs(context.Background(), api.ManagedFilter{IDs: []int64{id}})
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Jobs) == 0 {
		return api.ManagedJob{}
	}
	return l.Jobs[0]
}

// until waits for a job's first row to be as wished.
func until(t *testing.T, s *testserver.Server, id int64, what string, wish func(api.ManagedJob) bool) api.ManagedJob {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(30 * time.Millisecond) {
		r := row(t, s, id)
		if wish(r) {
			return r
		}
		if time.Now().After(end) {
			t.Fatalf("job %d is not %s: %s %q %q", id, what, r.Status, r.Details, r.FailureReason)
		}
	}
}

func ended(t *testing.T, s *testserver.Server, id int64, want api.ManagedStatus) api.ManagedJob {
	t.Helper()
	r := until(t, s, id, "ended", func(r api.ManagedJob) bool { return r.Status.Terminal() })
	if r.Status != want {
		t.Errorf("job %d ended %s (%s), want %s", id, r.Status, r.FailureReason, want)
	}
	return r
}

func waits(t *testing.T, s *testserver.Server, id int64, why string) {
	t.Helper()
	until(t, s, id, "waiting", func(r api.ManagedJob) bool { return r.Status == api.ManagedPending && strings.Contains(r.Details, why) })
}

func story(t *testing.T, s *testserver.Server, id int64) string {
	t.Helper()
	evs, err := s.Client.ManagedEvents(context.Background(), id, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range evs {
		b.WriteString(e.Message + "\n")
	}
	return b.String()
}

func TestAfter(t *testing.T) {
	s := testserver.Start(t, config)
	ctx := context.Background()
	on := func(id int64, how string) string { return fmt.Sprintf("%d:%s", id, how) }
	good := submit(t, s, "name: good\nrun: sleep 1")
	bad := submit(t, s, "name: bad\nrun: sleep 1; exit 3")
	long := submit(t, s, "name: long\nrun: sleep 1000")

	afterGood := submit(t, s, "name: after-good\nrun: echo hi", on(good, "ok"))
	afterBad := submit(t, s, "name: p\n---\nname: one\nrun: echo hi\n---\nname: two\nrun: echo hi\n", on(bad, "ok"), on(long, "any"))
	whatever := submit(t, s, "name: whatever\nrun: echo hi", on(bad, "any"), on(good, "ok"))
	afterLong := submit(t, s, "name: after-long\nrun: echo hi", on(long, "ok"))
	anyLong := submit(t, s, "name: any-long\nrun: echo hi", on(long, "any"))
	chain := submit(t, s, "name: chain\nrun: echo hi", on(afterGood, "ok"))
	broken := submit(t, s, "name: broken\nrun: echo hi", on(afterBad, "ok"))
	given := submit(t, s, "name: given-up\nrun: echo hi", on(long, "any"))
	group := submit(t, s, "name: g\nexecution: parallel\n---\nname: a\nrun: echo 1\n---\nname: b\nrun: echo 2\n", on(good, "ok"))

	waits(t, s, afterLong, fmt.Sprintf("waits for job %d to succeed", long))
	waits(t, s, anyLong, fmt.Sprintf("waits for job %d to end", long))
	if _, err := s.Client.CancelManagedJobs(ctx, &api.JobsCancelBody{JobIDs: []int64{given}}); err != nil {
		t.Fatal(err)
	}
	if r := ended(t, s, given, api.ManagedCancelled); r.FailureReason != "cancelled" {
		t.Errorf("%q", r.FailureReason)
	}
	ended(t, s, good, api.ManagedSucceeded)
	ended(t, s, bad, api.ManagedFailed)
	ended(t, s, afterGood, api.ManagedSucceeded)
	ended(t, s, whatever, api.ManagedSucceeded)
	ended(t, s, chain, api.ManagedSucceeded)
	ended(t, s, group, api.ManagedSucceeded)
	want := fmt.Sprintf("job %d, which had to succeed first (--after %d:ok), ended FAILED", bad, bad)
	if r := ended(t, s, afterBad, api.ManagedCancelled); !strings.HasPrefix(r.FailureReason, want) || r.Attempt != 0 {
		t.Errorf("%q, attempt %d", r.FailureReason, r.Attempt)
	}
	if r := ended(t, s, broken, api.ManagedCancelled); !strings.Contains(r.FailureReason, "ended CANCELLED: job") {
		t.Errorf("%q", r.FailureReason)
	}
	if got := story(t, s, afterBad); !strings.Contains(got, "CANCELLED: "+want) { // it may have ended before anybody waited
		t.Errorf("%s", got)
	}
	if got := story(t, s, chain); !strings.Contains(got, fmt.Sprintf("it begins: job %d has SUCCEEDED", afterGood)) {
		t.Errorf("%s", got)
	}
	// A dependency that is cancelled.
	until(t, s, long, "running", func(r api.ManagedJob) bool { return r.Status == api.ManagedRunning })
	waits(t, s, afterLong, "(now RUNNING)")
	if _, err := s.Client.CancelManagedJobs(ctx, &api.JobsCancelBody{JobIDs: []int64{long}}); err != nil {
		t.Fatal(err)
	}
	if r := ended(t, s, afterLong, api.ManagedCancelled); !strings.Contains(r.FailureReason, "ended CANCELLED: cancelled") {
		t.Errorf("%q", r.FailureReason)
	}
	if got := story(t, s, afterLong); !strings.Contains(got, fmt.Sprintf("waits for job %d to succeed", long)) || !strings.Contains(got, "CANCELLED: job") {
		t.Errorf("%s", got)
	}
	ended(t, s, anyLong, api.ManagedSucceeded)
	// After what has ended long ago.
	ended(t, s, submit(t, s, "name: late\nrun: echo hi", on(good, "ok"), on(bad, "any")), api.ManagedSucceeded)
	ended(t, s, submit(t, s, "name: late\nrun: echo hi", on(bad, "ok")), api.ManagedCancelled)
	nothingLeft(t, s)
}

// foreign starts a job as a foreign program would.
func foreign(t *testing.T, c client.Client, queue, task, after string) client.WorkflowRun {
	t.Helper()
	r, err := c.ExecuteWorkflow(context.Background(), client.StartWorkflowOptions{TaskQueue: queue}, "ManagedJob", map[string]any{"body": map[string]any{"task": task, "after": []string{after}}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAfterNobody(t *testing.T) {
	s := testserver.Start(t, config)
	ctx := context.Background()
	_, err := s.Client.LaunchJobs(ctx, &api.JobsLaunchBody{Base: api.Base{RequestID: uuid.NewString()}, Task: "run: echo hi", After: []string{"7", "9:any"}})
	if err == nil || !strings.Contains(err.Error(), "there is no managed job 7,9 to wait for; nothing was submitted") {
		t.Errorf("got %v", err)
	}
	_, err = s.Client.LaunchJobs(ctx, &api.JobsLaunchBody{Base: api.Base{RequestID: uuid.NewString()}, Task: "run: echo hi", After: []string{"7:failed"}})
	if err == nil || !strings.Contains(err.Error(), `"7:failed" is none of ID, ID:ok, ID:any`) {
		t.Errorf("got %v", err)
	}
	if l, err := s.Client.ManagedJobs(ctx, api.ManagedFilter{}); err != nil || l.Total != 0 {
		t.Errorf("%+v %v", l, err)
	}
	// A foreign program's job is judged by its workflow.
	c, queue := engine(t, s)
	first := run(t, ctx, c, queue, "name: first\nrun: sleep 1")
	id := int64(1)
	until(t, s, id, "there", func(r api.ManagedJob) bool { return r.Name == "first" })
	second := foreign(t, c, queue, "run: echo hi", fmt.Sprint(id))
	nobody := foreign(t, c, queue, "run: echo hi", "77")
	if err := first.Get(ctx, nil); err != nil {
		t.Error(err)
	}
	var res result
	if err := second.Get(ctx, &res); err != nil || res.Status != api.ManagedSucceeded {
		t.Errorf("%+v %v", res, err)
	}
	if err := nobody.Get(ctx, nil); err == nil || !strings.Contains(err.Error(), "cancel") {
		t.Errorf("got %v", err)
	}
	nothingLeft(t, s)
}
