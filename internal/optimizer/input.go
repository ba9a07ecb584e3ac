package optimizer

import (
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/catalog"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/task"
)

// Target says what the choice shall be best at.
type Target string

// TargetCost looks for the lowest price per hour. It is the only target: without an estimate of the running time per
// machine, the fastest is not known.
const TargetCost Target = "cost"

// Capabilities that a request or a launch may need and an infra may lack.
const (
	NeedStop        = "stop"
	NeedSpot        = "spot"
	NeedSpotStop    = "spot_stop" // added by itself where NeedStop meets use_spot
	NeedPorts       = "ports"
	NeedMultiNode   = "multi_node"
	NeedImage       = "image_id"
	NeedContainer   = "docker_image"
	NeedDiskTier    = "disk_tier"
	NeedNetworkTier = "network_tier"
	NeedLocalDisk   = "local_disk"
)

// needWords name the capabilities for people.
var needWords = map[string]string{
	NeedStop:        "stopping nodes",
	NeedSpot:        "spot nodes",
	NeedSpotStop:    "stopping spot nodes",
	NeedPorts:       "opening ports",
	NeedMultiNode:   "clusters of several nodes",
	NeedImage:       "machine images (image_id)",
	NeedContainer:   "container images (image_id: docker:…)",
	NeedDiskTier:    "disk tiers",
	NeedNetworkTier: "network tiers",
	NeedLocalDisk:   "local disks",
}

// LacksOf lists what a provider's features say it lacks. Nodes on the server's own machine, or in the network of their host, need
// nothing to open a port.
func LacksOf(f providers.Features) []string {
	var out []string
	if f.Stop == nil {
		out = append(out, NeedStop)
	}
	if !f.SpotStop {
		out = append(out, NeedSpotStop)
	}
	if !f.Spot {
		out = append(out, NeedSpot)
	}
	if f.Ports == nil && !f.MachineLocal && !f.HostNetwork {
		out = append(out, NeedPorts)
	}
	return out
}

// Defaults size a node when the task does not say. Zero fields leave it to the general rule: on machines of fixed size at least
// 8 CPUs and 4 GB per CPU for CPU-only nodes, on flexible ones the whole machine.
type Defaults struct {
	CPUs               float64 `json:"cpus,omitempty"`                 // of CPU-only nodes
	AtLeast            bool    `json:"at_least,omitempty"`             // CPUs is a lower bound; fixed sizes only
	CPUsPerAccelerator float64 `json:"cpus_per_accelerator,omitempty"` // flexible sizes only
	MemoryPerCPU       float64 `json:"memory_per_cpu,omitempty"`       // GB; of CPU-only nodes
	// MemoryPerCPUWithAccelerator is in GB; flexible sizes only; 0: as MemoryPerCPU.
	MemoryPerCPUWithAccelerator float64 `json:"memory_per_cpu_with_accelerator,omitempty"`
}

// Input is everything a ranking depends on.
type Input struct {
	// Groups hold the requests in order of preference; inside a group the cheapest wins. See task.Candidates.
	Groups   [][]task.Request  `json:"groups"`
	NumNodes int               `json:"num_nodes"` // below 1 is taken as 1
	Offers   []providers.Offer `json:"offers"`
	Enabled  []string          `json:"enabled"`         // infra that may be used
	Known    []string          `json:"known,omitempty"` // infra that the server knows, enabled or not; for messages
	// Fallback infra is chosen only if nothing else is enabled, or when named.
	Fallback map[string]bool     `json:"fallback,omitempty"`
	Lacks    map[string][]string `json:"lacks,omitempty"` // capabilities an infra lacks
	Needs    []string            `json:"needs,omitempty"` // capabilities needed beyond what the requests say
	Defaults map[string]Defaults `json:"defaults,omitempty"`
	// Regional infra picks the zone itself for a single on-demand node: its choices name the region only.
	Regional map[string]bool `json:"regional,omitempty"`
	Blocked  []Block         `json:"blocked,omitempty"`
	Target   Target          `json:"target,omitempty"`
}

// Choice is one thing to try: a provider and what each node shall be, ready for its Create.
type Choice struct {
	Provider  string             `json:"provider"`
	Group     int                `json:"group"`   // index into Input.Groups
	Request   int                `json:"request"` // index into the group
	Arch      string             `json:"arch,omitempty"`
	Flexible  bool               `json:"flexible,omitempty"` // the node is a part of a machine
	LocalDisk string             `json:"local_disk,omitempty"`
	Note      string             `json:"note,omitempty"` // the offer's own warning, shown when it is chosen
	Spec      providers.NodeSpec `json:"spec"`           // price in US dollars per hour and node
}

// Place is where the choice lies.
func (c Choice) Place() task.Infra {
	return task.Infra{Cloud: c.Provider, Region: c.Spec.Region, Zone: c.Spec.Zone}
}

// Accelerators is NAME:COUNT per node, or empty.
func (c Choice) Accelerators() string {
	if c.Spec.Accelerator == "" {
		return ""
	}
	return c.Spec.Accelerator + ":" + num(c.Spec.AcceleratorCount)
}

// Infra names the place for people: the infra, and the zone or region in brackets.
func (c Choice) Infra() string {
	switch {
	case c.Spec.Zone != "":
		return c.Provider + " (" + c.Spec.Zone + ")"
	case c.Spec.Region != "":
		return c.Provider + " (" + c.Spec.Region + ")"
	}
	return c.Provider
}

// String describes the choice in one line.
func (c Choice) String() string {
	what := c.Spec.InstanceType
	if what == "" {
		what = num(c.Spec.CPUs) + " CPUs, " + num(c.Spec.MemoryGB) + " GB"
	}
	if a := c.Accelerators(); a != "" {
		what += ", " + a
	}
	if c.Spec.Spot {
		what += " [Spot]"
	}
	return c.Infra() + " " + what
}

// Have is what a cluster made from the choice offers to later requests; req is the request it was chosen for.
func (c Choice) Have(req task.Request) task.Request {
	have := req
	have.Infra = c.Place()
	have.InstanceType = c.Spec.InstanceType
	have.Accelerator = nil
	if c.Spec.Accelerator != "" {
		have.Accelerator = &task.Accelerator{Name: c.Spec.Accelerator, Count: c.Spec.AcceleratorCount}
		if d, ok := catalog.Lookup(c.Spec.Accelerator); ok {
			have.Accelerator.MemoryGB, have.Accelerator.Vendor = d.MemoryGB, d.Manufacturer
		}
	}
	have.CPUs = task.CPUs{N: c.Spec.CPUs}
	have.Memory = task.Memory{GB: c.Spec.MemoryGB}
	have.UseSpot, have.SpotSaid = c.Spec.Spot, true
	have.LocalDisk = nil
	if d, err := task.ParseLocalDisk(c.LocalDisk); err == nil {
		have.LocalDisk = &d
	}
	return have
}

// Reason tells why an infra gave nothing for a request.
type Reason struct {
	Request string `json:"request"` // the request in words
	Infra   string `json:"infra"`   // empty: no particular one
	Text    string `json:"text"`
	Hint    string `json:"hint,omitempty"`
}

func (r Reason) String() string {
	if r.Infra == "" {
		return r.Text
	}
	return r.Infra + ": " + r.Text
}

// Result is a ranking.
type Result struct {
	// Choices are all that can be tried, in the order in which failover tries them. The first is the chosen one.
	Choices    []Choice        `json:"choices"`
	Considered []api.Candidate `json:"considered"` // one row per infra, accelerators and spot; prices for all nodes
	Notes      []string        `json:"notes,omitempty"`
	Reasons    []Reason        `json:"reasons,omitempty"`
	// Suggestions are accelerators with a similar name or another count, as NAME:COUNT.
	Suggestions []string `json:"suggestions,omitempty"`
}

// check refuses input that no ranking can be made of.
func (in Input) check() error {
	bad := func(format string, args ...any) error {
		return &api.Error{Kind: api.ErrInvalid, Message: fmt.Sprintf(format, args...)}
	}
	if in.Target != "" && in.Target != TargetCost {
		return bad("unknown target %q of the optimizer; %q is known", in.Target, TargetCost)
	}
	n := 0
	for _, g := range in.Groups {
		n += len(g)
	}
	if n == 0 {
		return bad("the task asks for no resources at all, not even for a default node")
	}
	return nil
}

// usable drops offers of infra that is not enabled and offers whose figures make no sense, and gives the rest by infra.
func (in Input) usable(enabled map[string]bool) map[string][]providers.Offer {
	by := map[string][]providers.Offer{}
	for _, o := range in.Offers {
		o.Provider = strings.ToLower(o.Provider)
		finite := true
		for _, f := range [...]float64{o.PricePerHour, o.CPUs, o.MemoryGB, o.AcceleratorCount, o.DeviceMemGB} {
			finite = finite && f >= 0 && !math.IsInf(f, 0) && !math.IsNaN(f)
		}
		if !finite || !enabled[o.Provider] || o.Accelerator != "" && o.AcceleratorCount == 0 {
			continue
		}
		if o.Accelerator == "" {
			o.AcceleratorCount = 0
		}
		if o.Accelerator != "" {
			o.Accelerator = catalog.Canonical(o.Accelerator)
		}
		o.PricePerHour = float64(micros(o.PricePerHour)) / 1e6
		by[o.Provider] = append(by[o.Provider], o)
	}
	return by
}

// sortOffers puts offers into an order that depends on their content only, the cheapest first.
func sortOffers(list []providers.Offer) {
	keys := make([]string, len(list))
	for i, o := range list {
		keys[i] = offerKey(o)
	}
	sort.Sort(&byKey{keys, list})
}

// offerKey orders offers by price, then by everything else that tells them apart.
func offerKey(o providers.Offer) string {
	return fmt.Sprintf("%020d|%s|%s|%s|%v|%s|%012.3f|%012.3f|%012.3f|%v|%d|%s|%s|%s|%012.3f|%v", micros(o.PricePerHour), o.InstanceType, o.Region,
		o.Zone, o.Spot, o.Accelerator, o.AcceleratorCount, o.CPUs, o.MemoryGB, o.Flexible, o.MaxNodes, o.Arch, o.LocalDisk,
		o.Manufacturer, o.DeviceMemGB, o.Extra)
}

type byKey struct {
	keys   []string
	offers []providers.Offer
}

func (s *byKey) Len() int           { return len(s.keys) }
func (s *byKey) Less(i, j int) bool { return s.keys[i] < s.keys[j] }
func (s *byKey) Swap(i, j int) {
	s.keys[i], s.keys[j] = s.keys[j], s.keys[i]
	s.offers[i], s.offers[j] = s.offers[j], s.offers[i]
}

// micros is a price in millionths of a dollar, so that equal prices compare equal.
func micros(dollars float64) int64 { return int64(math.Round(min(dollars, 1e9) * 1e6)) }

// num is the shortest decimal form with at most three digits after the point.
func num(f float64) string { return strconv.FormatFloat(math.Round(f*1000)/1000, 'f', -1, 64) }
