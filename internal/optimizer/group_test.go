package optimizer

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/skyloom/skyloom/providers"
)

func at(cloud, region string, price float64) Choice {
	return Choice{Provider: cloud, Spec: providers.NodeSpec{Region: region, PricePerHour: price}}
}

func TestCommonPlaces(t *testing.T) {
	// Alone each would go to the east.
	a := Member{NumNodes: 1, Choices: []Choice{at("x", "east", 1), at("x", "west", 2), at("y", "", 3)}}
	b := Member{NumNodes: 4, Choices: []Choice{at("x", "north", 1), at("x", "west", 3), at("y", "", 2), at("x", "west", 4)}}
	got := CommonPlaces([]Member{a, b})
	want := []Common{{Place{"y", ""}, 11}, {Place{"x", "west"}, 14}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := CommonPlaces([]Member{a, b, {Choices: []Choice{at("z", "", 0)}}}); got != nil {
		t.Errorf("nothing is common, but got %v", got)
	}
	if got := CommonPlaces([]Member{a, {}}); got != nil {
		t.Errorf("one task fits nowhere, but got %v", got)
	}
	if got := CommonPlaces([]Member{{Choices: []Choice{at("b", "r", 1), at("a", "s", 1), at("a", "r", 1)}}}); got[0].Place != (Place{"a", "r"}) || got[2].Place != (Place{"b", "r"}) {
		t.Errorf("equal prices are not told apart by name: %v", got)
	}
	// The order of preference of a task stands above its price: its first choice in a place is the one that it is given.
	if got := CommonPlaces([]Member{{NumNodes: 2, Choices: []Choice{at("x", "east", 5), at("x", "east", 1)}}}); got[0].PricePerHour != 10 {
		t.Errorf("the price is %v, want that of the first choice", got[0].PricePerHour)
	}
}

func TestNearest(t *testing.T) {
	all := []Choice{at("x", "east", 1), at("x", "west", 2), at("y", "west", 3), at("x", "west", 4)}
	if got := Within(all, Place{"X", "west"}); len(got) != 2 || got[0].Spec.PricePerHour != 2 {
		t.Errorf("within: %v", got)
	}
	var prices []float64
	for _, c := range Nearest(all, Place{"x", "west"}) {
		prices = append(prices, c.Spec.PricePerHour)
	}
	if !slices.Equal(prices, []float64{2, 4, 1, 3}) {
		t.Errorf("nearest: %v", prices)
	}
	if all[0].Spec.PricePerHour != 1 || all[3].Spec.PricePerHour != 4 {
		t.Error("the ranking itself was changed")
	}
}

// A common place is one that each member has, the sum is that of the members' best, and nothing cheaper was passed over.
func TestCommonPlacesHold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		choice := rapid.Custom(func(t *rapid.T) Choice {
			return at(rapid.SampledFrom([]string{"x", "y"}).Draw(t, "cloud"), rapid.SampledFrom([]string{"", "e", "w"}).Draw(t, "region"), float64(rapid.IntRange(0, 5).Draw(t, "price")))
		})
		var members []Member
		for range rapid.IntRange(1, 4).Draw(t, "members") {
			members = append(members, Member{rapid.IntRange(1, 3).Draw(t, "nodes"), rapid.SliceOfN(choice, 0, 6).Draw(t, "choices")})
		}
		sum := func(p Place) (float64, bool) {
			s := 0.0
			for _, m := range members {
				in := Within(m.Choices, p)
				if len(in) == 0 {
					return 0, false
				}
				s += in[0].Spec.PricePerHour * float64(m.NumNodes)
			}
			return s, true
		}
		got := CommonPlaces(members)
		for i, c := range got {
			if s, ok := sum(c.Place); !ok || s != c.PricePerHour {
				t.Fatalf("%v: sum %v, common %v", c, s, ok)
			}
			if i > 0 && got[i-1].PricePerHour > c.PricePerHour {
				t.Fatalf("%v stands before %v", got[i-1], c)
			}
		}
		n := 0
		for _, cloud := range []string{"x", "y"} {
			for _, region := range []string{"", "e", "w"} {
				if _, ok := sum(Place{cloud, region}); ok {
					n++
				}
			}
		}
		if n != len(got) {
			t.Fatalf("%d places are common, %d were found", n, len(got))
		}
	})
}
