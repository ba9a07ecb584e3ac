package worker

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// trimEvery is how often a quiet server looks whether it holds memory it does not need, and trimWorth what is worth a collection.
const (
	trimEvery = 15 * time.Second
	trimWorth = 24 << 20 // bytes
)

// trim gives memory back that a burst of work has left: the runtime by itself keeps room for the next burst, which on a laptop may be hours
// away. It collects only if the process was quiet since the last look.
func trim(ctx context.Context) {
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"}, {Name: "/gc/heap/allocs:bytes"}}
	var allocated uint64
	t := time.NewTicker(trimEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		metrics.Read(samples)
		live, objects, free, allocs := samples[0].Value.Uint64(), samples[1].Value.Uint64(), samples[2].Value.Uint64(), samples[3].Value.Uint64()
		quiet := allocs-allocated < 2*live
		allocated = allocs
		if waste := free + objects - min(objects, live); quiet && waste > trimWorth {
			debug.FreeOSMemory()
		}
	}
}
