package managed

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/testserver"
)

// cloud has two regions with the large machine, of which the north is cheaper, and a third, the cheapest, without it. capacity is of
// large machines in the north.
func cloud(capacity int) string {
	return fmt.Sprintf(`local: {enabled: false}
memory_provider:
  enabled: true
  regions:
  - {name: east, price_factor: 1, zones: [{name: east-a}]}
  - {name: north, price_factor: 2, zones: [{name: north-a, capacity: {large: %d}}]}
  - {name: west, price_factor: 3, zones: [{name: west-a}]}
  types:
  - {name: small, cpus: 2, memory_gb: 8, price: 1, spot_price: 0.5}
  - {name: large, cpus: 16, memory_gb: 64, price: 4, spot_price: 2, zones: [north-a, west-a]}
`, capacity)
}

const pair = "name: g\nexecution: parallel\n---\nname: s\nresources: {cpus: 2}\nrun: sleep 1000\n---\nname: l\nresources: {cpus: 16, use_spot: true}\nrun: sleep 1000\n"

// tasks are the rows of a job's tasks.
func tasks(t *testing.T, s *testserver.Server, id int64) []api.ManagedJob {
	t.Helper()
	l, err := s.Client.ManagedJobs(context.Background(), api.ManagedFilter{IDs: []int64{id}})
	if err != nil {
		t.Fatal(err)
	}
	return l.Jobs
}

// all waits for all tasks of a job to be as wished.
func all(t *testing.T, s *testserver.Server, id int64, what string, wish func(api.ManagedJob) bool) []api.ManagedJob {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(30 * time.Millisecond) {
		rows, good := tasks(t, s, id), 0
		for _, r := range rows {
			if wish(r) {
				good++
			}
		}
		if good > 0 && good == len(rows) {
			return rows
		}
		if time.Now().After(end) {
			t.Fatalf("the tasks of job %d are not %s: %+v\n%s", id, what, rows, story(t, s, id))
		}
	}
}

func in(t *testing.T, s *testserver.Server, rows []api.ManagedJob, regions ...string) {
	t.Helper()
	for i, r := range rows {
		if r.Region != regions[i] {
			t.Errorf("task %s is in %s, want %s\n%s", r.TaskName, r.Region, regions[i], story(t, s, r.ID))
		}
	}
}

func tells(t *testing.T, s *testserver.Server, id int64, words string) {
	t.Helper()
	if told := story(t, s, id); !strings.Contains(told, words) {
		t.Errorf("job %d does not tell %q:\n%s", id, words, told)
	}
}

func cancelled(t *testing.T, s *testserver.Server, id int64) {
	t.Helper()
	if _, err := s.Client.CancelManagedJobs(context.Background(), &api.JobsCancelBody{JobIDs: []int64{id}}); err != nil {
		t.Fatal(err)
	}
	all(t, s, id, "ended", func(r api.ManagedJob) bool { return r.Status == api.ManagedCancelled })
}

// The small task would go to the cheapest region alone; the large one can't be there. The group goes to the cheapest that can hold both,
// and a task that is lost comes back to it.
func TestGroupSharesAnInfra(t *testing.T) {
	s := testserver.Start(t, cloud(1))
	// Whoever looks before is shown the same.
	docs := strings.Split(pair, "---\n")[1:]
	plan, err := s.Client.Optimize(context.Background(), &api.OptimizeBody{Task: docs[0], Managed: true, Group: docs})
	if err != nil || plan.Candidates[0].Region != "north" || !plan.Candidates[0].Chosen || !slices.Contains(plan.Notes, "all tasks of the group go to memory (north): $6.00 per hour in all") {
		t.Errorf("shown is %+v, %v", plan, err)
	}
	id := submit(t, s, pair)
	in(t, s, all(t, s, id, "running", running), "north", "north")
	tells(t, s, id, "the group goes to memory (north): $6.00 per hour in all, the cheapest of 2 place(s)")

	// A task that is lost comes back to the others, whatever its own strategy is.
	body := api.PreemptBody{Base: api.Base{RequestID: api.NewRequestID()}, Cluster: fmt.Sprintf("l-%d-1", id)}
	if _, err := s.Client.Preempt(context.Background(), &body); err != nil {
		t.Fatal(err)
	}
	in(t, s, all(t, s, id, "recovered", func(r api.ManagedJob) bool { return running(r) && (r.TaskName == "s" || r.Recoveries > 0) }), "north", "north")
	cancelled(t, s, id)
}

// Where the cheapest common region has no room for one of the tasks, all of them go to the next one.
func TestGroupMovesTogether(t *testing.T) {
	s := testserver.Start(t, cloud(0))
	id := submit(t, s, pair)
	in(t, s, all(t, s, id, "running", running), "west", "west")
	tells(t, s, id, "the group goes to memory (north)")
	tells(t, s, id, "the group goes to memory (west): $9.00 per hour in all")
	cancelled(t, s, id)
}

// Tasks that no place can hold together run apart, with a warning.
func TestGroupApart(t *testing.T) {
	s := testserver.Start(t, cloud(1))
	id := submit(t, s, "name: g\nexecution: parallel\n---\nname: s\nresources: {cpus: 2, infra: memory/east}\nrun: sleep 1000\n---\nname: l\nresources: {cpus: 16}\nrun: sleep 1000\n")
	in(t, s, all(t, s, id, "running", running), "east", "north")
	tells(t, s, id, "no infra and region can hold all tasks of the group")
	cancelled(t, s, id)
}

// A task that can't be launched gives the job its state and reason, wherever it stands and whatever it is.
func TestGroupLaunchFailure(t *testing.T) {
	s := testserver.Start(t, cloud(1))
	const good, bad, group = "---\nname: good\nrun: sleep 1000\n", "---\nname: bad\nresources: {cpus: 100000}\nrun: sleep 1000\n", "name: g\nexecution: parallel\n"
	c, queue := engine(t, s)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for name, text := range map[string]string{"first": group + bad + good, "last": group + good + bad, "not a primary one": group + "primary_tasks: [good]\n" + good + bad} {
		r := run(t, ctx, c, queue, text)
		id := job(t, s, r.GetID())
		if err := r.Get(ctx, nil); said(err).Kind != string(api.ManagedFailedPrechecks) || !strings.Contains(said(err).Message, "100000") {
			t.Errorf("%s: the workflow ended with %v", name, err)
		}
		rows := tasks(t, s, id)
		status, decisive := api.ManagedState(rows)
		if status != api.ManagedFailedPrechecks || decisive.TaskName != "bad" || decisive.FailureReason == "" {
			t.Errorf("%s: the job is %s, by task %s: %s", name, status, decisive.TaskName, decisive.FailureReason)
		}
		for _, r := range rows {
			if r.TaskName == "good" && (r.Status != api.ManagedCancelled || r.EndedBy != "bad" || !strings.Contains(r.FailureReason, "task bad of the group could not be launched: ")) {
				t.Errorf("%s: the other task is %s: %s", name, r.Status, r.FailureReason)
			}
		}
	}
}
