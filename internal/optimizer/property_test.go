package optimizer

import (
	"fmt"
	"math"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/skyloom/skyloom/internal/catalog"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/task"
)

var clouds = []string{"aws", "gcp", "ssh", "local"}

func drawOffer(t *rapid.T) providers.Offer {
	n := func(list ...float64) float64 { return rapid.SampledFrom(list).Draw(t, "n") }
	w := func(list ...string) string { return rapid.SampledFrom(list).Draw(t, "w") }
	o := providers.Offer{Provider: w(clouds...), CPUs: n(1, 2, 4, 8, 16, 64), MemoryGB: n(2, 8, 16, 32, 256), Spot: rapid.Bool().Draw(t, "spot"),
		Accelerator: w("", "", "A100", "a100-80GB", "L4", "T4", "Odd1"), DeviceMemGB: n(0, 16, 24), Manufacturer: w("", "nvidia"), LocalDisk: w("", "nvme:500", "ssd:1000")}
	if o.Accelerator != "" {
		o.AcceleratorCount = n(0.5, 1, 2, 4, 8)
	}
	o.MaxNodes = int(n(0, 0, 0, 1, 4))
	if o.Provider == "ssh" || o.Provider == "local" {
		o.Flexible = true
		if o.Provider == "ssh" {
			o.Region = w("lab", "desk")
		}
		return o
	}
	o.InstanceType = fmt.Sprintf("%v-%v-%s%v", o.CPUs, o.MemoryGB, o.Accelerator, o.AcceleratorCount)
	o.Region = w("r1", "r2")
	o.Zone = o.Region + w("a", "b")
	o.PricePerHour = n(0.1, 0.2, 1, 1.0000001, 3, 10)
	return o
}

func drawRequest(t *rapid.T) task.Request {
	n := func(list ...float64) float64 { return rapid.SampledFrom(list).Draw(t, "rn") }
	w := func(list ...string) string { return rapid.SampledFrom(list).Draw(t, "rw") }
	odds := func() bool { return rapid.IntRange(0, 3).Draw(t, "odds") == 0 }
	req := task.Request{UseSpot: odds()}
	if odds() {
		req.Infra.Cloud = w("aws", "gcp", "ssh", "local", "azure")
	}
	if odds() {
		req.Infra.Region = w("r1", "lab", "nowhere")
	}
	if odds() {
		req.Infra.Zone = "r1a"
	}
	if rapid.Bool().Draw(t, "acc") {
		req.Accelerator = &task.Accelerator{Name: w("A100", "l4", "T4", "H100"), Count: n(0.5, 1, 2, 4)}
		if odds() {
			req.Accelerator = &task.Accelerator{MemoryGB: n(16, 24, 80), MemoryAtLeast: odds(), Count: 1, Vendor: w("", "nvidia")}
		}
	}
	if rapid.Bool().Draw(t, "cpus") {
		req.CPUs = task.CPUs{N: n(1, 2, 8, 9), AtLeast: rapid.Bool().Draw(t, "al")}
	}
	if odds() {
		req.Memory = task.Memory{GB: n(2, 4, 16, 32), AtLeast: rapid.Bool().Draw(t, "mal"), PerCPU: odds()}
	}
	if odds() {
		req.MaxHourlyCost = n(0.1, 1, 5)
	}
	if odds() {
		req.LocalDisk = &task.LocalDisk{Mode: w("ssd", "nvme"), SizeGB: n(100, 500), AtLeast: rapid.Bool().Draw(t, "dal")}
	}
	if odds() {
		req.Ports = task.Ports{{From: 80, To: 80}}
	}
	return req
}

func drawBlock(t *rapid.T) Block {
	w := func(list ...string) string { return rapid.SampledFrom(list).Draw(t, "bw") }
	b := Block{Cloud: w("", "aws", "gcp", "ssh"), Region: w("", "r1", "lab"), Accelerator: w("", "A100", "L4:1")}
	if b == (Block{}) {
		b.Zone = "r1a"
	}
	if rapid.Bool().Draw(t, "bs") {
		s := rapid.Bool().Draw(t, "bspot")
		b.Spot = &s
	}
	return b
}

func drawInput(t *rapid.T) Input {
	in := Input{
		Groups:   rapid.SliceOfN(rapid.SliceOfN(rapid.Custom(drawRequest), 1, 3), 1, 3).Draw(t, "groups"),
		NumNodes: rapid.IntRange(0, 3).Draw(t, "nodes"),
		Offers:   rapid.SliceOfN(rapid.Custom(drawOffer), 0, 40).Draw(t, "offers"),
		Enabled:  rapid.SliceOfDistinct(rapid.SampledFrom(clouds), rapid.ID).Draw(t, "enabled"),
		Fallback: map[string]bool{"local": true},
		Blocked:  rapid.SliceOfN(rapid.Custom(drawBlock), 0, 2).Draw(t, "blocked"),
		Regional: map[string]bool{"gcp": rapid.Bool().Draw(t, "regional")},
	}
	if rapid.Bool().Draw(t, "lacking") {
		in.Lacks = map[string][]string{"aws": {NeedPorts}}
	}
	if rapid.Bool().Draw(t, "pods") {
		in.Defaults = map[string]Defaults{"ssh": {CPUs: 2, MemoryPerCPU: 1, CPUsPerAccelerator: 4, MemoryPerCPUWithAccelerator: 4}}
	}
	return in
}

// unmet says in its own words what of a request a choice does not meet; empty if it meets all.
func unmet(in Input, req task.Request, c Choice) string {
	s := c.Spec
	nodes := max(in.NumNodes, 1)
	switch {
	case req.Infra.Cloud != "" && req.Infra.Cloud != c.Provider:
		return "cloud"
	case req.Infra.Region != "" && req.Infra.Region != s.Region:
		return "region"
	case req.Infra.Zone != "" && req.Infra.Zone != s.Zone:
		return "zone"
	case req.UseSpot != s.Spot:
		return "spot"
	case req.CPUs.N > 0 && (s.CPUs < req.CPUs.N || !req.CPUs.AtLeast && s.CPUs != req.CPUs.N):
		return "cpus"
	case req.MaxHourlyCost > 0 && s.PricePerHour > req.MaxHourlyCost+1e-6:
		return "price"
	case req.Infra.Cloud == "" && c.Provider == "local" && len(in.Enabled) > 1:
		return "fallback"
	case len(req.Ports) > 0 && len(in.Lacks[c.Provider]) > 0:
		return "ports"
	case req.Accelerator == nil && s.Accelerator != "":
		return "unasked accelerator"
	}
	gb := req.Memory.GB
	if req.Memory.PerCPU {
		gb *= s.CPUs
	}
	if gb > 0 && (s.MemoryGB < gb-slack || !req.Memory.AtLeast && math.Abs(s.MemoryGB-gb) > slack) {
		return "memory"
	}
	if a := req.Accelerator; a != nil {
		if s.AcceleratorCount < a.Count || s.AcceleratorCount >= a.Count+1 {
			return "accelerator count"
		}
		if a.Name != "" && !catalog.Same(a.Name, s.Accelerator) {
			return "accelerator"
		}
	}
	if d := req.LocalDisk; d != nil {
		have, err := task.ParseLocalDisk(c.LocalDisk)
		if err != nil || have.SizeGB < d.SizeGB || d.Mode == "nvme" && have.Mode != "nvme" {
			return "local disk"
		}
	}
	// Some offer must stand behind it.
	for _, o := range in.Offers {
		if o.Provider != c.Provider || o.InstanceType != s.InstanceType || o.Region != s.Region || s.Zone != "" && o.Zone != s.Zone || o.Spot != s.Spot ||
			o.CPUs < s.CPUs || o.MemoryGB < s.MemoryGB-slack || o.AcceleratorCount < s.AcceleratorCount || o.MaxNodes != 0 && o.MaxNodes < nodes {
			continue
		}
		if s.Accelerator == "" || catalog.Same(s.Accelerator, o.Accelerator) {
			return ""
		}
	}
	return "offer"
}

func TestRankProperties(t *testing.T) {
	found := 0
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		res, err := Rank(in)
		if (err == nil) != (len(res.Choices) > 0) || (err == nil) != (len(res.Considered) > 0) {
			t.Fatalf("error %v with %d choices", err, len(res.Choices))
		}

		shuffled := in
		shuffled.Offers = rapid.Permutation(in.Offers).Draw(t, "shuffled")
		shuffled.Enabled = rapid.Permutation(in.Enabled).Draw(t, "shuffled enabled")
		again, err2 := Rank(shuffled)
		if !reflect.DeepEqual(again, res) || fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Fatalf("the order of the input matters:\n%+v\n%+v", res, again)
		}

		seen := map[string]bool{}
		for i, c := range res.Choices {
			found++
			if why := unmet(in, in.Groups[c.Group][c.Request], c); why != "" {
				t.Fatalf("%s does not meet %s: %s", c, describe(in.Groups[c.Group][c.Request]), why)
			}
			if blockedBy(in.Blocked, c) {
				t.Fatalf("%s is blocked", c)
			}
			if seen[c.identity()] {
				t.Fatalf("%s is listed twice", c)
			}
			seen[c.identity()] = true
			if i == 0 {
				continue
			}
			if p := res.Choices[i-1]; p.Group > c.Group || p.Group == c.Group && p.Spec.PricePerHour > c.Spec.PricePerHour {
				t.Fatalf("%s ($%v, group %d) stands before %s ($%v, group %d)", p, p.Spec.PricePerHour, p.Group, c, c.Spec.PricePerHour, c.Group)
			}
		}
		chosen := 0
		for _, c := range res.Considered {
			if c.Chosen {
				chosen++
			}
		}
		if len(res.Choices) > 0 && (chosen != 1 || !res.Considered[0].Chosen) {
			t.Fatalf("%d rows are chosen", chosen)
		}
	})
	if found == 0 {
		t.Error("no input led to a choice: the property was not tested")
	}
}

// TestBlockingIsFiltering: ranking with blocks gives what filtering the ranking without them gives, so a failover loop may
// do either.
func TestBlockingIsFiltering(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		blocks := in.Blocked
		in.Blocked = nil
		free, _ := Rank(in)
		in.Blocked = blocks
		res, _ := Rank(in)
		if want := Unblocked(free.Choices, blocks); !reflect.DeepEqual(res.Choices, want) {
			t.Fatalf("ranked %v\nfiltered %v", res.Choices, want)
		}
	})
}

// TestFirstGroupWins: what is chosen comes from the first group that has anything alone.
func TestFirstGroupWins(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		res, err := Rank(in)
		for gi := range in.Groups {
			alone := in
			alone.Groups = in.Groups[gi : gi+1]
			one, oneErr := Rank(alone)
			if oneErr != nil {
				continue
			}
			if err != nil || res.Choices[0].Group != gi || !reflect.DeepEqual(res.Choices[0].Spec, one.Choices[0].Spec) {
				t.Fatalf("group %d alone gives %v, together %v (%v)", gi, one.Choices[0], res.Choices, err)
			}
			return
		}
		if err == nil {
			t.Fatalf("no group alone gives anything, together %v", res.Choices)
		}
	})
}

// TestFailoverEnds: whatever goes wrong, each step of a search rules out at least what failed, so that it ends.
func TestFailoverEnds(t *testing.T) {
	kinds := []providers.Kind{providers.NoCapacity, providers.QuotaExceeded, providers.AuthFailed, providers.NotFound, providers.Conflict,
		providers.Invalid, providers.Unsupported, providers.Internal, providers.Kind("new")}
	rapid.Check(t, func(t *rapid.T) {
		res, err := Rank(drawInput(t))
		if err != nil {
			t.Skip()
		}
		left := res.Choices
		for len(left) > 0 {
			kind := rapid.SampledFrom(kinds).Draw(t, "kind")
			scope := rapid.SampledFrom([]providers.Scope{"", providers.ScopeCloud, providers.ScopeRegion, providers.ScopeZone}).Draw(t, "scope")
			next := Unblocked(left, Blocks(left[0], kind, scope))
			if len(next) >= len(left) || len(next) > 0 && reflect.DeepEqual(next[0], left[0]) {
				t.Fatalf("%s with %s/%s is tried again", left[0], kind, scope)
			}
			left = next
		}
	})
}
