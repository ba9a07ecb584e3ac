package histories

import (
	"slices"
	"testing"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/providers/memory"
	"github.com/skyloom/skyloom/tests/faults/world"
)

// recordGroups records groups that share an infra: one that moves before it begins and is parted later, one that no place can hold, and one
// of which a task can't be launched.
func recordGroups(t *testing.T) {
	w := world.NewReal(t, world.Options{Seed: 4, Cloud: memory.Config{Regions: []memory.Region{
		{Name: "near", Zones: []memory.Zone{{Name: "near-a"}, {Name: "near-b"}}}, {Name: "far", PriceFactor: 2, Zones: []memory.Zone{{Name: "far-a"}}}}}})
	w.Acts.Home = t.TempDir()
	full := func(region, cluster string, skip, times int) {
		w.Cloud.Script(memory.Fault{Call: "create", Region: region, Cluster: cluster, Err: providers.Errorf(providers.NoCapacity, providers.ScopeRegion, "no capacity"), Skip: skip, Times: times})
	}
	const group = "name: g\nexecution: parallel\n---\nname: a\n"
	full("near", "b-1-1", 0, 1)
	full("far", "b-1-1", 1, -1)
	moved := w.StartJob(1, 0, 0, group+"resources: {cpus: 2+}\nrun: sleep 10\n---\nname: b\nresources: {cpus: 2+, use_spot: true}\nrun: sleep 10\n")
	rows := moved.Until("running", func(rows []api.ManagedJob) bool {
		return !slices.ContainsFunc(rows, func(r api.ManagedJob) bool { return r.Status != api.ManagedRunning })
	})
	nodes, err := w.Cloud.List(t.Context(), providers.Tag{Installation: w.Store.Installation(), ClusterHash: rows[1].ClusterHash})
	if err != nil || len(nodes) != 1 || rows[1].Region != "far" {
		t.Fatal(nodes, err, rows[1].Region)
	}
	if err := w.Cloud.Preempt(t.Context(), nodes[0].Cluster, nodes[0].ID, 0); err != nil {
		t.Fatal(err)
	}
	apart := w.StartJob(2, 0, 0, group+"resources: {cpus: 2+, infra: memory/near}\nrun: sleep 2\n---\nname: b\nresources: {cpus: 2+, infra: memory/far}\nrun: sleep 2\n")
	never := w.StartJob(3, 0, 0, group+quick+"---\nname: b\nresources: {cpus: 100000}\nrun: echo never\n")
	for story, m := range map[string]*world.Managed{"job-group-moved": moved, "job-group-apart": apart, "job-group-never": never} {
		rows := m.Ended()
		if got, _ := api.ManagedState(rows); (got == api.ManagedSucceeded) == (m == never) {
			t.Errorf("%s ended as %+v", story, rows)
		}
		save(t, w, story, m.WorkflowID(), "")
	}
	if r := moved.Ended()[1]; r.Region != "near" || r.Recoveries != 1 {
		t.Errorf("the group was not parted: %+v", r)
	}
}
