package task

import "gopkg.in/yaml.v3"

// Words of the resources section.
var (
	diskTiers    = []string{"low", "medium", "high", "ultra", "best", "none"}
	networkTiers = []string{"standard", "best"}
	waitForWords = []string{"jobs_and_ssh", "jobs", "none"}
)

// RecoveryStrategies are the names that job_recovery takes; NONE turns recovery off.
var RecoveryStrategies = []string{"EAGER_NEXT_REGION", "FAILOVER", "NONE"}

var (
	resourcesObject   *object[Resources]
	acceleratorArgs   *object[AcceleratorArgs]
	autostopObject    *object[autostopForm]
	jobRecoveryObject *object[JobRecovery]
	diskVolumeObject  *object[DiskVolume]
)

// autostopForm is the written form, with the deprecated hook.
type autostopForm struct {
	Autostop
	hook        string
	hookTimeout int
}

func buildResources() {
	acceleratorArgs = &object[AcceleratorArgs]{
		title: "accelerator_args", doc: "Settings of TPUs.",
		fields: []field[AcceleratorArgs]{
			textField("runtime_version", "Software of the TPU.", func(a *AcceleratorArgs) *string { return &a.RuntimeVersion }),
			textField("tpu_name", "Name of an existing TPU node.", func(a *AcceleratorArgs) *string { return &a.TPUName }),
			boolPtrField("tpu_vm", "Use the TPU VM architecture.", func(a *AcceleratorArgs) **bool { return &a.TPUVM }).defaults("true"),
			boolPtrField("gcp_queued_resource", "Wait in Google's queue for capacity.", func(a *AcceleratorArgs) **bool { return &a.GCPQueuedResource }),
		},
	}
	autostopObject = &object[autostopForm]{
		title: "autostop", doc: "When an idle cluster ends.",
		fields: []field[autostopForm]{
			{
				name: "idle_minutes", forms: "minutes, or text like `10m`, `2h`, `1d`", def: "5", doc: "Idle time after which the cluster ends.",
				schema: jsOr(jsRange(0, maxInt), jsPattern(`^\d+[mhdw]?$`)),
				read: func(v val, a *autostopForm) {
					if s, ok := v.text(); ok {
						if n, err := parseIdleMinutes(s); err != nil {
							v.failErr(err)
						} else {
							a.IdleMinutes = n
						}
					}
				},
				write: func(a *autostopForm) any { return optional(a.IdleMinutes) },
			},
			boolField("down", "Remove the cluster instead of stopping it.", func(a *autostopForm) *bool { return &a.Down }),
			wordField("wait_for", "What keeps a cluster from being idle.", waitForWords, func(a *autostopForm) *string { return &a.WaitFor }).defaults(DefaultWaitFor),
			textField("hook", "Deprecated: use config.hooks.", func(a *autostopForm) *string { return &a.hook }).with(func(f *field[autostopForm]) { f.hidden = true; f.write = nil }),
			intField("hook_timeout", "Deprecated: use config.hooks.", 1, maxInt, func(a *autostopForm) *int { return &a.hookTimeout }).with(func(f *field[autostopForm]) { f.hidden = true; f.write = nil }),
		},
	}
	jobRecoveryObject = &object[JobRecovery]{
		title: "job_recovery", doc: "What a managed job does after a loss or a failure.", open: true,
		other: func(v val, key string, j *JobRecovery) {
			if j.Extra == nil {
				j.Extra = map[string]any{}
			}
			j.Extra[key] = v.plain()
		},
		rest: func(j *JobRecovery) map[string]any { return j.Extra },
		fields: []field[JobRecovery]{
			{
				name: "strategy", forms: "`EAGER_NEXT_REGION`, `FAILOVER` or `none`", def: "EAGER_NEXT_REGION", doc: "Where a lost job is brought up again.",
				schema: jsText(), read: readStrategy, write: func(j *JobRecovery) any { return optional(j.Strategy) },
			},
			intField("max_restarts_on_errors", "How often the command may fail and be started again.", 0, maxInt, func(j *JobRecovery) *int { return &j.MaxRestartsOnErrors }).defaults("0"),
			{
				name: "recover_on_exit_codes", forms: "exit code, or a list of them", doc: "Exit codes after which the job is started again without counting.",
				schema: jsOr(jsRange(0, 255), jsList(jsRange(0, 255))), read: readExitCodes,
				write: func(j *JobRecovery) any {
					if len(j.RecoverOnExitCodes) == 0 {
						return nil
					}
					return j.RecoverOnExitCodes
				},
			},
		},
	}
	diskVolumeObject = &object[DiskVolume]{
		title: "resources.volumes", doc: "A disk to attach (legacy).",
		fields: []field[DiskVolume]{
			textField("path", "Where it is mounted.", func(d *DiskVolume) *string { return &d.Path }),
			textField("name", "Name of an existing disk; needed for network storage.", func(d *DiskVolume) *string { return &d.Name }),
			sizeField("disk_size", "Size in GB.", func(d *DiskVolume) *int { return &d.DiskSizeGB }),
			wordField("disk_tier", "Speed of the disk.", diskTiers, func(d *DiskVolume) *string { return &d.DiskTier }),
			wordField("storage_type", "Network disk, or a disk of the machine.", []string{"network", "instance"}, func(d *DiskVolume) *string { return &d.StorageType }),
			wordField("attach_mode", "How it is attached.", []string{"read_write", "read_only"}, func(d *DiskVolume) *string { return &d.AttachMode }),
			boolPtrField("auto_delete", "Delete it with the cluster.", func(d *DiskVolume) **bool { return &d.AutoDelete }),
		},
	}
	resourcesObject = &object[Resources]{
		title: "resources", doc: "What one node of the task needs.",
		hints:  map[string]string{"hooks": "hooks belong under config.hooks", "num_nodes": "num_nodes stands at the top of the file", "envs": "envs stand at the top of the file", "checkpoint": "checkpoint stands at the top of the file"},
		fields: resourceFields(),
	}
}

func resourceFields() []field[Resources] {
	return []field[Resources]{
		{
			name: "infra", forms: "`local`, `ssh/<pool>`, `k8s/<context>`, `aws/us-east-1/us-east-1a`, `*/us-east-1`, `slurm/<cluster>/<partition>`", def: "any",
			doc: "Where to run: infra, region and zone, with `*` for any. Names of infra are read without regard to case.", schema: jsText(),
			read: readWith(func(r *Resources) *Infra { return &r.Infra }, ParseInfra),
			write: func(r *Resources) any {
				if r.Infra.IsZero() {
					return nil
				}
				return r.Infra.String()
			},
		},
		legacyPlace("cloud", func(r *Resources, s string) { r.Infra.Cloud = canonicalCloud(s) }),
		legacyPlace("region", func(r *Resources, s string) { r.Infra.Region = s }),
		legacyPlace("zone", func(r *Resources, s string) { r.Infra.Zone = s }),
		{
			name: "accelerators", alias: []string{"gpus"}, forms: "`H100`, `H100:8`, `H100:0.5`, `16GB+`, `nvidia:16GB+:2`, a map `{H100: 8, A100: 8}` (cheapest first), or a list (in that order)", def: "none",
			doc: "Accelerators of each node. Names are read without regard to case; fractions share one device.", schema: jsOr(jsText(), jsMapOf(js{"type": []string{"number", "null"}}), jsList(jsOr(jsText(), jsMap()))),
			read: readAccelerators, write: writeAccelerators,
		},
		{
			name: "accelerator_args", forms: "object", doc: "Settings of TPUs.", schema: jsRef("accelerator_args"), later: []Feature{FeatureTPU},
			read: func(v val, r *Resources) {
				r.AcceleratorArgs = &AcceleratorArgs{}
				acceleratorArgs.read(v, r.AcceleratorArgs)
			},
			write: func(r *Resources) any { return writeObject(acceleratorArgs, r.AcceleratorArgs) },
		},
		{
			name: "cpus", forms: "`8`, `8+`", def: "chosen by the infra", doc: "Virtual CPUs of each node; `+` means at least.", schema: jsOr(jsNum(), jsPattern(`^\d+(\.\d+)?\+?$`)),
			read: readWith(func(r *Resources) *CPUs { return &r.CPUs }, ParseCPUs), write: func(r *Resources) any { return optional(r.CPUs.String()) },
		},
		{
			name: "memory", forms: "`32` (GB), `32+`, `64GB`, `1TB+`, `4x` (GB per CPU)", def: "chosen by the infra", doc: "Memory of each node; `+` means at least. Units are binary.", schema: jsOr(jsNum(), jsText()),
			read: readWith(func(r *Resources) *Memory { return &r.Memory }, ParseMemory), write: func(r *Resources) any { return optional(r.Memory.String()) },
		},
		textField("instance_type", "Name of the machine type at the infra.", func(r *Resources) *string { return &r.InstanceType }).defaults("chosen"),
		boolPtrField("use_spot", "Take spare capacity that may be taken away, for less money.", func(r *Resources) **bool { return &r.UseSpot }).defaults("false"),
		{
			name: "job_recovery", alias: []string{"spot_recovery"}, forms: "strategy, or object", def: "EAGER_NEXT_REGION", doc: "What a managed job does after a loss or a failure; `sky launch` ignores it with a warning.",
			schema: jsOr(jsText(), jsRef("job_recovery")),
			read: func(v val, r *Resources) {
				r.JobRecovery = &JobRecovery{}
				if v.n.Kind == yaml.MappingNode {
					jobRecoveryObject.read(v, r.JobRecovery)
					return
				}
				readStrategy(v, r.JobRecovery)
			},
			write: func(r *Resources) any { return writeObject(jobRecoveryObject, r.JobRecovery) },
		},
		sizeField("disk_size", "System disk in GB, or with a unit.", func(r *Resources) *int { return &r.DiskSizeGB }).defaults("256"),
		wordField("disk_tier", "Speed of the system disk; `best` is the best that the infra has.", diskTiers, func(r *Resources) *string { return &r.DiskTier }).defaults("medium"),
		wordField("network_tier", "`best` asks for the fast interconnect of the infra.", networkTiers, func(r *Resources) *string { return &r.NetworkTier }).defaults("standard"),
		{
			name: "local_disk", forms: "`nvme`, `ssd`, `1000+`, `nvme:1000+`, `ssd:500`", def: "none", doc: "A disk that is part of the machine; kind (nvme also meets ssd) and GB.", schema: jsOr(jsNum(), jsText()),
			read: func(v val, r *Resources) {
				if s, ok := v.text(); ok {
					if d, err := ParseLocalDisk(s); err != nil {
						v.failErr(err)
					} else {
						r.LocalDisk = &d
					}
				}
			},
			write: func(r *Resources) any {
				if r.LocalDisk == nil {
					return nil
				}
				return r.LocalDisk.String()
			},
		},
		positiveField("max_hourly_cost", "Most dollars per hour that one node may cost.", func(r *Resources) *float64 { return &r.MaxHourlyCost }).defaults("no limit"),
		{
			name: "ports", forms: "`8080`, `10052-10100`, a comma list, or a list of these", def: "none", doc: "TCP ports to open, 1 to 65535.", schema: jsOr(jsRange(1, 65535), jsText(), jsList(jsOr(jsRange(1, 65535), jsText()))),
			later: []Feature{FeaturePorts}, read: readPorts,
			write: func(r *Resources) any {
				if len(r.Ports) == 0 {
					return nil
				}
				return r.Ports.Strings()
			},
		},
		{
			name: "image_id", forms: "image, `docker:<image>`, or a map region → image with the reserved key `docker`", def: "the infra's own", doc: "Machine image, or container that the task runs in.", schema: jsOr(jsText(), jsTextMap()),
			later: []Feature{FeatureDocker, FeatureImages}, read: readImages, write: writeImages,
		},
		textMapField("labels", "Labels put on the machines when they are created.", func(r *Resources) *map[string]string { return &r.Labels }),
		{
			name: "autostop", forms: "`true` (5 minutes), `false`, minutes, `10m`, `2h`, or object", def: "none", doc: "End the cluster when it has been idle; `false` cancels an autostop in force.", schema: jsOr(jsBool(), jsRange(0, maxInt), jsText(), jsRef("autostop")),
			read: readAutostop, write: func(r *Resources) any { return writeAutostop(r.Autostop) },
		},
		intPtrField("priority", "Higher goes first in the queue of managed jobs.", -1000, 1000, func(r *Resources) **int { return &r.Priority }).defaults("0"),
		textField("priority_class", "Priority class of the infra's own scheduler.", func(r *Resources) *string { return &r.PriorityClass }),
		{
			name: "volumes", forms: "list of objects", doc: "Disks to attach (legacy; see the task's `volumes`).", schema: jsList(jsRef("resources.volumes")), later: []Feature{FeatureDiskVolumes},
			read: func(v val, r *Resources) {
				v.items(func(_ int, c val) {
					var d DiskVolume
					diskVolumeObject.read(c, &d)
					checkDiskVolume(c, d)
					r.Volumes = append(r.Volumes, d)
				})
			},
			write: func(r *Resources) any { return writeList(diskVolumeObject, r.Volumes) },
		},
		alternatives("any_of", "Alternatives, the cheapest first. Each inherits the outer fields that it doesn't set.", func(r *Resources) *[]Resources { return &r.AnyOf }),
		alternatives("ordered", "Alternatives, tried in this order. Each inherits the outer fields that it doesn't set.", func(r *Resources) *[]Resources { return &r.Ordered }),
		{name: "_cluster_config_overrides", hidden: true, read: func(val, *Resources) {}},
		{name: "_docker_login_config", hidden: true, read: func(val, *Resources) {}},
		{name: "_is_image_managed", hidden: true, read: func(val, *Resources) {}},
		{name: "_requires_fuse", hidden: true, read: func(val, *Resources) {}},
	}
}
