package task

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// parseOne reads a file with one task and forgets where its fields stand.
func parseOne(t *testing.T, text string, opts ...ParseOptions) *Task {
	t.Helper()
	f := parseFile(t, text, opts...)
	if len(f.Tasks) != 1 {
		t.Fatalf("got %d tasks", len(f.Tasks))
	}
	return f.Tasks[0]
}

func parseFile(t *testing.T, text string, opts ...ParseOptions) *File {
	t.Helper()
	var o ParseOptions
	if len(opts) > 0 {
		o = opts[0]
	}
	f, err := Parse("task.yaml", []byte(text), o)
	if err != nil {
		t.Fatalf("parse:\n%s\n%v", text, err)
	}
	for _, task := range f.Tasks {
		task.src = nil
	}
	return f
}

func TestParseFields(t *testing.T) {
	yes, no := true, false
	tests := []struct {
		name, text string
		want       Task
	}{
		{"empty object", "{}", Task{}},
		{"names and scripts", "name: a-b.c\nsetup: [pip install x, make]\nrun: |\n  echo hi\n", Task{Name: "a-b.c", Setup: "pip install x\nmake", Run: "echo hi\n"}},
		{"workdir path", "workdir: ./src", Task{Workdir: &Workdir{Path: "./src"}}},
		{"workdir mirror", "workdir: {path: ., mirror: true}", Task{Workdir: &Workdir{Path: ".", Mirror: true}}},
		{"workdir git", "workdir: {url: 'git@github.com:a/b.git', ref: main}", Task{Workdir: &Workdir{URL: "git@github.com:a/b.git", Ref: "main"}}},
		{"envs become text", "envs: {A: 8, B: true, C: 1.50, D: '', E: yes, F: 010}", Task{Envs: map[string]string{"A": "8", "B": "true", "C": "1.50", "D": "", "E": "yes", "F": "010"}}},
		{"secrets as a map", "secrets: {A: x, B: null, 'secrets:global.C': null}", Task{Secrets: map[string]Secret{"A": {Value: "x", Inline: true}, "B": {}, "C": {Ref: "global.C"}}}},
		{"secrets as a list", "secrets: ['secrets:A', 'secrets:personal.B']", Task{Secrets: map[string]Secret{"A": {Ref: "A"}, "B": {Ref: "personal.B"}}}},
		{"managed secrets", "managed_secrets: [A, {B: {mount_path: /etc/b}}]", Task{ManagedSecrets: []ManagedSecret{{Name: "A"}, {Name: "B", MountPath: "/etc/b"}}}},
		{"file mounts", "file_mounts:\n  /b: ./b\n  ~/a: s3://bucket/x\n", Task{FileMounts: []FileMount{{Dst: "/b", Src: "./b"}, {Dst: "~/a", Src: "s3://bucket/x"}}}},
		{"storage", "file_mounts: {/d: {name: n, source: [a, b/c], store: gcs, persistent: no, mode: mount_cached, type: dataset_rw, config: {mount_cached: {transfers: 8, buffer_size: 16M}}}}",
			Task{FileMounts: []FileMount{{Dst: "/d", Storage: &Storage{Name: "n", Source: []string{"a", "b/c"}, SourceIsList: true, Store: "gcs", Persistent: &no, Mode: "MOUNT_CACHED", Type: "DATASET_RW",
				Config: map[string]any{"mount_cached": map[string]any{"transfers": 8, "buffer_size": "16M"}}}}}}},
		{"volumes", "volumes: {/a: v, /b: {name: v, sub_path: x/y}, /c: {size: 100Gi, labels: {k: v}}}",
			Task{Volumes: []VolumeMount{{Dst: "/a", Name: "v"}, {Dst: "/b", Name: "v", SubPath: "x/y"}, {Dst: "/c", Ephemeral: &EphemeralVolume{SizeGB: 100, Type: "k8s-pvc", Labels: map[string]string{"k": "v"}}}}}},
		{"data sizes", "inputs: {'s3://x': 3.5}\noutputs: {'s3://y': 1}", Task{Inputs: &DataSize{"s3://x", 3.5}, Outputs: &DataSize{"s3://y", 1}}},
		{"managed job fields", "api_server_access: false\nevent_callback: echo", Task{APIServerAccess: &no, EventCallback: "echo"}},
		{"hooks", "config: {hooks: [{run: a}, {run: b, events: [down, stop], timeout: 5}], docker: {run_options: x}}",
			Task{Config: Config{Hooks: []Hook{{"a", []string{"stop", "preemption", "down"}, 3600}, {"b", []string{"stop", "down"}, 5}}, Overrides: map[string]any{"docker": map[string]any{"run_options": "x"}}}}},
		{"autostop hook", "resources: {autostop: {down: true, hook: save}}",
			Task{Resources: Resources{Autostop: &Autostop{Enabled: true, IdleMinutes: 5, Down: true}}, Config: Config{Hooks: []Hook{{"save", []string{"down"}, 3600}}}}},
		{"service", "service: {readiness_probe: {path: /h, post_data: {a: 1}, headers: {X: 1}, initial_delay_seconds: 3}, replica_policy: {min_replicas: 0, max_replicas: 2, target_qps_per_replica: 2.5}, load_balancer: {stream_timeout_seconds: 9}}\nresources: {ports: 8080}",
			Task{Resources: Resources{Ports: Ports{{8080, 8080}}}, Service: &Service{StreamTimeoutSec: 9, ReadinessProbe: Probe{Path: "/h", PostData: `{"a":1}`, Headers: map[string]string{"X": "1"}, InitialDelaySec: 3},
				Policy: &ReplicaPolicy{MaxReplicas: ptr(2), TargetQPSPerReplica: 2.5}}}},
		{"pool", "pool: {min_workers: 1, max_workers: 3, queue_length_threshold: 2}", Task{Pool: &Pool{MinWorkers: ptr(1), MaxWorkers: ptr(3), QueueLengthThreshold: ptr(2)}}},
		{"checkpoint", "checkpoint: {path: ~/ckpt, every: 10m, signal: SIGUSR1, on_preempt: ./save.sh, keep: 3, scope: all, to: 's3://b'}",
			Task{Checkpoint: &Checkpoint{Path: "~/ckpt", Every: 10 * time.Minute, Signal: "USR1", OnPreempt: "./save.sh", Keep: 3, Scope: "all", To: "s3://b"}}},
		{"array values", "array: {values: {LR: [0.1, 1e-3], B: [x]}, parallel: 4, retries: 2}", Task{Array: &Array{Values: map[string][]string{"LR": {"0.1", "1e-3"}, "B": {"x"}}, Parallel: 4, Retries: 2}}},
		{"array count", "array: 100", Task{Array: &Array{Count: 100}}},
		{"schedule", "schedule: '*/5 3-4 1,15 jan-mar mon'", Task{Schedule: &Schedule{Cron: "*/5 3-4 1,15 jan-mar mon"}}},
		{"schedule object", "schedule: {cron: '@daily', timezone: Europe/Berlin, overlap: buffer_one, catch_up: 1h, paused: true}",
			Task{Schedule: &Schedule{Cron: "@daily", Timezone: "Europe/Berlin", Overlap: "buffer_one", CatchUp: time.Hour, Paused: true}}},
		{"notify", "secrets: {K: x}\nnotify: [https://a.example, {url: 'http://b.example/x', events: [FAILED], secret: K}]",
			Task{Secrets: map[string]Secret{"K": {Value: "x", Inline: true}}, Notify: []Notify{{URL: "https://a.example"}, {URL: "http://b.example/x", Events: []string{"failed"}, Secret: "K"}}}},
		{"internal keys", "_metadata: {a: 1}\nfile_mounts_mapping: {a: b}", Task{}},
		{"anchors and merge keys", "envs: &e {A: 1}\nconfig: {x: *e, y: {<<: *e, B: 2}}", Task{Envs: map[string]string{"A": "1"}, Config: Config{Overrides: map[string]any{"x": map[string]any{"A": 1}, "y": map[string]any{"A": 1, "B": 2}}}}},
		{"null sections", "resources:\nenvs:\nrun:\n", Task{}},
		{"resources", `resources:
  infra: AWS/us-east-1/us-east-1a
  gpus: H100:8
  cpus: 8+
  memory: 1TB+
  instance_type: p5
  use_spot: true
  job_recovery: {strategy: failover, max_restarts_on_errors: 3, recover_on_exit_codes: [33, 7], budget: 5}
  disk_size: 1TB
  disk_tier: BEST
  network_tier: best
  local_disk: ssd:500
  max_hourly_cost: 3.5
  image_id: {us-east-1: ami-1}
  labels: {a: b}
  priority: -5
  priority_class: low
  volumes: [{path: /x, name: d, disk_size: 10, storage_type: network}]
`, Task{Resources: Resources{Infra: Infra{"aws", "us-east-1", "us-east-1a"}, Accelerators: Accelerators{Options: []Accelerator{{Name: "H100", Count: 8}}}, CPUs: CPUs{8, true}, Memory: Memory{GB: 1024, AtLeast: true},
			InstanceType: "p5", UseSpot: &yes, JobRecovery: &JobRecovery{Strategy: "FAILOVER", MaxRestartsOnErrors: 3, RecoverOnExitCodes: []int{7, 33}, Extra: map[string]any{"budget": 5}}, DiskSizeGB: 1024, DiskTier: "best",
			NetworkTier: "best", LocalDisk: &LocalDisk{"ssd", 500, false}, MaxHourlyCost: 3.5, Images: map[string]string{"us-east-1": "ami-1"}, Labels: map[string]string{"a": "b"}, Priority: ptr(-5), PriorityClass: "low",
			Volumes: []DiskVolume{{Path: "/x", Name: "d", DiskSizeGB: 10, StorageType: "network"}}}}},
		{"legacy place", "resources: {cloud: AWS, region: us-east-1, zone: us-east-1a}", Task{Resources: Resources{Infra: Infra{"aws", "us-east-1", "us-east-1a"}}}},
		{"legacy ssh pool", "resources: {cloud: ssh, region: ssh-lab}", Task{Resources: Resources{Infra: Infra{Cloud: "ssh", Region: "lab"}}}},
		{"alternatives", "resources: {any_of: [{infra: aws}, {infra: '*', use_spot: false}]}", Task{Resources: Resources{AnyOf: []Resources{{Infra: Infra{Cloud: "aws"}}, {Infra: Infra{Cloud: "*"}, UseSpot: &no}}}}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got := parseOne(t, tc.text)
			if tc.want.NumNodes == 0 {
				tc.want.NumNodes = 1
			}
			if !reflect.DeepEqual(*got, tc.want) {
				t.Errorf("got\n%s\nwant\n%s\n%+v\n%+v", got.Render(SecretsInline), tc.want.Render(SecretsInline), *got, tc.want)
			}
			again := parseOne(t, string(got.Render(SecretsInline)))
			if !reflect.DeepEqual(got, again) {
				t.Errorf("rendering and parsing again gives another task:\n%s\n%+v\n%+v", got.Render(SecretsInline), got, again)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	tests := []struct{ text, want string }{
		{"resources:\n  accelerator: H100\n", `task.yaml:2:3: resources: unknown field "accelerator"; did you mean "accelerators"?`},
		{"resource: {}\n", `task.yaml:1:1: unknown field "resource"; did you mean "resources"?`},
		{"experimental: {config_overrides: {}}\n", `task.yaml:1:1: unknown field "experimental"; what was under experimental.config_overrides stands under "config"`},
		{"resources: {accelerators: None}\n", `task.yaml:1:27: resources.accelerators: "None" names no accelerator; leave the field out for none`},
		{"cpus: 4\n", `task.yaml:1:1: unknown field "cpus"; it belongs under "resources"`},
		{"resources:\n  infra: aws\n  any_of:\n  - region: us-east-1\n", `task.yaml:4:5: resources.any_of[0]: "region" can't be combined with the infra outside; write infra: cloud/region/zone`},
		{"resources: {hooks: []}\n", `task.yaml:1:13: resources: unknown field "hooks"; hooks belong under config.hooks`},
		{"", "task.yaml: is empty or contains no task definition"},
		{"# nothing\n---\n", "task.yaml: is empty or contains no task definition"},
		{"just words", `task.yaml:1:1: a task is an object (fields like run: and resources:), not "just words"`},
		{"- a\n- b\n", "task.yaml:1:1: a task is an object (fields like run: and resources:), not a list"},
		{"run: a\nrun: b\n", `task.yaml:2:1: key "run" is given twice (first at line 1); remove one`},
		{"envs:\n  A: 1\n  A: 2\n", `task.yaml:3:3: envs: key "A" is given twice (first at line 2); remove one`},
		{"run: \x00", "task.yaml:1:6: holds a NUL byte; a YAML file is UTF-8 text"},
		{"run: a\nname: \xff", "task.yaml:2:7: is not UTF-8 text; save the file as UTF-8"},
		{"run: 'x\n", "task.yaml:2: is not valid YAML: found unexpected end of stream"},
		{"num_nodes: many\n", `task.yaml:1:12: num_nodes: must be a whole number, not "many"`},
		{"num_nodes: 0\n", "task.yaml:1:12: num_nodes: must be from 1 to 100000, not 0"},
		{"name: 12\n", "task.yaml:1:7: name: must be text, not 12; put it in quotes"},
		{"name: a/b\n", `task.yaml:1:7: name: "a/b" is not a valid name; use letters and digits, joined by single or double . _ or -`},
		{"run: {a: b}\n", "task.yaml:1:6: run: must be text, not an object"},
		{"envs: {A: null}\n", `task.yaml:1:11: envs.A: has no value; give it with --env A=VALUE, or write "" for an empty one`},
		{"envs: {1A: x}\n", `task.yaml:1:8: envs: "1A" is not an environment name (letters, digits and _, not starting with a digit)`},
		{"secrets: {A: [topsecret]}\n", "task.yaml:1:14: secrets.A: must be a single value"},
		{"secrets: {'secrets:A': x}\n", `task.yaml:1:11: secrets: "secrets:A" refers to a managed secret and takes no value`},
		{"secrets: [A]\n", `task.yaml:1:11: secrets[0]: an entry of a list must start with "secrets:"; a secret with a value is written as a map, NAME: value`},
		{"resources: {ports: 70000}\n", `task.yaml:1:20: resources.ports: "70000" is out of range; ports go from 1 to 65535`},
		{"resources: {ports: 10-5}\n", `task.yaml:1:20: resources.ports: "10-5" ends before it starts`},
		{"resources: {gpus: A, accelerators: B}\n", `task.yaml:1:22: resources: "gpus" and "accelerators" mean the same; give one of them`},
		{"resources: {infra: aws, region: x}\n", `task.yaml:1:25: resources: "region" can't be combined with infra; write infra: cloud/region/zone`},
		{"resources: {infra: a//b}\n", `task.yaml:1:20: resources.infra: "a//b" has an empty part; write cloud, cloud/region or cloud/region/zone, with * for any`},
		{"resources: {infra: a/b/c/d}\n", `task.yaml:1:20: resources.infra: "a/b/c/d" has 4 parts; at most 3 are allowed`},
		{"resources: {accelerators: 'H100:0'}\n", `task.yaml:1:27: resources.accelerators: the count in "H100:0" must be more than 0`},
		{"resources: {cpus: -1}\n", `task.yaml:1:19: resources.cpus: "-1" must be more than 0; write a number like 4, or 4+ for at least 4`},
		{"resources: {memory: 0}\n", `task.yaml:1:21: resources.memory: must be more than 0 (0 is allowed on Slurm only)`},
		{"resources: {disk_tier: fast}\n", `task.yaml:1:24: resources.disk_tier: must be one of low, medium, high, ultra, best, none, not "fast"`},
		{"resources: {job_recovery: failovr}\n", `task.yaml:1:27: resources.job_recovery: unknown recovery strategy "failovr"; did you mean "FAILOVER"?; known are EAGER_NEXT_REGION, FAILOVER, NONE`},
		{"resources: {job_recovery: {recover_on_exit_codes: [1, 1]}}\n", `task.yaml:1:55: resources.job_recovery.recover_on_exit_codes[1]: exit code 1 is listed twice`},
		{"resources: {any_of: [{}], ordered: [{}]}\n", `task.yaml:1:36: resources.ordered: any_of and ordered can't be combined`},
		{"resources: {any_of: [{any_of: [{}]}]}\n", `task.yaml:1:31: resources.any_of[0].any_of: alternatives can't be nested`},
		{"resources: {accelerators: [A100, H100], any_of: [{}]}\n", `task.yaml:1:27: resources.accelerators: a list of accelerators has an order and can't be combined with any_of; use ordered, or a map`},
		{"resources: {any_of: [{priority: 1}, {priority: 2}]}\n", `task.yaml:1:12: resources: all alternatives must have the same priority`},
		{"resources: {accelerators: tpu-v4-8, infra: aws}\n", `task.yaml:1:27: resources.accelerators: tpu-v4-8 is a TPU, which aws doesn't have; TPUs are on gcp and kubernetes`},
		{"resources: {image_id: ami-1}\n", `task.yaml:1:23: resources.image_id: the machine image "ami-1" needs an infra; write infra: <cloud>, or docker:<image> for a container`},
		{"file_mounts: {/a/: b}\n", `task.yaml:1:15: file_mounts: destination "/a/" must not end with /`},
		{"file_mounts: {/a: {source: x}}\n", "task.yaml:1:19: file_mounts./a: name is missing: a bucket made from local files, or an empty one, needs a name"},
		{"file_mounts: {/a: {source: 's3://b/sub'}}\n", "task.yaml:1:19: file_mounts./a: mode MOUNT of a part of a bucket is not possible; mount the bucket, or use mode: COPY"},
		{"workdir: .\nfile_mounts: {~/sky_workdir: b}\n", "task.yaml:2:30: file_mounts.~/sky_workdir: ~/sky_workdir is where workdir goes; choose another destination"},
		{"volumes: {a: b}\n", `task.yaml:1:11: volumes: mount path "a" must start with / or ~`},
		{"volumes: {/a: {name: v, sub_path: ../x}}\n", `task.yaml:1:35: volumes./a.sub_path: must be a relative path of letters, digits and . _ - / without .., not "../x"`},
		{"service: {}\n", "task.yaml:1:1: resources.ports: a service needs the port of its replicas; write resources: {ports: 8080}"},
		{"service: {replicas: 1, replica_policy: {min_replicas: 1}}\nresources: {ports: 1}", "task.yaml:1:10: service: replicas and replica_policy can't be combined; a fixed number is replica_policy: {min_replicas: N}"},
		{"service: {readiness_probe: {path: /, post_data: '{'}}\nresources: {ports: 1}", "task.yaml:1:49: service.readiness_probe.post_data: is not valid JSON: unexpected end of JSON input"},
		{"pool: {}\n", "task.yaml:1:7: pool: needs workers, or min_workers and max_workers"},
		{"pool: {workers: 1}\nservice: {}\nresources: {ports: 1}\n", "task.yaml:1:7: pool: service and pool can't be combined; use one file for each"},
		{"schedule: 61 * * * *\n", `task.yaml:1:11: schedule: "61" is not a minute (from 0 to 59)`},
		{"schedule: daily\n", `task.yaml:1:11: schedule: a schedule has five fields (minute hour day-of-month month day-of-week), like "0 3 * * *"`},
		{"array: {values: {A: [1, 2], 'b c': [1]}}\n", `task.yaml:1:29: array.values: "b c" is not an environment name (letters, digits and _, not starting with a digit)`},
		{"notify: ftp://x\n", `task.yaml:1:9: notify: "ftp://x" is not an http or https address`},
		{"envs: {SKYPILOT_DOCKER_USERNAME: a}\n", "task.yaml:1:7: envs: a docker login needs SKYPILOT_DOCKER_USERNAME, SKYPILOT_DOCKER_PASSWORD, SKYPILOT_DOCKER_SERVER, all of them in envs or all in secrets"},
		{"config: {hooks: [{run: ''}]}\n", "task.yaml:1:18: config.hooks[0]: run must have 1 to 16384 bytes"},
		{"a: &a [*a]\n", "task.yaml:1:8: a[0]: the alias *a stands inside what it refers to"},
	}
	for _, tc := range tests {
		_, err := Parse("task.yaml", []byte(tc.text), ParseOptions{})
		if err == nil {
			t.Errorf("%q: no error, want %s", tc.text, tc.want)
			continue
		}
		got := err.Error()
		if first, _, _ := strings.Cut(got, "\n"); first != tc.want {
			t.Errorf("%q:\n got %s\nwant %s", tc.text, got, tc.want)
		}
		if strings.Contains(got, "topsecret") {
			t.Errorf("a message shows a secret: %s", got)
		}
	}
}

func TestParseReportsSeveralErrorsInOrder(t *testing.T) {
	_, err := Parse("t.yaml", []byte("nam: x\nnum_nodes: -1\nresources:\n  cpu: 4\n  ports: 0\n"), ParseOptions{})
	want := []string{`t.yaml:1:1: unknown field "nam"; did you mean "name"?`, "t.yaml:2:12: num_nodes: must be from 1 to 100000, not -1",
		`t.yaml:4:3: resources: unknown field "cpu"; did you mean "cpus"?`, `t.yaml:5:10: resources.ports: "0" is out of range; ports go from 1 to 65535`}
	if got := err.Error(); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

func TestVarsAndSubstitution(t *testing.T) {
	text := `
envs: {A: yaml, NEED: null, DIR: data, N: 3}
secrets: {TOKEN: null, OTHER: null}
workdir: ./$DIR
file_mounts:
  /mnt/${DIR}: s3://$A/${UNKNOWN}
service: {readiness_probe: /$DIR, replicas: $N}
resources: {ports: 80}
run: echo $DIR
`
	got := parseOne(t, text, ParseOptions{Vars: Vars{
		EnvFile: map[string]string{"A": "file", "NEED": "file", "TOKEN": "file-token", "OTHER": "file-other"},
		Envs:    map[string]string{"A": "flag", "NEW": "1"}, SecretFile: map[string]string{"OTHER": "secret-file"}, Secrets: map[string]string{"X": "y"},
	}})
	if want := (map[string]string{"A": "flag", "NEED": "file", "DIR": "data", "N": "3", "NEW": "1"}); !reflect.DeepEqual(got.Envs, want) {
		t.Errorf("envs %v", got.Envs)
	}
	want := map[string]Secret{"TOKEN": {Value: "file-token", Inline: true}, "OTHER": {Value: "secret-file", Inline: true}, "X": {Value: "y", Inline: true}}
	if !reflect.DeepEqual(got.Secrets, want) {
		t.Errorf("secrets %v", got.Secrets)
	}
	if got.Workdir.Path != "./data" || got.FileMounts[0].Dst != "/mnt/data" || got.FileMounts[0].Src != "s3://flag/${UNKNOWN}" || got.Run != "echo $DIR" {
		t.Errorf("substitution: %+v %+v %q", got.Workdir, got.FileMounts, got.Run)
	}
	if got.Service.ReadinessProbe.Path != "/data" || *got.Service.Replicas != 3 {
		t.Errorf("service: %+v", got.Service)
	}
}

func TestSubstitutionHappensOnce(t *testing.T) {
	task := parseOne(t, "envs: {A: $B, B: c}\nfile_mounts: {/a: ./$A, /b: '$UNKNOWN'}\n")
	if task.FileMounts[0].Src != "./$B" {
		t.Fatalf("got %q", task.FileMounts[0].Src)
	}
	text := string(task.Render(SecretsReferenced))
	if again := parseOne(t, text); !reflect.DeepEqual(again, task) || !strings.Contains(text, "_metadata") {
		t.Errorf("again %+v\n%s", again.FileMounts, text)
	}
	plain := parseOne(t, "envs: {B: c}\nfile_mounts: {/a: ./$B}\nrun: echo $B")
	if text := string(plain.Render(SecretsReferenced)); strings.Contains(text, "_metadata") {
		t.Errorf("marked without need:\n%s", text)
	}
}

func TestMessagesMaskSubstitutedSecrets(t *testing.T) {
	_, err := Parse("t", []byte("secrets: {S: topsecret}\nfile_mounts: {/a: 'ftp://$S', '/$S/': x}\n"), ParseOptions{})
	if err == nil || strings.Contains(err.Error(), "topsecret") || !strings.Contains(err.Error(), Redacted) {
		t.Errorf("got %v", err)
	}
	long := "LONGSECRET" + strings.Repeat("z", 100)
	if _, err := Parse("t", []byte("secrets: {S: "+long+"}\nfile_mounts: {/a: 'ftp://$S'}\n"), ParseOptions{}); err == nil || strings.Contains(err.Error(), "LONGS") {
		t.Errorf("got %v", err)
	}
}

func TestSubstitutedSecretWarns(t *testing.T) {
	f := parseFile(t, "secrets: {B: x}\nfile_mounts: {/a: 's3://$B'}\n")
	if len(f.Warnings) != 1 || !strings.Contains(f.Warnings[0], "secret B") {
		t.Errorf("warnings %q", f.Warnings)
	}
}

func TestExtractSecrets(t *testing.T) {
	task := parseOne(t, "secrets: {A: one, B: null, 'secrets:C': null}\nrun: x\n")
	if got := string(task.Render(SecretsRedacted)); strings.Contains(got, "one") || !strings.Contains(got, Redacted) {
		t.Errorf("redacted:\n%s", got)
	}
	if got := task.UnresolvedSecrets(map[string]string{"C": ""}); !reflect.DeepEqual(got, []string{"B"}) {
		t.Errorf("unresolved %v", got)
	}
	if got := task.ExtractSecrets(); !reflect.DeepEqual(got, map[string]string{"A": "one"}) {
		t.Errorf("extracted %v", got)
	}
	again := parseOne(t, string(task.Render(SecretsReferenced)))
	if !reflect.DeepEqual(again, task) || !reflect.DeepEqual(again.SecretNames(), []string{"A", "B", "C"}) {
		t.Errorf("after: %+v", again.Secrets)
	}
}

func TestDocuments(t *testing.T) {
	tests := []struct {
		name, text string
		kind       Kind
		fname      string
		tasks      []string
		wantErr    string
	}{
		{name: "one", text: "name: a", kind: Single, fname: "a", tasks: []string{"a"}},
		{name: "null documents are skipped", text: "---\n---\nname: a\n---\n", kind: Single, fname: "a", tasks: []string{"a"}},
		{name: "pipeline", text: "name: p\n---\nrun: a\n---\nname: x\nrun: b\n", kind: Pipeline, fname: "p", tasks: []string{"p-0", "x"}},
		{name: "pipeline without a header", text: "run: a\n---\nrun: b\n", kind: Pipeline, tasks: []string{"", ""}},
		{name: "serial header", text: "name: p\nexecution: serial\n---\nrun: a\n---\nrun: b\n", kind: Pipeline, fname: "p", tasks: []string{"p-0", "p-1"}},
		{name: "header and one task", text: "name: p\n---\nrun: a\n", kind: Single, fname: "p", tasks: []string{"p"}},
		{name: "group", text: "name: g\nexecution: parallel\nprimary_tasks: [a]\ntermination_delay: {default: 30s, b: 1m}\n---\nname: a\n---\nname: b\n", kind: JobGroup, fname: "g", tasks: []string{"a", "b"}},
		{name: "group without tasks", text: "name: g\nexecution: parallel\n", wantErr: "task.yaml: has a header but no task"},
		{name: "group without a name", text: "execution: parallel\n---\nname: a\n", wantErr: "task.yaml:1:1: a job group needs a name"},
		{name: "group with an unnamed task", text: "name: g\nexecution: parallel\n---\nname: a\n---\nrun: b\n", wantErr: "task.yaml:6:6: run: task 2 of the job group has no name; every task of a group needs one"},
		{name: "group with equal names", text: "name: g\nexecution: parallel\n---\nname: a\n---\nname: a\n", wantErr: `task.yaml:6:7: name: two tasks of the job group are named "a"`},
		{name: "unknown primary", text: "name: g\nexecution: parallel\nprimary_tasks: [trainr]\n---\nname: trainer\n", wantErr: `task.yaml:1: primary_tasks: no task is named "trainr"; did you mean "trainer"?`},
		{name: "bad execution", text: "name: g\nexecution: both\n---\nname: a\n", wantErr: `task.yaml:2:12: execution: must be one of serial, parallel, not "both"`},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			f, err := Parse("task.yaml", []byte(tc.text), ParseOptions{})
			if tc.wantErr != "" {
				if err == nil || err.Error() != tc.wantErr {
					t.Fatalf("got %v, want %s", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, task := range f.Tasks {
				names = append(names, task.Name)
			}
			if f.Kind != tc.kind || f.Name != tc.fname || !reflect.DeepEqual(names, tc.tasks) {
				t.Errorf("got %s %q %q", f.Kind, f.Name, names)
			}
			again, err := Parse("again.yaml", f.Render(SecretsInline), ParseOptions{})
			if err != nil {
				t.Fatalf("%v\n%s", err, f.Render(SecretsInline))
			}
			if again.Kind != f.Kind || again.Name != f.Name || !reflect.DeepEqual(again.PrimaryTasks, f.PrimaryTasks) || !reflect.DeepEqual(again.TerminationDelay, f.TerminationDelay) {
				t.Errorf("again: %+v", again)
			}
		})
	}
}
