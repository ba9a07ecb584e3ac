package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/agent/shim"
	"github.com/skyloom/skyloom/api"
)

// Keys of the journal. Jobs, specs, parts, hooks and events carry an id behind the slash.
const (
	keyMeta     = "meta"
	keyCluster  = "cluster"
	keyAutostop = "autostop"
	keyDrain    = "drain"
	keyLost     = "lost"
	keyJob      = "job/"
	keySpec     = "spec/"
	keyPart     = "part/"
	keyHook     = "hook/"
	keyEvent    = "event/"
	keyBatch    = "batch/"
)

// meta holds counters.
type meta struct {
	LastJob   int64 `json:"last_job"`
	LastEvent int64 `json:"last_event"`
	Acked     int64 `json:"acked"`
	// LastTask is the time, in microseconds since 1970, in the last task id made: they never repeat.
	LastTask int64 `json:"last_task"`
	Notices  int64 `json:"notices,omitempty"`
	// LastBatch is the highest number of a batch that was taken.
	LastBatch int64 `json:"last_batch,omitempty"`
	// Incarnation is that of init when the agent last started.
	Incarnation string `json:"incarnation,omitempty"`
}

// stage says how far the driver of a job is. It is written before the step it names is begun.
type stage string

const (
	stageQueued stage = ""
	stagePlaced stage = "placed"
	stageSetup  stage = "setup"
	stageRun    stage = "run"
	stageDone   stage = "done"
)

// jobRecord is a job as the head keeps it.
type jobRecord struct {
	Row    api.Job `json:"row"`
	Nonce  string  `json:"nonce"` // tells this job's parts from those of another with its number
	Epoch  int64   `json:"epoch"`
	TaskID string  `json:"task_id"`
	LogDir string  `json:"log_dir"` // below the home of each node
	Stage  stage   `json:"stage,omitempty"`
	// Cancel says that cancelling was asked for and accepted.
	Cancel bool       `json:"cancel,omitempty"`
	Place  *placement `json:"place,omitempty"`
	Demand demand     `json:"demand"`
	Setup  bool       `json:"setup,omitempty"`
	Run    bool       `json:"run,omitempty"`
	// Batch and Element say which element of an array the job is for; Batch is 0 for any other job.
	Batch   int64 `json:"batch,omitempty"`
	Element int   `json:"element,omitempty"`
}

// jobState is a job in memory.
type jobState struct {
	jobRecord
	spec   *agentapi.JobSpec // without secrets; nil once the job has ended
	driver *driver           // while one runs
	ended  chan struct{}     // closed when the job is terminal
}

// phaseRecord is one phase of a part.
type phaseRecord struct {
	Started bool `json:"started,omitempty"`
	// Incarnation is init's at the start; under another one nothing of it runs any more.
	Incarnation string     `json:"incarnation,omitempty"`
	Ended       bool       `json:"ended,omitempty"`
	PID         int        `json:"pid,omitempty"`      // of the script
	Vanished    bool       `json:"vanished,omitempty"` // ended without a record
	Exit        *shim.Exit `json:"exit,omitempty"`
}

// partRecord is what one node knows of a job: its setup there and, if it has a rank, its run.
type partRecord struct {
	JobID    int64  `json:"job_id"`
	Nonce    string `json:"nonce"`
	Key      string `json:"key"`
	Epoch    int64  `json:"epoch"`
	Name     string `json:"name"`
	NodeName string `json:"node"` // head, worker1, …
	Rank     int    `json:"rank"` // -1: it only runs the setup here
	Nodes    int    `json:"nodes"`
	LogDir   string `json:"log_dir"`
	RunLog   string `json:"run_log"`
	HasSetup bool   `json:"has_setup,omitempty"`
	HasRun   bool   `json:"has_run,omitempty"`
	// Devices are (index, share) of the accelerators it may use.
	Devices []deviceShare `json:"devices,omitempty"`
	Setup   phaseRecord   `json:"setup"`
	Run     phaseRecord   `json:"run"`
	Killed  bool          `json:"killed,omitempty"` // to be ended, or ended: nothing starts any more
	Gone    bool          `json:"gone,omitempty"`   // killed, and nothing is left
	// Status is the job's once the head told it; empty while the job goes on.
	Status api.JobStatus `json:"status,omitempty"`
	Reason string        `json:"reason,omitempty"`
}

func (p *partRecord) phase(name string) *phaseRecord {
	if name == phaseSetup {
		return &p.Setup
	}
	return &p.Run
}

// Phases of a job.
const (
	phaseSetup = "setup"
	phaseRun   = "run"
)

// drainRecord says that the node asked to be stopped.
type drainRecord struct {
	Generation int64     `json:"generation"`
	Down       bool      `json:"down"`
	Since      time.Time `json:"since"`
	// Taken says that the server carries the stop out.
	Taken bool `json:"taken,omitempty"`
	// Requested says that the server asked for it, not the idle rule.
	Requested bool `json:"requested,omitempty"`
}

// clusterRecord is the cluster spec last taken.
type clusterRecord struct {
	Spec agentapi.ClusterSpec `json:"spec"`
	// Renewing says that what the epoch changes is not written yet.
	Renewing bool `json:"renewing,omitempty"`
}

// apply takes a record of the journal into memory.
func (a *Agent) apply(r durable.Record) error {
	kind, id, _ := strings.Cut(r.Key, "/")
	kind += "/"
	get := func(v any) error { return json.Unmarshal(r.Value, v) }
	var num int64
	if kind == keyJob || kind == keySpec || kind == keyPart || kind == keyEvent || kind == keyBatch {
		if _, err := fmt.Sscan(id, &num); err != nil {
			return fmt.Errorf("key %s: %w", r.Key, err)
		}
	}
	switch {
	case r.Key == keyMeta:
		return get(&a.meta)
	case r.Key == keyCluster:
		a.cluster = &clusterRecord{}
		return get(a.cluster)
	case r.Key == keyAutostop:
		if r.Value == nil {
			a.autostop = nil
			return nil
		}
		a.autostop = &agentapi.Autostop{}
		return get(a.autostop)
	case r.Key == keyDrain:
		if r.Value == nil {
			a.drain = nil
			return nil
		}
		a.drain = &drainRecord{}
		return get(a.drain)
	case r.Key == keyLost:
		a.lost = map[string]string{}
		return get(&a.lost)
	case r.Value == nil && kind == keyJob:
		delete(a.jobs, num)
		return nil
	case r.Value == nil && kind == keyPart:
		delete(a.parts, num)
		return nil
	case r.Value == nil && kind == keyBatch:
		delete(a.batches, num)
		return nil
	case kind == keyBatch:
		b := &batchRecord{}
		a.batches[num] = b
		return get(b)
	case kind == keyJob:
		j := a.jobs[num]
		if j == nil {
			j = &jobState{ended: make(chan struct{})}
			a.jobs[num] = j
		}
		j.jobRecord = jobRecord{}
		return get(&j.jobRecord)
	case kind == keySpec:
		if r.Value == nil {
			delete(a.specs, num)
			return nil
		}
		s := &agentapi.JobSpec{}
		a.specs[num] = s
		return get(s)
	case kind == keyPart:
		p := &part{}
		a.parts[num] = p
		return get(&p.partRecord)
	case kind == keyHook:
		h := &hookRecord{}
		a.hooks[id] = h
		return get(h)
	case kind == keyEvent:
		if r.Value == nil {
			a.dropped[num] = true
			return nil
		}
		var ev agentapi.Event
		if err := get(&ev); err != nil {
			return err
		}
		a.events = append(a.events, ev)
		return nil
	}
	return nil // of a newer agent: left alone until the next compaction
}

// snapshot hands everything over to a compaction. The caller holds a.mu.
func (a *Agent) snapshot(put func(string, any) error) error {
	var err error
	add := func(key string, v any) {
		if err == nil {
			err = put(key, v)
		}
	}
	add(keyMeta, a.meta)
	if a.cluster != nil {
		add(keyCluster, a.cluster)
	}
	if a.autostop != nil {
		add(keyAutostop, a.autostop)
	}
	if a.drain != nil {
		add(keyDrain, a.drain)
	}
	if len(a.lost) > 0 {
		add(keyLost, a.lost)
	}
	for _, id := range a.jobIDs() {
		j := a.jobs[id]
		add(jobKey(id), j.jobRecord)
		if j.spec != nil && j.Batch == 0 {
			add(specKey(id), j.spec)
		}
	}
	for id, p := range a.parts {
		add(partKey(id), p.partRecord)
	}
	for id, h := range a.hooks {
		add(keyHook+id, h)
	}
	for n, r := range a.batches {
		add(batchKey(n), r)
	}
	for _, ev := range a.events {
		add(eventKey(ev.Seq), ev)
	}
	return err
}

func jobKey(id int64) string    { return fmt.Sprint(keyJob, id) }
func specKey(id int64) string   { return fmt.Sprint(keySpec, id) }
func partKey(id int64) string   { return fmt.Sprint(keyPart, id) }
func eventKey(seq int64) string { return fmt.Sprint(keyEvent, seq) }

// commit writes a batch that must not be refused: the reserve for a full disk is used, and if even that fails memory goes
// ahead of the disk until there is room. The caller holds a.mu.
func (a *Agent) commit(b *durable.Batch) {
	if a.behind {
		return // the next compaction writes all
	}
	a.compactIfDue()
	if err := a.journal.Append(b, true); err != nil {
		a.behind = true
		a.log.Error("the state could not be written; trying again", "error", err)
		a.diskTrouble = err.Error()
		a.addEvent(nil, agentapi.Event{Type: agentapi.EventNode, Message: "the agent's state cannot be written: " + a.diskTrouble})
		go a.catchUp()
	}
}

// tryCommit writes a batch that may be refused: on a full disk nothing has happened. The caller holds a.mu.
func (a *Agent) tryCommit(b *durable.Batch) error {
	if a.behind {
		return &agentapi.Error{Kind: agentapi.KindDiskFull, Detail: "the node's disk has no room for the agent's state: " + a.diskTrouble}
	}
	a.compactIfDue()
	if err := a.journal.Append(b, false); err != nil {
		return diskError(err)
	}
	return nil
}

// diskError gives a full disk its kind.
func diskError(err error) error {
	if errors.Is(durable.Full(err), durable.ErrFull) {
		return &agentapi.Error{Kind: agentapi.KindDiskFull, Detail: "the node's disk is full: " + err.Error() + "; free some space and try again"}
	}
	return err
}

// compactIfDue comes before an append: memory then holds at least what the journal does.
func (a *Agent) compactIfDue() {
	if !a.journal.Due() {
		return
	}
	if err := a.journal.Compact(a.snapshot); err != nil {
		a.log.Warn("the journal was not compacted", "error", err)
	}
}

// catchUp writes the whole state once the disk has room again.
func (a *Agent) catchUp() {
	for {
		select {
		case <-a.stop:
			return
		case <-time.After(time.Second):
		}
		a.mu.Lock()
		err := a.journal.Compact(a.snapshot)
		if err == nil {
			a.behind, a.diskTrouble = false, ""
			a.log.Info("the state is written again")
			a.addEvent(nil, agentapi.Event{Type: agentapi.EventNode, Message: "the disk has room again"})
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
	}
}
