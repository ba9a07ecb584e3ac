package main

import (
	"context"
	"fmt"
	"time"

	"github.com/skyloom/skyloom/api"
)

// arrays measures an array of `true` over many clusters of the simulated cloud: server, engine and the simulated nodes together.
func (b *bench) arrays() error {
	in, err := b.running(memoryOnly)
	if err != nil {
		return err
	}
	defer in.close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Hour)
	defer cancel()
	n, clusters := b.sizes.elements, 50
	before := b.used(in)
	s := submitJobs(ctx, in, 1, 1, "memory", fmt.Sprintf("array: {count: %d, parallel: %d}\nrun: 'true'", n, clusters))
	if err := s.check(); err != nil {
		return err
	}
	if _, err := until(ctx, in, func(states map[api.ManagedStatus]int) bool {
		return states[api.ManagedSucceeded]+states[api.ManagedFailed]+states[api.ManagedCancelled] == 1
	}); err != nil {
		return err
	}
	took := time.Since(s.began)
	used := b.used(in) - before
	rows, err := in.client.ManagedJob(ctx, s.ids[0])
	if err != nil {
		return err
	}
	b.row(fmt.Sprintf("array of %d elements of `true`, %d clusters: CPU in server + engine per element; in all", n, clusters), "5 ms",
		fmt.Sprintf("%.2f ms; %s (%d succeeded)", float64(used)/float64(n)/1e6, secs(took), rows[0].Array.Counts[api.ManagedSucceeded]))
	return nil
}
