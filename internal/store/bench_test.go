package store

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
)

func benchStore(b *testing.B) *Store {
	s, err := Open(b.Context(), filepath.Join(b.TempDir(), "s.db"), Options{})
	must(b, err)
	b.Cleanup(func() { s.Close() })
	return s
}

func realistic(i int) api.Cluster {
	at := time.Now()
	return api.Cluster{Name: fmt.Sprintf("cluster-%04d", i), Hash: fmt.Sprintf("%032x", i), Status: api.ClusterUp, StatusUpdatedAt: at, LaunchedAt: &at, LastUse: "sky launch -c x task.yaml",
		LastEvent: "Cluster is UP", UserHash: "0123abcd", UserName: "someone", Workspace: "default", Cloud: "local", Region: "local", InstanceType: "m5.large", Nodes: 1, CPUs: 2, MemoryGB: 4,
		ResourcesStr: "1x local(cpus=2, mem=4)", ResourcesFull: "1x local(instance_type=x, cpus=2, mem=4, disk=256)", NodeIPs: []string{"127.0.0.1"}, NodeNames: []string{"head"}, HeadIP: "127.0.0.1",
		LastTaskYAML: string(make([]byte, 2000)), Seq: 1, AutostopMinutes: -1}
}

func cpu() time.Duration {
	var ru syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func BenchmarkList1000Clusters(b *testing.B) {
	s := benchStore(b)
	for i := range 1000 {
		must(b, s.PutCluster(b.Context(), realistic(i)))
	}
	b.Run("decoded", func(b *testing.B) {
		for b.Loop() {
			if cs, err := s.Clusters(b.Context(), ClusterFilter{}); err != nil || len(cs) != 1000 {
				b.Fatal(len(cs), err)
			}
		}
	})
	b.Run("raw", func(b *testing.B) {
		for b.Loop() {
			if cs, err := s.ClusterRows(b.Context(), ClusterFilter{}); err != nil || len(cs) != 1000 {
				b.Fatal(len(cs), err)
			}
		}
	})
}

// BenchmarkWrite is one step of a workflow: a cluster row, the request's status and two events.
func BenchmarkWrite(b *testing.B) {
	for _, durable := range []bool{false, true} {
		for _, clients := range []int{1, 16} {
			b.Run(fmt.Sprintf("durable=%v/clients=%d", durable, clients), func(b *testing.B) {
				s := benchStore(b)
				_, _, err := s.CreateRequest(b.Context(), newRequest("req-1"))
				must(b, err)
				var n atomic.Int64
				start := cpu()
				b.SetParallelism(clients)
				b.ResetTimer()
				step := func() {
					i := int(n.Add(1))
					c := realistic(i % 100)
					c.Seq = int64(i)
					must(b, s.Write(b.Context(), Batch{Durable: durable, Clusters: []api.Cluster{c}, Requests: []RequestUpdate{{ID: "req-1", Status: api.RequestRunning, Msg: "working"}},
						Events: []Event{{Key: fmt.Sprintf("req-1/a/%d", i), Event: api.Event{RequestID: "req-1", Cluster: c.Name, Hash: c.Hash, Kind: api.EventStep, Message: "provisioning"}},
							{Key: fmt.Sprintf("req-1/b/%d", i), Event: api.Event{RequestID: "req-1", Kind: api.EventStatus, Message: "x", Data: json.RawMessage(`{"a":1}`)}}}}))
				}
				if clients == 1 {
					for range b.N {
						step()
					}
				} else {
					b.RunParallel(func(pb *testing.PB) {
						for pb.Next() {
							step()
						}
					})
				}
				b.ReportMetric(float64(cpu()-start)/float64(b.N)/1e3, "cpu-us/op")
			})
		}
	}
}
