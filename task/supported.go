package task

import (
	"fmt"
	"strings"
)

// featureNames say in words what a feature is.
var featureNames = map[Feature]string{
	FeatureTPU:            "TPUs",
	FeaturePorts:          "opening ports",
	FeatureDocker:         "running in a container image",
	FeatureImages:         "choosing a machine image",
	FeatureDiskVolumes:    "attaching disks",
	FeatureGitWorkdir:     "a workdir from a git repository",
	FeatureMirror:         "mirroring the workdir",
	FeatureStorage:        "mounting or copying buckets",
	FeatureVolumes:        "mounting volumes",
	FeatureManagedSecrets: "managed secrets",
	FeatureInfraConfig:    "per-task settings of an infra",
	FeatureWorkspaces:     "workspaces",
	FeatureManagedJobs:    "managed jobs",
	FeaturePipelines:      "pipelines and job groups",
	FeatureServe:          "services",
	FeaturePools:          "pools",
	FeatureCheckpoint:     "checkpoints",
	FeatureArray:          "arrays",
	FeatureSchedule:       "schedules",
	FeatureNotify:         "notifications",
	FeatureEventCallback:  "a command at changes of state (notify tells a web address of them)",
}

// Describe is the feature in words.
func (f Feature) Describe() string {
	if s := featureNames[f]; s != "" {
		return s
	}
	return string(f)
}

// Unsupported is a field that a task uses and the feature it needs.
type Unsupported struct {
	Feature Feature
	Field   string // dotted path
	File    string
	Line    int // 0 when the field came from a flag
	Column  int
	Text    string // what it is for, in words
}

// ConfigOverridable are the configuration keys that a task may override, besides hooks.
var ConfigOverridable = []string{
	"docker.run_options", "nvidia_gpus.disable_ecc",
	"ssh.custom_metadata", "ssh.pod_config", "ssh.provision_timeout",
	"kubernetes.custom_metadata", "kubernetes.pod_config", "kubernetes.provision_timeout", "kubernetes.dws", "kubernetes.kueue", "kubernetes.quota",
	"kubernetes.remote_identity", "kubernetes.enable_docker", "kubernetes.set_pod_resource_limits",
	"azure.remote_identity", "azure.vpc_name",
	"gcp.vpc_name", "gcp.subnet_names", "gcp.managed_instance_group", "gcp.enable_gvnic", "gcp.enable_gpu_direct", "gcp.placement_policy",
	"vast.datacenter_only", "vast.create_instance_kwargs",
	"slurm.sbatch_options", "slurm.cpu_partition",
	"active_workspace",
}

// LaterFields lists every field of t that needs a feature, in the order of the reference.
func LaterFields(t *Task) []Unsupported {
	var out []Unsupported
	use := func(f Feature, field string) {
		e := t.src.error(field, "")
		out = append(out, Unsupported{Feature: f, Field: field, File: e.File, Line: e.Line, Column: e.Column, Text: f.Describe()})
	}
	if t.Workdir.IsGit() {
		use(FeatureGitWorkdir, "workdir.url")
	}
	if t.Workdir != nil && t.Workdir.Mirror {
		use(FeatureMirror, "workdir.mirror")
	}
	t.Resources.later("resources", use)
	for _, name := range sortedKeys(t.Secrets) {
		if s := t.Secrets[name]; s.Ref != "" && !s.Inline {
			use(FeatureManagedSecrets, "secrets."+refPrefix+s.Ref)
		}
	}
	if len(t.ManagedSecrets) > 0 {
		use(FeatureManagedSecrets, "managed_secrets")
	}
	for _, m := range t.FileMounts {
		if m.IsRemote() {
			use(FeatureStorage, "file_mounts."+m.Dst)
		}
	}
	for _, v := range t.Volumes {
		use(FeatureVolumes, "volumes."+v.Dst)
	}
	for _, key := range overridden(t.Config.Overrides) {
		switch {
		case key == "active_workspace" && t.Config.Overrides[key] == "default":
		case key == "active_workspace":
			use(FeatureWorkspaces, "config."+key)
		case key == "docker.run_options":
			use(FeatureDocker, "config."+key)
		default:
			use(FeatureInfraConfig, "config."+key)
		}
	}
	if t.Service != nil {
		use(FeatureServe, "service")
	}
	if t.Pool != nil {
		use(FeaturePools, "pool")
	}
	if t.EventCallback != "" {
		use(FeatureEventCallback, "event_callback")
	}
	if t.Checkpoint != nil {
		use(FeatureCheckpoint, "checkpoint")
	}
	if t.Array != nil {
		use(FeatureArray, "array")
	}
	if t.Schedule != nil {
		use(FeatureSchedule, "schedule")
	}
	if len(t.Notify) > 0 {
		use(FeatureNotify, "notify")
	}
	return out
}

func (r *Resources) later(path string, use func(Feature, string)) {
	tpu := r.AcceleratorArgs != nil
	for _, a := range r.Accelerators.Options {
		tpu = tpu || a.IsTPU()
	}
	if tpu {
		use(FeatureTPU, path+".accelerators")
	}
	if len(r.Ports) > 0 {
		use(FeaturePorts, path+".ports")
	}
	docker, image := false, false
	for region, img := range r.Images {
		if region == "docker" || strings.HasPrefix(img, "docker:") {
			docker = true
		} else {
			image = true
		}
	}
	if docker {
		use(FeatureDocker, path+".image_id")
	}
	if image {
		use(FeatureImages, path+".image_id")
	}
	if len(r.Volumes) > 0 {
		use(FeatureDiskVolumes, path+".volumes")
	}
	for i := range r.AnyOf {
		r.AnyOf[i].later(fmt.Sprintf("%s.any_of[%d]", path, i), use)
	}
	for i := range r.Ordered {
		r.Ordered[i].later(fmt.Sprintf("%s.ordered[%d]", path, i), use)
	}
}

// overridden lists the dotted keys of overrides as far down as ConfigOverridable goes, sorted.
func overridden(overrides map[string]any) []string {
	var out []string
	for _, k := range sortedKeys(overrides) {
		if overrides[k] == nil {
			continue
		}
		if inner, ok := overrides[k].(map[string]any); ok && k != "active_workspace" {
			for _, k2 := range sortedKeys(inner) {
				out = append(out, k+"."+k2)
			}
			continue
		}
		out = append(out, k)
	}
	return out
}

// The commands that take a task.
const (
	VerbLaunch     = "launch"
	VerbExec       = "exec"
	VerbJobsLaunch = "jobs launch"
	VerbPoolApply  = "jobs pool apply"
	VerbServeUp    = "serve up"
)

// verbNeeds is what a command itself needs.
var verbNeeds = map[string]Feature{VerbJobsLaunch: FeatureManagedJobs, VerbPoolApply: FeaturePools, VerbServeUp: FeatureServe}

// execIgnores are the features whose fields exec leaves alone: the cluster already has them or not.
var execIgnores = map[Feature]bool{
	FeatureStorage: true, FeatureVolumes: true, FeatureDiskVolumes: true, FeaturePorts: true, FeatureInfraConfig: true, FeatureTPU: true,
	FeatureDocker: true, FeatureImages: true,
}

// CheckSupported tells before anything is created whether a server with these features can do what t asks for under a
// command. The error is an ErrorList that names each field; warnings name fields that the command ignores.
func CheckSupported(t *Task, verb string, set FeatureSet) (warnings []string, err error) {
	var errs ErrorList
	warn := func(field, text string) { warnings = append(warnings, field+": "+text) }
	if f, ok := verbNeeds[verb]; ok && !set[f] {
		errs = append(errs, &Error{Msg: fmt.Sprintf("sky %s: %s are not supported by this server yet; they come with a later version", verb, f.Describe())})
	}
	cluster := verb == VerbLaunch || verb == VerbExec
	for _, u := range LaterFields(t) {
		switch {
		case u.Feature == FeatureInfraConfig && !contains(ConfigOverridable, strings.TrimPrefix(u.Field, "config.")):
			errs = append(errs, &Error{File: u.File, Line: u.Line, Column: u.Column, Field: u.Field, Msg: notOverridable(strings.TrimPrefix(u.Field, "config."))})
		case cluster && u.Feature == FeatureEventCallback: // told below
		case cluster && (u.Feature == FeatureServe || u.Feature == FeaturePools):
			warn(u.Field, fmt.Sprintf("is ignored by sky %s", verb))
		case verb == VerbExec && execIgnores[u.Feature]:
		case !set[u.Feature]:
			errs = append(errs, &Error{File: u.File, Line: u.Line, Column: u.Column, Field: u.Field,
				Msg: fmt.Sprintf("%s is not supported by this server yet; it comes with a later version. Remove the field for now", u.Text)})
		case cluster && (u.Feature == FeatureArray || u.Feature == FeatureSchedule):
			errs = append(errs, &Error{File: u.File, Line: u.Line, Column: u.Column, Field: u.Field, Msg: "is for managed jobs; use sky jobs launch"})
		case cluster && (u.Feature == FeatureNotify || u.Feature == FeatureCheckpoint):
			warn(u.Field, fmt.Sprintf("is ignored by sky %s; it is for managed jobs", verb))
		}
	}
	if verb == VerbJobsLaunch {
		errs = append(errs, t.unknownRecovery()...)
	}
	if cluster {
		if t.Recovery() != nil {
			warn("resources.job_recovery", fmt.Sprintf("is ignored by sky %s; use sky jobs launch for a job that recovers", verb))
		}
		if t.EventCallback != "" {
			warn("event_callback", fmt.Sprintf("is ignored by sky %s; it is for managed jobs", verb))
		}
		if t.APIServerAccess != nil {
			warn("api_server_access", fmt.Sprintf("is ignored by sky %s; it is for managed jobs", verb))
		}
	}
	return warnings, errs.Err()
}

// notOverridable says why a key can't stand in a task's config.
func notOverridable(key string) string {
	var below []string
	for _, k := range ConfigOverridable {
		if name, ok := strings.CutPrefix(k, key+"."); ok {
			below = append(below, name)
		}
	}
	if len(below) > 0 {
		return "must be an object with " + strings.Join(below, ", ")
	}
	return "can't be set from a task" + DidYouMean(key, ConfigOverridable)
}

// unknownRecovery judges the keys of job_recovery that the parser lets through for strategies it does not know.
func (t *Task) unknownRecovery() (errs ErrorList) {
	r := t.Recovery()
	if r == nil {
		return nil
	}
	tables()
	for _, k := range sortedKeys(r.Extra) {
		errs = append(errs, t.src.error("resources.job_recovery."+k, "unknown field %q%s", clip(k), DidYouMean(k, jobRecoveryObject.names())))
	}
	return errs
}

// CheckFileSupported is CheckSupported for all tasks of a file, including whether the command takes several.
func CheckFileSupported(f *File, verb string, set FeatureSet) (warnings []string, err error) {
	var errs ErrorList
	if f.Kind != Single {
		what := map[Kind]string{Pipeline: "a pipeline (several documents)", JobGroup: "a job group"}[f.Kind]
		switch {
		case verb != VerbJobsLaunch:
			return nil, ErrorList{{Msg: fmt.Sprintf("sky %s takes one task, and the file holds %s; use sky jobs launch", verb, what)}}
		case !set[FeaturePipelines]:
			errs = append(errs, &Error{Msg: "pipelines and job groups are not supported by this server yet; they come with a later version"})
		}
	}
	seen := map[string]bool{}
	for _, t := range f.Tasks {
		w, err := CheckSupported(t, verb, set)
		for _, line := range w {
			if !seen[line] {
				seen[line] = true
				warnings = append(warnings, line)
			}
		}
		if l, ok := err.(ErrorList); ok {
			for _, e := range l {
				if e.Line > 0 || !seen[e.Msg] {
					seen[e.Msg] = true
					errs = append(errs, e)
				}
			}
		}
	}
	return warnings, errs.Err()
}
