package store

import (
	"fmt"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
)

// BenchmarkQueue lists of ten thousand running jobs.
func BenchmarkQueue(b *testing.B) {
	const n = 10_000
	s := benchStore(b)
	now := time.Now()
	for from := 0; from < n; from += 500 {
		var batch Batch
		for i := from; i < from+500; i++ {
			batch.ManagedJobs = append(batch.ManagedJobs, api.ManagedJob{ID: int64(i + 1), NumTasks: 1, Name: fmt.Sprintf("job-%d", i%100), TaskName: "train", Status: api.ManagedRunning,
				Resources: "1x[Spot]CPU:2+", Cluster: fmt.Sprintf("train-%d", i), ClusterHash: fmt.Sprintf("%032x", i), ClusterRes: "1x memory (m-2, cpus=2, mem=8, [spot])", Cloud: "memory", Region: "east-1",
				Zone: "east-1a", Infra: "memory (east-1a)", User: "someone", UserHash: "0123abcd", Workspace: "default", SubmittedAt: now, StartAt: &now, RunningSince: &now, Attempt: 1, JobRank: i, NumJobs: n,
				RequestID: "6a0e7c1e-2b6b-4f8e-8d4f-0d6f3f9e8a11", Command: "sky jobs launch train.yaml", ClusterJobID: 1, Seq: 4, UserYAML: "name: train\nrun: python train.py\n"})
		}
		must(b, s.Write(b.Context(), batch))
	}
	for _, c := range []struct {
		name string
		f    ManagedFilter
		want int
	}{
		{"newest 50", ManagedFilter{Limit: 50}, 50},
		{"newest 50 of a user", ManagedFilter{Limit: 50, UserHash: "0123abcd"}, 50},
		{"newest 50 that run", ManagedFilter{Limit: 50, SkipFinished: true, UserHash: "0123abcd"}, 50},
		{"all", ManagedFilter{}, n},
		{"all with YAML", ManagedFilter{Full: true}, n},
	} {
		b.Run(c.name, func(b *testing.B) {
			start := cpu()
			for b.Loop() {
				rows, total, _, err := s.ManagedRows(b.Context(), c.f)
				if err != nil || len(rows) != c.want || total != n {
					b.Fatal(len(rows), total, err)
				}
			}
			b.ReportMetric(float64(cpu()-start)/float64(b.N)/1e6, "cpu-ms/op")
		})
	}
}
