package histories

import (
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/providers/memory"
	"github.com/skyloom/skyloom/tests/faults/world"
)

// recordManaged records a managed job of each kind, and of each way in which one ends or begins anew.
func recordManaged(t *testing.T) {
	w := world.NewReal(t, world.Options{Seed: 3, Cloud: memory.Config{CreateDelay: memory.Duration(300 * time.Millisecond)}})
	w.Acts.Home = t.TempDir()
	jobs := map[string]*world.Managed{}
	submit := func(story, text string, rank, of int) { jobs[story] = w.StartJob(int64(len(jobs)+1), rank, of, text) }
	status := func(want api.ManagedStatus) func([]api.ManagedJob) bool {
		return func(rows []api.ManagedJob) bool { got, _ := api.ManagedState(rows); return got == want }
	}

	w.Cloud.Script(memory.Fault{Call: "create", Cluster: "late-11", Err: providers.Errorf(providers.NoCapacity, providers.ScopeCloud, "no capacity anywhere")})
	submit("job-single", "name: one\n"+quick, 0, 0)
	submit("job-numbered", "name: rank\n"+quick, 1, 3)
	submit("job-pipeline", "name: p\n---\nname: a\n"+quick+"---\nname: b\n"+quick, 0, 0)
	submit("job-pipeline-failed", "name: p\n---\nname: a\nrun: exit 1\n---\nname: b\n"+quick, 0, 0)
	submit("job-group-met", "name: g\nexecution: parallel\nprimary_tasks: [a]\ntermination_delay: 1s\n---\nname: a\n"+quick+"---\nname: b\n"+long, 0, 0)
	submit("job-restarted", "name: again\nresources: {job_recovery: {max_restarts_on_errors: 1}}\nrun: exit 3\n", 0, 0)
	submit("job-failed-setup", "name: s\nsetup: exit 1\nrun: echo never\n", 0, 0)
	submit("job-failed-prechecks", "name: huge\nresources: {cpus: 100000}\nrun: echo never\n", 0, 0)
	submit("job-recovered", "name: lost\n"+strings.ReplaceAll(spot, "sleep 36000", "sleep 5"), 0, 0)
	submit("job-cancelled", "name: away\n"+long, 0, 0)
	submit("job-backed-off", "name: late\n"+quick, 0, 0)
	submit("job-group-recovered", "name: g\nexecution: parallel\nprimary_tasks: [a]\n---\nname: a\n"+strings.ReplaceAll(spot, "sleep 36000", "sleep 5")+"---\nname: b\n"+long, 0, 0)
	jobs["job-group-recovered"].Take(0)
	jobs["job-recovered"].Take(0)
	jobs["job-cancelled"].Is(api.ManagedRunning)
	jobs["job-cancelled"].Cancel()
	ends := map[string]api.ManagedStatus{"job-pipeline-failed": api.ManagedFailed, "job-restarted": api.ManagedFailed, "job-failed-setup": api.ManagedFailedSetup,
		"job-failed-prechecks": api.ManagedFailedPrechecks, "job-cancelled": api.ManagedCancelled}
	for story, m := range jobs {
		want := ends[story]
		if want == "" {
			want = api.ManagedSucceeded
		}
		if rows := m.Ended(); !status(want)(rows) {
			t.Errorf("%s ended as %+v", story, rows)
		}
		save(t, w, story, m.WorkflowID(), "")
	}
}
