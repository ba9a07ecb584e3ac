package catalog

import (
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/providers"
)

// Filter narrows a list of accelerators; zero values do not narrow.
type Filter struct {
	Name       string  // of an accelerator, any case; without an exact match, a part of a name
	Count      float64 // devices per node
	Cloud      string  // name of an infra
	Region     string
	AllRegions bool // show every region, not only the cheapest of each instance type
}

// ParseFilter reads the argument of `sky gpus list`: `A100` or `A100:8`. An empty argument does not narrow.
func ParseFilter(arg string) (Filter, error) {
	name, count, counted := strings.Cut(strings.TrimSpace(arg), ":")
	f := Filter{Name: strings.TrimSpace(name)}
	if !counted {
		return f, nil
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(count), 64)
	if err != nil || math.IsNaN(n) || math.IsInf(n, 0) || n <= 0 {
		return Filter{}, fmt.Errorf("%q: the count must be a number above 0; write for example A100:8", arg)
	}
	if f.Name == "" {
		return Filter{}, fmt.Errorf("%q has no accelerator before the count; write for example A100:8", arg)
	}
	f.Count = n
	return f, nil
}

// GPUList lists the accelerators of the offers by canonical name, one row per instance type and region with both its
// on-demand and its spot price, and what is free on infra with fixed machines. Unless a region is asked for or AllRegions is
// set, each instance type shows the region where it is cheapest. Rows are in the order in which they are shown: infra with
// the lowest price first, then by lowest spot price, then by price within one infra; a missing price comes last.
func GPUList(offers []providers.Offer, pools []providers.Pool, f Filter) api.GPUList {
	list := api.GPUList{Pools: []api.GPUPool{}, Offers: map[string][]api.GPUOffer{}}
	var names []string
	for _, o := range offers {
		names = append(names, o.Accelerator)
	}
	for _, p := range pools {
		names = append(names, p.Accelerator)
	}
	named := nameFilter(f.Name, names)
	rows := map[rowKey]*api.GPUOffer{}
	for _, o := range offers {
		if o.Accelerator == "" || !named(o.Accelerator) || !f.admits(o) {
			continue
		}
		addOffer(rows, o, f)
	}
	for _, r := range rows {
		list.Offers[r.Name] = append(list.Offers[r.Name], *r)
	}
	for name, of := range list.Offers {
		sortRows(of)
		if f.Region == "" && !f.AllRegions {
			of = cheapestRegions(of)
		}
		list.Offers[name] = of
	}
	for _, p := range pools {
		if p.Accelerator == "" || !named(p.Accelerator) || !f.admitsPool(p) {
			continue
		}
		list.Pools = append(list.Pools, api.GPUPool{Infra: p.Infra, Name: Canonical(p.Accelerator),
			Requestable: append([]float64{}, p.Requestable...), Total: p.Total, Free: p.Free})
	}
	sort.SliceStable(list.Pools, func(i, j int) bool {
		a, b := list.Pools[i], list.Pools[j]
		return less(strings.Compare(a.Infra, b.Infra), strings.Compare(a.Name, b.Name))
	})
	return list
}

// nameFilter admits the accelerator asked for. When nothing has exactly that name, it admits names that contain it.
func nameFilter(want string, names []string) func(string) bool {
	if want == "" {
		return func(string) bool { return true }
	}
	for _, n := range names {
		if n != "" && Same(n, want) {
			return func(name string) bool { return Same(name, want) }
		}
	}
	part := fold(want)
	return func(name string) bool { return part != "" && strings.Contains(fold(Canonical(name)), part) }
}

func (f Filter) admits(o providers.Offer) bool {
	switch {
	case f.Cloud != "" && !strings.EqualFold(f.Cloud, o.Provider),
		f.Region != "" && !strings.EqualFold(f.Region, o.Region):
		return false
	case f.Count == 0:
		return true
	case o.Flexible:
		return f.Count <= o.AcceleratorCount
	}
	return math.Abs(f.Count-o.AcceleratorCount) < 0.01
}

func (f Filter) admitsPool(p providers.Pool) bool {
	cloud, region, _ := strings.Cut(p.Infra, "/")
	if f.Cloud != "" && !strings.EqualFold(f.Cloud, cloud) || f.Region != "" && !strings.EqualFold(f.Region, region) {
		return false
	}
	if f.Count == 0 {
		return true
	}
	for _, n := range p.Requestable {
		if n >= f.Count {
			return true
		}
	}
	return false
}

type rowKey struct {
	cloud, instance, region, name string
	count, cpus, memory           float64
}

// addOffer puts an offer into its row: zones of a region, and spot beside on-demand, are one row with the lowest prices.
func addOffer(rows map[rowKey]*api.GPUOffer, o providers.Offer, f Filter) {
	name, count := Canonical(o.Accelerator), o.AcceleratorCount
	if o.Flexible && f.Count > 0 {
		count = f.Count
	}
	k := rowKey{o.Provider, o.InstanceType, o.Region, name, count, o.CPUs, o.MemoryGB}
	r := rows[k]
	if r == nil {
		r = &api.GPUOffer{Cloud: o.Provider, InstanceType: o.InstanceType, Name: name, Count: count, CPUs: o.CPUs,
			MemoryGB: o.MemoryGB, Region: o.Region}
		rows[k] = r
	}
	if o.DeviceMemGB > r.DeviceMemGB {
		r.DeviceMemGB = o.DeviceMemGB
	}
	if d, ok := Lookup(name); ok && r.DeviceMemGB == 0 {
		r.DeviceMemGB = d.MemoryGB
	}
	price := o.PricePerHour
	if math.IsNaN(price) || math.IsInf(price, 0) || price < 0 {
		return
	}
	at := &r.Price
	if o.Spot {
		at = &r.SpotPrice
	}
	if *at == nil || price < **at {
		*at = &price
	}
}

func value(p *float64) float64 {
	if p == nil {
		return math.Inf(1)
	}
	return *p
}

func sortRows(rows []api.GPUOffer) {
	price, spot := map[string]float64{}, map[string]float64{}
	for _, r := range rows {
		if _, seen := price[r.Cloud]; !seen {
			price[r.Cloud], spot[r.Cloud] = math.Inf(1), math.Inf(1)
		}
		price[r.Cloud] = min(price[r.Cloud], value(r.Price))
		spot[r.Cloud] = min(spot[r.Cloud], value(r.SpotPrice))
	}
	cmp := func(a, b float64) int {
		switch {
		case a < b:
			return -1
		case a > b:
			return 1
		}
		return 0
	}
	sort.Slice(rows, func(i, j int) bool {
		a, b := rows[i], rows[j]
		return less(cmp(price[a.Cloud], price[b.Cloud]), cmp(spot[a.Cloud], spot[b.Cloud]), strings.Compare(a.Cloud, b.Cloud),
			cmp(value(a.Price), value(b.Price)), cmp(value(a.SpotPrice), value(b.SpotPrice)), cmp(a.Count, b.Count),
			strings.Compare(a.InstanceType, b.InstanceType), cmp(a.CPUs, b.CPUs), cmp(a.MemoryGB, b.MemoryGB),
			strings.Compare(a.Region, b.Region))
	})
}

// less is true when the first difference is negative.
func less(diffs ...int) bool {
	for _, d := range diffs {
		if d != 0 {
			return d < 0
		}
	}
	return false
}

// cheapestRegions keeps the first row of each instance type; rows are sorted by price.
func cheapestRegions(rows []api.GPUOffer) []api.GPUOffer {
	seen := map[rowKey]bool{}
	var out []api.GPUOffer
	for _, r := range rows {
		k := rowKey{r.Cloud, r.InstanceType, "", r.Name, r.Count, r.CPUs, r.MemoryGB}
		if !seen[k] {
			seen[k] = true
			out = append(out, r)
		}
	}
	return out
}

// Quantities lists the counts per node in which an accelerator is offered, ascending.
func Quantities(rows []api.GPUOffer) []float64 {
	seen := map[float64]bool{}
	var out []float64
	for _, r := range rows {
		if !seen[r.Count] {
			seen[r.Count] = true
			out = append(out, r.Count)
		}
	}
	sort.Float64s(out)
	return out
}

// Sections splits the accelerators of a list as `sky gpus list` shows them: the common GPUs in their usual order, then TPUs
// and the others by name.
func Sections(l api.GPUList) (commonGPUs, tpus, others []string) {
	isCommon := map[string]bool{}
	for _, n := range common {
		isCommon[n] = true
		if len(l.Offers[n]) > 0 {
			commonGPUs = append(commonGPUs, n)
		}
	}
	for n := range l.Offers {
		switch {
		case isCommon[n]:
		case IsTPU(n):
			tpus = append(tpus, n)
		default:
			others = append(others, n)
		}
	}
	sort.Strings(tpus)
	sort.Strings(others)
	return commonGPUs, tpus, others
}
