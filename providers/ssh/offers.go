package ssh

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/skyloom/skyloom/agent/sharedhost"
	"github.com/skyloom/skyloom/providers"
)

const (
	// infoFor is how long what a host has stays true for an offer.
	infoFor = 5 * time.Minute
	// failFor is how long a host that failed is not asked again for an offer or a check.
	failFor = 20 * time.Second
)

// surveyed gives the hosts of pools, all asked at once what they have, unless that is known well enough. Only names one pool;
// "" is all.
func (p *Provider) surveyed(ctx context.Context, pools []Pool, only string, maxAge, slow time.Duration) (map[string][]*host, error) {
	by := map[string][]*host{}
	var all []*host
	for _, pl := range pools {
		if only != "" && pl.Name != only {
			continue
		}
		hosts, err := p.pool(pl.Name)
		if err != nil {
			return nil, err
		}
		by[pl.Name] = hosts
		all = append(all, hosts...)
	}
	p.survey(ctx, all, maxAge, slow)
	return by, nil
}

// slowHosts is how long hosts that failed before are waited for where others will do.
const slowHosts = time.Second

// survey asks hosts what they have, unless that is known well enough. Hosts that failed before are waited for no longer than
// slow, if others are known: what they answer later counts the next time.
func (p *Provider) survey(ctx context.Context, hosts []*host, maxAge, slow time.Duration) {
	var stale, failing, asked []*host
	good := 0
	seen := map[*state]bool{} // a host may stand in several pools
	for _, h := range hosts {
		if seen[h.state] {
			continue
		}
		seen[h.state] = true
		info, at, err, when, _ := h.state.snapshot()
		switch {
		case err == nil && info != nil && time.Since(at) < maxAge:
			good++
		case err == nil:
			stale = append(stale, h)
		case time.Since(when) < min(failFor, maxAge):
		case h.state.ask(true):
			failing = append(failing, h)
		default: // by another survey, which goes on
			asked = append(asked, h)
		}
	}
	probe := func(ctx context.Context, hosts []*host) {
		each(hosts, func(_ int, h *host) {
			if _, err := p.call(ctx, h, nil, sharedhost.VerbProbe, sharedhost.Request{}); err != nil && ctx.Err() != nil {
				h.state.fail(fmt.Errorf("it has not answered in time: %w", ctx.Err()))
			}
		})
	}
	back := make(chan struct{})
	go func() {
		defer close(back)
		bctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		probe(bctx, failing)
		for _, h := range failing {
			h.state.ask(false)
		}
	}()
	began := time.Now()
	probe(ctx, stale)
	for _, h := range stale {
		if _, _, err, _, _ := h.state.snapshot(); err == nil {
			good++
		}
	}
	enough := make(<-chan time.Time) // never: without them nothing is known
	if good > 0 {
		enough = time.After(slow - time.Since(began))
	}
	if good == 0 || slow > slowHosts {
		probe(ctx, asked)
	}
	select {
	case <-back:
	case <-enough:
	case <-ctx.Done():
	}
}

// Check tells whether there are pools with hosts that can take nodes.
func (p *Provider) Check(ctx context.Context) (providers.CheckReport, error) {
	pools, _, err := p.load()
	if err != nil {
		return providers.CheckReport{}, &providers.Error{Kind: providers.Invalid, Scope: providers.ScopeCloud, Msg: err.Error(), Hint: "correct the file"}
	}
	if len(pools.Pools) == 0 {
		return providers.CheckReport{}, &providers.Error{Kind: providers.Unsupported, Scope: providers.ScopeCloud, Msg: "no SSH node pools",
			Hint: "list your machines in " + p.o.Home + "/" + PoolsFile + ", then run `sky ssh up`"}
	}
	r := providers.CheckReport{Capabilities: []string{"compute"}, Details: []string{"pools: " + pools.File}}
	good := 0
	var why reasons
	hosts, err := p.surveyed(ctx, pools.Pools, "", 10*time.Second, time.Minute)
	if err != nil {
		return providers.CheckReport{}, err
	}
	for _, pl := range pools.Pools {
		for _, h := range hosts[pl.Name] {
			info, _, err, _, note := h.state.snapshot()
			line := pl.Name + "/" + h.Name + ": "
			switch {
			case err != nil:
				line += err.Error()
				if hint := hintOf(err); hint != "" {
					line += " (" + hint + ")"
				}
				why.add(pl.Name+"/"+h.Name, err.Error())
			case info == nil:
				line += "not asked yet"
			default:
				good++
				line += fmt.Sprintf("%v of %v CPUs, %.1f of %.1f GB of memory free, %s", info.FreeCPUs, info.CPUs, info.FreeMemoryGB, info.MemoryGB, gpusOf(info))
				if !info.Root && !info.Untouched {
					line += "; nodes are plain process trees of the login's user"
				}
				if note != "" {
					line += " (" + note + ")"
				}
			}
			r.Details = append(r.Details, line)
		}
	}
	if good == 0 {
		return providers.CheckReport{}, &providers.Error{Kind: providers.AuthFailed, Scope: providers.ScopeCloud, Msg: "no host of any pool can be used: " + why.String(),
			Hint: "`sky ssh up` tells more"}
	}
	return r, nil
}

// gpusOf tells a host's GPUs for people.
func gpusOf(i *sharedhost.Info) string {
	if i.GPUError != "" {
		return "GPUs can't be told (" + i.GPUError + ")"
	}
	kinds := map[string]int{}
	for _, g := range i.GPUs {
		kinds[g.Name]++
	}
	if len(kinds) == 0 {
		return "no GPU"
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(kinds)) {
		out = append(out, fmt.Sprintf("%d of %d %s free", free(i, k), kinds[k], k))
	}
	return strings.Join(out, ", ")
}

// Offers gives for each pool what its largest host has: one flexible offer per kind of GPU, and one without. It is told from
// what hosts had when last asked.
func (p *Provider) Offers(ctx context.Context, f providers.OfferFilter) ([]providers.Offer, error) {
	if f.Zone != "" || f.InstanceType != "" || f.Spot != nil && *f.Spot {
		return nil, ctx.Err()
	}
	pools, _, err := p.load()
	if err != nil {
		return nil, &providers.Error{Kind: providers.Invalid, Scope: providers.ScopeCloud, Msg: "ssh", Err: err, Hint: "correct the file"}
	}
	hosts, err := p.surveyed(ctx, pools.Pools, f.Region, infoFor, slowHosts)
	if err != nil {
		return nil, err
	}
	var out []providers.Offer
	for _, pl := range pools.Pools {
		for _, o := range p.offersOf(pl.Name, hosts[pl.Name]) {
			if f.Accelerator == "" || strings.EqualFold(f.Accelerator, o.Accelerator) {
				out = append(out, o)
			}
		}
	}
	return out, ctx.Err()
}

func (p *Provider) offersOf(pool string, hosts []*host) (out []providers.Offer) {
	by := map[string]*providers.Offer{}
	for _, h := range hosts {
		info, _, _, _, _ := h.state.snapshot()
		if info == nil {
			continue
		}
		kinds := map[string][]sharedhost.GPU{}
		for _, g := range info.GPUs {
			kinds[g.Name] = append(kinds[g.Name], g)
		}
		if len(kinds) == 0 {
			kinds[""] = nil
		}
		for k, devices := range kinds {
			o := by[k]
			if o == nil {
				o = &providers.Offer{Provider: p.Name(), Region: pool, Flexible: true, Accelerator: k, Arch: architectures[info.Arch]}
				by[k] = o
			}
			o.CPUs, o.MemoryGB, o.AcceleratorCount = max(o.CPUs, info.CPUs), max(o.MemoryGB, info.MemoryGB), max(o.AcceleratorCount, float64(len(devices)))
			o.MaxNodes++
			if len(devices) > 0 {
				o.DeviceMemGB, o.Manufacturer = devices[0].MemoryGB, "NVIDIA"
			}
			if o.Arch != architectures[info.Arch] {
				o.Arch = ""
			}
		}
	}
	// A node without GPUs may stand on any host.
	if plain := by[""]; plain != nil {
		plain.MaxNodes = 0
		for _, h := range hosts {
			if info, _, _, _, _ := h.state.snapshot(); info != nil {
				plain.MaxNodes++
				plain.CPUs, plain.MemoryGB = max(plain.CPUs, info.CPUs), max(plain.MemoryGB, info.MemoryGB)
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(by)) {
		out = append(out, *by[k])
	}
	return out
}

// Pools tells how many GPUs of each kind are free, by pool.
func (p *Provider) Pools(ctx context.Context) ([]providers.Pool, error) {
	pools, _, err := p.load()
	if err != nil {
		return nil, &providers.Error{Kind: providers.Invalid, Scope: providers.ScopeCloud, Msg: "ssh", Err: err, Hint: "correct the file"}
	}
	hosts, err := p.surveyed(ctx, pools.Pools, "", time.Second, slowHosts)
	if err != nil {
		return nil, err
	}
	var out []providers.Pool
	for _, pl := range pools.Pools {
		by := map[string]*providers.Pool{}
		most := map[string]int{}
		for _, h := range hosts[pl.Name] {
			info, _, err, _, _ := h.state.snapshot()
			if info == nil {
				continue
			}
			count := map[string]int{}
			for _, g := range info.GPUs {
				count[g.Name]++
			}
			for k, n := range count {
				if by[k] == nil {
					by[k] = &providers.Pool{Infra: p.Name() + "/" + pl.Name, Accelerator: k}
				}
				by[k].Total += float64(n)
				if err == nil {
					by[k].Free += float64(free(info, k))
				}
				most[k] = max(most[k], n)
			}
		}
		for _, k := range slices.Sorted(maps.Keys(by)) {
			for i := range most[k] {
				by[k].Requestable = append(by[k].Requestable, float64(i+1))
			}
			out = append(out, *by[k])
		}
	}
	return out, ctx.Err()
}
