package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupName = "skyloom-lab"

// hierarchy is a mounted cgroup tree: the unified one (v2), or one of v1 with its controllers.
type hierarchy struct {
	mount       string
	v2          bool
	controllers []string
}

// wanted are the v1 controllers that a host has a cgroup in.
var wanted = map[string]bool{"cpu": true, "cpuacct": true, "memory": true, "pids": true, "freezer": true}

// hierarchies are those of this machine that a lab uses, found once.
var hierarchies = sync.OnceValue(func() []hierarchy {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []hierarchy
	seen := map[string]bool{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		before, after, ok := strings.Cut(sc.Text(), " - ")
		mount, rest := strings.Fields(before), strings.Fields(after)
		if !ok || len(mount) < 6 || len(rest) < 3 || seen[rest[0]+rest[2]] || !strings.HasPrefix(mount[5], "rw") {
			continue
		}
		h := hierarchy{mount: mount[4], v2: rest[0] == "cgroup2"}
		switch rest[0] {
		case "cgroup2":
			b, _ := os.ReadFile(h.mount + "/cgroup.controllers")
			h.controllers = strings.Fields(string(b))
		case "cgroup":
			for o := range strings.SplitSeq(rest[2], ",") {
				if wanted[o] {
					h.controllers = append(h.controllers, o)
				}
			}
			if len(h.controllers) == 0 {
				continue
			}
		default:
			continue
		}
		seen[rest[0]+rest[2]] = true
		out = append(out, h)
	}
	return out
})

func (h hierarchy) path(lab, host string) string {
	return filepath.Join(h.mount, cgroupName, lab, host)
}

// inHost is where the host sees its part of the hierarchy, below /sys/fs/cgroup, and how it mounts it.
func (h hierarchy) inHost(hybrid bool) (dir, fstab string) {
	if !h.v2 {
		names := strings.Join(h.controllers, ",")
		return "/sys/fs/cgroup/" + names, fmt.Sprintf("cgroup /sys/fs/cgroup/%s cgroup rw,%s 0 0\n", names, names)
	}
	dir = "/sys/fs/cgroup"
	if hybrid {
		dir += "/unified"
	}
	return dir, fmt.Sprintf("cgroup2 %s cgroup2 rw 0 0\n", dir)
}

func hybrid() bool {
	for _, h := range hierarchies() {
		if !h.v2 {
			return true
		}
	}
	return false
}

// CanLimit tells whether hosts can have CPUs and MemoryMB on this machine.
func CanLimit() bool {
	have := map[string]bool{}
	for _, hi := range hierarchies() {
		for _, c := range hi.controllers {
			have[c] = true
		}
	}
	return have["cpu"] && have["memory"]
}

// makeCgroups makes the host's cgroups with its limits. A limit that the machine cannot hold is an error, a missing
// hierarchy without a limit is not.
func (h *Host) makeCgroups() error {
	if (h.Spec.CPUs > 0 || h.Spec.MemoryMB > 0) && !CanLimit() {
		return fmt.Errorf("host %s: this machine has no writable cgroups for limits: make the host without CPUs and MemoryMB", h.Name)
	}
	for _, hi := range hierarchies() {
		dir := hi.path(h.lab.id, h.Name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		if hi.v2 {
			for _, up := range []string{hi.mount, filepath.Join(hi.mount, cgroupName), filepath.Join(hi.mount, cgroupName, h.lab.id)} {
				for _, c := range hi.controllers {
					_ = os.WriteFile(up+"/cgroup.subtree_control", []byte("+"+c), 0)
				}
			}
			if err := os.MkdirAll(dir+"/init.scope", 0o755); err != nil {
				return fmt.Errorf("cgroup: %w", err)
			}
		}
		for _, c := range hi.controllers {
			if err := h.limit(hi, dir, c); err != nil {
				return fmt.Errorf("cgroup limits of host %s: %w", h.Name, err)
			}
		}
	}
	return nil
}

func (h *Host) limit(hi hierarchy, dir, controller string) error {
	put := func(file, value string) error { return os.WriteFile(filepath.Join(dir, file), []byte(value), 0) }
	const period = 100_000 // microseconds
	quota := int(h.Spec.CPUs * period)
	bytes := int64(h.Spec.MemoryMB) << 20
	switch {
	case controller == "cpu" && quota > 0 && hi.v2:
		return put("cpu.max", fmt.Sprintf("%d %d", quota, period))
	case controller == "cpu" && quota > 0:
		return errors.Join(put("cpu.cfs_period_us", strconv.Itoa(period)), put("cpu.cfs_quota_us", strconv.Itoa(quota)))
	case controller == "memory" && bytes > 0 && hi.v2:
		return put("memory.max", strconv.FormatInt(bytes, 10))
	case controller == "memory" && bytes > 0:
		return put("memory.limit_in_bytes", strconv.FormatInt(bytes, 10))
	}
	return nil
}

// joinV1 moves the calling thread into the host's v1 cgroups: what it starts is born there.
func (h *Host) joinV1() error {
	tid := []byte(strconv.Itoa(unix.Gettid()))
	for _, hi := range hierarchies() {
		if hi.v2 {
			continue
		}
		if err := os.WriteFile(hi.path(h.lab.id, h.Name)+"/tasks", tid, 0); err != nil {
			return fmt.Errorf("join the cgroup: %w", err)
		}
	}
	return nil
}

// openV2 opens the host's v2 cgroup, or its part for the system's processes; nil if this machine has no v2.
func (h *Host) openV2(part string) (*os.File, error) {
	for _, hi := range hierarchies() {
		if hi.v2 {
			return os.Open(filepath.Join(hi.path(h.lab.id, h.Name), part))
		}
	}
	return nil, nil
}

// removeCgroups removes the cgroups of a host or, with host "", of a lab, deepest first. Processes on their way out hold
// them for a moment.
func removeCgroups(lab, host string) error {
	deadline := time.Now().Add(10 * time.Second)
	var errs []error
	for _, hi := range hierarchies() {
		for {
			err := removeTree(hi.path(lab, host))
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				errs = append(errs, err)
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return errors.Join(errs...)
}

func removeTree(dir string) error {
	subs, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, s := range subs {
		if s.IsDir() {
			if err := removeTree(filepath.Join(dir, s.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// Usage is what a host has used since it was made or last booted.
type Usage struct {
	CPU      time.Duration
	MemoryMB float64 // resident, with what its files on tmpfs take
	Procs    int     // processes, PID 1 and sshd among them
}

// Usage reads the host's cgroups; what this machine does not count is 0.
func (h *Host) Usage() (Usage, error) {
	var u Usage
	number := func(path string) float64 {
		b, _ := os.ReadFile(path)
		v, _ := strconv.ParseFloat(strings.TrimSpace(string(b)), 64)
		return v
	}
	for _, hi := range hierarchies() {
		dir := hi.path(h.lab.id, h.Name)
		for _, c := range hi.controllers {
			switch {
			case c == "cpuacct":
				u.CPU = time.Duration(number(dir + "/cpuacct.usage"))
			case c == "memory" && hi.v2:
				u.MemoryMB = number(dir+"/memory.current") / (1 << 20)
			case c == "memory":
				u.MemoryMB = number(dir+"/memory.usage_in_bytes") / (1 << 20)
			case c == "cpu" && hi.v2:
				b, _ := os.ReadFile(dir + "/cpu.stat")
				for line := range strings.Lines(string(b)) {
					if v, ok := strings.CutPrefix(strings.TrimSpace(line), "usage_usec "); ok {
						us, _ := strconv.ParseInt(v, 10, 64)
						u.CPU = time.Duration(us) * time.Microsecond
					}
				}
			}
		}
	}
	all, err := h.processes()
	u.Procs = len(all)
	return u, err
}
