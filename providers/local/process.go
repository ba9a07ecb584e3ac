package local

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/agent/proctree"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/providers"
)

// table is the machine's processes by the config file they were started as init with, read when first asked.
type table struct {
	once  sync.Once
	inits map[string]proctree.Proc
}

func newTable() *table { return &table{} }

func (t *table) init(config string) (proctree.Proc, bool) {
	t.once.Do(func() {
		t.inits = map[string]proctree.Proc{}
		for pid, args := range commandLines() {
			i := slices.Index(args, "--config")
			if i < 1 || i+1 >= len(args) || args[i-1] != "init" {
				continue
			}
			proc, ok := proctree.Find(pid)
			// Of two inits the older one holds the node; the other is about to find that out.
			if old, there := t.inits[args[i+1]]; ok && (!there || proc.Start < old.Start) {
				t.inits[args[i+1]] = proc
			}
		}
	})
	p, ok := t.inits[config]
	return p, ok
}

// findInit gives the node's living init, or nil. The record knows it, unless whoever started it was killed in between.
func (p *Provider) findInit(r *record, procs *table) *proctree.Proc {
	if r.Init.PID != 0 {
		if r.Boot != bootID() || !r.Init.Alive() || r.Init.Start == 0 && !runs(r.Init.PID, r.config()) {
			return nil
		}
		return &r.Init
	}
	if r.SpawnedAt.IsZero() || r.Boot != bootID() {
		return nil
	}
	if proc, ok := procs.init(r.config()); ok {
		return &proc
	}
	return nil
}

// startLimit is how long a node may be written down and not started before it counts as given up.
const startLimit = time.Minute

// state tells what a node is, from its record and its processes.
func (p *Provider) state(r *record, procs *table) (providers.NodeState, string) {
	if p.findInit(r, procs) != nil {
		if r.Want == wantRunning {
			return providers.NodeRunning, ""
		}
		return providers.NodeStopping, r.Reason
	}
	switch r.Want {
	case wantStopped:
		return providers.NodeStopped, r.Reason
	case wantGone:
		return providers.NodeGone, r.Reason
	}
	if !r.StartingAt.IsZero() {
		return providers.NodeStopped, "its start was cut short"
	}
	var ended struct {
		Reason string `json:"reason"`
		Down   bool   `json:"down"`
	}
	if durable.ReadJSON(filepath.Join(r.agentDir(), "ended.json"), &ended) == nil {
		if ended.Down {
			return providers.NodeGone, ended.Reason
		}
		return providers.NodeStopped, ended.Reason
	}
	started := r.Init.PID != 0 || exists(filepath.Join(r.agentDir(), "init.json"))
	switch {
	case !started && time.Since(r.Created) < startLimit:
		return providers.NodePending, ""
	case !started:
		return providers.NodeGone, "never started"
	case !r.PreemptAt.IsZero() && !r.PreemptAt.After(time.Now()):
		return providers.NodeGone, ReasonPreempted
	case r.Boot != bootID():
		return providers.NodeStopped, "the machine was restarted"
	}
	if !r.Isolated && !r.Buried {
		return providers.NodeStopping, "killed" // it is gone once the processes that outlived its init are ended
	}
	return providers.NodeGone, "killed"
}

func exists(path string) bool { _, err := os.Lstat(path); return err == nil }

// tell turns records into nodes.
func (p *Provider) tell(recs []*record, procs *table) []providers.Node {
	out := make([]providers.Node, len(recs))
	for i, r := range recs {
		out[i] = r.node(p.state(r, procs))
	}
	return out
}

// killLimit bounds the wait for killed processes; more than that means that the kernel holds them.
const killLimit = 20 * time.Second

// end ends every process of a node: with a grace its init is asked first, so that jobs see SIGTERM. It returns once
// nothing of the node is left.
func (p *Provider) end(ctx context.Context, r *record, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace+killLimit)
	defer cancel()
	root := p.findInit(r, newTable())
	var tree []proctree.Proc // seen below init while it lived: orphans are found by this where nothing else marks them
	find := func() (out []proctree.Proc) {
		add := func(ps ...proctree.Proc) {
			for _, q := range ps {
				if q.Alive() && !slices.Contains(out, q) {
					out = append(out, q)
				}
			}
		}
		if root != nil && root.Alive() {
			add(*root)
			tree = append(tree, proctree.Descendants(*root)...)
		}
		add(tree...)
		for _, dir := range cgroupsBelow(r.Cgroup) {
			add(proctree.InCgroup(dir)...)
		}
		return out
	}
	marked := func() (out []proctree.Proc) {
		for _, q := range proctree.WithEnv("SKYLOOM_NODE=" + r.mark()) {
			if !r.stranger(q) {
				out = append(out, q)
			}
		}
		return out
	}
	if grace > 0 && root != nil {
		for i, deadline := 0, time.Now().Add(grace); root.Alive() && time.Now().Before(deadline); i++ {
			if i%50 == 0 { // again: the first process of a PID namespace does not get a signal that it does not handle yet
				root.Signal(syscall.SIGTERM)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	proctree.KillCgroup(r.Cgroup)
	err := proctree.End(ctx, find, 0)
	if err == nil {
		err = proctree.End(ctx, marked, 0) // what escaped all of these; it costs a look at every process
	}
	if err != nil {
		var left []string
		for _, q := range proctree.Union(find, marked)() {
			left = append(left, fmt.Sprint(q.PID))
		}
		return providers.Errorf(providers.Internal, providers.ScopeCloud, "local: processes %s of node %s do not end", strings.Join(left, ", "), r.ID)
	}
	// A cgroup that was killed once kills what is later born into it (seen on Linux 6.18): the next start makes a new one.
	removeCgroup(r.Cgroup)
	p.changeClaim(r, func(g ledger) error { return g.release(r) })
	return nil
}

// stranger says that a process bears the node's mark and lives in a like node below another Root: that of an installation
// that was copied, say.
func (r *record) stranger(q proctree.Proc) bool {
	home := filepath.Join(r.dir, "home")
	tail := filepath.Join(filepath.Base(filepath.Dir(r.dir)), filepath.Base(r.dir), "home")
	for _, v := range environ(q.PID) {
		if dir, ok := strings.CutPrefix(v, "HOME="); ok {
			return dir != home && strings.HasSuffix(dir, "/"+tail)
		}
	}
	return false
}

// remove ends a node and removes all that is left of it.
func (p *Provider) remove(ctx context.Context, r *record) error {
	if err := p.end(ctx, r, 0); err != nil {
		return err
	}
	if err := failpoint.Hit(fpKilled); err != nil {
		return internal(err, "delete node %s", r.ID)
	}
	p.disarm(r.ID)
	os.Remove(r.Socket)
	// From here on the node is not there; its files may take longer.
	var gone string
	for try := 0; exists(r.dir); try++ {
		var err error
		if gone, err = os.MkdirTemp(filepath.Join(p.root, "trash"), "gone-"); err == nil {
			err = os.Rename(r.dir, filepath.Join(gone, "node"))
		}
		// A server that just starts may have swept the empty folder away.
		if err != nil && (!os.IsNotExist(err) || try == 10) {
			return internal(err, "remove the folder of node %s", r.ID)
		}
	}
	os.Remove(filepath.Dir(r.dir)) // once it is empty
	if err := failpoint.Hit(fpRemoved); err != nil {
		return internal(err, "delete node %s", r.ID)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if gone != "" {
			removeAll(gone)
		}
	}()
	select {
	case <-done:
	case <-ctx.Done():
	case <-time.After(3 * time.Second): // the rest goes in the background, or by the next sweep
	}
	return nil
}

// removeAll removes a tree, also one whose folders a job made unwritable.
func removeAll(dir string) {
	if os.RemoveAll(dir) == nil {
		return
	}
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			os.Chmod(path, 0o700)
		}
		return nil
	})
	os.RemoveAll(dir)
}
