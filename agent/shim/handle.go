package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/agent/proctree"
)

// MarkerEnv is the variable by whose value every process of an execution can be found.
const MarkerEnv = "SKYLOOM_JOB"

// DefaultGrace is the time between TERM and KILL.
const DefaultGrace = 3 * time.Second

// Spec says what to run. It is kept in a 0600 file, since Env may hold secrets.
type Spec struct {
	Script  string        `json:"script"` // path of the script's file
	Env     []string      `json:"env"`
	Cwd     string        `json:"cwd"`
	Log     string        `json:"log"`               // appended to
	Marker  string        `json:"marker"`            // value of MarkerEnv
	Cgroup  string        `json:"cgroup,omitempty"`  // parent cgroup; empty: none
	Grace   time.Duration `json:"grace,omitempty"`   // between TERM and KILL; 0 means DefaultGrace
	Timeout time.Duration `json:"timeout,omitempty"` // 0 means none
}

// Exit is the record of how an execution ended.
type Exit struct {
	Code int `json:"code"` // 128+signal if a signal ended it
	// Signal that ended the main process, 0 if it exited.
	Signal int `json:"signal,omitempty"`
	// Terminated says that the shim had been told to end it before it ended.
	Terminated bool      `json:"terminated,omitempty"`
	TimedOut   bool      `json:"timed_out,omitempty"`
	StartedAt  time.Time `json:"started_at"`
	EndedAt    time.Time `json:"ended_at"`
}

// Pids are the processes of a running execution.
type Pids struct {
	Shim  proctree.Proc `json:"shim"`
	Child proctree.Proc `json:"child"`
}

// State is what a handle finds.
type State string

// States of an execution.
const (
	NotStarted State = "not-started"
	Running    State = "running"
	Ended      State = "ended"    // there is an exit record, and nothing runs
	Vanished   State = "vanished" // it was started, nothing holds the lock, and there is no record
)

// Handle names an execution: a folder and a name in it. Its JSON form is all that is needed to find it again.
type Handle struct {
	Dir  string `json:"dir"`
	Name string `json:"name"`
}

func (h Handle) file(ext string) string { return filepath.Join(h.Dir, h.Name+ext) }

// SpecFile is where the spec stands.
func (h Handle) SpecFile() string { return h.file(".spec.json") }

// recordRoom is the size in bytes kept for each record of the shim.
const recordRoom = 512

// Prepare writes what the shim needs, the room for its exit record included. durable.ErrFull if the disk is full.
func (h Handle) Prepare(s Spec) error {
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		return durable.Full(err)
	}
	if _, err := os.Stat(h.file(".started")); err == nil {
		return nil // it runs, or ran: nothing may change
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	room := make([]byte, recordRoom)
	for i := range room {
		room[i] = ' '
	}
	// The started mark and the lock are empty files, but a folder may need a block for their names.
	for _, f := range []struct {
		path string
		data []byte
	}{{h.file(".lock"), nil}, {h.file(".exit.tmp"), room}, {h.file(".pid0.tmp"), room}, {h.file(".pid1.tmp"), room}, {h.SpecFile(), b}} {
		if err := os.WriteFile(f.path, f.data, 0o600); err != nil {
			return durable.Full(err)
		}
	}
	return nil
}

// Start starts the shim of a prepared execution; starting one that was started before does no harm. The channel is
// closed once the shim is gone.
func (h Handle) Start(exe string) (<-chan struct{}, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	cmd := &exec.Cmd{
		Path:        exe,
		Args:        []string{"sky-agent", "job-shim", "--spec", h.SpecFile()},
		Stdin:       null,
		Stdout:      null,
		Stderr:      os.Stderr,
		Dir:         "/",
		Env:         []string{"GOMAXPROCS=2", "GOGC=100"},
		SysProcAttr: proctree.Attr(nil),
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("the job's process could not be started: %w", err)
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	return done, nil
}

// Inspect tells how the execution stands.
func (h Handle) Inspect() (State, *Exit, error) {
	held, err := h.locked()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", nil, err
	}
	if held {
		if _, err := os.Stat(h.file(".started")); err == nil {
			return Running, nil, nil
		}
		return NotStarted, nil, nil
	}
	var e Exit
	switch err := durable.ReadJSON(h.file(".exit.json"), &e); {
	case err == nil:
		return Ended, &e, nil
	case !errors.Is(err, os.ErrNotExist):
		return Vanished, nil, nil // a record that cannot be read says nothing
	}
	if _, err := os.Stat(h.file(".started")); err == nil {
		return Vanished, nil, nil
	}
	return NotStarted, nil, nil
}

// locked says whether a shim holds the lock now.
func (h Handle) locked() (bool, error) {
	f, err := os.OpenFile(h.file(".lock"), os.O_RDONLY, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = flock(f, syscall.LOCK_SH|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// Gone gives a channel that is closed once no shim holds the lock: how a restarted agent waits for a shim that is not
// its child. It costs one sleeping thread.
func (h Handle) Gone() <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f, err := os.OpenFile(h.file(".lock"), os.O_RDONLY, 0)
		if err != nil {
			return
		}
		defer f.Close()
		flock(f, syscall.LOCK_SH)
	}()
	return done
}

func flock(f *os.File, how int) error {
	for {
		if err := syscall.Flock(int(f.Fd()), how); err != syscall.EINTR {
			return err
		}
	}
}

// Pids tells the processes of the execution, as recorded by the shim.
func (h Handle) Pids() (Pids, bool) {
	var p Pids
	err := durable.ReadJSON(h.file(".pid.json"), &p)
	return p, err == nil
}

// Spec reads back what Prepare wrote.
func (h Handle) Spec() (Spec, error) {
	var s Spec
	err := durable.ReadJSON(h.SpecFile(), &s)
	return s, err
}

// Kill ends the execution: the shim is asked first, which ends its tree; whatever is then left is found by cgroup and by
// marker. It returns nil only once nothing is left. One that has not started yet never will.
func (h Handle) Kill(ctx context.Context, marker, cgroup string, grace time.Duration) error {
	if f, err := os.OpenFile(h.file(".started"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err == nil {
		f.Close() // a shim that comes now finds the mark and goes
	}
	if p, ok := h.Pids(); ok && p.Shim.Alive() {
		p.Shim.Signal(syscall.SIGTERM)
		wait, cancel := context.WithTimeout(ctx, grace+2*time.Second)
		select {
		case <-h.Gone():
		case <-wait.Done():
		}
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if p.Shim.Alive() {
			// It hangs: take its tree first, lest orphans escape from below it, then itself.
			tree := func() []proctree.Proc { return proctree.Descendants(p.Shim) }
			if err := proctree.End(ctx, tree, 0); err != nil {
				return err
			}
			p.Shim.Signal(syscall.SIGKILL)
		}
		grace = 0
	}
	if grace == 0 {
		proctree.KillCgroup(cgroup)
	}
	find := proctree.Union(
		func() []proctree.Proc { return proctree.InCgroup(cgroup) },
		func() []proctree.Proc { return proctree.WithEnv(MarkerEnv + "=" + marker) },
	)
	if err := proctree.End(ctx, find, grace); err != nil {
		return err
	}
	proctree.RemoveCgroup(cgroup)
	if held, _ := h.locked(); held { // the shim is on its last instructions, or has only now come
		select {
		case <-h.Gone():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Cleanup removes the files of the execution, the log excepted.
func (h Handle) Cleanup() {
	for _, ext := range []string{".spec.json", ".lock", ".exit.tmp", ".exit.json", ".pid0.tmp", ".pid1.tmp", ".pid.json", ".started"} {
		os.Remove(h.file(ext))
	}
}

// writeRecord puts a record into the room that was kept for it, then gives it its name. Blanks may follow the JSON.
func (h Handle) writeRecord(room, name string, v any, flush bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(h.file(room), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(append(b, '\n'), 0); err != nil {
		return err
	}
	if flush {
		f.Sync()
	}
	return os.Rename(h.file(room), h.file(name))
}

// writeExit records the end for good.
func (h Handle) writeExit(e Exit) error {
	err := h.writeRecord(".exit.tmp", ".exit.json", e, true)
	durable.SyncDir(h.Dir)
	return err
}
