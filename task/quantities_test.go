package task

import (
	"reflect"
	"testing"
	"time"
)

func TestParseInfra(t *testing.T) {
	tests := []struct {
		in   string
		want Infra
		out  string
	}{
		{"aws", Infra{Cloud: "aws"}, "aws"},
		{"AWS/us-east-1", Infra{"aws", "us-east-1", ""}, "aws/us-east-1"},
		{"aws/us-east-1/us-east-1a", Infra{"aws", "us-east-1", "us-east-1a"}, "aws/us-east-1/us-east-1a"},
		{"aws/*/us-east-1a", Infra{"aws", "*", "us-east-1a"}, "aws/*/us-east-1a"},
		{"*", Infra{Cloud: "*"}, "*"},
		{"*/us-east-1", Infra{"*", "us-east-1", ""}, "*/us-east-1"},
		{"*/*/z", Infra{"*", "*", "z"}, "*/*/z"},
		{"aws/*/*", Infra{Cloud: "aws"}, "aws"},
		{"k8s", Infra{Cloud: "kubernetes"}, "kubernetes"},
		{"Kubernetes/arn:aws:eks:r:1:cluster/x", Infra{Cloud: "kubernetes", Region: "arn:aws:eks:r:1:cluster/x"}, "kubernetes/arn:aws:eks:r:1:cluster/x"},
		{"ssh/My-Pool", Infra{Cloud: "ssh", Region: "My-Pool"}, "ssh/My-Pool"},
		{"slurm/c/p", Infra{"slurm", "c", "p"}, "slurm/c/p"},
		{"local", Infra{Cloud: "local"}, "local"},
	}
	for _, tc := range tests {
		got, err := ParseInfra(tc.in)
		if err != nil || got != tc.want || got.String() != tc.out {
			t.Errorf("ParseInfra(%q) = %+v %q %v", tc.in, got, got.String(), err)
		}
	}
	for _, bad := range []string{"", "/", "aws/", "aws//z", "a/b/c/d", "1aws", "../x", "ssh/a/b", "a b", "aws/u\ns"} {
		if got, err := ParseInfra(bad); err == nil {
			t.Errorf("ParseInfra(%q) = %+v, want an error", bad, got)
		}
	}
	if !(Infra{"*", "r", ""}).Contains(Infra{"aws", "r", "z"}) || (Infra{Cloud: "gcp"}).Contains(Infra{Cloud: "aws"}) {
		t.Error("Contains")
	}
}

func TestParseAccelerator(t *testing.T) {
	tests := []struct {
		in   string
		want Accelerator
		out  string
	}{
		{"H100", Accelerator{Name: "H100", Count: 1}, "H100:1"},
		{"h100:8", Accelerator{Name: "h100", Count: 8}, "h100:8"},
		{"A100-80GB:0.5", Accelerator{Name: "A100-80GB", Count: 0.5}, "A100-80GB:0.5"},
		{"tpu-v5-lite-podslice:4", Accelerator{Name: "tpu-v5-lite-podslice", Count: 4}, "tpu-v5-lite-podslice:4"},
		{"16GB", Accelerator{MemoryGB: 16, Count: 1}, "16GB:1"},
		{"16gb+:2", Accelerator{MemoryGB: 16, MemoryAtLeast: true, Count: 2}, "16GB+:2"},
		{"NVIDIA:16GB+:2", Accelerator{MemoryGB: 16, MemoryAtLeast: true, Vendor: "nvidia", Count: 2}, "nvidia:16GB+:2"},
		{"amd:192GB", Accelerator{MemoryGB: 192, Vendor: "amd", Count: 1}, "amd:192GB:1"},
	}
	for _, tc := range tests {
		got, err := ParseAccelerator(tc.in)
		if err != nil || got != tc.want || got.String() != tc.out {
			t.Errorf("ParseAccelerator(%q) = %+v %q %v", tc.in, got, got.String(), err)
		}
		if again, err := ParseAccelerator(tc.out); err != nil || again != got {
			t.Errorf("again %q: %+v %v", tc.out, again, err)
		}
	}
	for _, bad := range []string{"", ":", "H100:", "H100:x", "H100:0", "H100:-1", "H100:inf", "H100:nan", "a b", "H100:1:2", "x:y:16GB", "$GPU"} {
		if got, err := ParseAccelerator(bad); err == nil {
			t.Errorf("ParseAccelerator(%q) = %+v, want an error", bad, got)
		}
	}
}

func TestAcceleratorForms(t *testing.T) {
	a := func(name string, n float64) Accelerator { return Accelerator{Name: name, Count: n} }
	tests := []struct {
		text string
		want Accelerators
	}{
		{"H100", Accelerators{Options: []Accelerator{a("H100", 1)}}},
		{"{H100: 8}", Accelerators{Options: []Accelerator{a("H100", 8)}}},
		{"{H100: 0.5}", Accelerators{Options: []Accelerator{a("H100", 0.5)}}},
		{"{V100:1, A100:1}", Accelerators{Options: []Accelerator{a("A100", 1), a("V100", 1)}}},
		{"{V100: null, A100: 4}", Accelerators{Options: []Accelerator{a("A100", 4), a("V100", 1)}}},
		{"[V100, 'A100:2', {L4: 1}]", Accelerators{Ordered: true, Options: []Accelerator{a("V100", 1), a("A100", 2), a("L4", 1)}}},
		{"[V100]", Accelerators{Options: []Accelerator{a("V100", 1)}}},
	}
	for _, tc := range tests {
		got := parseOne(t, "resources: {accelerators: "+tc.text+"}")
		if !reflect.DeepEqual(got.Resources.Accelerators, tc.want) {
			t.Errorf("%s: %+v", tc.text, got.Resources.Accelerators)
		}
		if again := parseOne(t, string(got.Render(SecretsInline))); !reflect.DeepEqual(again, got) {
			t.Errorf("%s: again %+v", tc.text, again.Resources.Accelerators)
		}
	}
	for _, bad := range []string{"{'H100:2': 3}", "[{A: 1, B: 2}]", "[A, a]", "{A: x}", "{A: [1]}", "3.5", "[[A]]"} {
		if _, err := Parse("t", []byte("resources: {accelerators: "+bad+"}"), ParseOptions{}); err == nil && bad != "3.5" {
			t.Errorf("%s: no error", bad)
		}
	}
}

func TestSizes(t *testing.T) {
	for in, want := range map[string]Memory{"32": {GB: 32}, "32+": {GB: 32, AtLeast: true}, "64GB": {GB: 64}, "1tb+": {GB: 1024, AtLeast: true}, "512MB": {GB: 0.5}, "16 Gi": {GB: 16}, "4x": {GB: 4, PerCPU: true}, "4x+": {GB: 4, PerCPU: true, AtLeast: true}, "0": {Whole: true}, "1.5": {GB: 1.5}} {
		got, err := ParseMemory(in)
		if err != nil || got != want {
			t.Errorf("ParseMemory(%q) = %+v %v", in, got, err)
		}
		if again, err := ParseMemory(got.String()); err != nil || again != got {
			t.Errorf("again %q: %+v %v", got.String(), again, err)
		}
	}
	for _, bad := range []string{"", "-1", "x", "4XB", "0+", "0x", "1e999", "32GB+x"} {
		if got, err := ParseMemory(bad); err == nil {
			t.Errorf("ParseMemory(%q) = %+v", bad, got)
		}
	}
	for in, want := range map[string]CPUs{"4": {N: 4}, "4+": {N: 4, AtLeast: true}, "0.5": {N: 0.5}, " 8+ ": {N: 8, AtLeast: true}} {
		if got, err := ParseCPUs(in); err != nil || got != want {
			t.Errorf("ParseCPUs(%q) = %+v %v", in, got, err)
		}
	}
	if !(CPUs{N: 4, AtLeast: true}).Meets(8) || (CPUs{N: 4}).Meets(8) || !(Memory{GB: 4, PerCPU: true}).Meets(2, 8) || (Memory{GB: 4}).Meets(2, 8) {
		t.Error("Meets")
	}
	for in, want := range map[string]int{"256": 256, "1TB": 1024, "2048MB": 2, "100Gi": 100} {
		if got, err := parseGB(in); err != nil || got != want {
			t.Errorf("parseGB(%q) = %d %v", in, got, err)
		}
	}
	for _, bad := range []string{"0", "1.5", "-3", "256+", "1PBB", "99999999999"} {
		if got, err := parseGB(bad); err == nil {
			t.Errorf("parseGB(%q) = %d", bad, got)
		}
	}
	for in, want := range map[string]string{"nvme": "nvme:100+", "ssd": "ssd:100+", "1000+": "nvme:1000+", "NVMe:1000+": "nvme:1000+", "ssd:500": "ssd:500", "2TB": "nvme:2048"} {
		if got, err := ParseLocalDisk(in); err != nil || got.String() != want {
			t.Errorf("ParseLocalDisk(%q) = %s %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "hdd:5", "nvme:", "nvme:0", "ssd:x"} {
		if got, err := ParseLocalDisk(bad); err == nil {
			t.Errorf("ParseLocalDisk(%q) = %v", bad, got)
		}
	}
}

func TestPorts(t *testing.T) {
	for in, want := range map[string]string{"8080": "8080", "10052-10100": "10052-10100", "3,1,2": "1-3", "5-10, 8-12,20": "5-12,20", "1-65535,5": "1-65535"} {
		if got, err := ParsePorts(in); err != nil || got.String() != want {
			t.Errorf("ParsePorts(%q) = %s %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "0", "65536", "a", "5-1", "1-", "-1", "1,,2", "1--2"} {
		if got, err := ParsePorts(bad); err == nil {
			t.Errorf("ParsePorts(%q) = %s", bad, got)
		}
	}
	task := parseOne(t, "resources: {ports: [8080, '9000-9002', '80,81']}")
	if got := task.Resources.Ports; got.String() != "80-81,8080,9000-9002" || got.Count() != 6 || !got.Contains(Ports{{9000, 9001}}) || got.Contains(Ports{{81, 82}}) {
		t.Errorf("got %s", got)
	}
}

func TestDurations(t *testing.T) {
	for in, want := range map[string]time.Duration{"30": 30 * time.Second, "30s": 30 * time.Second, "1h30m": 90 * time.Minute, "2D": 48 * time.Hour, "1w": 168 * time.Hour, "0": 0} {
		got, err := ParseDuration(in)
		if err != nil || got != want {
			t.Errorf("ParseDuration(%q) = %v %v", in, got, err)
		}
		if again, err := ParseDuration(FormatDuration(got)); err != nil || again != got {
			t.Errorf("again %s: %v %v", FormatDuration(got), again, err)
		}
	}
	for _, bad := range []string{"", "x", "-1", "1y", "10 m", "999999999w"} {
		if got, err := ParseDuration(bad); err == nil {
			t.Errorf("ParseDuration(%q) = %v", bad, got)
		}
	}
}

func TestAutostopForms(t *testing.T) {
	on := func(minutes int) *Autostop { return &Autostop{Enabled: true, IdleMinutes: minutes} }
	for text, want := range map[string]*Autostop{
		"true": on(5), "false": {}, "yes": on(5), "off": {}, "10": on(10), "'10'": on(10), "0": on(1), "2h": on(120), "1d": on(1440), "1w": on(10080), "{}": on(5),
		"{idle_minutes: 3, down: true, wait_for: jobs}": {Enabled: true, IdleMinutes: 3, Down: true, WaitFor: "jobs"}, "{down: true}": {Enabled: true, IdleMinutes: 5, Down: true}, "{idle_minutes: 2h}": on(120),
	} {
		got := parseOne(t, "resources: {autostop: "+text+"}")
		if !reflect.DeepEqual(got.Autostop(), want) {
			t.Errorf("%s: %+v", text, got.Autostop())
		}
		if again := parseOne(t, string(got.Render(SecretsInline))); !reflect.DeepEqual(again, got) {
			t.Errorf("%s: again %+v", text, again.Autostop())
		}
	}
	for _, bad := range []string{"-1", "1.5", "soon", "{idle: 3}", "{wait_for: x}", "[1]"} {
		if _, err := Parse("t", []byte("resources: {autostop: "+bad+"}"), ParseOptions{}); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
}

func TestArrayElements(t *testing.T) {
	a := &Array{Values: map[string][]string{"LR": {"1", "2"}, "B": {"x", "y", "z"}}}
	if a.Elements() != 6 {
		t.Fatalf("%d elements", a.Elements())
	}
	seen := map[string]bool{}
	for i := 0; i < 6; i++ {
		e := a.Element(i)
		seen[e["B"]+e["LR"]] = true
	}
	if len(seen) != 6 || !reflect.DeepEqual(a.Element(1), map[string]string{"B": "x", "LR": "2"}) {
		t.Errorf("%v %v", seen, a.Element(1))
	}
}

func TestNames(t *testing.T) {
	for _, ok := range []string{"a", "a1", "a-b", "a--b", "A.b_c", "sky-1f3a-me"} {
		if err := ValidateClusterName(ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	long := "a123456789012345678901234567890123456789012345678901234567890123"
	for _, bad := range []string{"", "1a", "-a", "a-", "a---b", "../x", "a/b", `a\b`, ".", "a b", "a\n", "é", long} {
		if err := ValidateClusterName(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	for name, want := range map[string]bool{"a": false, "task.yaml": true, "x/y": true, "T.YML": true, "yaml": false} {
		if LooksLikeFile(name) != want {
			t.Errorf("LooksLikeFile(%q)", name)
		}
	}
}
