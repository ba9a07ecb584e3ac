package optimizer

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"strings"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/catalog"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/task"
)

// Rank lists what can be launched, best first.
//
// For each request and each infra only the cheapest fitting instance type is kept, in every region, or every zone, that has it;
// a flexible machine is a kind of its own. Inside a group the cheapest stands first; a group is done before the
// next begins. When nothing is left the error is an *api.Error that says why for each infra; the result then still carries
// the reasons and suggestions.
func Rank(in Input) (Result, error) {
	if err := in.check(); err != nil {
		return Result{}, err
	}
	r := newRanker(in)
	seen := map[string]bool{}
	blocked := 0
	for gi, group := range in.Groups {
		var fits []fit
		for ri, req := range group {
			fits = append(fits, r.request(gi, ri, req)...)
		}
		sort.SliceStable(fits, func(i, j int) bool { return fits[i].before(fits[j]) })
		for _, f := range fits {
			key := f.choice.identity()
			switch {
			case seen[key]:
			case blockedBy(in.Blocked, f.choice):
				blocked++
			default:
				r.res.Choices = append(r.res.Choices, f.choice)
			}
			seen[key] = true
		}
	}
	if len(r.res.Choices) == 0 {
		return r.res, r.nothing(blocked)
	}
	r.consider()
	return r.res, nil
}

// Disabled lists the infra that the requests name and that is not enabled, sorted: worth one more look at its credentials
// before ranking.
func Disabled(in Input) []string {
	set := map[string]bool{}
	for _, e := range in.Enabled {
		set[strings.ToLower(e)] = true
	}
	var out []string
	for _, g := range in.Groups {
		for _, req := range g {
			if name := strings.ToLower(req.Infra.Cloud); name != "" && name != "*" && !set[name] {
				set[name] = true
				out = append(out, name)
			}
		}
	}
	sort.Strings(out)
	return out
}

// ranker collects the result of one ranking.
type ranker struct {
	in      Input
	nodes   int
	enabled []string // sorted, lower case
	offers  map[string][]providers.Offer
	// free are the infra that a request without a named one may use.
	free []string
	res  Result
}

func newRanker(in Input) *ranker {
	r := &ranker{in: in, nodes: max(in.NumNodes, 1)}
	set := map[string]bool{}
	for _, e := range in.Enabled {
		if e = strings.ToLower(e); !set[e] && e != "" {
			set[e] = true
			r.enabled = append(r.enabled, e)
		}
	}
	sort.Strings(r.enabled)
	r.offers = in.usable(set)
	for _, e := range r.enabled {
		if !in.Fallback[e] {
			r.free = append(r.free, e)
		}
	}
	if len(r.free) == 0 {
		r.free = r.enabled
	}
	return r
}

// fit is a choice with the offer it came from.
type fit struct {
	choice Choice
	offer  providers.Offer
	spare  bool // an accelerator of the machine would stay unused
}

// before orders the fits of one group: by price, then so that the least is wasted, then by name.
func (f fit) before(g fit) bool {
	a, b := f.choice, g.choice
	switch pa, pb := micros(a.Spec.PricePerHour), micros(b.Spec.PricePerHour); {
	case pa != pb:
		return pa < pb
	case a.Request != b.Request:
		return a.Request < b.Request
	case a.Provider != b.Provider:
		return a.Provider < b.Provider
	case f.spare != g.spare:
		return g.spare
	case f.waste() != g.waste():
		return f.waste() < g.waste()
	case a.Spec.InstanceType != b.Spec.InstanceType:
		return a.Spec.InstanceType < b.Spec.InstanceType
	case a.Spec.Region != b.Spec.Region:
		return a.Spec.Region < b.Spec.Region
	}
	return a.Spec.Zone < b.Spec.Zone
}

// waste weighs what a machine has: accelerators most, then CPUs, then memory.
func (f fit) waste() float64 {
	return f.offer.AcceleratorCount*1e12 + f.offer.CPUs*1e6 + f.offer.MemoryGB
}

// request lists the choices for one request over all infra it may use, blocked ones included.
func (r *ranker) request(gi, ri int, req task.Request) []fit {
	words := describe(req)
	clouds := r.clouds(req, words)
	if why := r.ambiguous(req, clouds); why.Text != "" {
		r.reason(words, why)
		return nil
	}
	var out []fit
	for _, cloud := range clouds {
		m := matcher{req: req, cloud: cloud, nodes: r.nodes, defaults: r.in.Defaults[cloud]}
		if lack := r.lacks(cloud, needs(req, r.nodes, r.in.Needs)); len(lack) > 0 {
			r.reason(words, Reason{Infra: cloud, Text: "does not support " + strings.Join(lack, ", ")})
			continue
		}
		offers, why := m.fitting(r.offers[cloud])
		if why.Text != "" {
			r.reason(words, why)
			continue
		}
		out = append(out, r.expand(m, gi, ri, r.cheapest(m, offers))...)
	}
	if len(out) == 0 && req.Accelerator != nil && req.Accelerator.Name != "" {
		var have []providers.Offer
		for _, c := range clouds {
			have = append(have, r.offers[c]...)
		}
		for _, s := range suggestions(req.Accelerator.Name, req.Accelerator.Count, have) {
			if !in(s, r.res.Suggestions...) {
				r.res.Suggestions = append(r.res.Suggestions, s)
			}
		}
	}
	return out
}

// clouds are the infra that the request may use. A named one that is not enabled leaves a reason and a warning.
func (r *ranker) clouds(req task.Request, words string) []string {
	name := strings.ToLower(req.Infra.Cloud)
	if name == "" || name == "*" {
		return r.free
	}
	if in(name, r.enabled...) {
		return []string{name}
	}
	known := r.in.Known
	if len(known) == 0 {
		known = r.enabled
	}
	why := Reason{Infra: name, Text: "is not enabled", Hint: "run `sky check " + name + "` to see what it needs"}
	if len(r.in.Known) > 0 && !in(name, known...) {
		why.Text, why.Hint = "is not an infra that this server knows", "it knows "+list(known)
		if providers.Planned(name) {
			why.Text, why.Hint = "comes with a later release", "this one has "+list(known)
		} else if s := catalog.Similar(name, known); len(s) > 0 {
			why.Hint = "did you mean " + s[0] + "?"
		}
	}
	r.reason(words, why)
	r.note(name + " " + why.Text + " and was left out; " + why.Hint)
	return nil
}

// ambiguous refuses a region, zone or instance type without a named infra that several infra have.
func (r *ranker) ambiguous(req task.Request, clouds []string) Reason {
	if len(clouds) < 2 {
		return Reason{}
	}
	inPlace := func(o providers.Offer) bool {
		return place(req.Infra.Region, o.Region) && place(req.Infra.Zone, o.Zone)
	}
	having := func(ok func(providers.Offer) bool) []string {
		var out []string
		for _, c := range clouds {
			for _, o := range r.offers[c] {
				if ok(o) {
					out = append(out, c)
					break
				}
			}
		}
		return out
	}
	if where := req.Infra.Concrete(); where.Region != "" || where.Zone != "" {
		if has := having(inPlace); len(has) > 1 {
			where.Cloud = has[0]
			return Reason{Text: fmt.Sprintf("%s is ambiguous: %s have it", req.Infra, list(has)),
				Hint: fmt.Sprintf("name the infra, for example `infra: %s`", where)}
		}
	}
	if t := req.InstanceType; t != "" {
		if has := having(func(o providers.Offer) bool { return o.InstanceType == t && inPlace(o) }); len(has) > 1 {
			return Reason{Text: fmt.Sprintf("instance type %s is ambiguous: %s have it", t, list(has)),
				Hint: fmt.Sprintf("name the infra, for example `infra: %s`", has[0])}
		}
	}
	return Reason{}
}

func (r *ranker) lacks(cloud string, needed []string) []string {
	var out []string
	for _, n := range needed {
		if in(n, r.in.Lacks[cloud]...) {
			word := needWords[n]
			if word == "" {
				word = n
			}
			out = append(out, word)
		}
	}
	return out
}

// cheapest keeps the cheapest instance type of each accelerator that fits, and every flexible machine, sorted by price.
func (r *ranker) cheapest(m matcher, offers []providers.Offer) []providers.Offer {
	best := map[string]providers.Offer{}
	for _, o := range offers {
		b, ok := best[o.Accelerator]
		if !o.Flexible && (!ok || (fit{offer: o, choice: bare(o)}).before(fit{offer: b, choice: bare(b)})) {
			best[o.Accelerator] = o
		}
	}
	var kept []providers.Offer
	others := map[string]map[string]bool{} // instance types that are passed over, by accelerator
	for _, o := range offers {
		b := best[o.Accelerator]
		switch {
		case o.Flexible, o.InstanceType == b.InstanceType && o.CPUs == b.CPUs && o.MemoryGB == b.MemoryGB && o.AcceleratorCount == b.AcceleratorCount:
			kept = append(kept, o)
		case m.req.Accelerator != nil && o.InstanceType != b.InstanceType:
			if others[o.Accelerator] == nil {
				others[o.Accelerator] = map[string]bool{}
			}
			others[o.Accelerator][o.InstanceType] = true
		}
	}
	sortOffers(kept)
	for _, acc := range slices.Sorted(maps.Keys(others)) {
		r.note(fmt.Sprintf("on %s, %s:%s also comes as %s; the cheapest, %s, is taken", m.cloud, acc,
			num(best[acc].AcceleratorCount), list(slices.Sorted(maps.Keys(others[acc]))), best[acc].InstanceType))
	}
	return kept
}

func bare(o providers.Offer) Choice {
	return Choice{Provider: o.Provider, Spec: providers.NodeSpec{InstanceType: o.InstanceType, Region: o.Region, Zone: o.Zone, PricePerHour: o.PricePerHour}}
}

// expand makes one choice per zone, or per region where the infra picks the zone itself.
func (r *ranker) expand(m matcher, gi, ri int, offers []providers.Offer) []fit {
	byRegion := r.in.Regional[m.cloud] && r.nodes == 1 && !m.req.UseSpot && place(m.req.Infra.Zone, "")
	var out []fit
	at := map[string]int{}
	for _, o := range offers {
		f := fit{offer: o, choice: r.choice(m, gi, ri, o), spare: m.req.Accelerator == nil && o.Accelerator != ""}
		if byRegion && !o.Flexible {
			f.choice.Spec.Zone = ""
			if i, ok := at[f.choice.kind()+o.Region]; ok {
				// The infra may pick any zone: promise no price that is lower than what it may cost.
				out[i].choice.Spec.PricePerHour = max(out[i].choice.Spec.PricePerHour, o.PricePerHour)
				continue
			}
			at[f.choice.kind()+o.Region] = len(out)
		}
		out = append(out, f)
	}
	return out
}

func (r *ranker) choice(m matcher, gi, ri int, o providers.Offer) Choice {
	cpus, gb, _ := m.size(o)
	image, container, _ := images(m.req, o.Region)
	c := Choice{Provider: m.cloud, Group: gi, Request: ri, Arch: o.Arch, Flexible: o.Flexible, LocalDisk: o.LocalDisk, Note: o.Extra[ExtraNote],
		Spec: providers.NodeSpec{
			InstanceType: o.InstanceType, Region: o.Region, Zone: o.Zone, CPUs: cpus, MemoryGB: gb,
			Accelerator: o.Accelerator, AcceleratorCount: o.AcceleratorCount, Spot: o.Spot,
			DiskGB: m.req.DiskSizeGB, DiskTier: m.req.DiskTier, NetworkTier: m.req.NetworkTier,
			ImageID: image, Container: container, Labels: m.req.Labels, PricePerHour: o.PricePerHour,
		}}
	if len(m.req.Ports) > 0 {
		c.Spec.Ports = m.req.Ports.Strings()
	}
	if o.Flexible {
		c.Spec.Accelerator, c.Spec.AcceleratorCount = "", 0
		if m.req.Accelerator != nil {
			c.Spec.Accelerator, c.Spec.AcceleratorCount = o.Accelerator, math.Ceil(max(m.req.Accelerator.Count, 1))
		}
	}
	return c
}

// ExtraNote is the key in an offer's Extra for a warning that people see when the offer is chosen.
const ExtraNote = "note"

// kind tells choices apart that differ in more than their place.
func (c Choice) kind() string {
	return fmt.Sprintf("%s|%s|%v|%s|%v|%v|%v|%d|%d|", c.Provider, c.Spec.InstanceType, c.Spec.Spot, c.Accelerators(), c.Spec.CPUs, c.Spec.MemoryGB,
		c.Flexible, c.Group, c.Request)
}

// identity is equal for choices whose launch would be the same.
func (c Choice) identity() string {
	c.Group, c.Request, c.Spec.PricePerHour = 0, 0, 0
	b, _ := json.Marshal(c) // a Choice holds only strings, numbers, lists and a map of strings
	return string(b)
}

func (r *ranker) reason(words string, why Reason) {
	why.Request = words
	for _, have := range r.res.Reasons {
		if have == why {
			return
		}
	}
	r.res.Reasons = append(r.res.Reasons, why)
}

func (r *ranker) note(text string) {
	if !in(text, r.res.Notes...) {
		r.res.Notes = append(r.res.Notes, text)
	}
}

// consider fills the table: the best choice of each infra, accelerators and spot (and region, where machines are fixed).
func (r *ranker) consider() {
	seen := map[string]bool{}
	for i, c := range r.res.Choices {
		key := fmt.Sprintf("%s|%s|%v", c.Provider, c.Accelerators(), c.Spec.Spot)
		if c.Flexible {
			key += "|" + c.Spec.Region
		}
		if seen[key] {
			continue
		}
		seen[key] = true
		r.res.Considered = append(r.res.Considered, api.Candidate{
			Infra: c.Infra(), Cloud: c.Provider, Region: c.Spec.Region, Zone: c.Spec.Zone, InstanceType: c.Spec.InstanceType,
			Spot: c.Spec.Spot, CPUs: c.Spec.CPUs, MemoryGB: c.Spec.MemoryGB, Accelerators: c.Accelerators(),
			PricePerHour: float64(micros(c.Spec.PricePerHour)*int64(r.nodes)) / 1e6, Chosen: i == 0,
		})
	}
	if n := r.res.Choices[0].Note; n != "" {
		r.note(n)
	}
}

// nothing explains that no choice is left.
func (r *ranker) nothing(blocked int) error {
	e := &api.Error{Kind: api.ErrResourcesUnavailable}
	if len(r.enabled) == 0 {
		e.Message = "no infra is enabled"
		e.Hint = "run `sky check` to see what each infra needs"
		return e
	}
	var words, hints []string
	for _, g := range r.in.Groups {
		for _, req := range g {
			if w := describe(req); !in(w, words...) {
				words = append(words, w)
			}
		}
	}
	what := strings.Join(words[:min(len(words), 3)], "; or ")
	if len(words) > 3 {
		what += fmt.Sprintf("; or %d more", len(words)-3)
	}
	if r.nodes > 1 {
		what = fmt.Sprintf("%d nodes of %s", r.nodes, what)
	}
	if blocked > 0 {
		e.Message = "every place that could give " + what + " has been tried or is ruled out"
	} else {
		e.Message = "no enabled infra can give " + what
	}
	for _, why := range r.res.Reasons {
		line := why.String()
		if len(words) > 1 {
			line = "[" + why.Request + "] " + line
		}
		e.Details = append(e.Details, line)
		if why.Hint != "" && !in(why.Hint, hints...) {
			hints = append(hints, why.Hint)
		}
	}
	if n := len(e.Details); n > maxDetails {
		e.Details = append(e.Details[:maxDetails], fmt.Sprintf("and %d more", n-maxDetails))
	}
	for _, cloud := range r.enabled {
		if !in(cloud, r.free...) {
			hints = append(hints, fmt.Sprintf("%s is used only when named: `infra: %s`", cloud, cloud))
		}
	}
	if len(r.res.Suggestions) > 0 {
		hints = append([]string{"available instead: " + list(r.res.Suggestions)}, hints...)
	}
	e.Hint = strings.Join(hints[:min(len(hints), 5)], "\n")
	return e
}

// maxDetails is how many lines an error lists.
const maxDetails = 20
