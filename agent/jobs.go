package agent

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/api"
)

// Submit queues a job: POST /v1/jobs.
func (a *Agent) Submit(spec agentapi.JobSpec) (api.Job, error) {
	if spec.Key == "" {
		return api.Job{}, invalid("a job needs a key, by which a repeated submission is known")
	}
	if spec.Setup == "" && spec.Run == "" {
		return api.Job{}, invalid("a job needs a setup or a run script")
	}
	if strings.ContainsAny(spec.TaskID, "/\x00") || strings.HasPrefix(spec.TaskID, ".") {
		return api.Job{}, invalid("%q cannot be a task id", spec.TaskID)
	}
	if err := errors.Join(checkEnv(spec.Envs), checkEnv(spec.Secrets)); err != nil {
		return api.Job{}, err
	}
	row, err := a.enqueue(spec)
	if err != nil {
		return api.Job{}, err
	}
	if err := a.journal.Sync(); err != nil {
		return api.Job{}, diskError(err)
	}
	a.wakeScheduler()
	return row, nil
}

func (a *Agent) enqueue(spec agentapi.JobSpec) (api.Job, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if id, ok := a.keys[spec.Key]; ok {
		return a.jobs[id].Row, nil
	}
	if err := a.accepts(spec); err != nil {
		return api.Job{}, err
	}
	c := a.cluster.Spec
	d, err := demandOf(spec, c.Resources, len(c.Nodes))
	if err != nil {
		return api.Job{}, err
	}
	j := a.newJob(spec, d)
	a.failpoint("submit-before-journal")
	if len(spec.Secrets) > 0 {
		if err := durable.WriteJSON(a.secretsFile(j.Row.ID), spec.Secrets); err != nil {
			return api.Job{}, diskError(err)
		}
	}
	kept := spec
	kept.Secrets = nil
	j.spec = &kept
	m := a.meta
	m.LastJob, m.LastEvent = j.Row.ID, j.Row.Seq
	m.LastTask = j.Row.SubmittedAt.UnixMicro()
	ev := agentapi.Event{Seq: j.Row.Seq, Time: a.now(), Type: agentapi.EventJob, Job: &j.Row}
	b := &durable.Batch{}
	b.Put(jobKey(j.Row.ID), j.jobRecord)
	b.Put(specKey(j.Row.ID), j.spec)
	b.Put(eventKey(ev.Seq), ev)
	b.Put(keyMeta, m)
	if err := a.tryCommit(b); err != nil {
		os.Remove(a.secretsFile(j.Row.ID))
		return api.Job{}, err
	}
	row := j.Row
	ev.Job = &row
	a.meta = m
	a.events = append(a.events, ev)
	a.jobs[j.Row.ID], a.keys[spec.Key] = j, j.Row.ID
	a.open = append(a.open, j.Row.ID)
	a.resetIdle()
	a.notify()
	a.failpoint("submit-after-journal")
	return row, nil
}

// accepts says why no job can be taken now. The caller holds a.mu.
func (a *Agent) accepts(spec agentapi.JobSpec) error {
	switch {
	case a.cluster == nil:
		return conflict("the node was not told of its cluster yet")
	case a.cluster.Spec.Nodes[0].NodeID != a.cfg.NodeID:
		return conflict("jobs are submitted to the head of the cluster; this is node %d", a.cfg.Rank)
	case spec.Epoch < a.epoch():
		return staleEpoch(spec.Epoch, a.epoch())
	case a.drain != nil || a.ending:
		return &agentapi.Error{Kind: agentapi.KindDraining, Detail: "the cluster is about to stop and takes no new jobs"}
	}
	return nil
}

// newJob makes the record of a job that is about to be queued. The caller holds a.mu.
func (a *Agent) newJob(spec agentapi.JobSpec, d demand) *jobState {
	c := a.cluster.Spec
	id := a.meta.LastJob + 1
	at := max(a.now().UnixMicro(), a.meta.LastTask+1)
	when := time.UnixMicro(at).UTC()
	stamp := strings.Replace(when.Format("2006-01-02-15-04-05.000000"), ".", "-", 1)
	j := a.jobOf(spec, d, when)
	j.TaskID = spec.TaskID
	if j.TaskID == "" {
		j.TaskID = fmt.Sprintf("sky-%s_%s_%d", stamp, c.Name, id)
	}
	first, _, _ := strings.Cut(j.TaskID, "_")
	j.LogDir = filepath.Join("sky_logs", first)
	if _, err := os.Stat(filepath.Join(a.cfg.Home, j.LogDir)); err == nil {
		j.LogDir += fmt.Sprintf("-%d", id) // the task ran here before: its logs stay apart
	}
	j.Setup, j.Run = spec.Setup != "", spec.Run != ""
	j.Row.ID, j.Row.LogPath, j.Row.Seq = id, "~/"+j.LogDir, a.meta.LastEvent+1
	return j
}

// jobOf is what the records of all jobs of a spec have in common. The caller holds a.mu.
func (a *Agent) jobOf(spec agentapi.JobSpec, d demand, when time.Time) *jobState {
	c := a.cluster.Spec
	var nonce [6]byte
	rand.Read(nonce[:])
	j := &jobState{ended: make(chan struct{})}
	j.Nonce, j.Epoch, j.Demand = hex.EncodeToString(nonce[:]), spec.Epoch, d
	j.Row = api.Job{
		Name: spec.Name, User: spec.User, UserHash: spec.UserHash, SubmittedAt: when, Resources: spec.Resources, Status: api.JobPending,
		Metadata: spec.Metadata, NumNodes: d.Nodes, Cluster: c.Name, Key: spec.Key, ClusterHash: c.Hash,
	}
	if d.Accelerators > 0 {
		j.Row.Accelerators = map[string]float64{cmp.Or(spec.Accelerator, c.Resources.Accelerator): d.Accelerators}
	}
	return j
}

func (a *Agent) secretsFile(id int64) string { return a.path("secrets", fmt.Sprint(id, ".json")) }

// secrets reads a job's secrets back.
func (a *Agent) secrets(j *jobState) (map[string]string, error) {
	var s map[string]string
	path := a.secretsFile(j.Row.ID)
	if j.Batch > 0 {
		path = a.batchSecrets(j.Batch)
	}
	err := durable.ReadJSON(path, &s)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return s, err
}

// jobIDs lists every job by rising id. The caller holds a.mu.
func (a *Agent) jobIDs() []int64 {
	ids := make([]int64, 0, len(a.jobs))
	for id := range a.jobs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Jobs lists the rows of all jobs, or of the one with the key.
func (a *Agent) Jobs(key string) []api.Job {
	a.mu.Lock()
	defer a.mu.Unlock()
	rows := []api.Job{}
	if key != "" {
		if id, ok := a.keys[key]; ok {
			rows = append(rows, a.jobs[id].Row)
		}
		return rows
	}
	for _, id := range a.jobIDs() {
		rows = append(rows, a.jobs[id].Row)
	}
	return rows
}

// Job gives one row.
func (a *Agent) Job(id int64) (api.Job, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	j, ok := a.jobs[id]
	if !ok {
		return api.Job{}, notFound("there is no job %d on this cluster", id)
	}
	return j.Row, nil
}

// Cancel ends jobs and waits until they are gone: POST /v1/jobs/cancel.
func (a *Agent) Cancel(ctx context.Context, spec agentapi.CancelSpec) (agentapi.CancelReply, error) {
	reply := agentapi.CancelReply{Cancelled: []int64{}}
	a.mu.Lock()
	ids, err := a.chosen(spec, &reply)
	if err != nil {
		a.mu.Unlock()
		return reply, err
	}
	b := &durable.Batch{}
	var wait []*jobState
	for _, id := range ids {
		j := a.jobs[id]
		if j.Row.Status.Terminal() {
			reply.Finished = append(reply.Finished, id)
			continue
		}
		wait = append(wait, j)
		if j.Stage == stageQueued {
			a.end(b, j, outcome{status: api.JobCancelled, reason: "cancelled before it started"})
			continue
		}
		if !j.Cancel {
			j.Cancel = true
			b.Put(jobKey(id), j.jobRecord)
		}
	}
	a.commit(b)
	for _, j := range wait {
		if j.driver != nil {
			j.driver.cancel(errCancelled)
		} else if !j.Row.Status.Terminal() {
			a.startDriver(j) // held back: it has only to end
		}
	}
	a.mu.Unlock()
	a.wakeScheduler()
	for _, j := range wait {
		select {
		case <-j.ended:
		case <-ctx.Done():
			return reply, ctx.Err()
		case <-a.stop:
			return reply, errors.New("the agent is restarting; the cancelling goes on")
		}
		a.mu.Lock()
		if j.Row.Status == api.JobCancelled {
			reply.Cancelled = append(reply.Cancelled, j.Row.ID)
		} else {
			reply.Finished = append(reply.Finished, j.Row.ID)
		}
		a.mu.Unlock()
	}
	if err := a.journal.Sync(); err != nil {
		a.log.Warn("cancelled jobs are not yet safe on disk", "error", err)
	}
	return reply, nil
}

// chosen lists the jobs that a cancel means. The caller holds a.mu.
func (a *Agent) chosen(spec agentapi.CancelSpec, reply *agentapi.CancelReply) ([]int64, error) {
	mine := func(id int64) bool { return spec.UserHash == "" || a.jobs[id].Row.UserHash == spec.UserHash }
	switch {
	case spec.All:
		var ids []int64
		for _, id := range a.open {
			if mine(id) {
				ids = append(ids, id)
			}
		}
		return ids, nil
	case spec.Latest:
		for _, running := range []bool{true, false} {
			for _, id := range slices.Backward(a.open) {
				if mine(id) && (a.jobs[id].Stage != stageQueued) == running {
					return []int64{id}, nil
				}
			}
		}
		return nil, nil
	case len(spec.JobIDs) > 0:
		var ids []int64
		for _, id := range spec.JobIDs {
			if _, ok := a.jobs[id]; !ok {
				reply.Unknown = append(reply.Unknown, id)
			} else if !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
		return ids, nil
	}
	return nil, invalid("a cancel names jobs, or asks for all or the latest")
}

// outcome is how a job ended.
type outcome struct {
	status api.JobStatus
	reason string
	codes  []int
}

// end brings a job to its terminal state. The caller holds a.mu, and commits the batch.
func (a *Agent) end(b *durable.Batch, j *jobState, o outcome) {
	if j.Row.Status.Terminal() {
		return
	}
	now := a.now()
	if j.Row.StartAt != nil && now.Before(*j.Row.StartAt) {
		now = *j.Row.StartAt // the clock went back
	}
	j.Row.Status, j.Row.Reason, j.Row.ExitCodes, j.Row.EndAt = o.status, o.reason, o.codes, &now
	if j.Stage == stageQueued {
		j.Stage = stageDone // no node knows of it
	}
	j.spec = nil
	a.rowChanged(b, j)
	b.Delete(specKey(j.Row.ID))
	os.Remove(a.secretsFile(j.Row.ID))
	if i, ok := slices.BinarySearch(a.open, j.Row.ID); ok {
		a.open = slices.Delete(a.open, i, i+1)
	}
	if len(a.open) == 0 {
		a.resetIdle()
	}
	close(j.ended)
	if j.Batch > 0 {
		a.batchEnded(b, j.Batch)
	}
	a.notify()
}

// failRestarted ends what was unfinished when the cluster was stopped. The caller holds a.mu.
func (a *Agent) failRestarted(b *durable.Batch) {
	for _, id := range slices.Clone(a.open) {
		j := a.jobs[id]
		a.end(b, j, outcome{status: api.JobFailed, reason: "the cluster was stopped before the job ended"})
		if j.driver != nil {
			j.driver.cancel(errRestarted)
		} else if j.Stage != stageDone {
			a.startDriver(j)
		}
	}
	a.killParts(b)
}

// killParts ends whatever jobs have running here. The caller holds a.mu, and commits the batch.
func (a *Agent) killParts(b *durable.Batch) {
	for _, p := range a.parts {
		if !p.over() {
			p.Killed = true
			b.Put(partKey(p.JobID), p.partRecord)
			go a.killInBackground(p.JobID, p.Nonce)
		}
	}
}

// PeerLost takes note that a node is gone for good: POST /v1/peers/lost. Without their head jobs have no driver: what
// they run here is ended.
func (a *Agent) PeerLost(l agentapi.PeerLost) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cluster == nil {
		return conflict("the node was not told of its cluster yet")
	}
	known := slices.IndexFunc(a.cluster.Spec.Nodes, func(p agentapi.Peer) bool { return p.NodeID == l.NodeID })
	if known < 0 {
		return notFound("the cluster has no node %s", l.NodeID)
	}
	if l.NodeID == a.cfg.NodeID {
		return invalid("a node cannot be told that it is lost itself")
	}
	if _, ok := a.lost[l.NodeID]; ok {
		return nil
	}
	if l.Reason == "" {
		l.Reason = "it is gone"
	}
	a.lost[l.NodeID] = l.Reason
	b := &durable.Batch{}
	b.Put(keyLost, a.lost)
	a.addEvent(b, agentapi.Event{Type: agentapi.EventNode, Message: fmt.Sprintf("node %s was lost: %s", l.NodeID, l.Reason)})
	if a.cluster.Spec.Nodes[known].Rank == 0 {
		a.killParts(b)
	}
	a.commit(b)
	for _, id := range a.open {
		j := a.jobs[id]
		if j.driver == nil || j.Place == nil {
			continue
		}
		for _, n := range j.nodes() {
			if j.Place.NodeIDs[n] == l.NodeID {
				j.driver.cancel(errLost{n, l.Reason})
			}
		}
	}
	a.wakeScheduler()
	return nil
}

// nodes lists the nodes, by rank in the cluster, that have a part in the job's present stage.
func (j *jobState) nodes() []int {
	if j.Setup && (j.Stage == stagePlaced || j.Stage == stageSetup) {
		out := make([]int, len(j.Place.NodeIDs))
		for i := range out {
			out[i] = i
		}
		return out
	}
	var out []int
	for _, r := range j.Place.Ranks {
		out = append(out, r.Node)
	}
	return out
}

func (a *Agent) wakeScheduler() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

func (a *Agent) scheduleLoop() {
	for {
		select {
		case <-a.stop:
			return
		case <-a.kick:
			a.schedule()
		}
	}
}

// schedule places waiting jobs, first come first served: one that finds no room holds up those behind it.
func (a *Agent) schedule() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.held || a.cluster == nil || a.ending {
		return
	}
	c := a.cluster.Spec
	var placed []*jobState
	for _, id := range a.open {
		if j := a.jobs[id]; j.Place != nil {
			placed = append(placed, j)
		}
	}
	here := func(n int) bool { _, gone := a.lost[c.Nodes[n].NodeID]; return !gone }
	for _, id := range slices.Clone(a.open) {
		j := a.jobs[id]
		if j.Stage != stageQueued {
			continue
		}
		ranks, why := place(j.Demand, c.Resources, loads(c.Resources, len(c.Nodes), placed), here)
		b := &durable.Batch{}
		if ranks == nil {
			if j.Row.Reason != why {
				j.Row.Reason = why
				a.rowChanged(b, j)
				a.commit(b)
			}
			return
		}
		j.Place = &placement{Ranks: ranks}
		for _, n := range c.Nodes {
			j.Place.NodeIDs = append(j.Place.NodeIDs, n.NodeID)
			j.Place.IPs = append(j.Place.IPs, n.IP)
		}
		for _, r := range ranks {
			j.Row.RunsOn = append(j.Row.RunsOn, r.Node)
		}
		j.Stage, j.Row.Reason = stagePlaced, ""
		b.Put(jobKey(id), j.jobRecord)
		a.commit(b)
		a.failpoint("placed")
		placed = append(placed, j)
		a.startDriver(j)
	}
}

// resumeJobs takes up the drivers of jobs that were under way.
func (a *Agent) resumeJobs() {
	a.mu.Lock()
	for _, id := range a.jobIDs() {
		if j := a.jobs[id]; j.Stage != stageQueued && j.Stage != stageDone && j.driver == nil {
			a.startDriver(j)
		}
	}
	a.mu.Unlock()
	a.wakeScheduler()
}
