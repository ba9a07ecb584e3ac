package ssh

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/skyloom/skyloom/agent/sharedhost"
	"github.com/skyloom/skyloom/providers"
)

// candidate is a host as the choice sees it.
type candidate struct {
	name string
	info *sharedhost.Info // nil: not known yet
	err  error            // of the last try to reach it; nil: none
	// expected are the shares that others are about to take.
	expected []providers.NodeSpec
}

// beside is what a host has beside the shares that others are about to take.
func beside(i *sharedhost.Info, expected []providers.NodeSpec) *sharedhost.Info {
	if i == nil || len(expected) == 0 {
		return i
	}
	c := *i
	c.FreeGPUs = slices.Clone(i.FreeGPUs)
	for _, s := range expected {
		c.FreeCPUs, c.FreeMemoryGB = c.FreeCPUs-s.CPUs, c.FreeMemoryGB-s.MemoryGB
		for range devices(s) {
			at := slices.IndexFunc(c.FreeGPUs, func(id string) bool {
				return slices.ContainsFunc(i.GPUs, func(g sharedhost.GPU) bool { return g.ID == id && strings.EqualFold(g.Name, s.Accelerator) })
			})
			if at >= 0 {
				c.FreeGPUs = slices.Delete(c.FreeGPUs, at, at+1)
			}
		}
	}
	return &c
}

// order sorts hosts by how likely and how well they take a node, and leaves out those that never can, with the reason.
// First come hosts with room, the emptiest before others, so that load spreads; what creates that are going on may take
// counts as taken. Then come those not known yet; then those that
// were full when last seen, since what they hold may have ended; last those that did not answer. Among equals the order of
// the file decides.
func order(all []candidate, want providers.NodeSpec) (try []int, never map[int]string) {
	never = map[int]string{}
	class := make([]int, len(all))
	load := make([]float64, len(all))
	for i, c := range all {
		switch {
		case c.err != nil:
			class[i] = 3
		case c.info == nil:
			class[i] = 1
		default:
			if why := unfit(c.info, want); why != "" {
				never[i] = why
				continue
			}
			now := beside(c.info, c.expected)
			load[i] = used(now, want)
			if !room(now, want) {
				class[i] = 2
			}
		}
		if class[i] == 1 {
			load[i] = float64(len(c.expected))
		}
		try = append(try, i)
	}
	sort.SliceStable(try, func(a, b int) bool {
		x, y := try[a], try[b]
		if class[x] != class[y] {
			return class[x] < class[y]
		}
		return load[x] < load[y]-1e-9
	})
	return try, never
}

// devices is the number of GPUs that a node holds: a fraction takes a whole one.
func devices(s providers.NodeSpec) int { return int(math.Ceil(s.AcceleratorCount - 1e-9)) }

// slack is what may be asked for beyond a host, against rounding.
const slack = 0.01

func unfit(i *sharedhost.Info, s providers.NodeSpec) string {
	switch {
	case s.CPUs > i.CPUs+slack:
		return fmt.Sprintf("it has %v CPUs, %v asked for", i.CPUs, s.CPUs)
	case s.MemoryGB > i.MemoryGB+slack:
		return fmt.Sprintf("it has %v GB of memory, %v asked for", i.MemoryGB, s.MemoryGB)
	}
	if need := devices(s); need > 0 {
		have := 0
		for _, g := range i.GPUs {
			if strings.EqualFold(g.Name, s.Accelerator) {
				have++
			}
		}
		if have < need {
			if i.GPUError != "" {
				return "its GPUs can't be told: " + i.GPUError
			}
			return fmt.Sprintf("it has %d × %s, %d asked for", have, s.Accelerator, need)
		}
	}
	return ""
}

// room says that a host had enough free when last seen.
func room(i *sharedhost.Info, s providers.NodeSpec) bool {
	if s.CPUs > i.FreeCPUs+slack || s.MemoryGB > i.FreeMemoryGB+slack || noDisk(i) {
		return false
	}
	return free(i, s.Accelerator) >= devices(s)
}

// noDisk says that a host's disk is full.
func noDisk(i *sharedhost.Info) bool { return !i.Untouched && i.DiskFreeGB < noDiskGB }

// full says what a host lacked when last seen, and who held it.
func full(i *sharedhost.Info, s providers.NodeSpec) string {
	what := fmt.Sprintf("%v of %v CPUs free, %v asked for", i.FreeCPUs, i.CPUs, s.CPUs)
	switch {
	case noDisk(i):
		return fmt.Sprintf("no space left on its disk (%.2f GB are free)", i.DiskFreeGB)
	case s.CPUs > i.FreeCPUs+slack:
	case s.MemoryGB > i.FreeMemoryGB+slack:
		what = fmt.Sprintf("%.1f of %.1f GB of memory free, %v asked for", i.FreeMemoryGB, i.MemoryGB, s.MemoryGB)
	default:
		what = fmt.Sprintf("%d × %s free, %d asked for", free(i, s.Accelerator), s.Accelerator, devices(s))
	}
	var held []string
	for _, c := range i.Claims {
		n := c.Cluster
		if c.User != "" {
			n += " of " + c.User
		}
		if !slices.Contains(held, n) && len(held) < 4 {
			held = append(held, n)
		}
	}
	if len(held) > 0 {
		what += "; held by " + strings.Join(held, ", ")
	}
	return what
}

func free(i *sharedhost.Info, accelerator string) (n int) {
	is := map[string]bool{}
	for _, id := range i.FreeGPUs {
		is[id] = true
	}
	for _, g := range i.GPUs {
		if is[g.ID] && strings.EqualFold(g.Name, accelerator) {
			n++
		}
	}
	return n
}

// used is the share of a host that others hold, of what is scarcest for the node. A node without GPUs shuns hosts that have some.
func used(i *sharedhost.Info, s providers.NodeSpec) float64 {
	u := max(1-i.FreeCPUs/max(i.CPUs, slack), 1-i.FreeMemoryGB/max(i.MemoryGB, slack))
	if devices(s) > 0 {
		total := 0
		for _, g := range i.GPUs {
			if strings.EqualFold(g.Name, s.Accelerator) {
				total++
			}
		}
		return max(u, 1-float64(free(i, s.Accelerator))/float64(max(total, 1)))
	}
	if len(i.GPUs) > 0 {
		u++
	}
	return u
}

// reasons says for people why hosts take no node.
type reasons struct {
	names []string
	why   map[string]string
}

func (r *reasons) add(host, why string) {
	if r.why == nil {
		r.why = map[string]string{}
	}
	if _, ok := r.why[host]; !ok {
		r.names = append(r.names, host)
	}
	r.why[host] = why
}

// maxReasons bounds a message.
const maxReasons = 30

func (r *reasons) String() string {
	var out []string
	for i, n := range r.names {
		if i == maxReasons {
			out = append(out, fmt.Sprintf("and %d more", len(r.names)-i))
			break
		}
		out = append(out, n+": "+r.why[n])
	}
	return strings.Join(out, "; ")
}

// fresh is how old a failure may be to count in the choice.
const fresh = 30 * time.Second
