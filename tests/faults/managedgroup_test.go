package faults

import (
	"slices"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/providers/memory"
	"github.com/skyloom/skyloom/tests/faults/world"
)

// A task of a group is lost, and there is no room where its group is: it goes elsewhere, alone, and says so.
func TestManagedGroupParted(t *testing.T) {
	w := world.NewReal(t, world.Options{Seed: 6, Cloud: memory.Config{Regions: []memory.Region{
		{Name: "near", Zones: []memory.Zone{{Name: "near-a"}, {Name: "near-b"}}}, {Name: "far", PriceFactor: 2, Zones: []memory.Zone{{Name: "far-a"}}}}}})
	w.Acts.Home = t.TempDir()
	m := w.StartJob(1, 0, 0, "name: g\nexecution: parallel\n---\nname: one\nrun: sleep 36000\n---\nname: two\nresources: {use_spot: true}\nrun: sleep 36000\n")
	run := func(recoveries int) []api.ManagedJob {
		return m.Until("running", func(rows []api.ManagedJob) bool {
			return !slices.ContainsFunc(rows, func(r api.ManagedJob) bool { return r.Status != running }) && rows[1].Recoveries == recoveries
		})
	}
	rows := run(0)
	if rows[0].Region != "near" || rows[1].Region != "near" {
		t.Fatalf("the group is in %s and %s", rows[0].Region, rows[1].Region)
	}
	w.Cloud.Script(memory.Fault{Call: "create", Region: "near", Err: providers.Errorf(providers.NoCapacity, providers.ScopeZone, "no capacity"), Times: -1})
	nodes, err := w.Cloud.List(t.Context(), providers.Tag{Installation: w.Store.Installation(), ClusterHash: rows[1].ClusterHash})
	if err != nil || len(nodes) != 1 {
		t.Fatal(nodes, err)
	}
	if err := w.Cloud.Preempt(t.Context(), nodes[0].Cluster, nodes[0].ID, 0); err != nil {
		t.Fatal(err)
	}
	rows = run(1)
	if rows[0].Region != "near" || rows[0].Attempt != 1 || rows[1].Region != "far" {
		t.Errorf("task one is in %s, attempt %d, and two in %s", rows[0].Region, rows[0].Attempt, rows[1].Region)
	}
	told := strings.Join(w.Events(store.EventFilter{JobID: 1}), "\n")
	if !strings.Contains(told, "no room in memory (near), where its group is: it is in memory (far)") {
		t.Errorf("nobody says that the group is parted:\n%s", told)
	}
	m.Cancel()
	m.Ended()
	empty(t, w)
}
