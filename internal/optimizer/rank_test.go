package optimizer

import (
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/task"
)

// machine is a fixed offer.
func fixed(cloud, typ, region, zone string, cpus, gb, price float64) providers.Offer {
	return providers.Offer{Provider: cloud, InstanceType: typ, Region: region, Zone: zone, CPUs: cpus, MemoryGB: gb, PricePerHour: price}
}

func gpu(o providers.Offer, name string, n float64) providers.Offer {
	o.Accelerator, o.AcceleratorCount = name, n
	return o
}

func spot(o providers.Offer, price float64) providers.Offer {
	o.Spot, o.PricePerHour = true, price
	return o
}

func flexible(cloud, region string, cpus, gb float64) providers.Offer {
	return providers.Offer{Provider: cloud, Region: region, CPUs: cpus, MemoryGB: gb, Flexible: true}
}

func acc(t *testing.T, s string) *task.Accelerator {
	t.Helper()
	a, err := task.ParseAccelerator(s)
	if err != nil {
		t.Fatal(err)
	}
	return &a
}

// world is two clouds with regions and zones, one pool of hosts and the machine itself.
func world() []providers.Offer {
	var out []providers.Offer
	for _, c := range []struct {
		cloud string
		times float64
	}{{"aws", 1}, {"gcp", 1.1}} {
		for _, r := range []struct {
			region string
			times  float64
		}{{"east", 1}, {"west", 1.2}} {
			for _, z := range []string{"a", "b"} {
				at := func(typ string, cpus, gb, price float64) providers.Offer {
					return fixed(c.cloud, c.cloud+"."+typ, c.cloud+"-"+r.region, c.cloud+"-"+r.region+"-"+z, cpus, gb, price*c.times*r.times)
				}
				cheapSpot := 0.3
				if z == "b" {
					cheapSpot = 0.25
				}
				for _, o := range []providers.Offer{
					at("small", 2, 8, 0.1), at("mid", 8, 32, 0.4), at("lean", 8, 16, 0.3), at("big", 32, 128, 1.6),
					gpu(at("l4", 8, 32, 0.8), "L4", 1), gpu(at("l4x4", 48, 192, 3), "L4", 4), gpu(at("l4big", 16, 64, 1), "L4", 1),
					gpu(at("a100", 96, 1000, 20), "A100", 8), gpu(at("v100", 8, 61, 3), "V100", 1),
				} {
					out = append(out, o, spot(o, o.PricePerHour*cheapSpot))
				}
			}
		}
	}
	return append(out, flexible("ssh", "lab", 64, 256), gpu(flexible("ssh", "gpus", 32, 128), "RTX4090", 4), flexible("local", "", 4, 16),
		spot(flexible("local", "", 4, 16), 0))
}

func input(reqs ...task.Request) Input {
	return Input{Groups: [][]task.Request{reqs}, NumNodes: 1, Offers: world(), Enabled: []string{"aws", "gcp"},
		Known: []string{"aws", "gcp", "azure", "ssh", "local"}, Fallback: map[string]bool{"local": true}}
}

func lines(cs []Choice) []string {
	var out []string
	for _, c := range cs {
		zone := c.Spec.Zone
		if zone == "" {
			zone = c.Spec.Region
		}
		if zone == "" {
			zone = c.Provider
		}
		s := zone + " " + c.Spec.InstanceType
		if c.Spec.Spot {
			s += " spot"
		}
		out = append(out, strings.TrimSpace(s))
	}
	return out
}

func TestRank(t *testing.T) {
	yes := task.Request{UseSpot: true, SpotSaid: true}
	for _, c := range []struct {
		name  string
		in    func() Input
		first []string // the first choices; all of them when total is len(first)
		total int
	}{
		{"default: 8+ CPUs and 4 GB per CPU, cheapest region first", func() Input { return input(task.Request{}) },
			[]string{"aws-east-a aws.mid", "aws-east-b aws.mid", "gcp-east-a gcp.mid", "gcp-east-b gcp.mid", "aws-west-a aws.mid"}, 8},
		{"memory says less than the default", func() Input { return input(task.Request{Memory: task.Memory{GB: 16, AtLeast: true}}) },
			[]string{"aws-east-a aws.lean"}, 8},
		{"cpus alone brings 4 GB per CPU", func() Input { return input(task.Request{CPUs: task.CPUs{N: 8}}) }, []string{"aws-east-a aws.mid"}, 8},
		{"exact cpus and memory", func() Input {
			return input(task.Request{CPUs: task.CPUs{N: 8}, Memory: task.Memory{GB: 16}})
		}, []string{"aws-east-a aws.lean"}, 8},
		{"at least", func() Input { return input(task.Request{CPUs: task.CPUs{N: 9, AtLeast: true}}) }, []string{"aws-east-a aws.big"}, 8},
		{"memory per CPU", func() Input {
			return input(task.Request{CPUs: task.CPUs{N: 2, AtLeast: true}, Memory: task.Memory{GB: 2, PerCPU: true}})
		}, []string{"aws-east-a aws.lean"}, 8},
		{"spot is per zone, by price", func() Input { return input(yes) },
			[]string{"aws-east-b aws.mid spot", "gcp-east-b gcp.mid spot", "aws-east-a aws.mid spot"}, 8},
		{"a region", func() Input { return input(task.Request{Infra: task.Infra{Cloud: "gcp", Region: "gcp-west"}}) },
			[]string{"gcp-west-a gcp.mid", "gcp-west-b gcp.mid"}, 2},
		{"a zone without its region or cloud", func() Input { return input(task.Request{Infra: task.Infra{Zone: "aws-west-b"}}) },
			[]string{"aws-west-b aws.mid"}, 1},
		{"infra that picks the zone itself", func() Input {
			in := input(task.Request{})
			in.Regional = map[string]bool{"aws": true}
			return in
		}, []string{"aws-east aws.mid", "gcp-east-a gcp.mid", "gcp-east-b gcp.mid", "aws-west aws.mid"}, 6},
		{"…but not for several nodes", func() Input {
			in := input(task.Request{})
			in.Regional, in.NumNodes = map[string]bool{"aws": true}, 2
			return in
		}, []string{"aws-east-a aws.mid", "aws-east-b aws.mid"}, 8},
		{"accelerator in any case", func() Input { return input(task.Request{Accelerator: acc(t, "l4")}) }, []string{"aws-east-a aws.l4"}, 8},
		{"accelerator count", func() Input { return input(task.Request{Accelerator: acc(t, "L4:4")}) }, []string{"aws-east-a aws.l4x4"}, 8},
		{"accelerator and cpus", func() Input {
			return input(task.Request{Accelerator: acc(t, "L4"), CPUs: task.CPUs{N: 10, AtLeast: true}})
		}, []string{"aws-east-a aws.l4big"}, 8},
		{"a fraction gets a whole device", func() Input { return input(task.Request{Accelerator: acc(t, "L4:0.5")}) }, []string{"aws-east-a aws.l4"}, 8},
		{"by memory, exact", func() Input { return input(task.Request{Accelerator: acc(t, "16GB")}) }, []string{"aws-east-a aws.v100"}, 8},
		{"by memory, at least: every accelerator", func() Input { return input(task.Request{Accelerator: acc(t, "nvidia:16GB+")}) }, []string{"aws-east-a aws.l4"}, 16},
		{"any_of: the cheapest of all", func() Input {
			return input(task.Request{Accelerator: acc(t, "V100")}, task.Request{Accelerator: acc(t, "L4")})
		}, []string{"aws-east-a aws.l4"}, 16},
		{"ordered: the first that can be had", func() Input {
			in := input()
			in.Groups = [][]task.Request{{{Accelerator: acc(t, "H100")}}, {{Accelerator: acc(t, "V100")}}, {{Accelerator: acc(t, "L4")}}}
			return in
		}, []string{"aws-east-a aws.v100"}, 16},
		{"instance type", func() Input { return input(task.Request{InstanceType: "gcp.l4x4"}) }, []string{"gcp-east-a gcp.l4x4"}, 4},
		{"price limit", func() Input { return input(task.Request{Accelerator: acc(t, "L4"), MaxHourlyCost: 0.81}) },
			[]string{"aws-east-a aws.l4", "aws-east-b aws.l4"}, 2},
		{"nothing else enabled: the fallback", func() Input {
			in := input(task.Request{})
			in.Enabled = []string{"local"}
			return in
		}, []string{"local"}, 1},
		{"fallback is left out beside others", func() Input {
			in := input(task.Request{})
			in.Enabled = append(in.Enabled, "local")
			return in
		}, []string{"aws-east-a aws.mid"}, 8},
		{"fallback by name", func() Input {
			in := input(task.Request{Infra: task.Infra{Cloud: "local"}})
			in.Enabled = append(in.Enabled, "local")
			return in
		}, []string{"local"}, 1},
		{"what costs nothing wins, without wasting a GPU", func() Input {
			in := input(task.Request{})
			in.Enabled = append(in.Enabled, "ssh")
			return in
		}, []string{"lab", "gpus", "aws-east-a aws.mid"}, 10},
		{"images by region", func() Input {
			return input(task.Request{Infra: task.Infra{Cloud: "aws"}, Images: map[string]string{"aws-west": "ami-1"}})
		}, []string{"aws-west-a aws.mid", "aws-west-b aws.mid"}, 2},
		{"the same launch is listed once", func() Input { return input(task.Request{}, task.Request{CPUs: task.CPUs{N: 8}}) }, []string{"aws-east-a aws.mid"}, 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, err := Rank(c.in())
			if err != nil {
				t.Fatal(err)
			}
			got := lines(res.Choices)
			if len(got) < len(c.first) || !reflect.DeepEqual(got[:len(c.first)], c.first) || len(got) != c.total {
				t.Errorf("got %d: %q\nwant %d beginning with %q", len(got), got, c.total, c.first)
			}
		})
	}
}

func TestFlexibleSizes(t *testing.T) {
	for _, c := range []struct {
		name     string
		req      task.Request
		defaults Defaults
		offer    providers.Offer
		cpus, gb float64
		gpus     float64
		fails    bool
	}{
		{name: "whole machine by default", offer: flexible("m", "", 4, 16), cpus: 4, gb: 16},
		{name: "a part", req: task.Request{CPUs: task.CPUs{N: 2}, Memory: task.Memory{GB: 3}}, offer: flexible("m", "", 4, 16), cpus: 2, gb: 3},
		{name: "at least", req: task.Request{CPUs: task.CPUs{N: 2, AtLeast: true}, Memory: task.Memory{GB: 3, AtLeast: true}}, offer: flexible("m", "", 4, 16), cpus: 2, gb: 3},
		{name: "memory per CPU", req: task.Request{CPUs: task.CPUs{N: 2}, Memory: task.Memory{GB: 4, PerCPU: true}}, offer: flexible("m", "", 4, 16), cpus: 2, gb: 8},
		{name: "memory per CPU bounds the CPUs", req: task.Request{Memory: task.Memory{GB: 8, PerCPU: true}}, offer: flexible("m", "", 4, 16), cpus: 2, gb: 16},
		{name: "too many CPUs", req: task.Request{CPUs: task.CPUs{N: 5}}, offer: flexible("m", "", 4, 16), fails: true},
		{name: "too much memory", req: task.Request{Memory: task.Memory{GB: 17, AtLeast: true}}, offer: flexible("m", "", 4, 16), fails: true},
		{name: "all memory", req: task.Request{Memory: task.Memory{Whole: true}}, defaults: Defaults{CPUs: 2, MemoryPerCPU: 1}, offer: flexible("m", "", 4, 16), cpus: 2, gb: 16},
		{name: "defaults of pods", defaults: Defaults{CPUs: 2, MemoryPerCPU: 1}, offer: flexible("m", "", 4, 16), cpus: 2, gb: 2},
		{name: "defaults of pods with GPUs", req: task.Request{Accelerator: &task.Accelerator{Name: "L4", Count: 2}},
			defaults: Defaults{CPUs: 2, MemoryPerCPU: 1, CPUsPerAccelerator: 4, MemoryPerCPUWithAccelerator: 4},
			offer:    gpu(flexible("m", "", 64, 512), "L4", 8), cpus: 8, gb: 32, gpus: 2},
		{name: "no GPU is taken unasked", offer: gpu(flexible("m", "", 4, 16), "L4", 8), cpus: 4, gb: 16},
		{name: "a fraction takes a device", req: task.Request{Accelerator: &task.Accelerator{Name: "l4", Count: 0.5}}, offer: gpu(flexible("m", "", 4, 16), "L4", 1), cpus: 4, gb: 16, gpus: 1},
		{name: "too many GPUs", req: task.Request{Accelerator: &task.Accelerator{Name: "L4", Count: 2}}, offer: gpu(flexible("m", "", 4, 16), "L4", 1), fails: true},
		{name: "several nodes on few machines", offer: func() providers.Offer { o := flexible("m", "", 4, 16); o.MaxNodes = 1; return o }(), fails: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := Input{Groups: [][]task.Request{{c.req}}, NumNodes: 2, Offers: []providers.Offer{c.offer}, Enabled: []string{"m"}, Defaults: map[string]Defaults{"m": c.defaults}}
			res, err := Rank(in)
			if c.fails {
				if err == nil {
					t.Fatalf("got %v", res.Choices[0])
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			s := res.Choices[0].Spec
			if s.CPUs != c.cpus || s.MemoryGB != c.gb || s.AcceleratorCount != c.gpus {
				t.Errorf("got %v CPUs, %v GB, %v GPUs", s.CPUs, s.MemoryGB, s.AcceleratorCount)
			}
		})
	}
}

func TestNothingFits(t *testing.T) {
	with := func(req task.Request, change func(*Input)) Input {
		in := input(req)
		if change != nil {
			change(&in)
		}
		return in
	}
	for _, c := range []struct {
		name string
		in   Input
		says []string
		not  []string
	}{
		{"unknown accelerator", with(task.Request{Accelerator: acc(t, "A1000:8")}, nil), []string{"no enabled infra can give A1000:8", "aws: has no A1000", "available instead: A100:8"}, nil},
		{"another count", with(task.Request{Accelerator: acc(t, "L4:3")}, nil), []string{"has L4 in machines with 1, 4, not with 3", "L4:1, L4:4"}, nil},
		{"exact CPUs", with(task.Request{CPUs: task.CPUs{N: 3}}, nil), []string{"has machines with 2, 8, 32 CPUs, not with exactly 3", "cpus: 3+"}, nil},
		{"too many CPUs", with(task.Request{CPUs: task.CPUs{N: 300, AtLeast: true}}, nil), []string{"has at most 32 CPUs per node, 300 are asked for"}, []string{"300+`"}},
		{"exact memory", with(task.Request{Memory: task.Memory{GB: 33}}, nil), []string{"GB of memory, not with exactly 33", "memory: 33+"}, nil},
		{"price", with(task.Request{Accelerator: acc(t, "L4"), MaxHourlyCost: 0.5}, nil), []string{"aws: costs at least $0.8 per hour", "max_hourly_cost $0.5", "raise `max_hourly_cost`"}, nil},
		{"disabled", with(task.Request{Infra: task.Infra{Cloud: "azure"}}, nil), []string{"azure: is not enabled", "sky check azure"}, nil},
		{"misspelt infra", with(task.Request{Infra: task.Infra{Cloud: "azur"}}, nil), []string{"is not an infra that this server knows", "did you mean azure?"}, nil},
		{"planned infra", with(task.Request{Infra: task.Infra{Cloud: "slurm"}}, nil), []string{"slurm: comes with a later release", "this one has aws"}, nil},
		{"misspelt region", with(task.Request{Infra: task.Infra{Cloud: "aws", Region: "aws-eats"}}, nil), []string{`aws: has no region "aws-eats"`, `did you mean region "aws-east"?`}, nil},
		{"unknown pool", with(task.Request{Infra: task.Infra{Cloud: "ssh", Region: "xyz"}}, func(in *Input) { in.Enabled = []string{"ssh"} }), []string{`has no region "xyz"; it has gpus, lab`}, nil},
		{"region where there are none", with(task.Request{Infra: task.Infra{Cloud: "local", Region: "x"}}, func(in *Input) { in.Enabled = []string{"local"} }), []string{"has no regions"}, nil},
		{"ambiguous type", with(task.Request{InstanceType: "dup"}, func(in *Input) {
			in.Offers = append(in.Offers, fixed("aws", "dup", "r", "", 1, 1, 1), fixed("gcp", "dup", "r", "", 1, 1, 1))
		}), []string{"instance type dup is ambiguous: aws, gcp have it", "infra: aws"}, nil},
		{"ambiguous region", with(task.Request{Infra: task.Infra{Region: "r"}}, func(in *Input) {
			in.Offers = append(in.Offers, fixed("aws", "d", "r", "", 1, 1, 1), fixed("gcp", "e", "r", "", 1, 1, 1))
		}), []string{"is ambiguous: aws, gcp have it", "`infra: aws/r`"}, nil},
		{"misspelt type", with(task.Request{InstanceType: "aws.l4x"}, nil), []string{`has no instance type "aws.l4x"`, "did you mean aws.l4, aws.l4x4?"}, nil},
		{"lacking ports", with(task.Request{Ports: task.Ports{{From: 80, To: 80}}}, func(in *Input) { in.Lacks = map[string][]string{"aws": {NeedPorts}, "gcp": {NeedPorts}} }), []string{"aws: does not support opening ports"}, nil},
		{"stop of spot", with(task.Request{UseSpot: true}, func(in *Input) {
			in.Needs, in.Lacks = []string{NeedStop}, map[string][]string{"aws": {NeedSpotStop}, "gcp": {NeedSpotStop}}
		}), []string{"aws: does not support stopping spot nodes"}, nil},
		{"fallback is pointed at", with(task.Request{Accelerator: acc(t, "H100")}, func(in *Input) { in.Enabled = append(in.Enabled, "local") }),
			[]string{"local is used only when named: `infra: local`"}, []string{"local: has"}},
		{"nothing enabled", with(task.Request{}, func(in *Input) { in.Enabled = nil }), []string{"no infra is enabled", "sky check"}, nil},
		{"no offers", with(task.Request{}, func(in *Input) { in.Offers = nil }), []string{"aws: offers nothing at the moment"}, nil},
		{"not as spot", with(task.Request{UseSpot: true}, func(in *Input) { in.Enabled = []string{"ssh"} }), []string{"ssh: has this on demand only"}, nil},
		{"all blocked", with(task.Request{}, func(in *Input) { in.Blocked = []Block{{}} }), []string{"every place that could give a default node has been tried"}, nil},
		{"local disk", with(task.Request{LocalDisk: &task.LocalDisk{Mode: "nvme", SizeGB: 100, AtLeast: true}}, nil), []string{"has no machine with such a local disk"}, nil},
		{"image elsewhere", with(task.Request{Images: map[string]string{"mars": "x"}}, nil), []string{"has no region for which image_id names an image"}, nil},
		{"by memory", with(task.Request{Accelerator: acc(t, "7GB")}, nil), []string{"has no accelerator that fits 7GB:1"}, nil},
		{"several requests", with(task.Request{Accelerator: acc(t, "H100")}, func(in *Input) {
			in.Groups = append(in.Groups, []task.Request{{Accelerator: acc(t, "H200")}})
			in.NumNodes = 3
		}), []string{"3 nodes of H100:1; or H200:1", "[H100:1] aws: has no H100", "[H200:1] gcp: has no H200"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, err := Rank(c.in)
			var e *api.Error
			if !errors.As(err, &e) || e.Kind != api.ErrResourcesUnavailable || len(res.Choices) > 0 {
				t.Fatalf("got %v and %v", res.Choices, err)
			}
			for _, s := range c.says {
				if !strings.Contains(e.Error(), s) {
					t.Errorf("missing %q in:\n%s", s, e)
				}
			}
			for _, s := range c.not {
				if strings.Contains(e.Error(), s) {
					t.Errorf("unwanted %q in:\n%s", s, e)
				}
			}
		})
	}
}

func TestBadInput(t *testing.T) {
	for name, in := range map[string]Input{
		"no groups":      {Enabled: []string{"aws"}},
		"empty group":    {Groups: [][]task.Request{{}}},
		"unknown target": {Groups: [][]task.Request{{{}}}, Target: "speed"},
	} {
		var e *api.Error
		if _, err := Rank(in); !errors.As(err, &e) || e.Kind != api.ErrInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	in := input(task.Request{})
	for _, f := range []float64{math.NaN(), math.Inf(1), -1} {
		in.Offers = append(in.Offers, fixed("aws", "broken", "r", "z", 8, 32, f))
	}
	res, err := Rank(in)
	if err != nil || res.Choices[0].Spec.InstanceType != "aws.mid" {
		t.Errorf("%v %v", res.Choices, err)
	}
}

func TestDisabledIsWarnedAbout(t *testing.T) {
	in := input(task.Request{Infra: task.Infra{Cloud: "azure"}}, task.Request{Infra: task.Infra{Cloud: "aws"}})
	res, err := Rank(in)
	if err != nil || len(res.Notes) != 1 || !strings.Contains(res.Notes[0], "azure is not enabled and was left out") {
		t.Errorf("%q %v", res.Notes, err)
	}
	if d := Disabled(in); !reflect.DeepEqual(d, []string{"azure"}) {
		t.Errorf("disabled: %v", d)
	}
}

func TestConsidered(t *testing.T) {
	in := input(task.Request{Accelerator: acc(t, "L4")}, task.Request{Accelerator: acc(t, "V100")}, task.Request{Accelerator: acc(t, "L4"), UseSpot: true})
	in.NumNodes = 2
	res, err := Rank(in)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range res.Considered {
		s := c.Infra + " " + c.InstanceType + " " + c.Accelerators + " $" + num(c.PricePerHour)
		if c.Spot {
			s += " spot"
		}
		if c.Chosen {
			s += " chosen"
		}
		got = append(got, s)
	}
	want := []string{"aws (aws-east-b) aws.l4 L4:1 $0.4 spot chosen", "gcp (gcp-east-b) gcp.l4 L4:1 $0.44 spot", "aws (aws-east-a) aws.l4 L4:1 $1.6",
		"gcp (gcp-east-a) gcp.l4 L4:1 $1.76", "aws (aws-east-a) aws.v100 V100:1 $6", "gcp (gcp-east-a) gcp.v100 V100:1 $6.6"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if !strings.Contains(strings.Join(res.Notes, "\n"), "on aws, L4:1 also comes as aws.l4big; the cheapest, aws.l4, is taken") {
		t.Errorf("notes %q", res.Notes)
	}
}

func TestSpecCarriesTheRequest(t *testing.T) {
	o := fixed("aws", "x", "r", "z", 8, 32, 1)
	o.LocalDisk, o.Arch, o.Extra = "nvme:1000", "arm64", map[string]string{ExtraNote: "CPUs are shared"}
	req := task.Request{DiskSizeGB: 100, DiskTier: "high", NetworkTier: "best", Ports: task.Ports{{From: 80, To: 81}}, Labels: map[string]string{"a": "b"},
		Images: map[string]string{"docker": "docker:ubuntu", "r": "ami-1"}, LocalDisk: &task.LocalDisk{Mode: "ssd", SizeGB: 500, AtLeast: true}}
	res, err := Rank(Input{Groups: [][]task.Request{{req}}, Offers: []providers.Offer{o}, Enabled: []string{"AWS"}})
	if err != nil {
		t.Fatal(err)
	}
	c := res.Choices[0]
	want := providers.NodeSpec{InstanceType: "x", Region: "r", Zone: "z", CPUs: 8, MemoryGB: 32, DiskGB: 100, DiskTier: "high", NetworkTier: "best",
		ImageID: "ami-1", Container: "ubuntu", Labels: map[string]string{"a": "b"}, Ports: []string{"80-81"}, PricePerHour: 1}
	if !reflect.DeepEqual(c.Spec, want) || c.Arch != "arm64" || c.String() != "aws (z) x" || len(res.Notes) != 1 {
		t.Errorf("%+v %q %q", c, c.String(), res.Notes)
	}
	if h := c.Have(req); h.Infra != (task.Infra{Cloud: "aws", Region: "r", Zone: "z"}) || h.CPUs.N != 8 || h.LocalDisk == nil || h.LocalDisk.SizeGB != 1000 || h.DiskTier != "high" {
		t.Errorf("have %+v", h)
	}
	got := needs(req, 2, []string{NeedStop})
	if !reflect.DeepEqual(got, []string{NeedDiskTier, NeedContainer, NeedImage, NeedLocalDisk, NeedMultiNode, NeedNetworkTier, NeedPorts, NeedStop}) {
		t.Errorf("needs %v", got)
	}
}

func TestLacksOf(t *testing.T) {
	if got := LacksOf(providers.Features{}); !reflect.DeepEqual(got, []string{NeedStop, NeedSpotStop, NeedSpot, NeedPorts}) {
		t.Errorf("%v", got)
	}
	if got := LacksOf(providers.Features{Spot: true, MachineLocal: true}); !reflect.DeepEqual(got, []string{NeedStop, NeedSpotStop}) {
		t.Errorf("%v", got)
	}
	if got := LacksOf(providers.Features{Spot: true, HostNetwork: true}); !reflect.DeepEqual(got, []string{NeedStop, NeedSpotStop}) {
		t.Errorf("%v", got)
	}
}

func TestPlanHash(t *testing.T) {
	plan := func(change func(*Input)) api.Plan {
		in := input(task.Request{Accelerator: acc(t, "L4")})
		if change != nil {
			change(&in)
		}
		res, err := Rank(in)
		if err != nil {
			t.Fatal(err)
		}
		return Plan(res, in.NumNodes)
	}
	base := plan(nil)
	if len(base.Hash) != 16 || base.NumNodes != 1 || len(base.Candidates) != 2 {
		t.Fatalf("%+v", base)
	}
	price := func(from, times float64) func(*Input) {
		return func(in *Input) {
			for i := range in.Offers {
				if in.Offers[i].InstanceType == "aws.l4" {
					in.Offers[i].PricePerHour = in.Offers[i].PricePerHour*times + from
				}
			}
		}
	}
	for name, change := range map[string]func(*Input){
		"rounding":                     price(1e-9, 1+1e-12),
		"another infra's price":        func(in *Input) { in.Offers = append(in.Offers, gpu(fixed("gcp", "new", "q", "", 8, 32, 7), "L4", 1)) },
		"order of offers":              func(in *Input) { in.Offers[0], in.Offers[9] = in.Offers[9], in.Offers[0] },
		"infra that does not fit":      func(in *Input) { in.Enabled = append(in.Enabled, "ssh") },
		"a limit that changes nothing": func(in *Input) { in.Groups[0][0].MaxHourlyCost = 1000 },
	} {
		if got := plan(change); got.Hash != base.Hash {
			t.Errorf("%s: the hash changed", name)
		}
	}
	for name, change := range map[string]func(*Input){
		"price":    price(0.01, 1),
		"nodes":    func(in *Input) { in.NumNodes = 2 },
		"region":   func(in *Input) { in.Groups[0][0].Infra = task.Infra{Cloud: "aws", Region: "aws-east"} },
		"blocked":  func(in *Input) { in.Blocked = []Block{{Zone: "aws-east-a"}} },
		"provider": func(in *Input) { in.Enabled = []string{"gcp"} },
		"spot":     func(in *Input) { in.Groups[0][0].UseSpot = true },
		"disk":     func(in *Input) { in.Groups[0][0].DiskSizeGB = 10 },
		"count":    func(in *Input) { in.Groups[0][0].Accelerator = acc(t, "L4:4") },
	} {
		if got := plan(change); got.Hash == base.Hash {
			t.Errorf("%s: the hash did not change", name)
		}
	}
	if HashOf(Result{}, 1) != "" {
		t.Error("a plan of nothing has a hash")
	}
}

func TestJSON(t *testing.T) {
	in := input(task.Request{Accelerator: acc(t, "L4"), UseSpot: true})
	in.Blocked = Blocks(Choice{Provider: "x"}, providers.NoCapacity, "")
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var back Input
	if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back, in) {
		t.Fatalf("input does not survive JSON: %v", err)
	}
	res, err := Rank(back)
	if err != nil {
		t.Fatal(err)
	}
	b, _ = json.Marshal(res)
	var again Result
	if err := json.Unmarshal(b, &again); err != nil || !reflect.DeepEqual(again, res) || HashOf(again, 1) != HashOf(res, 1) {
		t.Fatalf("result does not survive JSON: %v", err)
	}
}
