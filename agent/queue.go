package agent

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/skyloom/skyloom/agent/agentapi"
)

// defaultCPU is what a job takes of a node's CPUs, so that at most two per CPU run at once.
const defaultCPU = 0.5

// slack absorbs rounding in sums of fractions.
const slack = 1e-6

// demand is what one node of a job takes.
type demand struct {
	Nodes int     `json:"nodes"`
	CPUs  float64 `json:"cpus"`
	// Accelerators per node: below 1 a share of one, else whole ones.
	Accelerators float64 `json:"accelerators,omitempty"`
}

// deviceShare is a part of one accelerator of a node.
type deviceShare struct {
	Index int     `json:"index"`
	Share float64 `json:"share"`
}

// slot is one rank's place.
type slot struct {
	Node    int           `json:"node"` // rank of the node in the cluster
	Devices []deviceShare `json:"devices,omitempty"`
}

// placement is where a job runs: its ranks, in the order of the cluster's nodes.
type placement struct {
	Ranks []slot `json:"ranks"`
	// NodeIDs and IPs are those of the whole cluster when the job was placed.
	NodeIDs []string `json:"node_ids"`
	IPs     []string `json:"ips"`
}

// load is what is taken of one node.
type load struct {
	CPUs    float64
	Devices []float64 // by index, 0 to 1
}

// demandOf turns a spec into a demand, or says why the cluster can never meet it (KindUnfit) or why it makes no sense
// (KindInvalid).
func demandOf(spec agentapi.JobSpec, res agentapi.NodeResources, nodes int) (demand, error) {
	d := demand{Nodes: max(spec.NumNodes, 1), Accelerators: spec.AcceleratorCount}
	if d.Accelerators < 0 || math.IsNaN(d.Accelerators) || (d.Accelerators > 1 && d.Accelerators != math.Trunc(d.Accelerators)) {
		return d, invalid("accelerator count %v: give a whole number, or a fraction below 1", d.Accelerators)
	}
	if spec.Run == "" { // a setup alone needs nothing
		if d.Nodes > nodes {
			return d, unfit("the job asks for %d nodes, the cluster has %d", d.Nodes, nodes)
		}
		return demand{Nodes: d.Nodes}, nil
	}
	switch {
	case spec.CPUs > res.CPUs+slack:
		return d, unfit("the job asks for %v CPUs per node, a node has %v", spec.CPUs, res.CPUs)
	case spec.CPUs > 0:
		d.CPUs = spec.CPUs
	case spec.CPUs == 0:
		d.CPUs = min(defaultCPU, res.CPUs) // a node smaller than half a CPU still runs one job
	}
	if d.Nodes > nodes {
		return d, unfit("the job asks for %d nodes, the cluster has %d", d.Nodes, nodes)
	}
	if d.Accelerators > 0 {
		if res.AcceleratorCount <= 0 {
			return d, unfit("the job asks for %s:%v, the cluster has no accelerators", orAny(spec.Accelerator), d.Accelerators)
		}
		if spec.Accelerator != "" && !strings.EqualFold(spec.Accelerator, res.Accelerator) {
			return d, unfit("the job asks for %s:%v, the cluster has %s:%v per node", spec.Accelerator, d.Accelerators, res.Accelerator, res.AcceleratorCount)
		}
		if d.Accelerators > res.AcceleratorCount+slack {
			return d, unfit("the job asks for %s:%v per node, a node has %v", orAny(spec.Accelerator), d.Accelerators, res.AcceleratorCount)
		}
	}
	return d, nil
}

func orAny(s string) string {
	if s == "" {
		return "accelerator"
	}
	return s
}

// place finds room for a job on the first nodes that have it, or says what is missing.
func place(d demand, res agentapi.NodeResources, nodes []load, free func(node int) bool) ([]slot, string) {
	var ranks []slot
	var noCPU, noDevice, away int
	for i, n := range nodes {
		if len(ranks) == d.Nodes {
			break
		}
		if !free(i) {
			away++
			continue
		}
		if n.CPUs+d.CPUs > res.CPUs+slack && d.CPUs > 0 {
			noCPU++
			continue
		}
		devs, ok := takeDevices(d.Accelerators, n.Devices)
		if !ok {
			noDevice++
			continue
		}
		ranks = append(ranks, slot{Node: i, Devices: devs})
	}
	if len(ranks) == d.Nodes {
		return ranks, ""
	}
	var why []string
	if noDevice > 0 {
		why = append(why, fmt.Sprintf("%v free accelerators on %s", d.Accelerators, count(noDevice, "node")))
	}
	if noCPU > 0 {
		why = append(why, fmt.Sprintf("%v free CPUs on %s", d.CPUs, count(noCPU, "node")))
	}
	if away > 0 {
		why = append(why, count(away, "lost node"))
	}
	return nil, fmt.Sprintf("waiting for room on %s: missing %s", count(d.Nodes, "node"), strings.Join(why, " and "))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// takeDevices chooses accelerators: a fraction goes to the fullest one that still has room, whole ones must be free.
func takeDevices(want float64, used []float64) ([]deviceShare, bool) {
	if want <= 0 {
		return nil, true
	}
	if want < 1-slack {
		best := -1
		for i, u := range used {
			if u+want <= 1+slack && (best < 0 || u > used[best]+slack) {
				best = i
			}
		}
		if best < 0 {
			return nil, false
		}
		return []deviceShare{{best, want}}, true
	}
	var out []deviceShare
	for i, u := range used {
		if u <= slack && float64(len(out)) < want-slack {
			out = append(out, deviceShare{i, 1})
		}
	}
	return out, float64(len(out)) >= want-slack
}

// loads sums what placed jobs take.
func loads(res agentapi.NodeResources, nodes int, placed []*jobState) []load {
	out := make([]load, nodes)
	devices := int(math.Ceil(res.AcceleratorCount - slack))
	for i := range out {
		out[i].Devices = make([]float64, max(devices, 0))
	}
	for _, j := range placed {
		for _, r := range j.Place.Ranks {
			if r.Node >= nodes {
				continue
			}
			out[r.Node].CPUs += j.Demand.CPUs
			for _, d := range r.Devices {
				if d.Index < len(out[r.Node].Devices) {
					out[r.Node].Devices[d.Index] += d.Share
				}
			}
		}
	}
	return out
}

// byID sorts jobs by their number.
func byID(jobs []*jobState) {
	slices.SortFunc(jobs, func(x, y *jobState) int { return cmp.Compare(x.Row.ID, y.Row.ID) })
}

func invalid(format string, args ...any) *agentapi.Error {
	return &agentapi.Error{Kind: agentapi.KindInvalid, Detail: fmt.Sprintf(format, args...)}
}

func unfit(format string, args ...any) *agentapi.Error {
	return &agentapi.Error{Kind: agentapi.KindUnfit, Detail: fmt.Sprintf(format, args...)}
}

func conflict(format string, args ...any) *agentapi.Error {
	return &agentapi.Error{Kind: agentapi.KindConflict, Detail: fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) *agentapi.Error {
	return &agentapi.Error{Kind: agentapi.KindNotFound, Detail: fmt.Sprintf(format, args...)}
}
