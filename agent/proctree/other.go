//go:build unix && !linux

package proctree

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// SetSubreaper is of no effect here.
func SetSubreaper() error { return nil }

func stat(pid int) (Entry, bool) {
	for _, e := range table("-p", strconv.Itoa(pid)) {
		return e, true
	}
	return Entry{}, false
}

// Table lists every process that can be seen.
func Table() []Entry { return table("-A") }

func table(args ...string) []Entry {
	out, err := exec.Command("ps", append(args, "-o", "pid=,ppid=,pgid=,stat=")...).Output()
	if err != nil {
		return nil
	}
	var list []Entry
	for line := range strings.SplitSeq(string(out), "\n") {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		num := func(k int) int { n, _ := strconv.Atoi(f[k]); return n }
		list = append(list, Entry{Proc: Proc{PID: num(0)}, Parent: num(1), Group: num(2), Session: num(2), Zombie: f[3][0] == 'Z'})
	}
	return list
}

// WithEnv finds nothing here: other processes' environments cannot be read.
func WithEnv(string) []Proc { return nil }

// MakeCgroup says that there are no cgroups.
func MakeCgroup(string, string) (string, *os.File, bool) { return "", nil, false }

// InCgroup finds nothing here.
func InCgroup(string) []Proc { return nil }

// KillCgroup is of no effect here.
func KillCgroup(string) {}

// RemoveCgroup is of no effect here.
func RemoveCgroup(string) {}

// Attr makes the attributes of a child in a session of its own.
func Attr(*os.File) *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// Executable is the path under which this program can be started again.
func Executable() string {
	p, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return p
}
