package catalog

import (
	"encoding/json"
	"math/rand"
	"reflect"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/providers"
)

func TestCanonical(t *testing.T) {
	for in, want := range map[string]string{
		"a100": "A100", "A100-80gb": "A100-80GB", "a100_80GB": "A100-80GB", "A100-40GB": "A100", "h100": "H100", "v100-32gb": "V100-32GB",
		"rtx4090": "RTX4090", "RTX-4090": "RTX4090", "RTXA6000": "A6000", "rtx6000-ada": "RTX6000-Ada", "l4": "L4", "l40s": "L40S",
		"T4G": "T4g", "TPU-v5litepod-8": "tpu-v5litepod-8", "inferentia2": "Inferentia2", "MyChip-3": "MyChip-3", " H200 ": "H200",
		"mi300x": "MI300X", "gaudi hl-205": "Gaudi HL-205", "": "",
	} {
		if got := Canonical(in); got != want {
			t.Errorf("Canonical(%q) = %q, want %q", in, got, want)
		}
	}
	if !Same("mychip", "MYCHIP") || Same("A100", "A100-80GB") || Same("L4", "L40") {
		t.Error("Same is wrong")
	}
}

func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range devices {
		if d.MemoryGB <= 0 || d.Manufacturer == "" || Canonical(d.Name) != d.Name || seen[fold(d.Name)] {
			t.Errorf("bad or doubled row %+v", d)
		}
		seen[fold(d.Name)] = true
	}
	for a, name := range aliases {
		if fold(a) != a {
			t.Errorf("alias %q is not folded", a)
		}
		if d, ok := Lookup(name); !ok || d.Name != name {
			t.Errorf("alias %q leads to %q, which is not in the table", a, name)
		}
		if seen[a] {
			t.Errorf("alias %q is a device of its own", a)
		}
	}
	for _, n := range Common() {
		if _, ok := Lookup(n); !ok {
			t.Errorf("common %q is not in the table", n)
		}
	}
	for _, n := range CommonTPUs() {
		if d, ok := Lookup(n); !ok || d.Manufacturer != google {
			t.Errorf("common %q is not a known TPU", n)
		}
	}
	if d, ok := Lookup("TPU-V5P-128"); !ok || d.MemoryGB != 95 {
		t.Errorf("tpu: %+v %v", d, ok)
	}
	if _, ok := Lookup("tpu-v99-1"); ok {
		t.Error("an unknown TPU is known")
	}
}

func TestFromProduct(t *testing.T) {
	for _, c := range []struct {
		in   string
		mib  int
		want string
	}{
		{"NVIDIA A100-SXM4-80GB", 81920, "A100-80GB"},
		{"NVIDIA A100-SXM4-40GB", 40960, "A100"},
		{"NVIDIA A100-PCIE-40GB", 0, "A100"},
		{"NVIDIA A100 80GB PCIe", 81920, "A100-80GB"},
		{"A100-SXM-80GB", 0, "A100-80GB"},
		{"NVIDIA H100 80GB HBM3", 81559, "H100"},
		{"NVIDIA H100 PCIe", 81559, "H100"},
		{"NVIDIA H100 NVL", 95830, "H100-NVL"},
		{"NVIDIA H200", 143771, "H200"},
		{"NVIDIA H20", 97871, "H20"},
		{"NVIDIA B200", 183359, "B200"},
		{"NVIDIA GH200 480GB", 97871, "GH200"},
		{"NVIDIA B300 SXM6 AC", 275040, "B300"},
		{"Tesla V100-SXM2-16GB", 16160, "V100"},
		{"Tesla V100-SXM2-32GB", 32510, "V100-32GB"},
		{"Tesla V100-SXM3-32GB", 0, "V100-32GB"},
		{"Tesla T4", 15360, "T4"},
		{"NVIDIA T4G", 0, "T4g"},
		{"Tesla P100-PCIE-16GB", 16280, "P100"},
		{"Tesla K80", 11441, "K80"},
		{"NVIDIA A10G", 23028, "A10G"},
		{"NVIDIA A10", 23028, "A10"},
		{"NVIDIA L4", 23034, "L4"},
		{"NVIDIA L40S", 46068, "L40S"},
		{"NVIDIA GeForce RTX 4090", 24564, "RTX4090"},
		{"NVIDIA GeForce RTX 4070 Ti SUPER", 16376, "RTX4070TiSUPER"},
		{"NVIDIA GeForce RTX 3080 Laptop GPU", 8192, "RTX3080"},
		{"GeForce GTX 1080 Ti", 11178, "GTX1080Ti"},
		{"NVIDIA RTX A6000", 49140, "A6000"},
		{"Quadro RTX 6000", 24576, "RTX6000"},
		{"NVIDIA RTX 6000 Ada Generation", 49140, "RTX6000-Ada"},
		{"NVIDIA RTX PRO 6000 Blackwell Server Edition", 97887, "RTXPRO6000"},
		{"NVIDIA TITAN RTX", 24576, "TITANRTX"},
		{"AMD Instinct MI300X", 196608, "MI300X"},
		{"AMD Instinct MI300X OAM", 196608, "MI300X"},
		{"Something New 9000", 0, "SomethingNew9000"},
		{"", 0, ""},
		{"NVIDIA Graphics Device", 0, ""},
	} {
		if got := FromProduct(c.in, c.mib); got != c.want {
			t.Errorf("FromProduct(%q, %d) = %q, want %q", c.in, c.mib, got, c.want)
		}
	}
}

func TestByMemory(t *testing.T) {
	has := func(list []string, n string) bool {
		return strings.Contains(" "+strings.Join(list, " ")+" ", " "+n+" ")
	}
	exact := ByMemory(16, false, "")
	if !has(exact, "T4") || !has(exact, "V100") || has(exact, "L4") || has(exact, "tpu-v2-8") {
		t.Errorf("16GB: %v", exact)
	}
	atLeast := ByMemory(80, true, "NVIDIA")
	if !has(atLeast, "A100-80GB") || !has(atLeast, "H200") || has(atLeast, "MI300X") || has(atLeast, "A100") {
		t.Errorf("nvidia:80GB+: %v", atLeast)
	}
	if got := ByMemory(7, false, "nobody"); got != nil {
		t.Errorf("nobody makes %v", got)
	}
	if !FitsMemory(79.6, 80, false) || FitsMemory(0, 0, true) || FitsMemory(40, 80, true) || FitsMemory(81, 80, false) {
		t.Error("FitsMemory is wrong")
	}
}

func TestSimilar(t *testing.T) {
	among := []string{"A100", "A100-80GB", "A10", "A10G", "H100", "V100", "T4", "L4", "L40S", "tpu-v2-8"}
	if got := Similar("A1000", among); len(got) == 0 || got[0] != "A100" {
		t.Errorf("A1000: %v", got)
	}
	if got := Similar("H10O", among); len(got) == 0 || got[0] != "H100" {
		t.Errorf("H10O: %v", got)
	}
	if got := Similar("A100", among); len(got) == 0 || contains(got, "A100") {
		t.Errorf("A100: %v", got)
	}
	if got := Similar("zzzzzz", among); got != nil {
		t.Errorf("zzzzzz: %v", got)
	}
	if got := Similar("", among); got != nil {
		t.Errorf("empty: %v", got)
	}
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func offer(provider, typ, region, acc string, n, price float64, spot bool) providers.Offer {
	return providers.Offer{Provider: provider, InstanceType: typ, Region: region, Accelerator: acc, AcceleratorCount: n, CPUs: 8 * n,
		MemoryGB: 32 * n, PricePerHour: price, Spot: spot}
}

func TestGPUListOrder(t *testing.T) {
	offers := []providers.Offer{
		offer("dear", "d1", "r1", "A100", 1, 5, false),
		offer("cheap", "c8", "r1", "a100", 8, 20, false),
		offer("cheap", "c1", "r2", "A100", 1, 3, false),
		offer("cheap", "c1", "r1", "A100", 1, 2, false),
		offer("cheap", "c1", "r2", "A100", 1, 0.5, true),
		offer("cheap", "c1", "r1", "A100", 1, 0.9, true),
		offer("spotonly", "s1", "r1", "A100", 1, 0.1, true),
		offer("cheap", "cpu", "r1", "", 0, 0.1, false),
		offer("cheap", "c1", "r1", "A100-80GB", 1, 4, false),
	}
	offers[3].Zone = "r1-a"
	second := offers[3]
	second.Zone, second.PricePerHour = "r1-b", 2.5
	offers = append(offers, second)
	want := []string{"cheap c1 r1 2 0.9", "cheap c8 r1 20 -", "dear d1 r1 5 -", "spotonly s1 r1 - 0.1"}
	for seed := int64(0); seed < 20; seed++ {
		rand.New(rand.NewSource(seed)).Shuffle(len(offers), func(i, j int) { offers[i], offers[j] = offers[j], offers[i] })
		l := GPUList(offers, nil, Filter{Name: "A100"})
		if got := show(l.Offers["A100"]); !reflect.DeepEqual(got, want) {
			t.Fatalf("got %q, want %q", got, want)
		}
		if len(l.Offers) != 1 {
			t.Fatalf("A100 also listed %v", l.Offers)
		}
	}
	all := GPUList(offers, nil, Filter{Name: "a100", AllRegions: true})
	if got := show(all.Offers["A100"]); len(got) != 5 || got[1] != "cheap c1 r2 3 0.5" {
		t.Errorf("all regions: %q", got)
	}
	if got := show(GPUList(offers, nil, Filter{Name: "A100", Cloud: "CHEAP", Region: "r2"}).Offers["A100"]); !reflect.DeepEqual(got, []string{"cheap c1 r2 3 0.5"}) {
		t.Errorf("region r2: %q", got)
	}
	if got := show(GPUList(offers, nil, Filter{Name: "A100", Count: 8}).Offers["A100"]); !reflect.DeepEqual(got, []string{"cheap c8 r1 20 -"}) {
		t.Errorf("A100:8: %q", got)
	}
	if l := GPUList(offers, nil, Filter{Name: "80g"}); len(l.Offers) != 1 || len(l.Offers["A100-80GB"]) != 1 {
		t.Errorf("a part of a name: %v", l.Offers)
	}
	if d := all.Offers["A100"][0].DeviceMemGB; d != 40 {
		t.Errorf("device memory %v", d)
	}
	if got := Quantities(all.Offers["A100"]); !reflect.DeepEqual(got, []float64{1, 8}) {
		t.Errorf("quantities %v", got)
	}
}

func show(rows []api.GPUOffer) []string {
	var out []string
	num := func(p *float64) string {
		if p == nil {
			return "-"
		}
		b, _ := json.Marshal(*p)
		return string(b)
	}
	for _, r := range rows {
		out = append(out, strings.Join([]string{r.Cloud, r.InstanceType, r.Region, num(r.Price), num(r.SpotPrice)}, " "))
	}
	return out
}

func TestGPUListPoolsAndFlexible(t *testing.T) {
	pools := []providers.Pool{
		{Infra: "ssh/lab", Accelerator: "rtx4090", Requestable: []float64{1, 2, 4}, Total: 8, Free: 3},
		{Infra: "local", Accelerator: "L4", Requestable: []float64{1}, Total: 1, Free: 1},
	}
	offers := []providers.Offer{{Provider: "ssh", Region: "lab", Accelerator: "RTX4090", AcceleratorCount: 4, CPUs: 32, MemoryGB: 128, Flexible: true}}
	l := GPUList(offers, pools, Filter{})
	if len(l.Pools) != 2 || l.Pools[0].Infra != "local" || l.Pools[1].Name != "RTX4090" || len(l.Offers["RTX4090"]) != 1 {
		t.Fatalf("%+v", l)
	}
	l = GPUList(offers, pools, Filter{Name: "RTX4090", Count: 2, Cloud: "ssh", Region: "lab"})
	if len(l.Pools) != 1 || len(l.Offers["RTX4090"]) != 1 || l.Offers["RTX4090"][0].Count != 2 {
		t.Errorf("a part of a machine: %+v", l)
	}
	if l = GPUList(offers, pools, Filter{Name: "RTX4090", Count: 5}); len(l.Pools) != 0 || len(l.Offers) != 0 {
		t.Errorf("more than there is: %+v", l)
	}
	b, err := json.Marshal(GPUList(nil, nil, Filter{}))
	if err != nil || string(b) != `{"pools":[],"offers":{}}` {
		t.Errorf("empty list: %s %v", b, err)
	}
}

func TestSections(t *testing.T) {
	l := GPUList([]providers.Offer{
		offer("x", "a", "r", "T4", 1, 1, false), offer("x", "b", "r", "H100", 1, 1, false), offer("x", "c", "r", "tpu-v2-8", 1, 1, false),
		offer("x", "d", "r", "K80", 1, 1, false), offer("x", "e", "r", "A40", 1, 1, false),
	}, nil, Filter{})
	c, tpus, others := Sections(l)
	if !reflect.DeepEqual(c, []string{"H100", "T4"}) || !reflect.DeepEqual(tpus, []string{"tpu-v2-8"}) || !reflect.DeepEqual(others, []string{"A40", "K80"}) {
		t.Errorf("%v %v %v", c, tpus, others)
	}
}

func TestParseFilter(t *testing.T) {
	for in, want := range map[string]Filter{"": {}, "A100": {Name: "A100"}, "A100:8": {Name: "A100", Count: 8}, " T4 : 0.5 ": {Name: "T4", Count: 0.5}} {
		if got, err := ParseFilter(in); err != nil || got != want {
			t.Errorf("%q: %+v %v", in, got, err)
		}
	}
	for _, in := range []string{"A100:x", "A100:0", "A100:-1", ":4", "A100:NaN", "A100:"} {
		if got, err := ParseFilter(in); err == nil {
			t.Errorf("%q was read as %+v", in, got)
		}
	}
}
