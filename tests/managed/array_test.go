package managed

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/testserver"
)

func listed(t *testing.T, s *testserver.Server, id int64, f api.ElementFilter) *api.ElementList {
	t.Helper()
	list, err := s.Client.Elements(context.Background(), id, f)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

var everyElement = api.ElementFilter{Last: -1}

func elementText(t *testing.T, s *testserver.Server, id int64, element int) (text string, end *api.ManagedLogEnd) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	end, err := s.Client.ManagedLogs(ctx, id, api.ManagedLogFilter{Element: &element, Follow: true}, func(c api.LogChunk) error {
		text += string(c.Data)
		return nil
	})
	if err != nil {
		t.Fatalf("log of element %d: %v", element, err)
	}
	return text, end
}

func arrayStory(t *testing.T, s *testserver.Server) {
	t.Helper()
	if !t.Failed() {
		return
	}
	evs, err := s.Client.Events(context.Background(), api.EventFilter{Limit: 1000})
	if err != nil {
		t.Log(err)
	}
	for _, e := range evs {
		t.Logf("%s job %d %s %s: %s", e.Time.Format(time.StampMilli), e.JobID, e.Cluster, e.Step, e.Message)
	}
}

// startArray runs an array under its own workflow id, as a submission does.
func startArray(t *testing.T, ctx context.Context, c client.Client, queue, task string) (client.WorkflowRun, int64) {
	t.Helper()
	r := run(t, ctx, c, queue, task)
	return r, 1
}

func TestArray(t *testing.T) {
	s := testserver.Start(t, config)
	c, queue := engine(t, s)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r, id := startArray(t, ctx, c, queue, "name: sweep\narray: {count: 40, parallel: 3}\nrun: echo element $SKYPILOT_ARRAY_INDEX of $SKYPILOT_ARRAY_COUNT\n")
	var res result
	if err := r.Get(ctx, &res); err != nil || res.Status != api.ManagedSucceeded {
		t.Errorf("%v %+v %v", err, res, said(err))
	}
	rows, err := s.Client.ManagedJob(ctx, id)
	if err != nil || len(rows) != 1 || rows[0].Array == nil || rows[0].Array.Counts[api.ManagedSucceeded] != 40 || rows[0].Array.Count != 40 {
		t.Errorf("%+v %v", rows, err)
	}
	list := listed(t, s, id, everyElement)
	if len(list.Elements) != 40 || list.Counts[api.ManagedSucceeded] != 40 {
		t.Errorf("%d elements, %v", len(list.Elements), list.Counts)
	}
	for i, e := range list.Elements {
		if e.Index != i || e.Status != api.ManagedSucceeded || e.Attempt != 1 || e.EndAt == nil || e.Cluster == "" {
			t.Errorf("%+v", e)
		}
	}
	if part := listed(t, s, id, api.ElementFilter{First: 5, Last: 20, Limit: 3}); len(part.Elements) != 3 || part.Elements[0].Index != 5 || part.Next == nil || *part.Next != 8 {
		t.Errorf("%+v", part)
	}
	for _, i := range []int{0, 17, 39} {
		text, end := elementText(t, s, id, i)
		if want := fmt.Sprintf("element %d of 40\n", i); text != want || end.Status != api.ManagedSucceeded {
			t.Errorf("element %d: %q, %+v", i, text, end)
		}
	}
	nothingLeft(t, s)
	arrayStory(t, s)
}

func TestArrayFailures(t *testing.T) {
	s := testserver.Start(t, config)
	c, queue := engine(t, s)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r, id := startArray(t, ctx, c, queue, "name: mixed\narray: {values: {CODE: [0, 3, 33], N: [1, 2]}, parallel: 2}\nresources: {job_recovery: {max_restarts_on_errors: 1}}\nrun: echo $N; exit $CODE\n")
	err := r.Get(ctx, nil)
	if err == nil || !strings.Contains(err.Error(), "FAILED") || !strings.Contains(said(err).Message, "4 of 6 elements failed: 2, 3, 4, 5") {
		t.Errorf("%v %v", err, said(err))
	}
	list := listed(t, s, id, everyElement)
	for i, e := range list.Elements {
		want, attempts := api.ManagedSucceeded, 1
		if i >= 2 {
			want, attempts = api.ManagedFailed, 2
		}
		if e.Status != want || e.Attempt != attempts || e.Restarts != attempts-1 || e.Values["N"] != fmt.Sprint(i%2+1) {
			t.Errorf("%+v", e)
		}
	}
	if text, end := elementText(t, s, id, 3); text != "2\n2\n" || end.Status != api.ManagedFailed {
		t.Errorf("%q %+v", text, end)
	}
	if failed := listed(t, s, id, api.ElementFilter{Last: -1, Statuses: []api.ManagedStatus{api.ManagedFailed}}); len(failed.Elements) != 4 {
		t.Errorf("%+v", failed)
	}
	nothingLeft(t, s)
	arrayStory(t, s)
}

func TestArrayCancelled(t *testing.T) {
	s := testserver.Start(t, config)
	c, queue := engine(t, s)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r, id := startArray(t, ctx, c, queue, "name: long\narray: {count: 1000, parallel: 2}\nrun: echo begun; sleep 1000\n")
	for listed(t, s, id, everyElementSoon(s, id)).Counts[api.ManagedRunning] < 2 {
		time.Sleep(50 * time.Millisecond)
	}
	if text, _ := liveText(t, s, id, 0); text != "begun\n" {
		t.Errorf("log of a running element: %q", text)
	}
	if err := c.CancelWorkflow(ctx, r.GetID(), ""); err != nil {
		t.Fatal(err)
	}
	if err := r.Get(ctx, nil); err == nil || !strings.Contains(err.Error(), "cancel") {
		t.Fatalf("got %v", err)
	}
	if n := listed(t, s, id, everyElement).Counts; n[api.ManagedCancelled] != 1000 || len(n) != 1 {
		t.Errorf("%v", n)
	}
	if text, end := elementText(t, s, id, 0); text != "begun\n" || end.Status != api.ManagedCancelled {
		t.Errorf("%q %+v", text, end)
	}
	nothingLeft(t, s)
	arrayStory(t, s)
}

// everyElementSoon waits until the array is known.
func everyElementSoon(s *testserver.Server, id int64) api.ElementFilter {
	for {
		if _, err := s.Client.Elements(context.Background(), id, everyElement); err == nil {
			return everyElement
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func liveText(t *testing.T, s *testserver.Server, id int64, element int) (text string, end *api.ManagedLogEnd) {
	t.Helper()
	end, err := s.Client.ManagedLogs(context.Background(), id, api.ManagedLogFilter{Element: &element}, func(c api.LogChunk) error {
		text += string(c.Data)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return text, end
}

// A cluster that is taken away in the middle gives back what it had not finished; what had succeeded is not run again.
func TestArrayPreempted(t *testing.T) {
	s := testserver.Start(t, config)
	c, queue := engine(t, s)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r, id := startArray(t, ctx, c, queue, "name: spot\narray: {count: 48, parallel: 2}\nresources: {use_spot: true}\nrun: sleep 6\n")
	everyElementSoon(s, id)
	// A cluster that has finished elements and has just begun others: what it runs has most of its time before it.
	var victim string
	for victim == "" {
		time.Sleep(50 * time.Millisecond)
		ended := map[string]time.Time{}
		for _, e := range listed(t, s, id, everyElement).Elements {
			if e.Status == api.ManagedSucceeded {
				ended[e.Cluster] = *e.EndAt
			} else if end, ok := ended[e.Cluster]; ok && e.Status == api.ManagedRunning && !e.StartAt.Before(end) {
				victim = e.Cluster
			}
		}
	}
	before := listed(t, s, id, api.ElementFilter{Last: -1, Statuses: []api.ManagedStatus{api.ManagedSucceeded}})
	body := api.PreemptBody{Base: api.Base{RequestID: api.NewRequestID()}, Cluster: victim}
	if _, err := s.Client.Preempt(ctx, &body); err != nil {
		t.Fatal(err)
	}
	var res result
	if err := r.Get(ctx, &res); err != nil || res.Status != api.ManagedSucceeded {
		t.Errorf("%v %+v %v", err, res, said(err))
	}
	rows, err := s.Client.ManagedJob(ctx, id)
	if err != nil || rows[0].Recoveries < 1 || rows[0].Array.Counts[api.ManagedSucceeded] != 48 {
		t.Errorf("%+v %v", rows, err)
	}
	again := 0
	for _, e := range listed(t, s, id, everyElement).Elements {
		if e.Attempt > 1 {
			again++
		}
		for _, b := range before.Elements {
			if b.Index == e.Index && (e.Attempt != 1 || e.ClusterHash != b.ClusterHash) {
				t.Errorf("%+v was run again: %+v", b, e)
			}
		}
	}
	if again == 0 {
		t.Errorf("no element of %s came back; %d had succeeded before", victim, len(before.Elements))
	}
	nothingLeft(t, s)
	arrayStory(t, s)
}
