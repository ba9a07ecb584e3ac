package faults

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/skyloom/skyloom/tests/faults/world"
)

// number reads a number from the environment.
func number(t *testing.T, name string, def int) int {
	s := os.Getenv(name)
	if s == "" {
		return def
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s=%q is not a number", name, s)
	}
	return n
}

// zones are all of the memory provider's default ones.
var zones = []string{"east-1a", "east-1b", "east-1c", "west-1a", "west-1b", "north-1a"}

// TestSeeds runs random schedules of operations and faults in fake time. SKYLOOM_SEEDS says how many, SKYLOOM_FIRST_SEED
// where they begin.
func TestSeeds(t *testing.T) {
	first, n := number(t, "SKYLOOM_FIRST_SEED", 1), number(t, "SKYLOOM_SEEDS", 300)
	var mu sync.Mutex
	total := map[string]int{}
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	t.Run("all", func(t *testing.T) {
		for seed := int64(first); seed < int64(first+n); seed++ {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				slots <- struct{}{}
				defer func() { <-slots }()
				tally := runSeed(t, seed)
				mu.Lock()
				defer mu.Unlock()
				for k, n := range tally {
					total[k] += n
				}
			})
		}
	})
	for _, k := range slices.Sorted(maps.Keys(total)) {
		t.Logf("%7d %s", total[k], k)
	}
}

func runSeed(t *testing.T, seed int64) (tally map[string]int) {
	var story string
	defer func() {
		if t.Failed() {
			t.Logf("seed %d failed; run it alone: SKYLOOM_FIRST_SEED=%d SKYLOOM_SEEDS=1 go test ./tests/faults -run TestSeeds -v\n%s", seed, seed, story)
		}
	}()
	world.Run(t, world.OptionsFor(seed), func(w *world.World) {
		r := rand.New(rand.NewPCG(uint64(seed), 2))
		names := []string{"a", "b"}[:1+r.IntN(2)]
		s := &world.Script{W: w, Rand: r, Names: names, Steps: 8 + r.IntN(12), Pause: time.Duration(10+r.IntN(200)) * time.Second, Patient: true, Zones: zones}
		s.Play()
		s.Heal()
		w.StopFaults()
		w.Converge(12*time.Hour, names...)
		tally = w.Tally()
		if w.T.Failed() {
			story = w.Story(names...)
		}
	})
	return tally
}
