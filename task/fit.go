package task

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// FitOptions change what Fit compares.
type FitOptions struct {
	Exec bool // for `exec` the infra is not compared, and ports are
}

var tierRank = map[string]int{"": 0, "none": 0, "low": 1, "medium": 2, "high": 3, "ultra": 4}

// Fit lists why req can't run on a cluster whose nodes are have; nothing means that it fits. CPUs and memory are not
// compared: jobs share a cluster.
func Fit(req, have Request, opts FitOptions) []string {
	var out []string
	miss := func(what, want, got string) {
		if got == "" {
			got = "none"
		}
		out = append(out, fmt.Sprintf("%s: the task asks for %s, the cluster has %s", what, want, got))
	}
	if !opts.Exec && !req.Infra.Contains(have.Infra) {
		miss("infra", req.Infra.String(), have.Infra.String())
	}
	if req.InstanceType != "" && req.InstanceType != have.InstanceType {
		miss("instance type", req.InstanceType, have.InstanceType)
	}
	if req.Accelerator != nil && !req.Accelerator.fitsIn(have.Accelerator) {
		got := ""
		if have.Accelerator != nil {
			got = have.Accelerator.String()
		}
		miss("accelerators", req.Accelerator.String(), got)
	}
	if req.AcceleratorArgs != nil && !reflect.DeepEqual(req.AcceleratorArgs, have.AcceleratorArgs) {
		out = append(out, "accelerator_args: the task and the cluster differ")
	}
	if req.SpotSaid && req.UseSpot != have.UseSpot {
		word := map[bool]string{true: "spot nodes", false: "on-demand nodes"}
		miss("use_spot", word[req.UseSpot], word[have.UseSpot])
	}
	if req.DiskTier != "best" && have.DiskTier != "best" && tierRank[req.DiskTier] > tierRank[tierOr(have.DiskTier, "medium")] {
		miss("disk_tier", req.DiskTier, tierOr(have.DiskTier, "medium"))
	}
	if req.NetworkTier == "best" && have.NetworkTier != "best" {
		miss("network_tier", "best", "standard")
	}
	if req.LocalDisk != nil && !req.LocalDisk.fitsIn(have.LocalDisk) {
		got := ""
		if have.LocalDisk != nil {
			got = have.LocalDisk.String()
		}
		miss("local_disk", req.LocalDisk.String(), got)
	}
	if len(req.Images) > 0 && !maps.Equal(req.Images, have.Images) {
		miss("image_id", images(req.Images), images(have.Images))
	}
	if opts.Exec && !have.Ports.Contains(req.Ports) {
		miss("ports", req.Ports.String(), have.Ports.String())
	}
	return out
}

func tierOr(tier, def string) string {
	if tier == "" {
		return def
	}
	return tier
}

func images(m map[string]string) string {
	if s, ok := m[""]; ok {
		return s
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, k+": "+m[k])
	}
	return strings.Join(parts, ", ")
}

// fitsIn compares name (without case) and count; by memory, the device's memory must be known in have.
func (a Accelerator) fitsIn(have *Accelerator) bool {
	switch {
	case have == nil || a.Count > have.Count:
		return false
	case a.Name != "":
		return strings.EqualFold(a.Name, have.Name)
	case a.Vendor != "" && !strings.EqualFold(a.Vendor, have.Vendor):
		return false
	}
	return have.MemoryGB == a.MemoryGB || a.MemoryAtLeast && have.MemoryGB > a.MemoryGB
}

// fitsIn allows a difference below 1 GB for exact sizes; nvme serves for ssd.
func (d LocalDisk) fitsIn(have *LocalDisk) bool {
	if have == nil || d.Mode == "nvme" && have.Mode != "nvme" {
		return false
	}
	diff := have.SizeGB - d.SizeGB
	return diff > -1 && (d.AtLeast || diff < 1)
}

// FitTask lists why t can't run on a cluster of haveNodes nodes like have: the mismatches of the alternative that comes
// closest, or nothing if one fits.
func FitTask(t *Task, have Request, haveNodes int, opts FitOptions) []string {
	var best []string
	if t.NumNodes > haveNodes {
		return []string{fmt.Sprintf("num_nodes: the task asks for %d, the cluster has %d", t.NumNodes, haveNodes)}
	}
	for _, group := range t.Candidates() {
		for _, req := range group {
			miss := Fit(req, have, opts)
			if len(miss) == 0 {
				return nil
			}
			if best == nil || len(miss) < len(best) {
				best = miss
			}
		}
	}
	return best
}
