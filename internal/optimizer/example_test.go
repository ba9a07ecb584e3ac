package optimizer_test

import (
	"fmt"

	"github.com/skyloom/skyloom/internal/optimizer"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/task"
)

// A search goes through the choices in order; each failure rules out as much as it reaches.
func Example() {
	offer := func(region, zone string, price float64) providers.Offer {
		return providers.Offer{Provider: "acme", InstanceType: "g1", Region: region, Zone: zone, CPUs: 8, MemoryGB: 32, Accelerator: "L4", AcceleratorCount: 1, PricePerHour: price}
	}
	res, err := optimizer.Rank(optimizer.Input{
		Groups:  [][]task.Request{{{Accelerator: &task.Accelerator{Name: "l4", Count: 1}}}},
		Enabled: []string{"acme"},
		Offers:  []providers.Offer{offer("north", "north-1", 0.9), offer("south", "south-1", 0.7), offer("south", "south-2", 0.7)},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	first := res.Choices[0]
	fmt.Println("first:", first)
	for _, scope := range []providers.Scope{providers.ScopeZone, providers.ScopeRegion} {
		blocks := optimizer.Blocks(first, providers.NoCapacity, scope)
		fmt.Printf("no capacity in the %s: %s\n", scope, optimizer.Unblocked(res.Choices, blocks)[0])
	}
	// Output:
	// first: acme (south-1) g1, L4:1
	// no capacity in the zone: acme (south-2) g1, L4:1
	// no capacity in the region: acme (north-1) g1, L4:1
}
