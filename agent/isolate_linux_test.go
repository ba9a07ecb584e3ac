package agent_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// isolate gives a node its own PID and mount namespaces.
func isolate(cmd *exec.Cmd, yes bool) {
	if yes {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS
	}
}

// outerPID finds serve, a child of init, by its id outside the namespace.
func outerPID(initPID int) int {
	dirs, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, d := range dirs {
		b, err := os.ReadFile(d)
		if err != nil {
			continue
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(d), "cmdline"))
		if len(f) > 1 && f[1] == strconv.Itoa(initPID) && strings.Contains(string(cmdline), "\x00serve\x00") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(d)))
			return pid
		}
	}
	return 0
}
