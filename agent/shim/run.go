package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/agent/proctree"
)

// leftoverTime bounds how long the end of what a script left behind is awaited after KILL.
const leftoverTime = 30 * time.Second

// CgroupName is the name of the execution's own cgroup below Spec.Cgroup.
func CgroupName(marker, name string) string { return "job-" + marker + "-" + name }

// Run is the shim's whole life. It returns the exit code of the shim, which says nothing of the script's.
func Run(specFile string) int {
	// Taken, not ignored: what is ignored stays so in the script.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE, syscall.SIGQUIT)
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	h := Handle{Dir: filepath.Dir(specFile), Name: strings.TrimSuffix(filepath.Base(specFile), ".spec.json")}
	spec, err := h.Spec()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sky-agent job-shim:", err)
		return 2
	}
	lock, err := os.OpenFile(h.file(".lock"), os.O_RDWR, 0)
	if err != nil {
		return 2
	}
	// Only one runs at a time; one that waited finds the mark of the other and goes.
	if err := flock(lock, syscall.LOCK_EX); err != nil {
		return 2
	}
	proctree.SetSubreaper()
	// The process ids come before the mark: whoever finds the mark finds them too.
	pids := Pids{Shim: proctree.Self()}
	if err := h.writeRecord(".pid0.tmp", ".pid.json", pids, false); err != nil {
		fmt.Fprintln(os.Stderr, "sky-agent job-shim:", err)
		return 2
	}
	mark, err := os.OpenFile(h.file(".started"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return 0
	}
	mark.Close()
	r := runner{h: h, spec: spec, pids: pids, term: term}
	r.run()
	return 0
}

type runner struct {
	h      Handle
	spec   Spec
	pids   Pids
	term   <-chan os.Signal
	cgroup string
	start  time.Time
}

func (r *runner) run() {
	r.start = time.Now()
	log, err := os.OpenFile(r.spec.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		os.MkdirAll(filepath.Dir(r.spec.Log), 0o755)
		log, err = os.OpenFile(r.spec.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	}
	if err != nil {
		r.fail(nil, 1, fmt.Errorf("the log file cannot be opened: %w", err))
		return
	}
	defer log.Close()
	pid, err := r.exec(log)
	if err != nil {
		r.fail(log, 127, err)
		return
	}
	r.pids.Child, _ = proctree.Find(pid)
	r.pids.Child.PID = pid
	r.h.writeRecord(".pid1.tmp", ".pid.json", r.pids, false)
	r.await(pid)
}

// exec starts the script with bash, or sh where there is none.
func (r *runner) exec(log *os.File) (int, error) {
	shell, err := shellPath(r.spec.Env)
	if err != nil {
		return 0, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	name := CgroupName(r.spec.Marker, r.h.Name)
	path, dir, ok := proctree.MakeCgroup(r.spec.Cgroup, name)
	start := func(dir *os.File) (int, error) {
		return syscall.ForkExec(shell, []string{filepath.Base(shell), r.spec.Script}, &syscall.ProcAttr{
			Dir:   r.spec.Cwd,
			Env:   r.spec.Env,
			Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
			Sys:   proctree.Attr(dir),
		})
	}
	if ok {
		defer dir.Close()
		if pid, err := start(dir); err == nil {
			r.cgroup = path
			return pid, nil
		}
		proctree.RemoveCgroup(path)
	}
	pid, err := start(nil)
	if err != nil {
		return 0, fmt.Errorf("%s cannot be started in %s: %w", shell, r.spec.Cwd, err)
	}
	return pid, nil
}

// shellPath finds bash, else sh, on the script's PATH and in the usual folders.
func shellPath(env []string) (string, error) {
	dirs := []string{"/bin", "/usr/bin"}
	for _, kv := range env {
		if path, ok := strings.CutPrefix(kv, "PATH="); ok {
			dirs = append(filepath.SplitList(path), dirs...)
		}
	}
	for _, name := range []string{"bash", "sh"} {
		for _, d := range dirs {
			p := filepath.Join(d, name)
			if fi, err := os.Stat(p); filepath.IsAbs(p) && err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
				return p, nil
			}
		}
	}
	return "", errors.New("the node has neither bash nor sh")
}

// fail records an execution that never came to run, and says why in its log.
func (r *runner) fail(log *os.File, code int, err error) {
	if log != nil {
		fmt.Fprintf(log, "sky: %v\n", err)
	} else {
		fmt.Fprintln(os.Stderr, "sky-agent job-shim:", err)
	}
	r.record(Exit{Code: code})
}

func (r *runner) record(e Exit) {
	e.StartedAt, e.EndedAt = r.start.UTC(), time.Now().UTC()
	for range 600 {
		err := r.h.writeExit(e)
		if err == nil {
			return
		}
		if _, serr := os.Stat(r.h.Dir); os.IsNotExist(serr) {
			return // the node is being removed
		}
		fmt.Fprintln(os.Stderr, "sky-agent job-shim: exit record:", durable.Full(err))
		time.Sleep(time.Second)
	}
}

// await reaps children (as a subreaper: orphans too) until the script has ended and nothing is left of its tree.
func (r *runner) await(main int) {
	ended := make(chan syscall.WaitStatus, 1)
	empty := make(chan struct{})
	go func() {
		defer close(empty)
		for {
			var ws syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &ws, 0, nil)
			switch {
			case err == syscall.EINTR:
			case err != nil:
				return // no child is left
			case pid == main:
				ended <- ws
			}
		}
	}()
	var timeout <-chan time.Time
	if r.spec.Timeout > 0 {
		timeout = time.After(r.spec.Timeout)
	}
	var e Exit
	var ws syscall.WaitStatus
	grace := r.spec.Grace
	if grace == 0 {
		grace = DefaultGrace
	}
	select {
	case ws = <-ended:
	case <-r.term:
		e.Terminated = true
	case <-timeout:
		e.TimedOut, e.Terminated = true, true
	}
	if e.Terminated {
		go r.endTree(grace)
		ws = <-ended
	}
	e.Code = ws.ExitStatus()
	if ws.Signaled() {
		e.Signal = int(ws.Signal())
		e.Code = 128 + e.Signal
	}
	r.record(e)
	select {
	case <-empty:
	case <-time.After(20 * time.Millisecond): // the last children end by themselves most often
		if !e.Terminated {
			go r.endTree(grace)
		}
		select {
		case <-empty:
		case <-time.After(grace + leftoverTime):
		}
	}
	proctree.RemoveCgroup(r.cgroup)
}

// endTree ends everything below the shim and in the cgroup: TERM, then KILL after grace.
func (r *runner) endTree(grace time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), grace+leftoverTime)
	defer cancel()
	if r.cgroup != "" {
		time.AfterFunc(grace, func() { proctree.KillCgroup(r.cgroup) })
	}
	proctree.End(ctx, proctree.Union(
		func() []proctree.Proc { return proctree.Descendants(proctree.Self()) },
		func() []proctree.Proc { return proctree.InCgroup(r.cgroup) },
		func() []proctree.Proc { return proctree.WithEnv(MarkerEnv + "=" + r.spec.Marker) },
	), grace)
}
