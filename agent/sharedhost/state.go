//go:build linux

package sharedhost

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/skyloom/skyloom/agent/claims"
	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/agent/proctree"
)

// findInit gives the node's living init, or nil. The record knows it, unless whoever started it was killed in between.
func (r *record) findInit() *proctree.Proc {
	if r.Boot != claims.BootID() {
		return nil
	}
	if r.Init.PID != 0 {
		if r.Init.Alive() {
			return &r.Init
		}
		return nil
	}
	if r.SpawnedAt.IsZero() {
		return nil
	}
	if p := claims.FindInit(r.config()); p.PID != 0 {
		return &p
	}
	return nil
}

// startLimit is how long a node may be written down and not started before it counts as given up.
const startLimit = time.Minute

// state tells what a node is, from its record and its processes.
func (r *record) state() (string, string) {
	if r.findInit() != nil {
		if r.Want == wantRunning {
			return StateRunning, ""
		}
		return StateStopping, ""
	}
	if r.Want == wantStopped {
		return StateStopped, ""
	}
	var ended struct {
		Reason string `json:"reason"`
		Down   bool   `json:"down"`
	}
	if durable.ReadJSON(filepath.Join(r.agentDir(), "ended.json"), &ended) == nil {
		if ended.Down {
			return StateGone, ended.Reason
		}
		return StateStopped, ended.Reason
	}
	started := r.Init.PID != 0 || exists(filepath.Join(r.agentDir(), "init.json"))
	switch {
	case !started && time.Since(r.Created) < startLimit && r.Boot == claims.BootID():
		return StatePending, ""
	case !started:
		return StateGone, "never started"
	case r.Boot != claims.BootID():
		return StateStopped, "the machine was restarted"
	case !r.Isolated && !r.Buried:
		return StateStopping, "killed" // it is gone once the processes that outlived its init are ended
	}
	return StateGone, "killed"
}

const (
	// stopGrace is what jobs get between SIGTERM and SIGKILL when a node stops: the agent's own grace and a little more.
	stopGrace = 6 * time.Second
	// killLimit bounds the wait for killed processes; more than that means that the kernel holds them.
	killLimit = 20 * time.Second
)

// end ends every process of a node: with a grace its init is asked first, so that jobs see SIGTERM. It returns once
// nothing of the node is left.
func (r *record) end(ctx context.Context, grace time.Duration) error {
	if r.Root && os.Geteuid() != 0 {
		return fmt.Errorf("node %s runs as root, and root can't be had now: make sudo work without a password again", r.ID)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace+killLimit)
	defer cancel()
	init := r.findInit()
	var tree []proctree.Proc // seen below init while it lived: orphans are found by this where nothing else marks them
	find := func() (out []proctree.Proc) {
		add := func(ps ...proctree.Proc) {
			for _, q := range ps {
				if q.Alive() && !slices.Contains(out, q) && q.PID != os.Getpid() {
					out = append(out, q)
				}
			}
		}
		if init != nil && init.Alive() {
			add(*init)
			tree = append(tree, proctree.Descendants(*init)...)
		}
		add(tree...)
		if r.Boot == claims.BootID() {
			add(inCgroups(r.Cgroups)...)
		}
		return out
	}
	marked := func() (out []proctree.Proc) {
		for _, q := range proctree.WithEnv("SKYLOOM_NODE=" + r.mark()) {
			if q.PID != os.Getpid() && !r.stranger(q) {
				out = append(out, q)
			}
		}
		return out
	}
	if grace > 0 && init != nil {
		for i, deadline := 0, time.Now().Add(grace); init.Alive() && time.Now().Before(deadline); i++ {
			if i%50 == 0 { // again: the first process of a PID namespace does not get a signal that it does not handle yet
				init.Signal(syscall.SIGTERM)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	proctree.KillCgroup(r.Unified)
	err := proctree.End(ctx, find, 0)
	if err == nil && !(r.Isolated && r.Boot == claims.BootID() && r.Init.PID != 0) {
		err = proctree.End(ctx, marked, 0) // what escaped all of these; it costs a look at every process
	}
	if err != nil {
		var left []string
		for _, q := range proctree.Union(find, marked)() {
			left = append(left, fmt.Sprint(q.PID))
		}
		return fmt.Errorf("processes %s of node %s do not end", strings.Join(left, ", "), r.ID)
	}
	for _, d := range r.Cgroups {
		removeCgroup(d)
	}
	return nil
}

// stranger says that a process bears the node's mark and lives in a like node below another root: that of an installation
// that was copied, say.
func (r *record) stranger(q proctree.Proc) bool {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", q.PID))
	home := filepath.Join(r.dir, "home")
	for v := range strings.SplitSeq(string(b), "\x00") {
		if dir, ok := strings.CutPrefix(v, "HOME="); ok {
			return dir != home && strings.HasSuffix(dir, "/"+filepath.Base(r.dir)+"/home")
		}
	}
	return false
}
