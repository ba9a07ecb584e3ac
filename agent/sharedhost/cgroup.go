//go:build linux

package sharedhost

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/proctree"
)

// hierarchy is a mounted cgroup tree in which this process may make folders.
type hierarchy struct {
	mount   string
	unified bool
	cpu     bool
	memory  bool
}

// hierarchies finds the cgroup trees that can be written to: the unified one, and those of CPU and memory of version 1.
var hierarchies = sync.OnceValue(func() []hierarchy {
	if os.Geteuid() != 0 {
		return nil
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []hierarchy
	seen := map[string]bool{}
	for s := bufio.NewScanner(f); s.Scan(); {
		// ID PARENT DEV ROOT MOUNTPOINT OPTIONS … - TYPE SOURCE SUPER, see proc_pid_mountinfo(5)
		before, after, _ := strings.Cut(s.Text(), " - ")
		fields, super := strings.Fields(before), strings.Fields(after)
		if len(fields) < 6 || len(super) < 3 || !strings.HasPrefix(fields[5], "rw") || seen[fields[4]] {
			continue
		}
		if st, err := os.Stat(filepath.Join(fields[4], "cgroup.procs")); err != nil || !st.Mode().IsRegular() {
			continue
		}
		h := hierarchy{mount: fields[4]}
		switch super[0] {
		case "cgroup2":
			h.unified = true
			b, _ := os.ReadFile(filepath.Join(h.mount, "cgroup.controllers"))
			for _, c := range strings.Fields(string(b)) {
				h.cpu, h.memory = h.cpu || c == "cpu", h.memory || c == "memory"
			}
		case "cgroup":
			for o := range strings.SplitSeq(super[2], ",") {
				h.cpu, h.memory = h.cpu || o == "cpu", h.memory || o == "memory"
			}
			if !h.cpu && !h.memory {
				continue
			}
		default:
			continue
		}
		seen[fields[4]] = true
		out = append(out, h)
	}
	return out
})

// limitRoots are the trees by which CPUs or memory can be limited.
func limitRoots() (out []hierarchy) {
	for _, h := range hierarchies() {
		if h.cpu || h.memory {
			out = append(out, h)
		}
	}
	return out
}

// makeCgroups makes a node's cgroups with their limits, and gives their folders, the one of the unified tree also apart.
// What can't be had is left out.
func makeCgroups(name string, cpus, memoryGB float64) (all []string, unified string) {
	for _, h := range hierarchies() {
		top := filepath.Join(h.mount, "skyloom")
		dir := filepath.Join(top, name)
		removeCgroup(dir) // a cgroup that was killed once kills what is later born into it (seen on Linux 6.18)
		if os.Mkdir(top, 0o755) != nil && !exists(top) {
			continue
		}
		if h.unified {
			for _, d := range []string{h.mount, top} {
				for _, c := range []string{"+cpu", "+memory", "+pids"} {
					os.WriteFile(filepath.Join(d, "cgroup.subtree_control"), []byte(c), 0)
				}
			}
		}
		if os.Mkdir(dir, 0o755) != nil && !exists(dir) {
			os.Remove(top)
			continue
		}
		if h.cpu {
			limitCPU(h, dir, cpus)
		}
		if h.memory {
			limitMemory(h, dir, memoryGB)
		}
		all = append(all, dir)
		// Without cgroup.kill (Linux before 5.14) it is of no use to the agent.
		if h.unified && exists(filepath.Join(dir, "cgroup.kill")) {
			unified = dir
		}
	}
	return all, unified
}

// cgroupPrefix is how the names of a node's cgroups begin.
func cgroupPrefix(r *record) string { return fmt.Sprintf("%s-%d-", r.Hash, r.Rank) }

// findCgroups finds what makeCgroups made for a node of which only the one of the unified tree is known. If not even that
// is, those of the node's prefix in which nothing runs: another root may have a like node.
func findCgroups(unified, prefix string) (all []string, _ string) {
	for _, h := range hierarchies() {
		top := filepath.Join(h.mount, "skyloom")
		if unified != "" {
			if dir := filepath.Join(top, filepath.Base(unified)); exists(dir) {
				all = append(all, dir)
			}
			continue
		}
		found, _ := filepath.Glob(filepath.Join(top, prefix+"*"))
		for _, dir := range found {
			if len(inCgroups([]string{dir})) == 0 {
				all = append(all, dir)
			}
		}
	}
	return all, unified
}

const cpuPeriod = 100_000 // microseconds

func limitCPU(h hierarchy, dir string, cpus float64) {
	if cpus <= 0 {
		return
	}
	quota := int(max(cpus*cpuPeriod, 1000))
	if h.unified {
		os.WriteFile(filepath.Join(dir, "cpu.max"), fmt.Appendf(nil, "%d %d", quota, cpuPeriod), 0)
		return
	}
	os.WriteFile(filepath.Join(dir, "cpu.cfs_period_us"), []byte(strconv.Itoa(cpuPeriod)), 0)
	os.WriteFile(filepath.Join(dir, "cpu.cfs_quota_us"), []byte(strconv.Itoa(quota)), 0)
}

func limitMemory(h hierarchy, dir string, gb float64) {
	if gb <= 0 {
		return
	}
	bytes := []byte(strconv.FormatInt(int64(gb*(1<<30)), 10))
	if h.unified {
		os.WriteFile(filepath.Join(dir, "memory.max"), bytes, 0)
		return
	}
	os.WriteFile(filepath.Join(dir, "memory.limit_in_bytes"), bytes, 0)
}

// inCgroups lists what runs in cgroups and below them.
func inCgroups(dirs []string) (out []proctree.Proc) {
	for _, top := range dirs {
		for _, d := range cgroupsBelow(top) {
			out = append(out, proctree.InCgroup(d)...)
		}
	}
	return out
}

func cgroupsBelow(dir string) (out []string) {
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			out = append(out, path)
		}
		return nil
	})
	return out
}

// removeCgroup removes an empty cgroup with those below it, and ours at the top if it was the last.
func removeCgroup(dir string) {
	if !exists(dir) {
		return
	}
	all := cgroupsBelow(dir)
	for range 50 { // a process that was just killed leaves it a moment later
		for i := len(all) - 1; i >= 0; i-- {
			os.Remove(all[i])
		}
		if !exists(dir) {
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	os.Remove(filepath.Dir(dir))
}

func exists(path string) bool { _, err := os.Lstat(path); return err == nil }
