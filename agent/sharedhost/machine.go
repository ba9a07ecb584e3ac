//go:build linux

package sharedhost

import (
	"bufio"
	"context"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skyloom/skyloom/agent/claims"
	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/agent/gpus"
)

// machine tells what there is to be claimed, and an error about GPUs that is no reason to give up.
func machine(ctx context.Context, root string) (m claims.Machine, gpuErr error) {
	m.CPUs, m.MemoryGB = float64(cpus()), math.Floor(float64(memory())/(1<<30)*10)/10
	if q := cgroupCPUs(); q > 0 && q < m.CPUs {
		m.CPUs = q
	}
	m.GPUs, gpuErr = devices(ctx, root)
	return m, gpuErr
}

// devicesFor is how long the devices found stay true: nvidia-smi takes up to a second, and a device rarely comes or goes.
const devicesFor = 5 * time.Minute

type deviceCache struct {
	Boot string     `json:"boot"`
	At   time.Time  `json:"at"`
	GPUs []gpus.GPU `json:"gpus"`
}

func devices(ctx context.Context, root string) ([]gpus.GPU, error) {
	if _, err := os.Stat("/dev/nvidiactl"); err != nil {
		if g, _ := filepath.Glob("/dev/nvidia[0-9]*"); len(g) == 0 {
			// No driver. nvidia-smi may still know better, where a container hides the devices.
			return gpus.Find(ctx)
		}
	}
	path := filepath.Join(root, "gpus.json")
	var c deviceCache
	age := time.Duration(0)
	if durable.ReadJSON(path, &c) == nil {
		age = time.Since(c.At)
	}
	if c.Boot == claims.BootID() && age > 0 && age < devicesFor {
		return c.GPUs, nil
	}
	found, err := gpus.Find(ctx)
	if err != nil {
		return nil, err
	}
	durable.WriteJSON(path, deviceCache{claims.BootID(), time.Now(), found})
	return found, nil
}

// cpus counts processors: as /proc tells, which in a container may be fewer than the kernel has.
func cpus() int {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return runtime.NumCPU()
	}
	defer f.Close()
	n := 0
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.HasPrefix(s.Text(), "processor") {
			n++
		}
	}
	if n == 0 {
		return runtime.NumCPU()
	}
	return n
}

// memory is in bytes.
func memory() uint64 {
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		for line := range strings.SplitSeq(string(b), "\n") {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "MemTotal:" {
				kb, _ := strconv.ParseUint(f[1], 10, 64)
				return kb << 10
			}
		}
	}
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) != nil {
		return 0
	}
	return s.Totalram * uint64(s.Unit)
}

// cgroupCPUs is the limit of the cgroup at the top that this machine shows, as a container has one; 0: none.
func cgroupCPUs() float64 {
	b, err := os.ReadFile("/sys/fs/cgroup/cpu.max")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) != 2 || f[0] == "max" {
		return 0
	}
	q, _ := strconv.ParseFloat(f[0], 64)
	p, _ := strconv.ParseFloat(f[1], 64)
	if p <= 0 {
		return 0
	}
	return q / p
}

func diskFreeGB(dir string) float64 {
	var s unix.Statfs_t
	for ; dir != "/" && dir != "."; dir = filepath.Dir(dir) {
		if unix.Statfs(dir, &s) == nil {
			return float64(s.Bavail) * float64(s.Bsize) / 1e9
		}
	}
	return 0
}

// unameArch is the machine's architecture as uname tells.
func unameArch() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return runtime.GOARCH
	}
	return unix.ByteSliceToString(u.Machine[:])
}

// contendsFor is how long a claim counts as one of a moment ago, by the machine's own clock.
const contendsFor = 15 * time.Second

// info tells about the machine.
func (h *host) info(ctx context.Context) (*Info, error) {
	m, gpuErr := machine(ctx, h.root())
	l, err := claims.Open(ctx, h.claimsDir)
	if err != nil {
		return nil, err
	}
	live, err := l.Live()
	l.Close()
	if err != nil {
		return nil, err
	}
	free := claims.Free(m, live)
	name, _ := os.Hostname()
	i := &Info{Arch: unameArch(), CPUs: m.CPUs, MemoryGB: m.MemoryGB, FreeCPUs: free.CPUs, FreeMemoryGB: free.MemoryGB, DiskFreeGB: diskFreeGB(h.root()),
		Root: os.Geteuid() == 0, Limits: len(limitRoots()) > 0, BootID: claims.BootID(), Hostname: name}
	if gpuErr != nil {
		i.GPUError = gpuErr.Error()
	}
	for _, g := range m.GPUs {
		i.GPUs = append(i.GPUs, GPU(g))
	}
	for _, g := range free.GPUs {
		i.FreeGPUs = append(i.FreeGPUs, g.ID)
	}
	for _, c := range live {
		i.Claims = append(i.Claims, Holder{Node: c.ID, Installation: c.Installation, Cluster: c.Cluster, User: c.User, CPUs: c.CPUs, MemoryGB: c.MemoryGB, GPUs: c.GPUs,
			Contends: c.Nodes > 1 && time.Since(c.Since) < contendsFor})
	}
	return i, nil
}
