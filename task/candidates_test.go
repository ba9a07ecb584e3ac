package task

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// show prints groups of requests shortly: infra/accelerator/spot.
func show(groups [][]Request) string {
	var out []string
	for _, g := range groups {
		var in []string
		for _, r := range g {
			s := r.Infra.String()
			if r.Accelerator != nil {
				s += " " + r.Accelerator.String()
			}
			if r.CPUs.N > 0 {
				s += " cpus=" + r.CPUs.String()
			}
			if r.UseSpot {
				s += " spot"
			}
			if len(r.Labels) > 0 {
				s += fmt.Sprint(" ", len(r.Labels), "labels")
			}
			in = append(in, s)
		}
		out = append(out, "["+strings.Join(in, ", ")+"]")
	}
	return strings.Join(out, " ")
}

func TestCandidates(t *testing.T) {
	tests := []struct{ text, want string }{
		{"{}", "[*]"},
		{"resources: {infra: aws, cpus: 4+}", "[aws cpus=4+]"},
		{"resources: {accelerators: {A100: 1, H100: 2}}", "[* A100:1, * H100:2]"},
		{"resources: {accelerators: [H100, A100]}", "[* H100:1] [* A100:1]"},
		{"resources: {cpus: 2, any_of: [{infra: aws}, {infra: gcp, cpus: 4, use_spot: true}]}", "[aws cpus=2, gcp cpus=4 spot]"},
		{"resources: {use_spot: true, ordered: [{infra: aws}, {infra: gcp, use_spot: false}]}", "[aws spot] [gcp]"},
		{"resources: {ordered: [{accelerators: {A: 1, B: 1}}, {accelerators: [C, D]}]}", "[* A:1, * B:1] [* C:1] [* D:1]"},
		{"resources: {infra: aws, any_of: [{infra: '*'}, {}]}", "[*, aws]"},
		{"resources: {any_of: [{infra: aws}, {infra: aws}]}", "[aws]"},
		{"resources: {cloud: gcp, any_of: [{region: us-central1}, {region: us-east1, zone: us-east1-b}, {cloud: aws}, {infra: azure}, {}]}", "[gcp/us-central1, gcp/us-east1/us-east1-b, aws, azure, gcp]"},
		{"resources: {ordered: [{region: ssh-lab}, {cloud: '*'}], cloud: ssh}", "[ssh/lab] [*]"},
		{"resources: {region: us-east-1, any_of: [{cloud: aws}, {cloud: gcp, region: null}]}", "[aws/us-east-1, gcp/us-east-1]"},
		{"resources: {labels: {a: b}, any_of: [{infra: aws, labels: {c: d}}, {infra: gcp}]}", "[aws 2labels, gcp 1labels]"},
		{"resources: {accelerators: {A: 1, B: 1}, any_of: [{infra: aws}, {infra: gcp}]}", "[aws A:1, aws B:1, gcp A:1, gcp B:1]"},
		{"resources: {accelerators: tpu-v4-8}", "[gcp tpu-v4-8:1]"},
		{"resources: {accelerators: tpu-v5-lite-podslice:4}", "[kubernetes tpu-v5-lite-podslice:4]"},
	}
	for _, tc := range tests {
		if got := show(parseOne(t, tc.text).Candidates()); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.text, got, tc.want)
		}
	}
}

func TestAgreedSettings(t *testing.T) {
	task := parseOne(t, "resources: {any_of: [{infra: aws}, {infra: gcp, autostop: 7, priority: 3, priority_class: p, job_recovery: failover, ports: 80}, {ports: 81}]}")
	p, class := task.Priority()
	if task.Autostop().IdleMinutes != 7 || p != 3 || class != "p" || task.Recovery().Strategy != "FAILOVER" || task.PortsOpened().String() != "80-81" {
		t.Errorf("%+v %d %s %+v %s", task.Autostop(), p, class, task.Recovery(), task.PortsOpened())
	}
	if n := parseOne(t, "resources: {gpus: 'L4:1.5'}").AcceleratorsPerNode(); n != 2 {
		t.Errorf("%d accelerators", n)
	}
}

func TestOverrides(t *testing.T) {
	yes, no, three := true, false, 3
	base := "name: n\nnum_nodes: 2\nworkdir: w\nresources: {infra: aws/us-east-1, cpus: 2, memory: 8, gpus: L4, ports: 80, disk_size: 10, disk_tier: low, image_id: docker:x, instance_type: t, priority: 1, use_spot: true, local_disk: ssd, any_of: [{infra: gcp, cpus: 3}, {gpus: T4}]}"
	tests := []struct {
		name    string
		o       Overrides
		check   func(*Task) any
		want    any
		wantErr string
	}{
		{"infra replaces all", Overrides{Infra: "gcp"}, func(t *Task) any { return show(t.Candidates()) }, "[gcp L4:1 cpus=3 spot, gcp T4:1 cpus=2 spot]", ""},
		{"infra reset", Overrides{Infra: "NONE"}, func(t *Task) any { return show(t.Candidates()) }, "[* L4:1 cpus=3 spot, * T4:1 cpus=2 spot]", ""},
		{"infra parts reset", Overrides{Infra: "*"}, func(t *Task) any { return t.Resources.Infra }, Infra{}, ""},
		{"infra and cloud", Overrides{Infra: "gcp", Cloud: "aws"}, nil, nil, "--infra: can't be combined with --cloud, --region or --zone"},
		{"region only", Overrides{Region: "us-west-2"}, func(t *Task) any { return show(t.Candidates()) }, "[gcp/us-west-2 L4:1 cpus=3 spot, aws/us-west-2 T4:1 cpus=2 spot]", ""},
		{"region reset", Overrides{Region: "none"}, func(t *Task) any { return t.Resources.Infra }, Infra{Cloud: "aws"}, ""},
		{"gpus", Overrides{GPUs: "H100:8"}, func(t *Task) any { return show(t.Candidates()) }, "[gcp H100:8 cpus=3 spot, aws/us-east-1 H100:8 cpus=2 spot]", ""},
		{"gpus set", Overrides{GPUs: "{A100:1, V100:2}", Infra: "*", CPUs: "none"}, func(t *Task) any { return show(t.Candidates()) }, "[* A100:1 spot, * V100:2 spot]", ""},
		{"gpus reset", Overrides{GPUs: "none"}, func(t *Task) any { return show(t.Candidates()) }, "[gcp cpus=3 spot, aws/us-east-1 cpus=2 spot]", ""},
		{"gpus wrong", Overrides{GPUs: "H100:x"}, nil, nil, `--gpus: the count in "H100:x" is not a number`},
		{"cpus", Overrides{CPUs: "8+"}, func(t *Task) any { return show(t.Candidates()) }, "[gcp L4:1 cpus=8+ spot, aws/us-east-1 T4:1 cpus=8+ spot]", ""},
		{"memory wrong", Overrides{Memory: "lots"}, nil, nil, `--memory: "lots" is not an amount of memory; write GB like 32, 32+ for at least 32, or a unit like 64GB`},
		{"memory reset", Overrides{Memory: "None"}, func(t *Task) any { return t.Resources.Memory }, Memory{}, ""},
		{"spot", Overrides{UseSpot: &no}, func(t *Task) any { return t.Candidates()[0][0].UseSpot }, false, ""},
		{"ports", Overrides{Ports: []string{"1-3", "4,9"}}, func(t *Task) any { return t.PortsOpened().String() }, "1-4,9", ""},
		{"ports reset", Overrides{Ports: []string{"none"}}, func(t *Task) any { return len(t.PortsOpened()) }, 0, ""},
		{"ports none and other", Overrides{Ports: []string{"none", "80"}}, nil, nil, "--ports: none can't be combined with other ports"},
		{"ports out of range", Overrides{Ports: []string{"0"}}, nil, nil, `--ports: "0" is out of range; ports go from 1 to 65535`},
		{"tier", Overrides{DiskTier: "HIGH"}, func(t *Task) any { return t.Resources.DiskTier }, "high", ""},
		{"tier wrong", Overrides{DiskTier: "hihg"}, nil, nil, `--disk-tier: must be one of low, medium, high, ultra, best, none, not "hihg"; did you mean "high"?`},
		{"disk size", Overrides{DiskSize: "1TB"}, func(t *Task) any { return t.Resources.DiskSizeGB }, 1024, ""},
		{"image reset", Overrides{ImageID: "none"}, func(t *Task) any { return len(t.Resources.Images) }, 0, ""},
		{"image", Overrides{ImageID: "docker:y"}, func(t *Task) any { return t.Resources.Images[""] }, "docker:y", ""},
		{"instance type", Overrides{InstanceType: "m5"}, func(t *Task) any { return t.Resources.InstanceType }, "m5", ""},
		{"local disk", Overrides{LocalDisk: "500"}, func(t *Task) any { return t.Resources.LocalDisk.String() }, "nvme:500", ""},
		{"priority class", Overrides{Priority: "urgent"}, func(t *Task) any { p, c := t.Priority(); return fmt.Sprint(p, c) }, "0urgent", ""},
		{"priority", Overrides{Priority: "-7"}, func(t *Task) any { p, c := t.Priority(); return fmt.Sprint(p, c) }, "-7", ""},
		{"priority out of range", Overrides{Priority: "1001"}, nil, nil, "--priority: must be from -1000 to 1000, not 1001"},
		{"recovery", Overrides{JobRecovery: "failover"}, func(t *Task) any { return t.Recovery().Strategy }, "FAILOVER", ""},
		{"recovery wrong", Overrides{JobRecovery: "x"}, nil, nil, `--job-recovery: unknown recovery strategy "x"; known are EAGER_NEXT_REGION, FAILOVER, NONE`},
		{"name", Overrides{Name: "m"}, func(t *Task) any { return t.Name }, "m", ""},
		{"name wrong", Overrides{Name: "a/b"}, nil, nil, `--name: "a/b" is not a valid name; use letters and digits, joined by single or double . _ or -`},
		{"nodes", Overrides{NumNodes: &three}, func(t *Task) any { return t.NumNodes }, 3, ""},
		{"workdir", Overrides{Workdir: "other"}, func(t *Task) any { return *t.Workdir }, Workdir{Path: "other"}, ""},
		{"mirror", Overrides{Mirror: &yes}, func(t *Task) any { return *t.Workdir }, Workdir{Path: "w", Mirror: true}, ""},
		{"git", Overrides{GitURL: "https://x/y", GitRef: "v1"}, func(t *Task) any { return *t.Workdir }, Workdir{URL: "https://x/y", Ref: "v1"}, ""},
		{"git and workdir", Overrides{GitURL: "https://x/y", Workdir: "."}, nil, nil, "--workdir and --git-url can't be combined"},
		{"ref without git", Overrides{GitRef: "v1"}, nil, nil, "--git-ref needs --git-url, or a git workdir in the file"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			task := parseOne(t, base)
			err := tc.o.Apply(task)
			if tc.wantErr != "" {
				if err == nil || err.Error() != tc.wantErr {
					t.Fatalf("got  %v\nwant %s", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := tc.check(task); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestApplyFileIgnoresResourceFlagsForSeveralTasks(t *testing.T) {
	f := parseFile(t, "name: p\n---\nrun: a\n---\nrun: b\n")
	ignored, err := (&Overrides{CPUs: "4", GPUs: "L4", Workdir: "w", Name: "q"}).ApplyFile(f)
	if err != nil || !reflect.DeepEqual(ignored, []string{"--cpus", "--gpus"}) || f.Name != "q" || f.Tasks[1].Workdir.Path != "w" || f.Tasks[0].Resources.CPUs.N != 0 {
		t.Errorf("%v %v %+v", ignored, err, f)
	}
	single := parseFile(t, "run: a")
	if ignored, err := (&Overrides{CPUs: "4", Name: "q"}).ApplyFile(single); err != nil || ignored != nil || single.Name != "q" || single.Tasks[0].Resources.CPUs.N != 4 {
		t.Errorf("%v %v %+v", ignored, err, single)
	}
}

func TestFit(t *testing.T) {
	have := Request{
		Infra: Infra{"aws", "us-east-1", "us-east-1a"}, InstanceType: "m5", Accelerator: &Accelerator{Name: "H100", Count: 8, MemoryGB: 80}, CPUs: CPUs{N: 4},
		DiskTier: "medium", LocalDisk: &LocalDisk{Mode: "nvme", SizeGB: 1000}, Images: map[string]string{"": "docker:x"}, Ports: Ports{{80, 80}}, UseSpot: true,
	}
	tests := []struct {
		text, want string
		exec       bool
	}{
		{text: "{}"},
		{text: "resources: {cpus: 64, memory: 512+, disk_size: 9999}"},
		{text: "resources: {infra: AWS/us-east-1}"},
		{text: "resources: {infra: gcp}", want: "infra: the task asks for gcp, the cluster has aws/us-east-1/us-east-1a"},
		{text: "resources: {infra: gcp}", exec: true},
		{text: "resources: {infra: '*/*/us-east-1b'}", want: "infra: the task asks for */*/us-east-1b, the cluster has aws/us-east-1/us-east-1a"},
		{text: "resources: {instance_type: m6}", want: "instance type: the task asks for m6, the cluster has m5"},
		{text: "resources: {gpus: 'h100:0.5'}"},
		{text: "resources: {gpus: 'H100:9'}", want: "accelerators: the task asks for H100:9, the cluster has H100:8"},
		{text: "resources: {gpus: A100}", want: "accelerators: the task asks for A100:1, the cluster has H100:8"},
		{text: "resources: {gpus: '40GB+'}"},
		{text: "resources: {gpus: '40GB'}", want: "accelerators: the task asks for 40GB:1, the cluster has H100:8"},
		{text: "resources: {gpus: {A100: 1, H100: 1}}"},
		{text: "resources: {use_spot: false}", want: "use_spot: the task asks for on-demand nodes, the cluster has spot nodes"},
		{text: "resources: {use_spot: true, disk_tier: low}"},
		{text: "resources: {disk_tier: best}"},
		{text: "resources: {disk_tier: high}", want: "disk_tier: the task asks for high, the cluster has medium"},
		{text: "resources: {network_tier: best}", want: "network_tier: the task asks for best, the cluster has standard"},
		{text: "resources: {local_disk: 'ssd:500+'}"},
		{text: "resources: {local_disk: 'nvme:1000'}"},
		{text: "resources: {local_disk: 'nvme:500'}", want: "local_disk: the task asks for nvme:500, the cluster has nvme:1000"},
		{text: "resources: {image_id: docker:x}"},
		{text: "resources: {image_id: docker:y}", want: "image_id: the task asks for docker:y, the cluster has docker:x"},
		{text: "resources: {ports: 81}"},
		{text: "resources: {ports: 81}", exec: true, want: "ports: the task asks for 81, the cluster has 80"},
		{text: "num_nodes: 3", want: "num_nodes: the task asks for 3, the cluster has 2"},
	}
	for _, tc := range tests {
		if got := strings.Join(FitTask(parseOne(t, tc.text), have, 2, FitOptions{Exec: tc.exec}), "; "); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.text, got, tc.want)
		}
	}
}
