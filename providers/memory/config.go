package memory

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/skyloom/skyloom/providers"
)

// Config is the section `memory_provider:` of a server's configuration. The zero value is a cloud without faults,
// with the default regions and instance types.
type Config struct {
	Enabled bool   `json:"enabled,omitempty" yaml:"enabled"`
	Name    string `json:"name,omitempty" yaml:"name"` // default: memory
	// Regions and Types are what can be rented; empty: a default set.
	Regions []Region       `json:"regions,omitempty" yaml:"regions"`
	Types   []InstanceType `json:"types,omitempty" yaml:"types"`
	Quotas  []Quota        `json:"quotas,omitempty" yaml:"quotas"`
	// CreateDelay is how long a new node is pending; AgentDelay how long its agent takes from then on.
	CreateDelay Duration `json:"create_delay,omitempty" yaml:"create_delay"`
	AgentDelay  Duration `json:"agent_delay,omitempty" yaml:"agent_delay"`
	// VisibleAfter is how long a new node is missing from listings.
	VisibleAfter Duration `json:"visible_after,omitempty" yaml:"visible_after"`
	// DeleteLag is how long a deleted machine lives on, StopDelay how long stopping takes.
	DeleteLag Duration `json:"delete_lag,omitempty" yaml:"delete_lag"`
	StopDelay Duration `json:"stop_delay,omitempty" yaml:"stop_delay"`
	// JobDuration is how long a job runs that does not say so itself (see package simagent).
	JobDuration Duration `json:"job_duration,omitempty" yaml:"job_duration"`
	// Seed and Rates make random faults; the same seed gives the same faults to the same calls.
	Seed  int64 `json:"seed,omitempty" yaml:"seed"`
	Rates Rates `json:"rates,omitempty" yaml:"rates"`
	// StateFile keeps the cloud across processes. Several processes may share it.
	StateFile string `json:"state_file,omitempty" yaml:"state_file"`
}

// Region is a region with its zones.
type Region struct {
	Name  string `json:"name" yaml:"name"`
	Zones []Zone `json:"zones" yaml:"zones"`
	// PriceFactor multiplies the prices; 0 means 1.
	PriceFactor float64 `json:"price_factor,omitempty" yaml:"price_factor"`
}

// Zone is a zone and what it can hold.
type Zone struct {
	Name string `json:"name" yaml:"name"`
	// Capacity is the number of nodes by instance type; "" is for all types together. A missing entry is no limit.
	Capacity map[string]int `json:"capacity,omitempty" yaml:"capacity"`
}

// InstanceType is a kind of machine.
type InstanceType struct {
	Name             string   `json:"name" yaml:"name"`
	CPUs             float64  `json:"cpus" yaml:"cpus"`
	MemoryGB         float64  `json:"memory_gb" yaml:"memory_gb"`
	Accelerator      string   `json:"accelerator,omitempty" yaml:"accelerator"`
	AcceleratorCount float64  `json:"accelerator_count,omitempty" yaml:"accelerator_count"`
	DeviceMemGB      float64  `json:"device_mem_gb,omitempty" yaml:"device_mem_gb"`
	Price            float64  `json:"price" yaml:"price"`                     // US dollars per hour
	SpotPrice        float64  `json:"spot_price,omitempty" yaml:"spot_price"` // 0: no spot
	Arch             string   `json:"arch,omitempty" yaml:"arch"`             // default amd64
	Zones            []string `json:"zones,omitempty" yaml:"zones"`           // empty: everywhere
}

// Quota limits what an account may hold in a region ("": in all regions together). Zero fields do not limit.
type Quota struct {
	Region       string  `json:"region,omitempty" yaml:"region"`
	Nodes        int     `json:"nodes,omitempty" yaml:"nodes"`
	CPUs         float64 `json:"cpus,omitempty" yaml:"cpus"`
	Accelerators float64 `json:"accelerators,omitempty" yaml:"accelerators"`
}

// Duration is a time.Duration written as text ("1.5s") in configuration.
type Duration time.Duration

// UnmarshalText reads "250ms", "30s", "5m".
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a duration such as 30s", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes it as UnmarshalText reads it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// ParseConfig reads the section as the server's configuration holds it. Unknown fields are errors.
func ParseConfig(section map[string]any) (Config, error) {
	var c Config
	b, err := json.Marshal(section)
	if err == nil {
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.DisallowUnknownFields()
		err = dec.Decode(&c)
	}
	if err != nil {
		return Config{}, &providers.Error{Kind: providers.Invalid, Scope: providers.ScopeCloud, Msg: "memory_provider in the configuration", Err: err}
	}
	return c, c.validate()
}

func (c Config) validate() error {
	for n, r := range c.Rates.all() {
		if r < 0 || r > 1 {
			return providers.Errorf(providers.Invalid, providers.ScopeCloud, "memory_provider: rates.%s is %v, must be between 0 and 1", n, r)
		}
	}
	seen := map[string]bool{}
	for _, r := range c.Regions {
		for _, z := range r.Zones {
			if seen[z.Name] || z.Name == "" {
				return providers.Errorf(providers.Invalid, providers.ScopeCloud, "memory_provider: zone %q is empty or named twice", z.Name)
			}
			seen[z.Name] = true
		}
	}
	return nil
}

func defaultRegions() []Region {
	zones := func(region string, letters string) (zs []Zone) {
		for _, l := range letters {
			zs = append(zs, Zone{Name: region + string(l)})
		}
		return zs
	}
	return []Region{
		{Name: "east-1", Zones: zones("east-1", "abc")},
		{Name: "west-1", Zones: zones("west-1", "ab"), PriceFactor: 1.1},
		{Name: "north-1", Zones: zones("north-1", "a"), PriceFactor: 1.25},
	}
}

func defaultTypes() []InstanceType {
	return []InstanceType{
		{Name: "m-2", CPUs: 2, MemoryGB: 8, Price: 0.1, SpotPrice: 0.03},
		{Name: "m-4", CPUs: 4, MemoryGB: 16, Price: 0.2, SpotPrice: 0.06},
		{Name: "m-8", CPUs: 8, MemoryGB: 32, Price: 0.4, SpotPrice: 0.12},
		{Name: "m-32", CPUs: 32, MemoryGB: 128, Price: 1.6, SpotPrice: 0.48},
		{Name: "arm-8", CPUs: 8, MemoryGB: 32, Price: 0.32, SpotPrice: 0.1, Arch: "arm64"},
		{Name: "t4-1", CPUs: 8, MemoryGB: 30, Accelerator: "T4", AcceleratorCount: 1, DeviceMemGB: 16, Price: 0.55, SpotPrice: 0.18},
		{Name: "l4-1", CPUs: 8, MemoryGB: 32, Accelerator: "L4", AcceleratorCount: 1, DeviceMemGB: 24, Price: 0.8, SpotPrice: 0.28},
		{Name: "v100-4", CPUs: 32, MemoryGB: 244, Accelerator: "V100", AcceleratorCount: 4, DeviceMemGB: 16, Price: 12.2, SpotPrice: 3.7},
		{Name: "a100-1", CPUs: 12, MemoryGB: 85, Accelerator: "A100", AcceleratorCount: 1, DeviceMemGB: 40, Price: 3.7, SpotPrice: 1.2},
		{Name: "a100-8", CPUs: 96, MemoryGB: 680, Accelerator: "A100", AcceleratorCount: 8, DeviceMemGB: 40, Price: 29.4, SpotPrice: 9.6},
		{Name: "h100-8", CPUs: 192, MemoryGB: 2048, Accelerator: "H100", AcceleratorCount: 8, DeviceMemGB: 80, Price: 98.3, SpotPrice: 39.3,
			Zones: []string{"east-1a", "west-1b"}},
	}
}
