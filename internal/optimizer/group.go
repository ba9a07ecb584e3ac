package optimizer

import (
	"cmp"
	"slices"
	"strings"
)

// Place is a region of an infra; Region is empty where an infra has none.
type Place struct{ Cloud, Region string }

// String names the place for people.
func (p Place) String() string {
	if p.Region == "" {
		return p.Cloud
	}
	return p.Cloud + " (" + p.Region + ")"
}

// holds tells whether a choice lies in the place. Names compare without case.
func (p Place) holds(c Choice) bool {
	return strings.EqualFold(p.Cloud, c.Provider) && strings.EqualFold(p.Region, c.Spec.Region)
}

// Member is a task of a group of tasks that shall run side by side: what it could run on, best first, and on how many nodes.
type Member struct {
	NumNodes int
	Choices  []Choice
}

// Common is a place that every task of a group could run in.
type Common struct {
	Place        Place   `json:"place"`
	PricePerHour float64 `json:"price_per_hour"` // US dollars, of all nodes of all tasks, each on its best choice there
}

// CommonPlaces lists the places that every member has a choice in, the cheapest first: by the sum over the members of the price of
// the best choice there times its nodes; at equal prices by name. Without members there are none.
func CommonPlaces(members []Member) []Common {
	type at struct {
		place Place
		sum   int64 // millionths of a dollar
		of    int   // members that have a choice there
	}
	sums := map[Place]*at{}
	for i, m := range members {
		for _, c := range m.Choices {
			p := Place{strings.ToLower(c.Provider), strings.ToLower(c.Spec.Region)} // names compare without case
			if sums[p] == nil {
				sums[p] = &at{place: Place{c.Provider, c.Spec.Region}}
			}
			// The first choice in a place is the best one; and who is not in a place with all before it is out.
			if s := sums[p]; s.of == i {
				s.of++
				s.sum += micros(c.Spec.PricePerHour) * int64(max(m.NumNodes, 1))
			}
		}
	}
	var out []Common
	for _, s := range sums {
		if s.of == len(members) {
			out = append(out, Common{s.place, float64(s.sum) / 1e6})
		}
	}
	slices.SortFunc(out, func(a, b Common) int {
		return cmp.Or(cmp.Compare(micros(a.PricePerHour), micros(b.PricePerHour)), cmp.Compare(a.Place.Cloud, b.Place.Cloud), cmp.Compare(a.Place.Region, b.Place.Region))
	})
	return out
}

// Within keeps the choices that lie in a place, in the same order.
func Within(choices []Choice, p Place) []Choice {
	return slices.DeleteFunc(slices.Clone(choices), func(c Choice) bool { return !p.holds(c) })
}

// Nearest puts the choices that lie in a place before the others; both keep their order.
func Nearest(choices []Choice, p Place) []Choice {
	out := Within(choices, p)
	return append(out, slices.DeleteFunc(slices.Clone(choices), p.holds)...)
}
