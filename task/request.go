package task

// Request is one concrete alternative for a node, flat and ready for an optimizer: no any_of, no ordered, one
// accelerator. It travels in workflows, so it is plain JSON.
type Request struct {
	Infra           Infra             `json:"infra"`
	InstanceType    string            `json:"instance_type,omitempty"`
	Accelerator     *Accelerator      `json:"accelerator,omitempty"`
	AcceleratorArgs *AcceleratorArgs  `json:"accelerator_args,omitempty"`
	CPUs            CPUs              `json:"cpus"`
	Memory          Memory            `json:"memory"`
	UseSpot         bool              `json:"use_spot,omitempty"`
	SpotSaid        bool              `json:"spot_said,omitempty"` // use_spot was written; matters on reuse only
	DiskSizeGB      int               `json:"disk_size_gb,omitempty"`
	DiskTier        string            `json:"disk_tier,omitempty"`
	NetworkTier     string            `json:"network_tier,omitempty"`
	LocalDisk       *LocalDisk        `json:"local_disk,omitempty"`
	MaxHourlyCost   float64           `json:"max_hourly_cost,omitempty"`
	Ports           Ports             `json:"ports,omitempty"`
	Images          map[string]string `json:"images,omitempty"`
	Labels          map[string]string `json:"labels,omitempty"`
}
