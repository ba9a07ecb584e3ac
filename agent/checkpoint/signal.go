package checkpoint

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/skyloom/skyloom/agent/proctree"
)

// Signal finds a signal by its name, with or without SIG.
func Signal(name string) (syscall.Signal, bool) {
	s := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG"))
	return s, s != 0
}

// Send gives a signal to those processes that handle it, and tells how many did: the others would be ended by it.
func Send(procs []proctree.Proc, sig syscall.Signal) int {
	n := 0
	for _, p := range procs {
		if handles(p.PID, sig) {
			p.Signal(sig)
			n++
		}
	}
	return n
}

// handles says that a process has a handler for a signal, as the kernel tells. See proc_pid_status(5).
func handles(pid int, sig syscall.Signal) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false
	}
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte("SigCgt:")); ok {
			mask, err := strconv.ParseUint(string(bytes.TrimSpace(rest)), 16, 64)
			return err == nil && mask>>(uint(sig)-1)&1 == 1
		}
	}
	return false
}

// Run runs a command of the user's and waits for it; its output goes to the end of the file log. When ctx ends, what it
// started is killed.
func Run(ctx context.Context, command string, env []string, cwd, log string) error {
	out, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	shell := "/bin/bash"
	if _, err := os.Stat(shell); err != nil {
		shell = "/bin/sh"
	}
	cmd := &exec.Cmd{Path: shell, Args: []string{shell, "-c", command}, Env: env, Dir: cwd, Stdout: out, Stderr: out, SysProcAttr: &syscall.SysProcAttr{Setsid: true}}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%q could not be started: %w", command, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	defer stop()
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%q took too long", command)
		}
		return fmt.Errorf("%q failed: %w", command, err)
	}
	return nil
}
