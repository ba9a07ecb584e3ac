package agent

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

// TestPlaceNeverOverbooks queues and ends random jobs: no node's CPUs and no accelerator are ever given twice, a gang's
// nodes are distinct, whole accelerators belong to one job, and an empty cluster takes whatever it accepted.
func TestPlaceNeverOverbooks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := rapid.IntRange(1, 4).Draw(t, "nodes")
		res := agentapi.NodeResources{
			CPUs: rapid.SampledFrom([]float64{0.25, 1, 2, 8}).Draw(t, "cpus"), Accelerator: "A100",
			AcceleratorCount: float64(rapid.IntRange(0, 4).Draw(t, "accelerators")),
		}
		var running []*jobState
		everywhere := func(int) bool { return true }
		for step := range rapid.IntRange(1, 40).Draw(t, "steps") {
			if len(running) > 0 && rapid.Bool().Draw(t, "end") {
				i := rapid.IntRange(0, len(running)-1).Draw(t, "which")
				running = append(running[:i], running[i+1:]...)
				continue
			}
			d, err := demandOf(agentapi.JobSpec{
				Run: "x", NumNodes: rapid.IntRange(1, 5).Draw(t, "n"), CPUs: rapid.SampledFrom([]float64{0, -1, 0.3, 2}).Draw(t, "c"),
				AcceleratorCount: rapid.SampledFrom([]float64{0, 0.1, 1.0 / 3, 0.5, 1, 2, 3}).Draw(t, "a"),
			}, res, nodes)
			if err != nil {
				continue
			}
			ranks, why := place(d, res, loads(res, nodes, running), everywhere)
			if ranks == nil {
				if len(running) == 0 {
					t.Fatalf("an empty cluster has no room for %+v: %s", d, why)
				}
				continue
			}
			running = append(running, &jobState{jobRecord: jobRecord{Row: api.Job{ID: int64(step)}, Demand: d, Place: &placement{Ranks: ranks}}})
			seen := map[int]bool{}
			for _, r := range ranks {
				if seen[r.Node] {
					t.Fatalf("node %d twice in %+v", r.Node, ranks)
				}
				seen[r.Node] = true
				if d.Accelerators >= 1 && float64(len(r.Devices)) != d.Accelerators {
					t.Fatalf("%v accelerators asked, %+v given", d.Accelerators, r.Devices)
				}
			}
			for n, l := range loads(res, nodes, running) {
				if l.CPUs > res.CPUs+slack {
					t.Fatalf("node %d gives %v of %v CPUs", n, l.CPUs, res.CPUs)
				}
				for dev, used := range l.Devices {
					if used > 1+slack {
						t.Fatalf("accelerator %d of node %d is given %v times", dev, n, used)
					}
				}
			}
		}
	})
}
