package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ExitError is a script on a host that did not end with 0.
type ExitError struct {
	Host, Output string
	Code         int // -1: ended by a signal
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("on host %s: exit code %d: %s", e.Host, e.Code, lastLines(e.Output, 5))
}

// Run runs a script as root inside the host, not by ssh, and hands back what it printed to stdout and stderr. What it
// leaves in the background goes on. An exit code other than 0 is an *ExitError. When ctx ends the script is killed.
func (h *Host) Run(ctx context.Context, script string) (string, error) {
	return h.RunAs(ctx, "root", script)
}

// RunAs is Run as root or as the host's User.
func (h *Host) RunAs(ctx context.Context, user, script string) (string, error) {
	m, err := h.running()
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", script)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &out, 2*time.Second
	home := "/root"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	switch {
	case user == "root":
	case user == h.User:
		home = h.Home
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: userID, Gid: userID}
	default:
		return "", fmt.Errorf("host %s has no user %s", h.Name, user)
	}
	cmd.Dir = home
	cmd.Env = []string{"PATH=" + pathEnv, "HOME=" + home, "USER=" + user, "LOGNAME=" + user, "LANG=C.UTF-8"}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if m.cgroup != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(m.cgroup.Fd())
	}
	if err := m.th.do(cmd.Start); err != nil {
		return "", fmt.Errorf("on host %s: %w", h.Name, err)
	}
	err = cmd.Wait()
	if ee := (*exec.ExitError)(nil); errors.As(err, &ee) && ctx.Err() == nil {
		err = &ExitError{Host: h.Name, Output: out.String(), Code: ee.ExitCode()}
	} else if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it ended; something in the background still holds its output
	} else if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("on host %s: %w", h.Name, ctx.Err())
	}
	return out.String(), err
}

// Process is one process on a host, by the host's own numbers.
type Process struct {
	PID, PPID int
	UID       int
	State     string // R, S, D, Z, …
	Args      []string
	Cgroup    string        // the file /proc/PID/cgroup
	Start     time.Duration // after the machine's start
	environ   string
}

// Env is a variable of its environment at its start, "" if it has none of that name.
func (p Process) Env(name string) string {
	for kv := range strings.SplitSeq(p.environ, "\x00") {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

func (p Process) String() string {
	return fmt.Sprintf("%d (of %d, uid %d, %s) %s", p.PID, p.PPID, p.UID, p.State, strings.Join(p.Args, " "))
}

// Login tells whether the process is sshd's part in somebody's login.
func (p Process) Login() bool { return len(p.Args) > 0 && strings.HasPrefix(p.Args[0], "sshd: ") }

// Processes are all that run on the host but its system: PID 1 and what it started itself (sshd's listener). Kernel
// truth, not what anybody reports. A host that is down runs none.
func (h *Host) Processes() ([]Process, error) {
	all, err := h.processes()
	if err != nil && !h.Up() {
		return nil, nil
	}
	var out []Process
	for _, p := range all {
		own := p.PPID == 1 && len(p.Args) > 0 && (strings.HasPrefix(p.Args[0], "sshd: /usr/sbin/sshd") || p.Args[0] == "/usr/sbin/sshd" || p.Args[0] == "sleep" && len(p.Args) == 2 && p.Args[1] == "1")
		if p.PID != 1 && !own {
			out = append(out, p)
		}
	}
	return out, err
}

func (h *Host) processes() (out []Process, err error) {
	err = h.inside(func() error {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return err
		}
		for _, e := range entries {
			if pid, err := strconv.Atoi(e.Name()); err == nil {
				if p, ok := readProcess(pid); ok {
					out = append(out, p)
				}
			}
		}
		return nil
	})
	return out, err
}

// readProcess reads a process from /proc; false if it has gone meanwhile.
func readProcess(pid int) (Process, bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return Process{}, false
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // the name before may hold anything
	if len(f) < 20 {
		return Process{}, false
	}
	p := Process{PID: pid, State: f[0]}
	p.PPID, _ = strconv.Atoi(f[1])
	ticks, _ := strconv.ParseInt(f[19], 10, 64)
	p.Start = time.Duration(ticks) * (time.Second / 100) // USER_HZ is 100 on every architecture that we run on
	status, _ := os.ReadFile(dir + "/status")
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "Uid:"); ok {
			p.UID, _ = strconv.Atoi(strings.Fields(v)[0])
		}
	}
	if b, _ := os.ReadFile(dir + "/cmdline"); len(b) > 0 {
		p.Args = strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
	}
	env, _ := os.ReadFile(dir + "/environ")
	cg, _ := os.ReadFile(dir + "/cgroup")
	p.environ, p.Cgroup = string(env), string(cg)
	return p, true
}
