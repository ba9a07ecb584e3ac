package optimizer

import (
	"fmt"
	"math"
	"sort"
	"strings"

	"github.com/skyloom/skyloom/internal/catalog"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/task"
)

// slack absorbs the rounding of sizes that were converted between units.
const slack = 1e-3

// General defaults for CPU-only nodes on machines of fixed size, from the compatible product's table of clouds.
const (
	defaultCPUs         = 8
	defaultMemoryPerCPU = 4
)

// matcher compares the offers of one infra with one request.
type matcher struct {
	req      task.Request
	cloud    string
	nodes    int
	defaults Defaults
}

// stage narrows offers by one demand, and can say why nothing passed it.
type stage struct {
	keep func(providers.Offer) bool
	// why explains an empty outcome, given what came in. The hint may be empty.
	why func(before []providers.Offer) (text, hint string)
}

// fitting returns the offers that meet the request, or why there are none.
func (m matcher) fitting(offers []providers.Offer) ([]providers.Offer, Reason) {
	if len(offers) == 0 {
		return nil, Reason{Infra: m.cloud, Text: "offers nothing at the moment", Hint: "run `sky check " + m.cloud + "` to see its state"}
	}
	stages := m.stages(offers)
	meets := func(o providers.Offer) bool {
		for _, s := range stages {
			if !s.keep(o) {
				return false
			}
		}
		return true
	}
	if fits := keep(offers, meets); len(fits) > 0 {
		return m.preferred(fits), Reason{}
	}
	// Narrow step by step, to tell at which demand the last offer went.
	for _, s := range stages {
		left := keep(offers, s.keep)
		if len(left) == 0 {
			text, hint := s.why(offers)
			return nil, Reason{Infra: m.cloud, Text: text, Hint: hint}
		}
		offers = left
	}
	return nil, Reason{}
}

func keep(offers []providers.Offer, ok func(providers.Offer) bool) []providers.Offer {
	var out []providers.Offer
	for _, o := range offers {
		if ok(o) {
			out = append(out, o)
		}
	}
	return out
}

// stages are the demands in the order in which a person would want to hear that one is not met.
func (m matcher) stages(all []providers.Offer) []stage {
	req := m.req
	out := []stage{
		{func(o providers.Offer) bool { return place(req.Infra.Region, o.Region) }, m.noPlace("region", req.Infra.Region, func(o providers.Offer) string { return o.Region })},
		{func(o providers.Offer) bool { return place(req.Infra.Zone, o.Zone) }, m.noPlace("zone", req.Infra.Zone, func(o providers.Offer) string { return o.Zone })},
		{func(o providers.Offer) bool { _, _, ok := images(req, o.Region); return ok }, says("has no region for which image_id names an image", "")},
		{func(o providers.Offer) bool { return req.InstanceType == "" || o.InstanceType == req.InstanceType }, m.noInstanceType},
	}
	if req.Accelerator != nil {
		count := m.count(all)
		out = append(out, stage{m.isAccelerator, m.noAccelerator},
			stage{func(o providers.Offer) bool { return enough(o, count) }, m.noCount})
	} else if req.InstanceType == "" {
		out = append(out, stage{func(o providers.Offer) bool { return o.Accelerator == "" || o.Flexible },
			says("has only machines with accelerators", "ask for one with `accelerators:`, or name an `instance_type`")})
	}
	return append(out,
		stage{func(o providers.Offer) bool { return meetsCPUs(req.CPUs, o) }, m.noCPUs},
		stage{func(o providers.Offer) bool { _, _, ok := m.size(o); return ok }, m.noMemory},
		stage{func(o providers.Offer) bool { return meetsDisk(req.LocalDisk, o) }, says("has no machine with such a local disk", "")},
		stage{func(o providers.Offer) bool { return o.Spot == req.UseSpot }, m.noSpot},
		stage{func(o providers.Offer) bool { return o.MaxNodes == 0 || o.MaxNodes >= m.nodes }, m.noNodes},
		stage{func(o providers.Offer) bool {
			return req.MaxHourlyCost == 0 || micros(o.PricePerHour) <= micros(req.MaxHourlyCost)
		}, m.tooDear})
}

func says(text, hint string) func([]providers.Offer) (string, string) {
	return func([]providers.Offer) (string, string) { return text, hint }
}

// place compares a wanted region or zone; empty and * mean any.
func place(want, have string) bool {
	return want == "" || want == "*" || strings.EqualFold(want, have)
}

// isAccelerator tells whether the offer has the accelerator asked for, by name or by memory.
func (m matcher) isAccelerator(o providers.Offer) bool {
	if o.Accelerator == "" {
		return false
	}
	a := m.req.Accelerator
	if a.Name != "" {
		return catalog.Same(a.Name, o.Accelerator)
	}
	gb, vendor := o.DeviceMemGB, o.Manufacturer
	if d, ok := catalog.Lookup(o.Accelerator); ok {
		gb, vendor = d.MemoryGB, d.Manufacturer
	}
	return (a.Vendor == "" || strings.EqualFold(a.Vendor, vendor)) && catalog.FitsMemory(gb, a.MemoryGB, a.MemoryAtLeast)
}

// count is how many devices a node shall have. A fraction that no machine of fixed size offers is served by whole devices.
func (m matcher) count(offers []providers.Offer) float64 {
	want := m.req.Accelerator.Count
	if want <= 0 {
		want = 1
	}
	if want == math.Trunc(want) {
		return want
	}
	for _, o := range offers {
		if m.isAccelerator(o) && !o.Flexible && math.Abs(o.AcceleratorCount-want) < 0.01 {
			return want
		}
	}
	return math.Ceil(want)
}

func enough(o providers.Offer, count float64) bool {
	if o.Flexible {
		return math.Ceil(count) <= o.AcceleratorCount+slack
	}
	return math.Abs(o.AcceleratorCount-count) < 0.01
}

func meetsCPUs(want task.CPUs, o providers.Offer) bool {
	switch {
	case want.N == 0:
		return true
	case o.Flexible || want.AtLeast:
		return o.CPUs >= want.N-slack
	}
	return math.Abs(o.CPUs-want.N) <= slack
}

func meetsMemory(want task.Memory, cpus, gb float64) bool {
	need := want.GB
	if want.PerCPU {
		need *= cpus
	}
	switch {
	case want.Whole || need == 0:
		return true
	case want.AtLeast:
		return gb >= need-slack
	}
	return math.Abs(gb-need) <= slack
}

func meetsDisk(want *task.LocalDisk, o providers.Offer) bool {
	if want == nil {
		return true
	}
	have, err := task.ParseLocalDisk(o.LocalDisk)
	if err != nil || want.Mode == "nvme" && have.Mode != "nvme" {
		return false
	}
	return math.Abs(have.SizeGB-want.SizeGB) < 1 || want.AtLeast && have.SizeGB > want.SizeGB
}

// size is how many CPUs and how much memory a node gets: all of a machine of fixed size, the part asked for of a flexible one.
func (m matcher) size(o providers.Offer) (cpus, gb float64, ok bool) {
	if !o.Flexible {
		return o.CPUs, o.MemoryGB, meetsMemory(m.req.Memory, o.CPUs, o.MemoryGB)
	}
	mem, d := m.req.Memory, m.defaults
	perCPU := d.MemoryPerCPU
	switch {
	case m.req.CPUs.N > 0:
		cpus = m.req.CPUs.N
	case m.req.Accelerator != nil && d.CPUsPerAccelerator > 0:
		cpus = min(o.CPUs, d.CPUsPerAccelerator*math.Ceil(max(m.req.Accelerator.Count, 1)))
	case m.req.Accelerator == nil && d.CPUs > 0:
		cpus = min(o.CPUs, d.CPUs)
	default:
		cpus = o.CPUs
		if mem.PerCPU && mem.GB > 0 {
			cpus = min(cpus, math.Floor(o.MemoryGB/mem.GB))
		}
	}
	if m.req.Accelerator != nil && d.MemoryPerCPUWithAccelerator > 0 {
		perCPU = d.MemoryPerCPUWithAccelerator
	}
	switch {
	case mem.Whole:
		gb = o.MemoryGB
	case mem.GB > 0 && mem.PerCPU:
		gb = mem.GB * cpus
	case mem.GB > 0:
		gb = mem.GB
	case perCPU > 0:
		gb = min(o.MemoryGB, perCPU*cpus)
	default:
		gb = o.MemoryGB
	}
	return cpus, gb, gb <= o.MemoryGB+slack && (cpus > 0 || o.CPUs == 0)
}

// preferred applies the sizes a task gets when it says nothing: as long as something is left, CPU-only nodes of fixed size
// have the default CPUs and memory per CPU.
func (m matcher) preferred(offers []providers.Offer) []providers.Offer {
	if m.req.Accelerator != nil || m.req.InstanceType != "" {
		return offers
	}
	cpus := task.CPUs{N: defaultCPUs, AtLeast: true}
	if m.defaults.CPUs > 0 {
		cpus = task.CPUs{N: m.defaults.CPUs, AtLeast: m.defaults.AtLeast}
	}
	mem := task.Memory{GB: defaultMemoryPerCPU, PerCPU: true, AtLeast: true}
	if m.defaults.MemoryPerCPU > 0 {
		mem.GB = m.defaults.MemoryPerCPU
	}
	filter := func(ok func(providers.Offer) bool) {
		if kept := keep(offers, func(o providers.Offer) bool { return o.Flexible || ok(o) }); len(kept) > 0 {
			offers = kept
		}
	}
	noMemory := m.req.Memory.IsZero()
	if m.req.CPUs.IsZero() && noMemory {
		filter(func(o providers.Offer) bool { return meetsCPUs(cpus, o) })
	}
	if noMemory {
		filter(func(o providers.Offer) bool { return meetsMemory(mem, o.CPUs, o.MemoryGB) })
	}
	return offers
}

// images picks the machine image and the container for a region. It fails when images are given by region and none is for
// this one.
func images(req task.Request, region string) (image, container string, ok bool) {
	container = strings.TrimPrefix(req.Images["docker"], "docker:")
	image, ok = req.Images[""], true
	var regions []string
	for k := range req.Images {
		if k != "" && k != "docker" {
			regions = append(regions, k)
		}
	}
	if len(regions) > 0 {
		sort.Strings(regions)
		ok = image != ""
		for _, k := range regions {
			if strings.EqualFold(k, region) {
				image, ok = req.Images[k], true
				break
			}
		}
	}
	if c, is := strings.CutPrefix(image, "docker:"); is {
		image, container = "", c
	}
	return image, container, ok
}

// needs lists the capabilities a request needs, sorted.
func needs(req task.Request, nodes int, extra []string) []string {
	set := map[string]bool{}
	for _, n := range extra {
		set[n] = true
	}
	for k, v := range req.Images {
		if k == "docker" || strings.HasPrefix(v, "docker:") {
			set[NeedContainer] = true
		} else if v != "" {
			set[NeedImage] = true
		}
	}
	for name, needed := range map[string]bool{
		NeedSpotStop:    req.UseSpot && set[NeedStop],
		NeedMultiNode:   nodes > 1,
		NeedSpot:        req.UseSpot,
		NeedPorts:       len(req.Ports) > 0,
		NeedLocalDisk:   req.LocalDisk != nil,
		NeedNetworkTier: req.NetworkTier == "best",
		NeedDiskTier:    !in(req.DiskTier, "", "none", "medium", "best"),
	} {
		if needed {
			set[name] = true
		}
	}
	out := make([]string, 0, len(set))
	for n := range set {
		out = append(out, n)
	}
	sort.Strings(out)
	return out
}

func in(s string, list ...string) bool {
	for _, x := range list {
		if s == x {
			return true
		}
	}
	return false
}

// describe says in words what a request asks for.
func describe(req task.Request) string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if req.InstanceType != "" {
		add("%s", req.InstanceType)
	}
	if req.Accelerator != nil {
		add("%s", req.Accelerator)
	}
	if !req.CPUs.IsZero() {
		add("cpus %s", req.CPUs)
	}
	if !req.Memory.IsZero() {
		add("memory %s", req.Memory)
	}
	if req.LocalDisk != nil {
		add("local_disk %s", req.LocalDisk)
	}
	if req.MaxHourlyCost > 0 {
		add("at most $%s per hour", num(req.MaxHourlyCost))
	}
	if len(parts) == 0 {
		add("a default node")
	}
	if req.UseSpot {
		add("spot")
	}
	if s := req.Infra.String(); s != "*" {
		add("on %s", s)
	}
	return strings.Join(parts, ", ")
}
