package agent

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"fmt"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/agent/shim"
	"github.com/skyloom/skyloom/api"
)

// partWait is the longest that a question for a part's state is held open.
const partWait = 25 * time.Second

// part is what this node does for a job.
type part struct {
	partRecord
	version int64 // raised at each change, from 1; not kept
	// launches counts shims that died before the script began.
	launches int
}

// partRequest asks a node to get ready for its part of a job. It is idempotent by (JobID, Nonce).
type partRequest struct {
	JobID    int64         `json:"job_id"`
	Nonce    string        `json:"nonce"`
	Key      string        `json:"key"`
	Epoch    int64         `json:"epoch"`
	Name     string        `json:"name"`
	NodeName string        `json:"node"`
	Rank     int           `json:"rank"` // -1: setup only
	Nodes    int           `json:"nodes"`
	LogDir   string        `json:"log_dir"`
	RunLog   string        `json:"run_log"`
	Workdir  bool          `json:"workdir,omitempty"`
	Setup    string        `json:"setup,omitempty"`
	Run      string        `json:"run,omitempty"`
	SetupEnv []string      `json:"setup_env,omitempty"`
	RunEnv   []string      `json:"run_env,omitempty"`
	Devices  []deviceShare `json:"devices,omitempty"`
}

// partRef names a part.
type partRef struct {
	JobID int64  `json:"job_id"`
	Nonce string `json:"nonce"`
	Epoch int64  `json:"epoch"`
}

// partState is what a node answers about a part.
type partState struct {
	partRecord
	Version int64 `json:"version"`
}

// over says that nothing of the part runs or will run.
func (p *partRecord) over() bool {
	if p.Gone || p.Status.Terminal() {
		return true
	}
	return false
}

// busy says that the part holds its devices.
func (p *partRecord) busy() bool {
	return p.HasRun && p.Rank >= 0 && !p.over() && !p.Run.Ended
}

func (a *Agent) partDir(id int64) string { return a.path("jobs", fmt.Sprint(id)) }

func (a *Agent) handle(p *partRecord, phase string) shim.Handle {
	return shim.Handle{Dir: filepath.Join(a.partDir(p.JobID), p.Nonce), Name: phase}
}

func (a *Agent) logFile(p *partRecord, phase string) string {
	name := "setup.log"
	if phase == phaseRun {
		name = p.RunLog
	}
	return filepath.Join(a.cfg.Home, p.LogDir, "tasks", name)
}

// changedPart raises a part's version, puts it into the batch and wakes who waits. The caller holds a.mu.
func (a *Agent) changedPart(b *durable.Batch, p *part) {
	p.version++
	b.Put(partKey(p.JobID), p.partRecord)
	a.notify()
}

// findPart gives a part by its reference. The caller holds a.mu.
func (a *Agent) findPart(ref partRef) (*part, error) {
	if ref.Epoch < a.epoch() {
		return nil, staleEpoch(ref.Epoch, a.epoch())
	}
	p := a.parts[ref.JobID]
	if p == nil || p.Nonce != ref.Nonce {
		return nil, notFound("this node knows nothing of job %d (%s)", ref.JobID, ref.Nonce)
	}
	return p, nil
}

func (p *part) state() partState { return partState{p.partRecord, p.version} }

// preparePart reserves what the part needs and writes its scripts. Nothing is started.
func (a *Agent) preparePart(r partRequest) (partState, error) {
	if !filepath.IsLocal(r.LogDir) || (r.RunLog != "" && r.RunLog != filepath.Base(r.RunLog)) || r.Nonce != filepath.Base(r.Nonce) || r.Nonce == "" {
		return partState{}, invalid("the part's paths are not within the node's folders")
	}
	a.mu.Lock()
	if r.Epoch < a.epoch() {
		defer a.mu.Unlock()
		return partState{}, staleEpoch(r.Epoch, a.epoch())
	}
	old := a.parts[r.JobID]
	if old != nil && old.Nonce == r.Nonce {
		defer a.mu.Unlock()
		return old.state(), nil
	}
	a.mu.Unlock()
	if old != nil && !old.over() { // of a head that forgot: its copy must end first
		ctx, cancel := a.context()
		_, err := a.killPart(ctx, partRef{old.JobID, old.Nonce, r.Epoch}, a.cfg.KillGrace)
		cancel()
		if err != nil {
			return partState{}, err
		}
	}
	a.failpoint("before-prepare")
	p := &part{partRecord: partRecord{
		JobID: r.JobID, Nonce: r.Nonce, Key: r.Key, Epoch: r.Epoch, Name: r.Name, NodeName: r.NodeName, Rank: r.Rank, Nodes: r.Nodes,
		LogDir: r.LogDir, RunLog: r.RunLog, HasSetup: r.Setup != "", HasRun: r.Run != "" && r.Rank >= 0, Devices: r.Devices,
	}, version: 1}
	if err := a.writePart(&p.partRecord, r); err != nil {
		return partState{}, diskError(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if cur := a.parts[r.JobID]; cur != old {
		return partState{}, conflict("job %d is being prepared already", r.JobID)
	}
	if err := a.devicesFree(p); err != nil {
		return partState{}, err
	}
	b := &durable.Batch{}
	b.Put(partKey(p.JobID), p.partRecord)
	if err := a.tryCommit(b); err != nil {
		return partState{}, err
	}
	a.parts[p.JobID] = p
	a.notify()
	return p.state(), nil
}

// devicesFree says if another part still holds what this one is to get. The caller holds a.mu.
func (a *Agent) devicesFree(p *part) error {
	used := map[int]float64{}
	for _, q := range a.parts {
		if q.busy() && q.JobID != p.JobID {
			for _, d := range q.Devices {
				used[d.Index] += d.Share
			}
		}
	}
	for _, d := range p.Devices {
		if used[d.Index]+d.Share > 1+slack {
			return conflict("accelerator %d of %s is still held by another job", d.Index, p.NodeName)
		}
	}
	return nil
}

// writePart writes scripts, specs and log folders.
func (a *Agent) writePart(p *partRecord, r partRequest) error {
	dir := a.handle(p, phaseRun).Dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	cwd := a.cfg.Home
	if r.Workdir {
		cwd = filepath.Join(a.cfg.Home, "sky_workdir")
	}
	if err := os.MkdirAll(cwd, 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(a.cfg.Home, p.LogDir, "tasks"), 0o755); err != nil {
		return err
	}
	for _, ph := range []struct {
		name, script string
		env          []string
		want         bool
	}{{phaseSetup, r.Setup, r.SetupEnv, p.HasSetup}, {phaseRun, r.Run, r.RunEnv, p.HasRun}} {
		if !ph.want {
			continue
		}
		script := filepath.Join(dir, ph.name+".sh")
		if err := os.WriteFile(script, []byte(ph.script), 0o600); err != nil {
			return err
		}
		spec := shim.Spec{
			Script: script, Env: a.nodeEnv(ph.env, ph.name, p), Cwd: cwd, Log: a.logFile(p, ph.name),
			Marker: a.marker(p), Cgroup: a.cfg.CgroupRoot, Grace: a.cfg.KillGrace,
		}
		if err := a.handle(p, ph.name).Prepare(spec); err != nil {
			return err
		}
	}
	return nil
}

// startPart starts a phase of a prepared part. Starting it again changes nothing.
func (a *Agent) startPart(ref partRef, phase string) (partState, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p, err := a.findPart(ref)
	if err != nil {
		return partState{}, err
	}
	ph := p.phase(phase)
	if p.Killed || ph.Started || p.over() {
		return p.state(), nil
	}
	if (phase == phaseSetup && !p.HasSetup) || (phase == phaseRun && !p.HasRun) {
		return partState{}, invalid("job %d has no %s here", ref.JobID, phase)
	}
	ph.Started, ph.Incarnation = true, a.incarnation
	b := &durable.Batch{}
	a.changedPart(b, p)
	a.commit(b)
	a.failpoint("before-start")
	if err := a.launch(p, phase); err != nil {
		*ph = phaseRecord{}
		b := &durable.Batch{}
		a.changedPart(b, p)
		a.commit(b)
		return partState{}, err
	}
	a.failpoint("after-start")
	return p.state(), nil
}

// launch starts the shim of a phase and watches it. The caller holds a.mu.
func (a *Agent) launch(p *part, phase string) error {
	done, err := a.handle(&p.partRecord, phase).Start(a.exe)
	if err != nil {
		return err
	}
	go a.watch(p, phase, done)
	return nil
}

// watch takes the exit record once the shim is gone.
func (a *Agent) watch(p *part, phase string, gone <-chan struct{}) {
	select {
	case <-gone:
	case <-a.stop:
		return
	}
	h := a.handle(&p.partRecord, phase)
	a.failpoint("before-exit-record-read")
	state, exit, err := h.Inspect()
	if state == shim.Running {
		<-h.Gone() // another shim has it
		state, exit, err = h.Inspect()
	}
	if state == shim.NotStarted && a.relaunch(p, phase) {
		return
	}
	if err != nil {
		a.log.Error("an exit record cannot be read", "job", p.JobID, "phase", phase, "error", err)
	}
	pids, _ := h.Pids()
	a.mu.Lock()
	ph := p.phase(phase)
	ph.Ended, ph.Exit, ph.PID = true, exit, pids.Child.PID
	ph.Vanished = exit == nil
	b := &durable.Batch{}
	a.changedPart(b, p)
	a.commit(b)
	a.mu.Unlock()
	a.failpoint("after-exit-record-read")
}

// maxLaunches is how often a shim that dies before its script is tried.
const maxLaunches = 5

// relaunch starts a shim again that died before it began: nothing has run yet.
func (a *Agent) relaunch(p *part, phase string) bool {
	time.Sleep(time.Duration(p.launches) * 200 * time.Millisecond)
	a.mu.Lock()
	defer a.mu.Unlock()
	if p.Killed || p.launches >= maxLaunches {
		return false
	}
	p.launches++
	a.log.Warn("a job's process died before its script began; trying again", "job", p.JobID, "phase", phase)
	return a.launch(p, phase) == nil
}

// resumeParts takes up what runs, or ended while the agent was away. The caller holds a.mu.
func (a *Agent) resumeParts() {
	for _, p := range a.parts {
		p.version = time.Now().UnixNano() // another than any seen before
		for _, phase := range []string{phaseSetup, phaseRun} {
			ph := p.phase(phase)
			if !ph.Started || ph.Ended {
				continue
			}
			h := a.handle(&p.partRecord, phase)
			state, _, err := h.Inspect()
			if err != nil {
				a.log.Error("a job's process cannot be looked at", "job", p.JobID, "error", err)
			}
			if state == shim.NotStarted && !p.Killed && ph.Incarnation == a.incarnation {
				// The agent died right around the start: once more, the started mark keeps it to one.
				if err := a.launch(p, phase); err == nil {
					continue
				}
			}
			a.log.Info("a job's process is taken up again", "job", p.JobID, "phase", phase, "state", string(state))
			gone := h.Gone()
			go a.watch(p, phase, gone)
		}
		if p.Killed && !p.Gone {
			go a.killInBackground(p.JobID, p.Nonce)
		}
	}
}

// awaitPart answers when the part's version differs from seen, or after partWait.
func (a *Agent) awaitPart(ctx context.Context, ref partRef, seen int64) (partState, error) {
	timeout := time.NewTimer(partWait)
	defer timeout.Stop()
	for {
		a.mu.Lock()
		p, err := a.findPart(ref)
		more := a.changed
		var st partState
		if err == nil {
			st = p.state()
		}
		a.mu.Unlock()
		if err != nil || st.Version != seen {
			return st, err
		}
		select {
		case <-more:
		case <-timeout.C:
			return st, nil
		case <-ctx.Done():
			return st, ctx.Err()
		case <-a.stop:
			return st, errShutdown
		}
	}
}

// killPart ends everything of a part and answers once nothing is left. A part that was never prepared never will be.
func (a *Agent) killPart(ctx context.Context, ref partRef, grace time.Duration) (partState, error) {
	a.mu.Lock()
	p := a.parts[ref.JobID]
	if p == nil || (p.Nonce != ref.Nonce && p.over()) {
		p = &part{partRecord: partRecord{JobID: ref.JobID, Nonce: ref.Nonce, Epoch: ref.Epoch, Rank: -1, Killed: true, Gone: true, NodeName: api.NodeName(a.cfg.Rank)}}
		a.parts[ref.JobID] = p
	} else if p.Nonce != ref.Nonce {
		defer a.mu.Unlock()
		return partState{}, notFound("this node knows another job %d", ref.JobID)
	}
	if !p.Killed || p.version == 0 {
		p.Killed = true
		b := &durable.Batch{}
		a.changedPart(b, p)
		a.commit(b)
	}
	if p.Gone {
		defer a.mu.Unlock()
		return p.state(), nil
	}
	rec := p.partRecord
	a.mu.Unlock()
	a.failpoint("cancel-before-kill")
	for _, phase := range []string{phaseSetup, phaseRun} {
		ph := rec.phase(phase)
		if !ph.Started || (ph.Ended && !ph.Vanished) {
			continue // the shim left nothing
		}
		cgroup := ""
		if a.cfg.CgroupRoot != "" {
			cgroup = filepath.Join(a.cfg.CgroupRoot, shim.CgroupName(a.marker(&rec), phase))
		}
		if err := a.handle(&rec, phase).Kill(ctx, a.marker(&rec), cgroup, grace); err != nil {
			return partState{}, fmt.Errorf("processes of job %d are still running on %s: %w", ref.JobID, rec.NodeName, err)
		}
	}
	a.failpoint("cancel-after-kill")
	// The watchers take the exit records; what they tell decides whether the job had ended by itself.
	for {
		a.mu.Lock()
		more := a.changed
		settled := (!p.Setup.Started || p.Setup.Ended) && (!p.Run.Started || p.Run.Ended)
		if settled {
			p.Gone = true
			b := &durable.Batch{}
			a.changedPart(b, p)
			a.commit(b)
			defer a.mu.Unlock()
			return p.state(), nil
		}
		a.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return partState{}, ctx.Err()
		case <-a.stop:
			return partState{}, errShutdown
		}
	}
}

func (a *Agent) killInBackground(id int64, nonce string) {
	ctx, cancel := a.context()
	defer cancel()
	for ctx.Err() == nil {
		a.mu.Lock()
		epoch := a.epoch()
		a.mu.Unlock()
		if _, err := a.killPart(ctx, partRef{id, nonce, epoch}, a.cfg.KillGrace); err == nil {
			return
		}
		time.Sleep(time.Second)
	}
}

// finishPart tells a node how the job ended; its files go, the logs stay.
func (a *Agent) finishPart(ref partRef, status api.JobStatus, reason string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	p, err := a.findPart(ref)
	if err != nil {
		if agentapi.IsKind(err, agentapi.KindNotFound) {
			return nil // it never came here
		}
		return err
	}
	if p.Status.Terminal() {
		return nil
	}
	p.Status, p.Reason = status, reason
	b := &durable.Batch{}
	a.changedPart(b, p)
	a.commit(b)
	os.RemoveAll(a.partDir(p.JobID))
	return nil
}

// pid gives the process id of a phase's script, 0 if not known.
func (a *Agent) pid(p *partRecord, phase string) int {
	if ph := p.phase(phase); ph.PID != 0 || !ph.Started {
		return ph.PID
	}
	if pids, ok := a.handle(p, phase).Pids(); ok {
		return pids.Child.PID
	}
	return 0
}
