//go:build unix && !linux

package local

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skyloom/skyloom/agent/proctree"
)

// lookAround is how often a watch looks for what nothing tells it.
const lookAround = 2 * time.Second

func canIsolate() bool { return false }

func attributes(bool, *os.File) *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// bootID tells one run of the machine from another.
func bootID() string {
	tv, err := unix.SysctlTimeval("kern.boottime")
	if err != nil {
		return ""
	}
	return strconv.FormatInt(tv.Sec, 10)
}

func memoryBytes() uint64 {
	n, _ := unix.SysctlUint64("hw.memsize")
	return n
}

// commandLines gives the arguments of every process that can be seen. Arguments with blanks are told apart only where
// it matters: what follows --config is one.
func commandLines() map[int][]string {
	b, err := exec.Command("ps", "-axww", "-o", "pid=,command=").Output()
	if err != nil {
		return nil
	}
	out := map[int][]string{}
	for line := range strings.SplitSeq(string(b), "\n") {
		pid, command, _ := strings.Cut(strings.TrimSpace(line), " ")
		before, config, ok := strings.Cut(command, " --config ")
		if n, err := strconv.Atoi(pid); err == nil && ok {
			out[n] = append(strings.Fields(before), "--config", strings.TrimSpace(config))
		}
	}
	return out
}

// runs says that a process was started with a config file.
func runs(pid int, config string) bool {
	b, err := exec.Command("ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(b), config)
}

// environ cannot be read here.
func environ(int) []string { return nil }

func cgroupMount() string          { return "" }
func openCgroup(*record) *os.File  { return nil }
func cgroupsBelow(string) []string { return nil }
func removeCgroup(string)          {}

func awaitExit(ctx context.Context, p proctree.Proc) bool { return pollExit(ctx, p) }
