package task

import "sort"

// Feature is something that a task file can ask for and a server may or may not do yet.
type Feature string

// The features that servers add over time.
const (
	FeatureTPU            Feature = "tpu"
	FeaturePorts          Feature = "ports"
	FeatureDocker         Feature = "docker"
	FeatureImages         Feature = "images"
	FeatureDiskVolumes    Feature = "disk_volumes"
	FeatureGitWorkdir     Feature = "git_workdir"
	FeatureMirror         Feature = "workdir_mirror"
	FeatureStorage        Feature = "storage"
	FeatureVolumes        Feature = "volumes"
	FeatureManagedSecrets Feature = "managed_secrets"
	FeatureInfraConfig    Feature = "infra_config" // config overrides for clouds, kubernetes, slurm
	FeatureWorkspaces     Feature = "workspaces"
	FeatureManagedJobs    Feature = "managed_jobs"
	FeaturePipelines      Feature = "pipelines" // and job groups
	FeatureServe          Feature = "serve"
	FeaturePools          Feature = "pools"
	FeatureCheckpoint     Feature = "checkpoint"
	FeatureArray          Feature = "array"
	FeatureSchedule       Feature = "schedule"
	FeatureNotify         Feature = "notify"
	FeatureEventCallback  Feature = "event_callback"
)

// FeatureSet is what a server does.
type FeatureSet map[Feature]bool

// Names lists what is in the set, sorted.
func (s FeatureSet) Names() []string {
	out := []string{}
	for f, has := range s {
		if has {
			out = append(out, string(f))
		}
	}
	sort.Strings(out)
	return out
}

// NewFeatureSet collects features.
func NewFeatureSet(features ...Feature) FeatureSet {
	s := FeatureSet{}
	for _, f := range features {
		s[f] = true
	}
	return s
}
