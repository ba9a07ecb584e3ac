//go:build linux

package proctree

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// SetSubreaper makes this process the new parent of orphans below it.
func SetSubreaper() error { return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// stat reads one line of the process table. See proc_pid_stat(5): the name may hold anything, so fields count from the
// last parenthesis: state, ppid, pgrp, session, …, starttime as the 20th.
func stat(pid int) (Entry, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Entry{}, false
	}
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return Entry{}, false
	}
	f := bytes.Fields(b[i+1:])
	if len(f) < 20 {
		return Entry{}, false
	}
	num := func(k int) int { n, _ := strconv.Atoi(string(f[k])); return n }
	start, _ := strconv.ParseUint(string(f[19]), 10, 64)
	return Entry{
		Proc:    Proc{PID: pid, Start: start},
		Parent:  num(1),
		Group:   num(2),
		Session: num(3),
		Zombie:  f[0][0] == 'Z' || f[0][0] == 'X',
	}, true
}

// Table lists every process that can be seen.
func Table() []Entry {
	var out []Entry
	for _, pid := range pids() {
		if e, ok := stat(pid); ok {
			out = append(out, e)
		}
	}
	return out
}

func pids() []int {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	var out []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// WithEnv lists living processes that were started with this "NAME=value" in their environment, as far as it may be read.
func WithEnv(entry string) []Proc {
	want := []byte(entry)
	var out []Proc
	for _, pid := range pids() {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
		if err != nil || !bytes.Contains(b, want) || !hasEntry(b, want) {
			continue
		}
		if p, ok := Find(pid); ok {
			out = append(out, p)
		}
	}
	return out
}

func hasEntry(environ, want []byte) bool {
	for e := range bytes.SplitSeq(environ, []byte{0}) {
		if bytes.Equal(e, want) {
			return true
		}
	}
	return false
}

// MakeCgroup makes a child of root and opens it for starting a process in it; "" and false if cgroups are of no use there.
func MakeCgroup(root, name string) (path string, dir *os.File, ok bool) {
	if root == "" {
		return "", nil, false
	}
	path = filepath.Join(root, name)
	if err := os.Mkdir(path, 0o755); err != nil && !os.IsExist(err) {
		return "", nil, false
	}
	if _, err := os.Stat(filepath.Join(path, "cgroup.procs")); err != nil {
		os.Remove(path)
		return "", nil, false
	}
	d, err := os.Open(path)
	if err != nil {
		return "", nil, false
	}
	return path, d, true
}

// InCgroup lists the living processes of a cgroup.
func InCgroup(path string) []Proc {
	if path == "" {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
	if err != nil {
		return nil
	}
	var out []Proc
	for _, line := range bytes.Fields(b) {
		if pid, err := strconv.Atoi(string(line)); err == nil && pid > 0 {
			if p, ok := Find(pid); ok {
				out = append(out, p)
			}
		}
	}
	return out
}

// KillCgroup kills everything in a cgroup at once, where the kernel can (5.14 and later).
func KillCgroup(path string) {
	if path != "" {
		os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0)
	}
}

// RemoveCgroup removes an empty cgroup.
func RemoveCgroup(path string) {
	if path != "" {
		syscall.Rmdir(path)
	}
}

// Attr makes the attributes of a child in a session of its own, and in the cgroup if one is given.
func Attr(cgroup *os.File) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setsid: true}
	if cgroup != nil {
		a.UseCgroupFD, a.CgroupFD = true, int(cgroup.Fd())
	}
	return a
}

// Executable is the path under which this very program can be started again, also after its file was replaced.
func Executable() string { return "/proc/self/exe" }
