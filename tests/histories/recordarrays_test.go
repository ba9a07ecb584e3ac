package histories

import (
	"testing"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/providers/memory"
	"github.com/skyloom/skyloom/tests/faults/world"
)

// recordArrays records arrays: one that goes well, one with a setup whose elements fail and are tried again, one that loses a cluster, and one that
// is cancelled.
func recordArrays(t *testing.T) {
	w := world.NewReal(t, world.Options{Seed: 5, Cloud: memory.Config{}})
	w.Acts.Home = t.TempDir()
	for i, c := range []struct {
		story, text string
		want        api.ManagedStatus
		then        func(*world.Managed)
	}{
		{"array", "name: one\narray: {count: 40, parallel: 2}\nrun: echo hello\n", api.ManagedSucceeded, nil},
		{"array-retried", "name: two\narray: {values: {CODE: [0, 3]}, retries: 1, parallel: 1}\nsetup: echo ready\nrun: exit $CODE\n", api.ManagedFailed, nil},
		{"array-preempted", "name: three\narray: {count: 60, parallel: 1}\nresources: {use_spot: true}\nrun: sleep 2\n", api.ManagedSucceeded, func(m *world.Managed) {
			m.Until("elements that run", func(rows []api.ManagedJob) bool { return len(rows) > 0 && rows[0].Array.Counts[api.ManagedRunning] > 2 })
			nodes := w.Cloud.Ledger().Alive()
			if len(nodes) != 1 {
				t.Fatalf("%d nodes are alive", len(nodes))
			}
			if err := w.Cloud.Preempt(t.Context(), nodes[0].Owner, nodes[0].NodeID, 0); err != nil {
				t.Fatal(err)
			}
		}},
		{"array-cancelled", "name: four\narray: {count: 1000, parallel: 2}\nrun: sleep 36000\n", api.ManagedCancelled, func(m *world.Managed) {
			m.Until("elements that run", func(rows []api.ManagedJob) bool { return len(rows) > 0 && rows[0].Array.Counts[api.ManagedRunning] > 2 })
			m.Cancel()
		}},
	} {
		m := w.StartJob(int64(100+i), 0, 0, c.text)
		if c.then != nil {
			c.then(m)
		}
		if rows := m.Ended(); rows[0].Status != c.want {
			t.Errorf("%s ended as %+v", c.story, rows[0])
		}
		save(t, w, c.story, m.WorkflowID(), "")
	}
}
