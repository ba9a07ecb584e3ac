package optimizer

import (
	"fmt"
	"testing"

	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/task"
)

// BenchmarkRank ranks a catalog of the size of three big clouds.
func BenchmarkRank(b *testing.B) {
	var offers []providers.Offer
	for _, c := range []string{"aws", "gcp", "azure"} {
		for typ := range 250 {
			for r := range 10 {
				for z := range 3 {
					o := fixed(c, fmt.Sprintf("t%d", typ), fmt.Sprintf("r%d", r), fmt.Sprintf("r%dz%d", r, z), float64(1+typ%64), float64(4+4*(typ%64)), 0.05*float64(1+typ))
					if typ%5 == 0 {
						o = gpu(o, []string{"L4", "A100", "H100"}[typ%3], float64(1+typ%8))
					}
					offers = append(offers, o, spot(o, o.PricePerHour/3))
				}
			}
		}
	}
	in := Input{Groups: [][]task.Request{{{CPUs: task.CPUs{N: 4, AtLeast: true}}}}, Enabled: []string{"aws", "gcp", "azure"}, Offers: offers}
	b.ResetTimer()
	for range b.N {
		if _, err := Rank(in); err != nil {
			b.Fatal(err)
		}
	}
}
