package task

import (
	"reflect"
	"strings"
)

// Validate checks the rules that involve several fields. Parse and Overrides.Apply call it. The error is an ErrorList.
func (t *Task) Validate() error { return t.check().Err() }

func (t *Task) check() ErrorList {
	var errs ErrorList
	fail := func(field, format string, args ...any) { errs = append(errs, t.src.error(field, format, args...)) }
	if t.Name != "" {
		if err := ValidateName(t.Name); err != nil {
			fail("name", "%s", err)
		}
	}
	if t.NumNodes < 1 {
		fail("num_nodes", "must be at least 1, not %d", t.NumNodes)
	}
	if t.Service != nil && t.Pool != nil {
		fail("pool", "service and pool can't be combined; use one file for each")
	}
	if len(t.Config.Hooks) > maxHooks {
		fail("config.hooks", "at most %d hooks are allowed", maxHooks)
	}
	if t.Workdir != nil {
		for _, m := range t.FileMounts {
			if strings.TrimRight(m.Dst, "/") == "~/sky_workdir" {
				fail("file_mounts."+m.Dst, "~/sky_workdir is where workdir goes; choose another destination")
			}
		}
	}
	for i, n := range t.Notify {
		if _, ok := t.Secrets[n.Secret]; n.Secret != "" && !ok {
			fail("notify", "entry %d is signed with the secret %q, which is not in secrets", i+1, clip(n.Secret))
		}
	}
	t.checkDockerLogin(fail)
	if t.checkShape(fail); len(errs) == 0 {
		t.checkAlternatives(fail)
		t.checkServing(fail)
	}
	return t.mask(errs)
}

type failFunc func(field, format string, args ...any)

var dockerLogin = []string{"SKYPILOT_DOCKER_USERNAME", "SKYPILOT_DOCKER_PASSWORD", "SKYPILOT_DOCKER_SERVER"}

func (t *Task) checkDockerLogin(fail failFunc) {
	var inEnvs, inSecrets int
	for _, k := range dockerLogin {
		if _, ok := t.Secrets[k]; ok {
			inSecrets++
		} else if _, ok := t.Envs[k]; ok {
			inEnvs++
		}
	}
	if n := inEnvs + inSecrets; n > 0 && inEnvs != 3 && inSecrets != 3 {
		fail("envs", "a docker login needs %s, all of them in envs or all in secrets", strings.Join(dockerLogin, ", "))
	}
}

// checkShape checks how alternatives are written.
func (t *Task) checkShape(fail failFunc) {
	r := &t.Resources
	several := len(r.Accelerators.Options) > 1
	switch {
	case len(r.AnyOf) > 0 && len(r.Ordered) > 0:
		fail("resources.ordered", "any_of and ordered can't be combined")
	case len(r.Ordered) > 0 && several:
		fail("resources.accelerators", "several accelerators can't be combined with ordered; write one into each entry")
	case len(r.AnyOf) > 0 && r.Accelerators.Ordered:
		fail("resources.accelerators", "a list of accelerators has an order and can't be combined with any_of; use ordered, or a map")
	}
	total := 0
	for _, inner := range append(append([]Resources(nil), r.AnyOf...), r.Ordered...) {
		n := len(inner.Accelerators.Options)
		if n == 0 {
			n = len(r.Accelerators.Options)
		}
		total += max(n, 1)
		if len(r.AnyOf) > 0 && inner.Accelerators.Ordered {
			fail("resources.any_of", "a list of accelerators has an order and can't be used inside any_of; use ordered, or a map")
		}
		if len(inner.AnyOf) > 0 || len(inner.Ordered) > 0 {
			fail("resources", "alternatives can't be nested")
		}
	}
	if max(total, len(r.Accelerators.Options)) > maxCandidates {
		fail("resources", "the alternatives multiply to more than %d", maxCandidates)
	}
}

func (t *Task) checkAlternatives(fail failFunc) {
	list, _ := t.Resources.alternatives()
	var autostop, recovery, priority, class any
	same := func(first *any, v any, what string) {
		if rv := reflect.ValueOf(v); rv.IsZero() {
			return
		}
		if *first != nil && !reflect.DeepEqual(*first, v) {
			fail("resources", "all alternatives must have the same %s", what)
		}
		*first = v
	}
	for i := range list {
		same(&autostop, list[i].Autostop, "autostop")
		same(&recovery, list[i].JobRecovery, "job_recovery")
		same(&priority, list[i].Priority, "priority")
		same(&class, list[i].PriorityClass, "priority_class")
		list[i].check(fail)
	}
}

// check looks at one merged alternative.
func (r *Resources) check(fail failFunc) {
	cloud := r.Infra.Concrete().Cloud
	region := r.Infra.Concrete().Region
	tpus := 0
	for _, a := range r.Accelerators.Options {
		if !a.IsTPU() {
			continue
		}
		tpus++
		if cloud != "" && cloud != "gcp" && cloud != "kubernetes" {
			fail("resources.accelerators", "%s is a TPU, which %s doesn't have; TPUs are on gcp and kubernetes", a.Name, cloud)
		}
		vm := r.AcceleratorArgs == nil || r.AcceleratorArgs.TPUVM == nil || *r.AcceleratorArgs.TPUVM
		if vm && r.InstanceType != "" && r.InstanceType != "TPU-VM" {
			fail("resources.instance_type", "must be TPU-VM or left out for the TPU VM %s", a.Name)
		}
	}
	if r.AcceleratorArgs != nil && tpus == 0 {
		fail("resources.accelerator_args", "are for TPUs only, and no TPU is asked for")
	}
	if r.Memory.Whole && cloud != "slurm" {
		fail("resources.memory", "must be more than 0 (0 is allowed on Slurm only)")
	}
	r.checkImages(fail, cloud, region)
}

func (r *Resources) checkImages(fail failFunc, cloud, region string) {
	if len(r.Images) == 0 {
		return
	}
	if _, docker := r.Images["docker"]; docker && len(r.Images) == 1 {
		return
	}
	if img, all := r.Images[""]; all {
		switch {
		case strings.HasPrefix(img, "docker:") || cloud == "kubernetes" || cloud == "slurm":
		case cloud == "":
			fail("resources.image_id", "the machine image %q needs an infra; write infra: <cloud>, or docker:<image> for a container", clip(img))
		case cloud == "aws" && region == "" && !strings.HasPrefix(img, "skypilot:"):
			fail("resources.image_id", "the image %q exists in one region only; write infra: aws/<region>", clip(img))
		}
		return
	}
	if cloud == "" {
		fail("resources.image_id", "images by region need an infra; write infra: <cloud>")
	}
	if _, ok := r.Images[region]; region != "" && !ok {
		fail("resources.image_id", "names no image for the region %q", region)
	}
}

// checkServing checks service and pool against the resources.
func (t *Task) checkServing(fail failFunc) {
	list, _ := t.Resources.alternatives()
	if t.Pool != nil {
		if t.PortsOpened() != nil {
			fail("resources.ports", "a pool opens no ports; remove them")
		}
		if len(t.Resources.Ordered) > 0 {
			fail("resources.ordered", "ordered alternatives are not possible in a pool")
		}
	}
	s := t.Service
	if s == nil || s.Pool {
		return
	}
	spot, ondemand := 0, 0
	ports := map[string]bool{}
	for _, r := range list {
		if r.UseSpot != nil && *r.UseSpot {
			spot++
		} else {
			ondemand++
		}
		if r.JobRecovery != nil {
			fail("resources.job_recovery", "is not possible in a service, which replaces lost replicas itself")
		}
		switch {
		case len(r.Ports) == 0:
			fail("resources.ports", "a service needs the port of its replicas; write resources: {ports: 8080}")
		case s.Port == 0 && r.Ports.Count() > 1:
			fail("service.ports", "the resources open several ports; write service: {ports: N} to say which one serves")
		case s.Port != 0 && !r.Ports.Contains(Ports{{s.Port, s.Port}}):
			fail("service.ports", "port %d is not among the ports of the resources (%s)", s.Port, r.Ports)
		}
		ports[r.Ports.String()] = true
	}
	if s.Port == 0 && len(ports) > 1 {
		fail("service.ports", "the alternatives open different ports; write service: {ports: N}")
	}
	if spot > 0 && ondemand > 0 {
		fail("resources.use_spot", "all alternatives of a service must be spot, or none")
	}
	if p := s.Policy; p != nil && spot == 0 {
		switch {
		case p.BaseOndemandFallbackReplicas > 0 || p.DynamicOndemandFallback:
			fail("service.replica_policy", "on-demand fallback needs use_spot: true")
		case p.SpotPlacer != "":
			fail("service.replica_policy.spot_placer", "needs use_spot: true")
		}
	}
	if s.Policy != nil && s.Policy.SpotPlacer != "" {
		for i := range list {
			list[i].Infra = Infra{}
			if !reflect.DeepEqual(list[i], list[0]) {
				fail("service.replica_policy.spot_placer", "needs alternatives that differ in infra only")
				break
			}
		}
	}
}
