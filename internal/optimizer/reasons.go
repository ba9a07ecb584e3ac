package optimizer

import (
	"fmt"
	"sort"
	"strings"

	"github.com/skyloom/skyloom/internal/catalog"
	"github.com/skyloom/skyloom/providers"
)

// most is how many names or sizes a message lists before it says how many more there are.
const most = 8

// noPlace explains that a region or zone is unknown.
func (m matcher) noPlace(word, want string, of func(providers.Offer) string) func([]providers.Offer) (string, string) {
	return func(before []providers.Offer) (string, string) {
		have := distinct(before, of)
		if len(have) == 0 {
			return fmt.Sprintf("has no %ss, so %q cannot be met", word, want), ""
		}
		text := fmt.Sprintf("has no %s %q", word, want)
		if s := catalog.Similar(want, have); len(s) > 0 {
			return text, fmt.Sprintf("did you mean %s %q?", word, s[0])
		}
		return text + "; it has " + list(have), ""
	}
}

func (m matcher) noInstanceType(before []providers.Offer) (string, string) {
	have := distinct(before, func(o providers.Offer) string { return o.InstanceType })
	if len(have) == 0 {
		return fmt.Sprintf("has no instance types, so %q cannot be met", m.req.InstanceType), "ask for `cpus` and `memory` instead"
	}
	text := fmt.Sprintf("has no instance type %q", m.req.InstanceType)
	if s := catalog.Similar(m.req.InstanceType, have); len(s) > 0 {
		return text, "did you mean " + list(s) + "?"
	}
	return text, ""
}

func (m matcher) noAccelerator(before []providers.Offer) (string, string) {
	have := distinct(before, func(o providers.Offer) string { return o.Accelerator })
	switch {
	case len(have) == 0:
		return "has no accelerators", ""
	case m.req.Accelerator.Name == "":
		return fmt.Sprintf("has no accelerator that fits %s", m.req.Accelerator), "run `sky gpus list` to see their memory"
	case m.req.InstanceType != "":
		return fmt.Sprintf("has %s with %s, not %s", m.req.InstanceType, list(have), m.req.Accelerator.Name), ""
	}
	return "has no " + catalog.Canonical(m.req.Accelerator.Name), ""
}

func (m matcher) noCount(before []providers.Offer) (string, string) {
	name := catalog.Canonical(m.req.Accelerator.Name)
	if name == "" {
		name = "it"
	}
	flexible := true
	for _, o := range before {
		flexible = flexible && o.Flexible
	}
	counts := sizes(before, func(o providers.Offer) float64 { return o.AcceleratorCount })
	if flexible {
		return fmt.Sprintf("has at most %s per node, %s asked for", m.named(counts[len(counts)-1]), count(m.req.Accelerator.Count, "is", "are")), ""
	}
	return fmt.Sprintf("has %s in machines with %s, not with %s", name, listNum(counts), num(m.req.Accelerator.Count)), ""
}

// named is a count of the accelerator asked for.
func (m matcher) named(n float64) string {
	if m.req.Accelerator.Name == "" {
		return num(n)
	}
	return num(n) + " " + catalog.Canonical(m.req.Accelerator.Name)
}

func count(n float64, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return num(n) + " " + more
}

func (m matcher) noCPUs(before []providers.Offer) (string, string) {
	have := sizes(before, func(o providers.Offer) float64 { return o.CPUs })
	largest := have[len(have)-1]
	if m.req.CPUs.N > largest {
		return fmt.Sprintf("has at most %s CPUs per node, %s asked for", num(largest), count(m.req.CPUs.N, "is", "are")), ""
	}
	return fmt.Sprintf("has machines with %s CPUs, not with exactly %s", listNum(have), num(m.req.CPUs.N)),
		fmt.Sprintf("write `cpus: %s+` for at least that many", num(m.req.CPUs.N))
}

func (m matcher) noMemory(before []providers.Offer) (string, string) {
	want := m.req.Memory
	have := sizes(before, func(o providers.Offer) float64 { return o.MemoryGB })
	largest := have[len(have)-1]
	switch {
	case want.PerCPU:
		return fmt.Sprintf("has no machine with %s GB of memory per CPU", num(want.GB)), atLeastHint(want.AtLeast, "memory", num(want.GB)+"x")
	case want.GB > largest:
		return fmt.Sprintf("has at most %s GB of memory per node, %s GB are asked for", num(largest), num(want.GB)), ""
	}
	return fmt.Sprintf("has machines with %s GB of memory, not with exactly %s", listNum(have), num(want.GB)),
		atLeastHint(want.AtLeast, "memory", num(want.GB))
}

func atLeastHint(already bool, field, value string) string {
	if already {
		return ""
	}
	return fmt.Sprintf("write `%s: %s+` for at least that much", field, value)
}

func (m matcher) noSpot([]providers.Offer) (string, string) {
	if m.req.UseSpot {
		return "has this on demand only, not as spot", "leave out `use_spot` to take on-demand nodes"
	}
	return "has this as spot only", "set `use_spot: true` to take spot nodes"
}

func (m matcher) noNodes(before []providers.Offer) (string, string) {
	largest := 0
	for _, o := range before {
		largest = max(largest, o.MaxNodes)
	}
	return fmt.Sprintf("has at most %s of this kind, the cluster needs %d", count(float64(largest), "node", "nodes"), m.nodes), ""
}

func (m matcher) tooDear(before []providers.Offer) (string, string) {
	cheapest := before[0].PricePerHour
	for _, o := range before {
		cheapest = min(cheapest, o.PricePerHour)
	}
	return fmt.Sprintf("costs at least $%s per hour and node, more than max_hourly_cost $%s", num(cheapest), num(m.req.MaxHourlyCost)),
		"raise `max_hourly_cost`, or remove it"
}

// suggestions are what the offers have instead of an accelerator that nothing fits: the same one in other counts, else
// similar names, as NAME:COUNT.
func suggestions(name string, want float64, offers []providers.Offer) []string {
	counts := map[string][]float64{}
	var names []string
	for _, o := range offers {
		if o.Accelerator == "" {
			continue
		}
		n := o.AcceleratorCount
		if o.Flexible {
			n = min(n, max(want, 1))
		}
		if counts[o.Accelerator] == nil {
			names = append(names, o.Accelerator)
		}
		counts[o.Accelerator] = append(counts[o.Accelerator], n)
	}
	sort.Strings(names)
	var out []string
	canonical := catalog.Canonical(name)
	if have := unique(counts[canonical]); len(have) > 0 {
		for _, n := range have {
			if n != want {
				out = append(out, canonical+":"+num(n))
			}
		}
		return out[:min(len(out), most)]
	}
	for _, n := range catalog.Similar(name, names) {
		have := unique(counts[n])
		best := have[len(have)-1]
		for i := len(have) - 1; i >= 0; i-- {
			if have[i] >= want {
				best = have[i]
			}
		}
		out = append(out, n+":"+num(best))
	}
	return out
}

// distinct lists the different non-empty values, sorted.
func distinct(offers []providers.Offer, of func(providers.Offer) string) []string {
	seen := map[string]bool{"": true}
	var out []string
	for _, o := range offers {
		if v := of(o); !seen[v] {
			seen[v] = true
			out = append(out, v)
		}
	}
	sort.Strings(out)
	return out
}

func sizes(offers []providers.Offer, of func(providers.Offer) float64) []float64 {
	var out []float64
	for _, o := range offers {
		out = append(out, of(o))
	}
	return unique(out)
}

// unique sorts and drops doubles.
func unique(list []float64) []float64 {
	in := append([]float64(nil), list...)
	sort.Float64s(in)
	var out []float64
	for _, f := range in {
		if len(out) == 0 || f != out[len(out)-1] {
			out = append(out, f)
		}
	}
	return out
}

func list(words []string) string {
	if len(words) > most {
		return strings.Join(words[:most], ", ") + fmt.Sprintf(" and %d more", len(words)-most)
	}
	return strings.Join(words, ", ")
}

func listNum(ns []float64) string {
	words := make([]string, len(ns))
	for i, n := range ns {
		words[i] = num(n)
	}
	return list(words)
}
