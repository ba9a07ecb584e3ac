package task

import (
	"encoding/json"
	"maps"
	"reflect"
)

// maxCandidates bounds what alternatives may multiply to.
const maxCandidates = 2000

// alternatives lists the resources with every any_of or ordered entry merged over the outer fields, and whether their
// order matters.
func (r *Resources) alternatives() (list []Resources, ordered bool) {
	inner := r.AnyOf
	if len(r.Ordered) > 0 {
		inner, ordered = r.Ordered, true
	}
	outer := *r
	outer.AnyOf, outer.Ordered = nil, nil
	if len(inner) == 0 {
		return []Resources{outer}, false
	}
	for i := range inner {
		list = append(list, outer.overlay(&inner[i]))
	}
	return list, ordered
}

// overlay returns r with the fields that over sets; labels are merged.
func (r Resources) overlay(over *Resources) Resources {
	labels := r.Labels
	if len(over.Labels) > 0 {
		labels = map[string]string{}
		maps.Copy(labels, r.Labels)
		maps.Copy(labels, over.Labels)
	}
	dst, src := reflect.ValueOf(&r).Elem(), reflect.ValueOf(over).Elem()
	for i := 0; i < src.NumField(); i++ {
		if f := src.Field(i); !f.IsZero() {
			dst.Field(i).Set(f)
		}
	}
	r.Labels = labels
	return r
}

// Candidates expands any_of, ordered and accelerator alternatives into concrete requests: groups in order of preference,
// and within a group the cheapest wins. There is always at least one.
func (t *Task) Candidates() [][]Request {
	list, ordered := t.Resources.alternatives()
	var groups [][]Request
	var pool []Request
	for _, r := range list {
		requests := r.requests()
		switch {
		case r.Accelerators.Ordered:
			for _, q := range requests {
				groups = append(groups, []Request{q})
			}
		case ordered:
			groups = append(groups, requests)
		default:
			pool = append(pool, requests...)
		}
	}
	if len(pool) > 0 {
		groups = append(groups, pool)
	}
	seen := map[string]bool{}
	var out [][]Request
	for _, g := range groups {
		var keep []Request
		for _, q := range g {
			key, _ := json.Marshal(q)
			if !seen[string(key)] {
				seen[string(key)] = true
				keep = append(keep, q)
			}
		}
		if len(keep) > 0 {
			out = append(out, keep)
		}
	}
	return out
}

// requests expands the accelerators of one alternative.
func (r *Resources) requests() []Request {
	base := Request{
		Infra: r.Infra.Concrete(), InstanceType: r.InstanceType, AcceleratorArgs: r.AcceleratorArgs, CPUs: r.CPUs, Memory: r.Memory,
		UseSpot: r.UseSpot != nil && *r.UseSpot, SpotSaid: r.UseSpot != nil, DiskSizeGB: r.DiskSizeGB, DiskTier: r.DiskTier,
		NetworkTier: r.NetworkTier, LocalDisk: r.LocalDisk, MaxHourlyCost: r.MaxHourlyCost, Ports: r.Ports, Images: r.Images, Labels: r.Labels,
	}
	if len(r.Accelerators.Options) == 0 {
		return []Request{base}
	}
	var out []Request
	for _, a := range r.Accelerators.Options {
		q := base
		q.Accelerator = &a
		if q.Infra.Cloud == "" && a.IsTPU() {
			q.Infra.Cloud = "gcp"
			if a.isGKETPU() {
				q.Infra.Cloud = "kubernetes"
			}
		}
		out = append(out, q)
	}
	return out
}

// agreed returns the value that all alternatives which set it share.
func agreed[V any](t *Task, get func(*Resources) *V) *V {
	list, _ := t.Resources.alternatives()
	for i := range list {
		if v := get(&list[i]); v != nil {
			return v
		}
	}
	return nil
}

// Autostop is the autostop setting that holds for every alternative; nil when none is given.
func (t *Task) Autostop() *Autostop {
	return agreed(t, func(r *Resources) *Autostop { return r.Autostop })
}

// Recovery is the job_recovery setting that holds for every alternative; nil when none is given.
func (t *Task) Recovery() *JobRecovery {
	return agreed(t, func(r *Resources) *JobRecovery { return r.JobRecovery })
}

// Priority is the priority, 0 by default, and the priority class.
func (t *Task) Priority() (priority int, class string) {
	if p := agreed(t, func(r *Resources) *int { return r.Priority }); p != nil {
		priority = *p
	}
	if c := agreed(t, func(r *Resources) *string { return nonEmpty(r.PriorityClass) }); c != nil {
		class = *c
	}
	return priority, class
}

func nonEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// PortsOpened is every port that some alternative opens.
func (t *Task) PortsOpened() Ports {
	list, _ := t.Resources.alternatives()
	var out Ports
	for _, r := range list {
		out = out.Union(r.Ports)
	}
	return out
}

// AcceleratorsPerNode is the number of accelerators rounded up that the first alternative asks for.
func (t *Task) AcceleratorsPerNode() int {
	a := t.Candidates()[0][0].Accelerator
	if a == nil {
		return 0
	}
	n := int(a.Count)
	if float64(n) < a.Count {
		n++
	}
	return n
}
