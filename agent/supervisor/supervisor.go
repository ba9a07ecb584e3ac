package supervisor

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/agent/proctree"
	"github.com/skyloom/skyloom/internal/failpoint"
)

// Exit codes by which serve speaks to init.
const (
	ExitRestart = 75 // start me again at once: another binary is in place
	ExitEnd     = 76 // end the node; Dir/ended.json says why
)

// Variables that init gives to serve, and through it to everything on the node.
const (
	// EnvIncarnation differs at each start of init: what was started under another one is gone.
	EnvIncarnation = "SKYLOOM_INCARNATION"
	// EnvNode marks every process of a node.
	EnvNode = "SKYLOOM_NODE"
)

// endGrace is the time between TERM and KILL when a node ends.
const endGrace = 3 * time.Second

// endLimit is how long the end of all processes is awaited.
const endLimit = 30 * time.Second

// quickDeath is the life of a serve below which its end counts as a failure to start.
const quickDeath = 3 * time.Second

// Options of an init.
type Options struct {
	ConfigFile string
	Dir        string // the agent's folder
	NodeMark   string // value of EnvNode
	Isolated   bool
	TmpDir     string // bound over /tmp of an isolated node
	CgroupRoot string
	PowerOff   bool // power the machine off once the node ended itself
	Log        *slog.Logger
}

// Ended is Dir/ended.json: why a node ended itself.
type Ended struct {
	Time       time.Time `json:"time"`
	Reason     string    `json:"reason"`
	Down       bool      `json:"down"`
	Generation int64     `json:"generation"`
}

// EndedFile is the name of that file in the agent's folder.
const EndedFile = "ended.json"

// State is Dir/init.json.
type State struct {
	proctree.Proc
	Incarnation string `json:"incarnation"`
}

type initd struct {
	Options
	incarnation string
	deaths      chan death
	wake        chan struct{}
}

type death struct {
	pid int
	ws  syscall.WaitStatus
}

// Run is init's life. It gives the exit code of the process.
func Run(o Options) int {
	if err := run(o); err != nil {
		o.Log.Error("init failed", "error", err)
		fmt.Fprintln(os.Stderr, "sky-agent init:", err)
		return 1
	}
	return 0
}

// HostsFile is what is bound over /etc/hosts of an isolated node.
func HostsFile(dir string) string { return filepath.Join(dir, "hosts") }

func run(o Options) error {
	term := make(chan os.Signal, 2)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGPIPE) // not ignored, lest jobs inherit that
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(o.Dir, "init.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("another agent runs in %s already (%w); end it first", o.Dir, err)
	}
	if o.Isolated && os.Getpid() == 1 {
		// Without its own /proc a node would take its process ids for those outside.
		if err := ownProc(); err != nil {
			return fmt.Errorf("the node's own /proc cannot be mounted: %w", err)
		}
		if err := ownHosts(HostsFile(o.Dir)); err != nil {
			o.Log.Warn("/etc/hosts is shared with the machine", "error", err)
		}
		if o.TmpDir != "" {
			if err := ownTmp(o.TmpDir); err != nil {
				o.Log.Warn("/tmp is shared with the machine", "error", err)
			}
		}
	}
	if err := proctree.SetSubreaper(); err != nil {
		o.Log.Warn("orphans will not come back to init", "error", err)
	}
	os.Remove(filepath.Join(o.Dir, EndedFile))
	var id [8]byte
	rand.Read(id[:])
	d := &initd{Options: o, incarnation: hex.EncodeToString(id[:]), deaths: make(chan death), wake: make(chan struct{}, 1)}
	os.Setenv(EnvIncarnation, d.incarnation)
	os.Setenv(EnvNode, o.NodeMark)
	if os.Getenv(failpoint.Env) != "" && os.Getenv(failpoint.EnvDir) == "" {
		marks := filepath.Join(o.Dir, "failpoints")
		if err := os.MkdirAll(marks, 0o700); err != nil {
			return err
		}
		os.Setenv(failpoint.EnvDir, marks)
	}
	if err := durable.WriteJSON(filepath.Join(o.Dir, "init.json"), State{proctree.Self(), d.incarnation}); err != nil {
		o.Log.Warn("init.json was not written", "error", err)
	}
	go d.reap()
	ended := d.supervise(term)
	d.endAll()
	if ended && o.PowerOff {
		powerOff(o.Log)
	}
	return nil
}

// reap collects every child that ends, orphans included.
func (d *initd) reap() {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			<-d.wake // no child: wait for the next start
		default:
			d.deaths <- death{pid, ws}
		}
	}
}

// supervise keeps serve running. It returns on a signal, or (true) when serve says that the node is to end.
func (d *initd) supervise(term <-chan os.Signal) bool {
	backoff := 100 * time.Millisecond
	quick := 0
	for {
		exe := d.binary(quick)
		born := time.Now()
		pid, err := d.start(exe)
		if err != nil {
			d.Log.Error("the agent cannot be started", "binary", exe, "error", err)
			quick++
		} else {
			ws, signalled := d.await(pid, term)
			if signalled {
				return false
			}
			switch {
			case ws.Exited() && ws.ExitStatus() == ExitEnd:
				return true
			case ws.Exited() && ws.ExitStatus() == ExitRestart:
				d.Log.Info("the agent restarts with the binary in place")
				backoff, quick = 100*time.Millisecond, 0
				continue
			}
			if ws.Signaled() {
				d.Log.Warn("the agent was killed and is started again", "signal", ws.Signal().String())
			} else {
				d.Log.Warn("the agent ended and is started again", "status", ws.ExitStatus())
			}
			if _, err := os.Stat(d.ConfigFile); errors.Is(err, os.ErrNotExist) {
				d.Log.Error("the node's config is gone: the node ends", "file", d.ConfigFile)
				return false
			}
			if time.Since(born) < quickDeath {
				quick++
			} else {
				backoff, quick = 100*time.Millisecond, 0
			}
		}
		if d.pause(backoff, term) {
			return false
		}
		backoff = min(2*backoff, 5*time.Second)
	}
}

// pause waits, and says whether a signal came.
func (d *initd) pause(wait time.Duration, term <-chan os.Signal) bool {
	t := time.NewTimer(wait)
	defer t.Stop()
	for {
		select {
		case <-term:
			return true
		case <-d.deaths:
		case <-t.C:
			return false
		}
	}
}

// binary chooses what to start: the binary that an upgrade put in place, unless it died too often right away; then the
// one before it and this program take turns with it.
func (d *initd) binary(quick int) string {
	placed := filepath.Join(d.Dir, "bin", "sky-agent")
	choices := []string{placed}
	if quick >= 3 {
		choices = [][]string{{proctree.Executable()}, {placed}, {placed + ".prev"}}[quick%3]
	}
	for _, c := range choices {
		if fi, err := os.Stat(c); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return c
		}
	}
	return proctree.Executable()
}

func (d *initd) start(exe string) (int, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	pid, err := syscall.ForkExec(exe, []string{"sky-agent", "serve", "--config", d.ConfigFile}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   os.Environ(),
		Files: []uintptr{null.Fd(), 1, 2},
		Sys:   proctree.Attr(nil),
	})
	if err != nil {
		return 0, err
	}
	select {
	case d.wake <- struct{}{}:
	default:
	}
	return pid, nil
}

// await waits for serve's end. On a signal it ends serve first, so that it sees nothing of the end of the jobs.
func (d *initd) await(pid int, term <-chan os.Signal) (ws syscall.WaitStatus, signalled bool) {
	var kill <-chan time.Time
	for {
		select {
		case x := <-d.deaths:
			if x.pid == pid {
				return x.ws, signalled
			}
		case <-term:
			if !signalled {
				signalled = true
				syscall.Kill(pid, syscall.SIGTERM)
				kill = time.After(2 * time.Second)
			}
		case <-kill:
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// endAll ends every process of the node but init.
func (d *initd) endAll() {
	ctx, cancel := context.WithTimeout(context.Background(), endLimit)
	defer cancel()
	go func() {
		for range d.deaths { // the reaper goes on, nobody cares for whom
		}
	}()
	me, self := os.Getpid(), proctree.Self()
	find := func() []proctree.Proc {
		var out []proctree.Proc
		if me == 1 {
			for _, e := range proctree.Table() {
				if e.PID != me && !e.Zombie {
					out = append(out, e.Proc)
				}
			}
			return out
		}
		for _, p := range proctree.Union(
			func() []proctree.Proc { return proctree.Descendants(self) },
			func() []proctree.Proc { return proctree.WithEnv(EnvNode + "=" + d.NodeMark) },
			func() []proctree.Proc { return inCgroups(d.CgroupRoot) },
		)() {
			if p.PID != me {
				out = append(out, p)
			}
		}
		return out
	}
	if err := proctree.End(ctx, find, endGrace); err != nil {
		left := find()
		d.Log.Error("processes of the node are left", "pids", fmt.Sprint(left))
	}
}

// inCgroups lists what runs in the jobs' cgroups.
func inCgroups(root string) []proctree.Proc {
	if root == "" {
		return nil
	}
	dirs, _ := filepath.Glob(filepath.Join(root, "job-*"))
	var out []proctree.Proc
	for _, d := range dirs {
		out = append(out, proctree.InCgroup(d)...)
	}
	return out
}

// ReadEnded reads why a node ended itself; nil if it did not.
func ReadEnded(dir string) *Ended {
	var e Ended
	if err := durable.ReadJSON(filepath.Join(dir, EndedFile), &e); err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			return &Ended{Reason: "the node ended itself; why cannot be read: " + err.Error()}
		}
		return nil
	}
	return &e
}
