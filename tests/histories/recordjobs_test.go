package histories

import (
	"context"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/providers/memory"
	"github.com/skyloom/skyloom/tests/faults/world"
	"github.com/skyloom/skyloom/worker"
	"github.com/skyloom/skyloom/workflows"
)

// recordManaged records a managed job of each kind, and of each way in which one ends or begins anew.
func recordManaged(t *testing.T) {
	w := world.NewReal(t, world.Options{Seed: 3, Cloud: memory.Config{CreateDelay: memory.Duration(300 * time.Millisecond)}})
	w.Acts.Home = t.TempDir()
	numbers := map[string]int64{}
	submit := func(story, text string, rank, of int) {
		t.Helper()
		id := int64(len(numbers) + 1)
		numbers[story] = id
		in := workflows.ManagedInput{ID: id, Rank: rank, NumJobs: of, Body: api.JobsLaunchBody{
			Base: api.Base{RequestID: api.NewRequestID(), User: "u", UserHash: "00000001"}, Task: text, NumJobs: of}}
		if _, err := w.Client.ExecuteWorkflow(context.Background(), client.StartWorkflowOptions{ID: worker.ManagedWorkflowID(id), TaskQueue: activities.QueueMain,
			WorkflowTaskTimeout: activities.WorkflowTaskTimeout}, "ManagedJob", in); err != nil {
			t.Fatal(err)
		}
	}
	until := func(story string, ok func([]api.ManagedJob) bool) []api.ManagedJob {
		t.Helper()
		for end := time.Now().Add(5 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
			rows, err := w.Store.ManagedJob(context.Background(), numbers[story])
			if err == nil && ok(rows) {
				return rows
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %v, %+v", story, err, rows)
			}
		}
	}
	status := func(want api.ManagedStatus) func([]api.ManagedJob) bool {
		return func(rows []api.ManagedJob) bool { got, _ := api.ManagedState(rows); return got == want }
	}
	cancel := func(story string) {
		t.Helper()
		if err := w.Client.CancelWorkflow(context.Background(), worker.ManagedWorkflowID(numbers[story]), ""); err != nil {
			t.Fatal(err)
		}
	}
	preempt := func(story string) {
		t.Helper()
		row := until(story, status(api.ManagedRunning))[0]
		nodes, err := w.Cloud.List(context.Background(), providers.Tag{Installation: w.Store.Installation(), ClusterHash: row.ClusterHash})
		if err != nil || len(nodes) != 1 {
			t.Fatal(err, nodes)
		}
		if err := w.Cloud.Preempt(context.Background(), nodes[0].Cluster, nodes[0].ID, 0); err != nil {
			t.Fatal(err)
		}
	}

	w.Cloud.Script(memory.Fault{Call: "create", Cluster: "late-11", Err: providers.Errorf(providers.NoCapacity, providers.ScopeCloud, "no capacity anywhere")})
	submit("job-single", "name: one\n"+quick, 0, 0)
	submit("job-numbered", "name: rank\n"+quick, 1, 3)
	submit("job-pipeline", "name: p\n---\nname: a\n"+quick+"---\nname: b\n"+quick, 0, 0)
	submit("job-pipeline-failed", "name: p\n---\nname: a\nrun: exit 1\n---\nname: b\n"+quick, 0, 0)
	submit("job-group", "name: g\nexecution: parallel\nprimary_tasks: [a]\ntermination_delay: 1s\n---\nname: a\n"+quick+"---\nname: b\n"+long, 0, 0)
	submit("job-restarted", "name: again\nresources: {job_recovery: {max_restarts_on_errors: 1}}\nrun: exit 3\n", 0, 0)
	submit("job-failed-setup", "name: s\nsetup: exit 1\nrun: echo never\n", 0, 0)
	submit("job-failed-prechecks", "name: huge\nresources: {cpus: 100000}\nrun: echo never\n", 0, 0)
	submit("job-recovered", "name: lost\n"+strings.ReplaceAll(spot, "sleep 36000", "sleep 5"), 0, 0)
	submit("job-cancelled", "name: away\n"+long, 0, 0)
	submit("job-backed-off", "name: late\n"+quick, 0, 0)
	preempt("job-recovered")
	until("job-cancelled", status(api.ManagedRunning))
	cancel("job-cancelled")
	ends := map[string]api.ManagedStatus{"job-pipeline-failed": api.ManagedFailed, "job-restarted": api.ManagedFailed, "job-failed-setup": api.ManagedFailedSetup,
		"job-failed-prechecks": api.ManagedFailedPrechecks, "job-cancelled": api.ManagedCancelled}
	for story := range numbers {
		want := ends[story]
		if want == "" {
			want = api.ManagedSucceeded
		}
		until(story, func(rows []api.ManagedJob) bool {
			for _, r := range rows {
				if !r.Status.Terminal() {
					return false
				}
			}
			return status(want)(rows)
		})
		save(t, w, story, worker.ManagedWorkflowID(numbers[story]), "")
	}
}
