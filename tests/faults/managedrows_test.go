package faults

import (
	"fmt"
	"testing"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/providers/memory"
	"github.com/skyloom/skyloom/tests/faults/world"
)

// The region that a managed job runs in goes out: it goes on in the other one, and nothing of it is left.
func TestManagedRegionOut(t *testing.T) {
	w := world.NewReal(t, world.Options{Seed: 10})
	w.Acts.Home = t.TempDir()
	m := w.StartJob(1, 0, 0, "name: out\nrun: sleep 10\n")
	first := m.Is(running)[0]
	for _, z := range []string{"east-1a", "east-1b", "east-1c"} {
		w.Cloud.KillZone(z)
	}
	row := m.Ended()[0]
	if row.Status != succeeded || row.Recoveries != 1 || first.Region != "east-1" || row.Region != "west-1" {
		t.Errorf("from %s to %s: %s after %d recoveries (%s)", first.Region, row.Region, row.Status, row.Recoveries, row.FailureReason)
	}
	empty(t, w)
}

// The credentials expire while a managed job runs, and come back: nothing is known of its nodes meanwhile, so nothing changes.
func TestManagedCredentialsExpire(t *testing.T) {
	w := world.NewReal(t, world.Options{Seed: 11})
	w.Acts.Home = t.TempDir()
	m := w.StartJob(1, 0, 0, "name: key\nrun: sleep 12\n")
	row := m.Is(running)[0]
	bad := providers.Errorf(providers.AuthFailed, providers.ScopeCloud, "the key has expired")
	w.Cloud.Script(memory.Fault{Call: "list", Err: bad, Times: 6}, memory.Fault{Call: "delete", Err: bad, Times: 3})
	w.Reap()
	for range 3 { // somebody looks at it
		if err := w.Client.SignalWorkflow(t.Context(), m.WorkflowID(), "", activities.SignalObserved, activities.Observed{Hash: row.ClusterHash, Kind: activities.ObservedNodes}); err != nil {
			t.Fatal(err)
		}
	}
	if row := m.Ended()[0]; row.Status != succeeded || row.Attempt != 1 {
		t.Errorf("%s in attempt %d (%s)", row.Status, row.Attempt, row.FailureReason)
	}
	empty(t, w)
}

// What a managed job is told comes twice, and late: of nodes it has no more, of jobs that are not its own, of an admission it had
// long ago. None of it changes what it does.
func TestManagedSignalsTwiceAndLate(t *testing.T) {
	w := world.NewReal(t, world.Options{Seed: 12})
	w.Acts.Home = t.TempDir()
	m := w.StartJob(1, 0, 0, "name: late\nresources: {use_spot: true}\nrun: sleep 16\n")
	old := m.Is(running)[0]
	failed := api.Job{ID: old.ClusterJobID, Status: api.JobFailed, ExitCodes: []int{1}}
	other := failed
	other.ID += 7
	tell := func(o activities.Observed) {
		for range 2 {
			if err := w.Client.SignalWorkflow(t.Context(), m.WorkflowID(), "", activities.SignalObserved, o); err != nil {
				t.Fatal(err)
			}
			if err := w.Client.SignalWorkflow(t.Context(), m.WorkflowID(), "", activities.SignalAdmitted, nil); err != nil {
				t.Fatal(err)
			}
			if err := w.Client.SignalWorkflow(t.Context(), m.WorkflowID(), "", activities.SignalWaited, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	tell(activities.Observed{Hash: old.ClusterHash, Kind: activities.ObservedReady})
	tell(activities.Observed{Hash: old.ClusterHash, Kind: activities.ObservedJob, Job: &other})
	m.Take(0)
	m.Until("running again", func(rows []api.ManagedJob) bool { return rows[0].Status == running && rows[0].Recoveries == 1 })
	for _, kind := range []activities.ObservedKind{activities.ObservedJob, activities.ObservedLost, activities.ObservedNodes, activities.ObservedAutostop} {
		tell(activities.Observed{Hash: old.ClusterHash, Kind: kind, Job: &failed, Message: "is lost"})
	}
	row := m.Ended()[0]
	if row.Status != succeeded || row.Attempt != 2 || row.Recoveries != 1 {
		t.Errorf("%s in attempt %d, after %d recoveries (%s)", row.Status, row.Attempt, row.Recoveries, row.FailureReason)
	}
	m.Close()
	if want := []api.ManagedStatus{pending, starting, running, recovering, running, succeeded}; !passed(m.Seen[0], want) {
		t.Errorf("went through %v, want %v", m.Seen[0], want)
	}
	empty(t, w)
}

// What clouds do to creates and deletes of a managed job's nodes: there is one set of machines at a time, and none in the end.
func TestManagedOddCloud(t *testing.T) {
	w := world.NewReal(t, world.Options{Seed: 13})
	w.Acts.Home = t.TempDir()
	full := providers.Errorf(providers.NoCapacity, providers.ScopeZone, "no capacity")
	slow := providers.Errorf(providers.RateLimited, providers.ScopeCloud, "slowly")
	cases := []struct {
		name  string
		fault memory.Fault
		sets  int // of machines that were made
	}{
		{"unsure", memory.Fault{Call: "create", Err: unknown("create"), AfterEffect: true}, 1},
		{"partial", memory.Fault{Call: "create", Err: full, Leave: 1}, 2},
		{"slow", memory.Fault{Call: "create", Err: slow, Times: 2}, 1},
		{"liar", memory.Fault{Call: "delete", Lost: true, Times: 2}, 1},
	}
	var jobs []*world.Managed
	for i, c := range cases {
		c.fault.Cluster = fmt.Sprintf("%s-%d", c.name, i+1)
		w.Cloud.Script(c.fault)
		jobs = append(jobs, w.StartJob(int64(i+1), 0, 0, "name: "+c.name+"\nnum_nodes: 2\nrun: sleep 2\n"))
	}
	for i, m := range jobs {
		if row := m.Ended()[0]; row.Status != succeeded || row.Attempt != 1 {
			t.Errorf("%s: %s in attempt %d (%s)", cases[i].name, row.Status, row.Attempt, row.FailureReason)
		}
	}
	for i, c := range cases {
		if n := sets(w, fmt.Sprintf("%s-%d", c.name, i+1)); n != c.sets {
			t.Errorf("%s: %d sets of machines, want %d", c.name, n, c.sets)
		}
	}
	empty(t, w)
}
