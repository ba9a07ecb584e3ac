//go:build linux

package local

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skyloom/skyloom/agent/proctree"
)

// lookAround is how often a watch looks for what nothing tells it.
const lookAround = 15 * time.Second

// canIsolate says that this process may make namespaces.
func canIsolate() bool { return os.Geteuid() == 0 }

// attributes are those of a node's init.
func attributes(namespaces bool, group *os.File) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setsid: true}
	if namespaces {
		a.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS
	}
	if group != nil {
		a.UseCgroupFD, a.CgroupFD = true, int(group.Fd())
	}
	return a
}

// bootID tells one run of the machine from another; process ids mean something within one only.
var bootID = sync.OnceValue(func() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
})

func memoryBytes() uint64 {
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) != nil {
		return 0
	}
	return s.Totalram * uint64(s.Unit)
}

// commandLines gives the arguments of every process that can be seen.
func commandLines() map[int][]string {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	out := map[int][]string{}
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		if b, err := os.ReadFile("/proc/" + n + "/cmdline"); err == nil && bytes.Contains(b, []byte("--config")) {
			out[pid] = strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		}
	}
	return out
}

// runs says that a process was started with a config file.
func runs(pid int, config string) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	return err == nil && slices.Contains(strings.Split(string(b), "\x00"), config)
}

// environ is the environment that a process was started with, as far as it may be read.
func environ(pid int) []string {
	b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	return strings.Split(string(b), "\x00")
}

// cgroupMount finds where cgroup v2 is mounted for writing, "" if nowhere.
var cgroupMount = sync.OnceValue(func() string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		// ID PARENT DEV ROOT MOUNTPOINT OPTIONS … - TYPE SOURCE SUPER, see proc_pid_mountinfo(5)
		before, after, _ := strings.Cut(s.Text(), " - ")
		fields := strings.Fields(before)
		if strings.HasPrefix(after, "cgroup2 ") && len(fields) > 5 && strings.HasPrefix(fields[5], "rw") {
			if _, err := os.Stat(filepath.Join(fields[4], "cgroup.procs")); err == nil {
				return fields[4]
			}
		}
	}
	return ""
})

// openCgroup makes and opens the node's cgroup; nil if there can be none.
func openCgroup(r *record) *os.File {
	mount := cgroupMount()
	if mount == "" {
		return nil
	}
	where := sha256.Sum256([]byte(r.dir)) // a copied installation has the same names elsewhere
	dir := filepath.Join(mount, "skyloom-"+short(r.Cluster.Installation), fmt.Sprintf("%s-%d-%x", r.Cluster.Hash, r.Rank, where[:3]))
	if exists(dir) {
		removeCgroup(dir) // see end
	}
	if os.MkdirAll(dir, 0o755) != nil {
		return nil
	}
	// Without cgroup.kill (Linux before 5.14) it is of no use to us.
	if _, err := os.Stat(filepath.Join(dir, "cgroup.kill")); err != nil {
		os.Remove(dir)
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	return f
}

// cgroupsBelow lists a cgroup and those below it, deepest last.
func cgroupsBelow(dir string) (out []string) {
	if dir == "" {
		return nil
	}
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			out = append(out, path)
		}
		return nil
	})
	return out
}

// removeCgroup removes an empty cgroup with those below it, and the installation's if it was the last.
func removeCgroup(dir string) {
	if dir == "" {
		return
	}
	all := cgroupsBelow(dir)
	for try := 0; try < 50; try++ { // a process that was just killed leaves it a moment later
		for i := len(all) - 1; i >= 0; i-- {
			os.Remove(all[i])
		}
		if _, err := os.Stat(dir); err != nil {
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	os.Remove(filepath.Dir(dir))
}

// awaitExit waits for the end of a process without holding a thread; false if ctx (nil: none) ended first.
func awaitExit(ctx context.Context, p proctree.Proc) bool {
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return pollExit(ctx, p)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	if e, ok := proctree.Find(p.PID); !ok || e.Start != p.Start {
		return true
	}
	if ctx != nil {
		defer context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })()
	}
	conn, err := f.SyscallConn()
	if err == nil {
		err = conn.Read(func(fd uintptr) bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return err == nil && n > 0
		})
	}
	if err != nil {
		if ctx != nil && ctx.Err() != nil {
			return false
		}
		return pollExit(ctx, p)
	}
	return true
}
