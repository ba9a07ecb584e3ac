package e2essh

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skyloom/skyloom/tests/lab"
)

// raceLaunches is how many launches race: 20, or 200 with the long tests.
func raceLaunches() int {
	if long {
		return 200
	}
	return 20
}

const raceTask = `run: |
  n=0
  for g in $(echo $CUDA_VISIBLE_DEVICES | tr , ' '); do
    n=$((n+1)); exec 9>/dev/shm/gpu-$g
    flock -n 9 || { echo "DOUBLE $g"; exit 9; }
    eval "exec $((n+2))>&9"
  done
  echo "held $n"
  sleep 0.4
`

// TestTwoServers has two servers, each with its own engine, launch on one pool at the same time. Every job writes down in
// the kernel's own terms which GPUs it has: it locks a file per device for as long as it runs. A device that is given out
// twice is a lock that is not free.
func TestTwoServers(t *testing.T) {
	gpu := []lab.GPU{{Name: "A100-SXM4-80GB", Count: 4, MemoryMB: 81920}}
	l := lab.New(t, lab.Options{Specs: []lab.HostSpec{{Name: "a", CPUs: 16, MemoryMB: 64 << 10, GPUs: gpu}, {Name: "b", CPUs: 16, MemoryMB: 64 << 10, GPUs: gpu}}})
	sites := []*site{newSite(t, l, ""), newSite(t, l, "")}
	for _, s := range sites {
		s.sky("ssh", "up").has("ready", "4 of 4 A100-80GB free")
		s.sky("gpus", "list").has("A100-80GB", "8 of 8 free")
		s.task("race.yaml", raceTask)
	}
	var next, up, full atomic.Int64
	total := int64(raceLaunches())
	var wg sync.WaitGroup
	began := time.Now()
	for w := range 6 {
		s := sites[w%2]
		rng := rand.New(rand.NewPCG(uint64(w), 7))
		wg.Go(func() {
			for {
				i := next.Add(1)
				if i > total || t.Failed() {
					return
				}
				name, n := fmt.Sprintf("r%d", i), 1+rng.IntN(3)
				out, err := s.try(3*time.Minute, "launch", "-y", "-c", name, "--infra", "ssh/lab", "--gpus", fmt.Sprint("A100-80GB:", n), "--cpus", "2", "--memory", "2", "race.yaml")
				switch {
				case strings.Contains(out, "DOUBLE"):
					t.Errorf("a GPU was given out twice: %s", out)
				case strings.Contains(out, fmt.Sprint("held ", n)):
					up.Add(1)
				case strings.Contains(out, "no capacity"):
					full.Add(1)
					time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
					continue
				default:
					t.Errorf("launch of %s: %v\n%s", name, err, out)
				}
				if out, err := s.try(3*time.Minute, "down", "-y", name); err != nil {
					t.Errorf("down of %s: %v\n%s", name, err, out)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d launches in %v: %d ran, %d found no room", total, time.Since(began).Round(time.Millisecond), up.Load(), full.Load())
	if up.Load() < total/4 {
		t.Errorf("only %d of %d launches ran", up.Load(), total)
	}
	for _, h := range l.Hosts() {
		if c := claimed(t, h); len(c) > 0 {
			t.Errorf("claims on %s outlive their clusters: %v", h.Name, c)
		}
		if a := agents(t, h); len(a) > 0 {
			t.Errorf("left on %s: %v", h.Name, a)
		}
	}
	for _, s := range sites {
		s.until(2*time.Minute, "all GPUs are free", func() bool { return strings.Contains(s.sky("gpus", "list").out, "8 of 8 free") })
	}
}
