package task

import (
	"strings"
	"testing"
)

func TestCheckSupported(t *testing.T) {
	const later = " is not supported by this server yet; it comes with a later version. Remove the field for now"
	tests := []struct {
		text, verb     string
		set            FeatureSet
		wantErr, warns string
	}{
		{text: "run: x\nworkdir: .\nfile_mounts: {/a: ./b}\nconfig: {hooks: [{run: a}], active_workspace: default}\nresources: {autostop: 5, use_spot: true}", verb: VerbLaunch},
		{text: "file_mounts:\n  /a: s3://b\n", verb: VerbLaunch, wantErr: "t.yaml:2:7: file_mounts./a: mounting or copying buckets" + later},
		{text: "file_mounts:\n  /a: s3://b\n", verb: VerbExec},
		{text: "file_mounts:\n  /a: s3://b\n", verb: VerbLaunch, set: NewFeatureSet(FeatureStorage)},
		{text: "volumes: {/a: v}", verb: VerbLaunch, wantErr: "t.yaml:1:15: volumes./a: mounting volumes" + later},
		{text: "workdir: {url: 'https://x/y'}", verb: VerbExec, wantErr: "t.yaml:1:16: workdir.url: a workdir from a git repository" + later},
		{text: "workdir: {path: ., mirror: true}", verb: VerbLaunch, wantErr: "t.yaml:1:28: workdir.mirror: mirroring the workdir" + later},
		{text: "resources:\n  image_id: docker:x\n", verb: VerbLaunch, wantErr: "t.yaml:2:13: resources.image_id: running in a container image" + later},
		{text: "resources:\n  any_of: [{infra: aws, image_id: {r: ami}}]\n", verb: VerbLaunch, wantErr: "t.yaml:2:35: resources.any_of[0].image_id: choosing a machine image" + later},
		{text: "resources: {ports: 80}", verb: VerbLaunch, wantErr: "t.yaml:1:20: resources.ports: opening ports" + later},
		{text: "resources: {gpus: tpu-v4-8}", verb: VerbLaunch, wantErr: "t.yaml:1:19: resources.accelerators: TPUs" + later},
		{text: "managed_secrets: [A]", verb: VerbLaunch, wantErr: "t.yaml:1:18: managed_secrets: managed secrets" + later},
		{text: "secrets: ['secrets:A']", verb: VerbLaunch, wantErr: "t.yaml:1:10: secrets.secrets:A: managed secrets" + later},
		{text: "config: {kubernetes: {pod_config: {}}}", verb: VerbLaunch, wantErr: "t.yaml:1:35: config.kubernetes.pod_config: per-task settings of an infra" + later},
		{text: "config: {kubernetes: {pod_confg: {}}}", verb: VerbLaunch, set: NewFeatureSet(FeatureInfraConfig), wantErr: `t.yaml:1:34: config.kubernetes.pod_confg: can't be set from a task; did you mean "kubernetes.pod_config"?`},
		{text: "config: {kuberntes: {pod_config: {}}, docker: null, gcp: {}}", verb: VerbLaunch, wantErr: `t.yaml:1:34: config.kuberntes.pod_config: can't be set from a task; did you mean "kubernetes.pod_config"?`},
		{text: "config:\n  vast: 3\n", verb: VerbExec, wantErr: "t.yaml:2:9: config.vast: must be an object with datacenter_only, create_instance_kwargs"},
		{text: "event_callback: echo", verb: VerbJobsLaunch, set: NewFeatureSet(FeatureManagedJobs), wantErr: "t.yaml:1:17: event_callback: a command at changes of state (notify tells a web address of them)" + later},
		{text: "resources:\n  job_recovery: {max_restart_on_errors: 3}\n", verb: VerbJobsLaunch, set: NewFeatureSet(FeatureManagedJobs), wantErr: `t.yaml:2:41: resources.job_recovery.max_restart_on_errors: unknown field "max_restart_on_errors"; did you mean "max_restarts_on_errors"?`},
		{text: "checkpoint: ~/c", verb: VerbLaunch, wantErr: "t.yaml:1:13: checkpoint: checkpoints" + later},
		{text: "array: 5", verb: VerbLaunch, wantErr: "t.yaml:1:8: array: arrays" + later},
		{text: "array: 5", verb: VerbLaunch, set: NewFeatureSet(FeatureArray), wantErr: "t.yaml:1:8: array: is for managed jobs; use sky jobs launch"},
		{text: "schedule: '@daily'\nnotify: 'http://x'", verb: VerbLaunch, wantErr: "t.yaml:1:11: schedule: schedules" + later + "\nt.yaml:2:9: notify: notifications" + later},
		{text: "service: {}\nresources: {ports: 80, autostop: 5}", verb: VerbLaunch, set: NewFeatureSet(FeaturePorts), warns: "service: is ignored by sky launch"},
		{text: "resources: {job_recovery: failover}\nevent_callback: x\napi_server_access: true", verb: VerbLaunch,
			warns: "resources.job_recovery: is ignored by sky launch; use sky jobs launch for a job that recovers\nevent_callback: is ignored by sky launch; it is for managed jobs\napi_server_access: is ignored by sky launch; it is for managed jobs"},
		{text: "run: x", verb: VerbJobsLaunch, wantErr: "sky jobs launch: managed jobs are not supported by this server yet; they come with a later version"},
	}
	for _, tc := range tests {
		f, err := Parse("t.yaml", []byte(tc.text), ParseOptions{})
		if err != nil {
			t.Errorf("%s: %v", tc.text, err)
			continue
		}
		warns, err := CheckFileSupported(f, tc.verb, tc.set)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != tc.wantErr || strings.Join(warns, "\n") != tc.warns {
			t.Errorf("%s (%s):\n got %s\nwant %s\nwarnings %s", tc.text, tc.verb, got, tc.wantErr, strings.Join(warns, "\n"))
		}
	}
	f := parseFile(t, "run: a\n---\nrun: b\n")
	if _, err := CheckFileSupported(f, VerbLaunch, nil); err == nil || !strings.Contains(err.Error(), "sky launch takes one task, and the file holds a pipeline") {
		t.Errorf("pipeline: %v", err)
	}
}

// TestEveryLaterFieldIsReported holds the table and LaterFields together: a field that says it needs features is found.
func TestEveryLaterFieldIsReported(t *testing.T) {
	found := map[Feature]bool{}
	for _, text := range []string{
		"workdir: {url: 'https://x/y', ref: a}", "workdir: {path: ., mirror: true}", "resources: {gpus: tpu-v4-8, accelerator_args: {tpu_vm: true}, ports: 80}", "resources: {image_id: docker:x}",
		"resources: {infra: gcp, image_id: x, volumes: [{path: /a, name: b}]}", "managed_secrets: [A]", "file_mounts: {/a: {name: x}}", "volumes: {/a: b}", "pool: {workers: 1}", "service: {}\nresources: {ports: 1}",
		"checkpoint: x", "event_callback: x", "array: 1", "schedule: '@daily'", "notify: 'http://x'",
	} {
		for _, u := range LaterFields(parseOne(t, text)) {
			found[u.Feature] = true
		}
	}
	for _, s := range sections() {
		for _, r := range s.rows {
			for _, f := range r.later {
				if !found[f] {
					t.Errorf("%s.%s needs %s, which LaterFields does not report", s.title, r.name, f)
				}
			}
		}
	}
}
