package local

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/skyloom/skyloom/agent/gpus"
	"github.com/skyloom/skyloom/providers"
)

// machine is what this machine has.
type machine struct {
	cpus     float64
	memoryGB float64
	gpus     []gpus.GPU
	at       time.Time
}

// hardwareFor is how long what was found stays true: a GPU rarely comes or goes, and nvidia-smi takes up to a second.
const hardwareFor = 5 * time.Minute

func (p *Provider) hardware(ctx context.Context) machine {
	p.mu.Lock()
	m := p.machine
	p.mu.Unlock()
	if m != nil && time.Since(m.at) < hardwareFor {
		return *m
	}
	n := machine{cpus: p.o.CPUs, memoryGB: p.o.MemoryGB, gpus: p.o.GPUs, at: time.Now()}
	if n.cpus == 0 {
		n.cpus = float64(runtime.NumCPU())
	}
	if n.memoryGB == 0 {
		n.memoryGB = math.Floor(float64(memoryBytes())/(1<<30)*10) / 10
	}
	if n.gpus == nil {
		var err error
		if n.gpus, err = gpus.Find(ctx); err != nil {
			p.log.Warn("local: GPUs", "err", err)
		}
	}
	p.mu.Lock()
	p.machine = &n
	p.mu.Unlock()
	return n
}

// byKind groups GPUs by their canonical name, in alphabetical order.
func byKind(all []gpus.GPU) (kinds []string, of map[string][]gpus.GPU) {
	of = map[string][]gpus.GPU{}
	for _, g := range all {
		if len(of[g.Name]) == 0 {
			kinds = append(kinds, g.Name)
		}
		of[g.Name] = append(of[g.Name], g)
	}
	slices.Sort(kinds)
	return kinds, of
}

func describe(all []gpus.GPU) string {
	kinds, of := byKind(all)
	if len(kinds) == 0 {
		return "no GPU"
	}
	var s []string
	for _, k := range kinds {
		s = append(s, fmt.Sprintf("%s:%d", k, len(of[k])))
	}
	return strings.Join(s, ", ")
}

// Offers gives this machine: one flexible offer per kind of GPU (or one without), on demand and spot, at no price.
func (p *Provider) Offers(ctx context.Context, f providers.OfferFilter) ([]providers.Offer, error) {
	if f.Region != "" && f.Region != Region || f.Zone != "" || f.InstanceType != "" {
		return nil, ctx.Err()
	}
	m := p.hardware(ctx)
	base := providers.Offer{Provider: p.Name(), Region: Region, CPUs: m.cpus, MemoryGB: m.memoryGB, Arch: runtime.GOARCH, Flexible: true,
		MaxNodes: mostNodes(m.memoryGB), Extra: map[string]string{"note": Note}}
	var kinds []providers.Offer
	names, of := byKind(m.gpus)
	for _, k := range names {
		o := base
		o.Accelerator, o.AcceleratorCount, o.DeviceMemGB, o.Manufacturer = k, float64(len(of[k])), of[k][0].MemoryGB, "NVIDIA"
		kinds = append(kinds, o)
	}
	if len(kinds) == 0 {
		kinds = []providers.Offer{base}
	}
	var out []providers.Offer
	for _, spot := range []bool{false, true} {
		for _, o := range kinds {
			if o.Spot = spot; f.Spot != nil && *f.Spot != spot || f.Accelerator != "" && !strings.EqualFold(f.Accelerator, o.Accelerator) {
				continue
			}
			out = append(out, o)
		}
	}
	return out, ctx.Err()
}

// mostNodes is how many nodes a cluster may have for the sake of the machine: their agents alone take half of its memory then,
// at 32 MB each. What is asked for by mistake is told before it is made.
func mostNodes(memoryGB float64) int { return min(max(int(memoryGB*1024/2/32), 64), 1000) }

// Pools tells how many GPUs of each kind are free.
func (p *Provider) Pools(ctx context.Context) ([]providers.Pool, error) {
	m := p.hardware(ctx)
	kinds, of := byKind(m.gpus)
	if len(kinds) == 0 {
		return nil, ctx.Err()
	}
	recs, err := p.records("")
	if err != nil {
		return nil, err
	}
	g := p.ledger(ctx)
	defer g.close()
	taken, err := g.taken(recs)
	if err != nil {
		return nil, err
	}
	var out []providers.Pool
	for _, k := range kinds {
		pool := providers.Pool{Infra: p.Name(), Accelerator: k, Total: float64(len(of[k]))}
		for i, g := range of[k] {
			pool.Requestable = append(pool.Requestable, float64(i+1))
			if taken[g.ID] == "" {
				pool.Free++
			}
		}
		out = append(out, pool)
	}
	return out, ctx.Err()
}

// fit refuses what this machine never has.
func (p *Provider) fit(m machine, nodes int, s providers.NodeSpec) error {
	bad := func(format string, args ...any) error {
		return &providers.Error{Kind: providers.Invalid, Scope: providers.ScopeCloud, Msg: "local: " + fmt.Sprintf(format, args...),
			Hint: "`sky check local -v` tells what this machine has"}
	}
	switch {
	case s.InstanceType != "":
		return bad("there is no instance type %q: a node here is a part of this machine", s.InstanceType)
	case s.Region != "" && s.Region != Region || s.Zone != "":
		return bad("there is no region %q with zone %q, only %q", s.Region, s.Zone, Region)
	case s.CPUs > m.cpus:
		return bad("a node of %v CPUs does not fit, this machine has %v", s.CPUs, m.cpus)
	case s.MemoryGB > m.memoryGB:
		return bad("a node of %v GB of memory does not fit, this machine has %v", s.MemoryGB, m.memoryGB)
	case s.ImageID != "":
		return bad("nodes run no images (asked for %q)", s.ImageID)
	case s.AcceleratorCount > 0:
		have := 0
		for _, g := range m.gpus {
			if strings.EqualFold(g.Name, s.Accelerator) {
				have++
			}
		}
		if need := devices(s) * nodes; need > have {
			return bad("%d × %s are asked for, this machine has %d (%s)", need, s.Accelerator, have, describe(m.gpus))
		}
	}
	return nil
}

// devices is the number of GPUs that a node holds: a fraction takes a whole one.
func devices(s providers.NodeSpec) int { return int(math.Ceil(s.AcceleratorCount - 1e-9)) }
