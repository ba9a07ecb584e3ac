package simagent

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

// job is one job and what its scripts will do. Secrets are not kept.
type job struct {
	Row   api.Job
	Nodes int
	Setup string
	Run   string
	CPUs  float64
	GPUs  float64
	Begun time.Time // setup began; zero while pending
	Takes time.Duration
	Lost  bool `json:",omitempty"` // its processes are gone and nobody has said so yet
	// Batch and Element say which element of an array it is for.
	Batch   int64 `json:",omitempty"`
	Element int   `json:",omitempty"`
}

func (j *job) plans() (setup, run plan) {
	if j.Setup != "" {
		setup = read(j.Setup, 0)
	}
	if j.Run != "" {
		run = read(j.Run, j.Takes)
	}
	return setup, run
}

// nextChange is when the job moves on by itself; zero while it waits for others.
func (j *job) nextChange() time.Time {
	if j.Begun.IsZero() {
		return time.Time{}
	}
	setup, run := j.plans()
	if j.Row.Status == api.JobSettingUp {
		return j.Begun.Add(setup.takes)
	}
	return j.Begun.Add(setup.takes + run.takes)
}

func (a *agent) submit(spec agentapi.JobSpec) (api.Job, error) {
	s := &a.state
	for _, j := range s.Jobs {
		if spec.Key != "" && j.Row.Key == spec.Key {
			return j.Row, nil
		}
	}
	now := a.now()
	j, err := a.newJob(spec, s.LastJob+1, now)
	if err != nil {
		return api.Job{}, err
	}
	s.LastJob = j.Row.ID
	s.Jobs = append(s.Jobs, j)
	s.IdleSince = now
	a.tell(j)
	a.runJobs(now)
	return j.Row, nil
}

// newJob makes a job from its spec, or says why there can't be one.
func (a *agent) newJob(spec agentapi.JobSpec, id int64, now time.Time) (*job, error) {
	s := &a.state
	if spec.Key == "" || spec.Setup == "" && spec.Run == "" {
		return nil, fail(agentapi.KindInvalid, "a job needs a key, and a setup or a run")
	}
	nodes := max(spec.NumNodes, 1)
	switch {
	case s.Node.Rank != 0:
		return nil, fail(agentapi.KindConflict, "this node is not the head")
	case s.Spec == nil:
		return nil, fail(agentapi.KindConflict, "this node was not told of its cluster yet")
	case spec.Epoch < s.Epoch:
		return nil, fail(agentapi.KindStaleEpoch, "epoch %d is older than %d", spec.Epoch, s.Epoch)
	case s.Drain != nil:
		return nil, fail(agentapi.KindDraining, "the cluster is stopping itself and takes no new work")
	case nodes > max(len(s.Spec.Nodes), 1):
		return nil, fail(agentapi.KindUnfit, "the job asks for %d nodes, the cluster has %d", nodes, len(s.Spec.Nodes))
	case spec.AcceleratorCount > 0 && (spec.Accelerator != s.Node.Resources.Accelerator || spec.AcceleratorCount > s.Node.Resources.AcceleratorCount):
		return nil, fail(agentapi.KindUnfit, "the job asks for %s:%v per node, the nodes have %s:%v",
			spec.Accelerator, spec.AcceleratorCount, s.Node.Resources.Accelerator, s.Node.Resources.AcceleratorCount)
	}
	cpus := spec.CPUs
	if cpus == 0 {
		cpus = 0.5
	}
	j := &job{Nodes: nodes, Setup: spec.Setup, Run: spec.Run, CPUs: max(cpus, 0), GPUs: spec.AcceleratorCount, Takes: a.fleet.o.JobDuration,
		Row: api.Job{ID: id, Name: spec.Name, User: spec.User, UserHash: spec.UserHash, SubmittedAt: now, Resources: spec.Resources,
			Status: api.JobPending, LogPath: fmt.Sprintf("~/sky_logs/%d-%s", id, spec.Name), Metadata: spec.Metadata, NumNodes: nodes,
			Cluster: s.Node.ClusterName, ClusterHash: s.Node.ClusterHash, Key: spec.Key}}
	if spec.AcceleratorCount > 0 {
		j.Row.Accelerators = map[string]float64{spec.Accelerator: spec.AcceleratorCount}
	}
	return j, nil
}

// tell makes an event of a job's new state.
func (a *agent) tell(j *job) {
	j.Row.Seq++
	row := j.Row
	row.Metadata, row.Accelerators = maps.Clone(row.Metadata), maps.Clone(row.Accelerators)
	ev := agentapi.Event{Type: agentapi.EventJob, Job: &row}
	if j.Batch > 0 {
		ev.Element = &agentapi.Element{Batch: j.Batch, Index: j.Element}
	}
	a.emit(ev)
}

// runJobs moves the running jobs on and starts the waiting ones, first come first served: one that does not fit holds
// back those behind it.
func (a *agent) runJobs(now time.Time) {
	for moved := true; moved; {
		moved = false
		var cpus, gpus float64
		blocked := a.state.Spec == nil || a.state.Restarted
		for _, j := range a.state.Jobs {
			if j.Row.Status.Terminal() {
				continue
			}
			if j.Begun.IsZero() {
				if blocked || j.Lost || !a.fits(j, cpus, gpus) {
					blocked = true
					continue
				}
				a.start(j, now)
				moved = true
			}
			if !j.Lost && !j.nextChange().After(now) {
				a.moveOn(j)
				moved = true
			}
			if !j.Row.Status.Terminal() {
				cpus, gpus = cpus+j.CPUs, gpus+j.GPUs
			}
		}
	}
	a.tellBatches()
}

func (a *agent) fits(j *job, cpus, gpus float64) bool {
	const eps = 1e-9
	r := a.state.Node.Resources
	return cpus+j.CPUs <= math.Max(r.CPUs, j.CPUs)+eps && gpus+j.GPUs <= r.AcceleratorCount+eps
}

func (a *agent) start(j *job, now time.Time) {
	j.Begun = now
	if j.Setup != "" {
		j.Row.Status = api.JobSettingUp
	} else {
		j.Row.Status = api.JobRunning
		j.Row.StartAt = &now
	}
	a.tell(j)
}

// moveOn takes a job that is due from setup to run, or to its end.
func (a *agent) moveOn(j *job) {
	setup, run := j.plans()
	at := j.nextChange()
	if j.Row.Status == api.JobSettingUp {
		if setup.code != 0 {
			a.finishAt(j, api.JobFailedSetup, at, setup.code, fmt.Sprintf("setup ended with code %d", setup.code))
			return
		}
		if j.Run != "" {
			j.Row.Status, j.Row.StartAt = api.JobRunning, &at
			a.tell(j)
			return
		}
	}
	if run.code != 0 {
		a.finishAt(j, api.JobFailed, at, run.code, fmt.Sprintf("run ended with code %d", run.code))
		return
	}
	a.finishAt(j, api.JobSucceeded, at, 0, "")
}

func (a *agent) finish(j *job, st api.JobStatus, code int, reason string) {
	a.finishAt(j, st, a.now(), code, reason)
}

func (a *agent) finishAt(j *job, st api.JobStatus, at time.Time, code int, reason string) {
	j.Row.Status, j.Row.EndAt, j.Row.Reason, j.Lost = st, &at, reason, false
	if st == api.JobSucceeded || st == api.JobFailed || st == api.JobFailedSetup {
		j.Row.ExitCodes = slices.Repeat([]int{code}, j.Nodes)
	}
	if at.After(a.state.IdleSince) {
		a.state.IdleSince = at
	}
	a.tell(j)
}

func (a *agent) cancel(c agentapi.CancelSpec) agentapi.CancelReply {
	var r agentapi.CancelReply
	byID := map[int64]*job{}
	for _, j := range a.state.Jobs {
		byID[j.Row.ID] = j
	}
	ids := c.JobIDs
	mine := func(j *job) bool {
		return !j.Row.Status.Terminal() && (c.UserHash == "" || j.Row.UserHash == c.UserHash)
	}
	for _, j := range a.state.Jobs {
		if c.All && mine(j) {
			ids = append(ids, j.Row.ID)
		}
	}
	if c.Latest && len(ids) == 0 {
		var latest *job
		for _, j := range a.state.Jobs {
			if mine(j) && (latest == nil || !j.Begun.IsZero() || latest.Begun.IsZero()) {
				latest = j
			}
		}
		if latest != nil {
			ids = append(ids, latest.Row.ID)
		}
	}
	for _, id := range ids {
		switch j := byID[id]; {
		case j == nil:
			r.Unknown = append(r.Unknown, id)
		case j.Row.Status.Terminal():
			r.Finished = append(r.Finished, id)
		default:
			a.finish(j, api.JobCancelled, 0, "cancelled")
			r.Cancelled = append(r.Cancelled, id)
		}
	}
	return r
}

// peerLost ends the jobs with a process on a node that is gone.
func (a *agent) peerLost(p agentapi.PeerLost) error {
	if a.state.Spec == nil {
		return fail(agentapi.KindConflict, "this node was not told of its cluster yet")
	}
	for _, peer := range a.state.Spec.Nodes {
		if peer.NodeID != p.NodeID {
			continue
		}
		for _, j := range a.state.Jobs {
			if !j.Row.Status.Terminal() && !j.Begun.IsZero() && j.Nodes > peer.Rank {
				a.finish(j, api.JobFailedDriver, 0, fmt.Sprintf("node %s was lost: %s", p.NodeID, p.Reason))
			}
		}
		return nil
	}
	return fail(agentapi.KindNotFound, "the cluster has no node %s", p.NodeID)
}
