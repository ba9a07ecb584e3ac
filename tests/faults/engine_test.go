package faults

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/skyloom/skyloom/tests/faults/world"
	"github.com/skyloom/skyloom/workflows"
)

// TestEngineSeeds runs schedules on the embedded engine with real workers, which are restarted in the midst of them.
// SKYLOOM_ENGINE_SEEDS says how many; they run side by side on one engine.
func TestEngineSeeds(t *testing.T) {
	first, n := number(t, "SKYLOOM_FIRST_SEED", 1), number(t, "SKYLOOM_ENGINE_SEEDS", 3)
	if n == 0 {
		t.Skip("SKYLOOM_ENGINE_SEEDS is 0")
	}
	was := workflows.HistoryLimit
	workflows.HistoryLimit = 120 // idle clusters continue as new now and then
	w := world.NewReal(t, world.RealOptions(int64(first)))
	t.Cleanup(func() { workflows.HistoryLimit = was })
	var names []string
	var wg sync.WaitGroup
	for seed := first; seed < first+n; seed++ {
		r := rand.New(rand.NewPCG(uint64(seed), 3))
		mine := []string{fmt.Sprintf("s%d-a", seed), fmt.Sprintf("s%d-b", seed)}[:1+r.IntN(2)]
		names = append(names, mine...)
		s := &world.Script{W: w, Rand: r, Names: mine, Steps: 10 + r.IntN(10), Pause: 2000 * time.Millisecond}
		wg.Add(1)
		go func() {
			defer wg.Done()
			s.Play()
		}()
	}
	playing := make(chan struct{})
	go func() { wg.Wait(); close(playing) }()
	restarts := 0
	r := rand.New(rand.NewPCG(uint64(first), 4))
	for over := false; !over; {
		select {
		case <-playing:
			over = true
		case <-time.After(time.Second + time.Duration(r.IntN(3000))*time.Millisecond):
			w.Restart()
			restarts++
		}
	}
	w.StopFaults()
	w.Converge(5*time.Minute, names...)
	tally := w.Tally()
	tally["histories replayed"] = w.Replay(names...)
	for _, k := range slices.Sorted(maps.Keys(tally)) {
		t.Logf("%7d %s", tally[k], k)
	}
	t.Logf("%7d restarts of engine and workers", restarts)
	if t.Failed() {
		t.Logf("seeds %d to %d failed; run them alone: SKYLOOM_FIRST_SEED=%d SKYLOOM_ENGINE_SEEDS=%d go test ./tests/faults -run TestEngineSeeds -v\n%s",
			first, first+n-1, first, n, w.Story(names...))
	}
}
