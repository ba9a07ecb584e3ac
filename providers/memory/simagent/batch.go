package simagent

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

// batch is the jobs for some elements of an array.
type batch struct {
	Number, First, Last int64
	Slots               int
	Told                bool // that all have ended
}

// submitBatch queues a job per element, once. An element's variables are put into the script before it is read.
func (a *agent) submitBatch(in agentapi.JobBatch) (agentapi.BatchState, error) {
	s := &a.state
	if in.Number <= s.LastBatch {
		if b := s.batch(in.Number); b != nil {
			return a.batchState(b, false), nil
		}
		return agentapi.BatchState{Number: in.Number}, nil
	}
	if in.Number < 1 || len(in.Elements) == 0 || in.Spec.Run == "" || in.Spec.Setup != "" {
		return agentapi.BatchState{}, fail(agentapi.KindInvalid, "a batch needs a number, elements and a run, and takes no setup")
	}
	now := a.now()
	var jobs []*job
	for i, e := range in.Elements {
		spec := in.Spec
		spec.Key = fmt.Sprintf("%s/%d", spec.Key, e.Index)
		spec.Run = expand(spec.Run, e)
		j, err := a.newJob(spec, s.LastJob+1+int64(i), now)
		if err != nil {
			return agentapi.BatchState{}, err
		}
		j.Batch, j.Element = in.Number, e.Index
		jobs = append(jobs, j)
	}
	b := &batch{Number: in.Number, First: s.LastJob + 1, Last: s.LastJob + int64(len(jobs)), Slots: a.slots(jobs[0], len(jobs))}
	s.Jobs = append(s.Jobs, jobs...)
	s.Batches, s.LastBatch, s.LastJob, s.IdleSince = append(s.Batches, b), in.Number, b.Last, now
	a.dirty = true
	st := a.batchState(b, false)
	a.runJobs(now)
	return st, nil
}

// expand puts an element's variables into a script, the longer names first: one may begin like another.
func expand(script string, e agentapi.BatchElement) string {
	if !strings.Contains(script, "$") {
		return script
	}
	names := slices.SortedFunc(maps.Keys(e.Envs), func(a, b string) int { return len(b) - len(a) })
	for _, k := range names {
		v := e.Envs[k]
		script = strings.NewReplacer("${"+k+"}", v, "$"+k, v).Replace(script)
	}
	return script
}

func (s *state) batch(number int64) *batch {
	for _, b := range s.Batches {
		if b.Number == number {
			return b
		}
	}
	return nil
}

func (a *agent) slots(j *job, limit int) int {
	r := a.state.Node.Resources
	n := limit
	if j.CPUs > 0 {
		n = min(n, int(r.CPUs/j.CPUs+1e-9))
	}
	if j.GPUs > 0 {
		n = min(n, int(r.AcceleratorCount/j.GPUs+1e-9))
	}
	nodes := 1
	if a.state.Spec != nil {
		nodes = len(a.state.Spec.Nodes)
	}
	return min(limit, max(n, 1)*max(nodes/max(j.Nodes, 1), 1))
}

func (a *agent) batchState(b *batch, jobs bool) agentapi.BatchState {
	st := agentapi.BatchState{Number: b.Number, First: b.First, Last: b.Last, Slots: b.Slots}
	for _, j := range a.state.Jobs {
		if j.Batch != b.Number {
			continue
		}
		if !j.Row.Status.Terminal() {
			st.Open++
		}
		if jobs {
			row := j.Row
			row.Metadata, row.Accelerators = maps.Clone(row.Metadata), maps.Clone(row.Accelerators)
			st.Jobs = append(st.Jobs, agentapi.ElementJob{Index: j.Element, Job: row})
		}
	}
	return st
}

// tellBatches announces batches whose last job has ended.
func (a *agent) tellBatches() {
	for _, b := range a.state.Batches {
		if !b.Told && a.batchState(b, false).Open == 0 {
			b.Told = true
			a.emit(agentapi.Event{Type: agentapi.EventBatch, Batch: b.Number})
		}
	}
}

func (a *agent) forgetBatches(upTo int64) {
	s := &a.state
	gone := map[int64]bool{}
	var batches []*batch
	for _, b := range s.Batches {
		if b.Number <= upTo && b.Told {
			gone[b.Number] = true
		} else {
			batches = append(batches, b)
		}
	}
	if len(gone) == 0 {
		return
	}
	var jobs []*job
	for _, j := range s.Jobs {
		if !gone[j.Batch] {
			jobs = append(jobs, j)
		}
	}
	s.Batches, s.Jobs = batches, jobs
	a.dirty = true
}

func batchRoutes(m *http.ServeMux) {
	number := func(r *http.Request) int64 {
		n, _ := strconv.ParseInt(r.PathValue("number"), 10, 64)
		return n
	}
	m.Handle("POST /v1/batches", with(func(a *agent, in agentapi.JobBatch) (any, error) { return a.submitBatch(in) }))
	m.Handle("GET /v1/batches/{number}", plain(func(a *agent, r *http.Request) (any, error) {
		b := a.state.batch(number(r))
		if b == nil {
			return nil, fail(agentapi.KindNotFound, "there is no batch %s", r.PathValue("number"))
		}
		return a.batchState(b, true), nil
	}))
	m.Handle("DELETE /v1/batches/{number}", plain(func(a *agent, r *http.Request) (any, error) {
		a.forgetBatches(number(r))
		return nil, nil
	}))
	m.HandleFunc("GET /v1/logs", rangeLogs)
}

// rangeLogs streams what the jobs of a range have printed.
func rangeLogs(w http.ResponseWriter, r *http.Request) {
	a := agentOf(r)
	first, _ := strconv.ParseInt(r.URL.Query().Get("first"), 10, 64)
	last, _ := strconv.ParseInt(r.URL.Query().Get("last"), 10, 64)
	w.Header().Set("Content-Type", api.LogMediaType)
	enc := json.NewEncoder(w)
	for id := first; id <= last; id++ {
		v, err := a.view(strconv.FormatInt(id, 10))
		if err != nil {
			continue
		}
		v.name(enc)
		v.send(enc, w, map[string]int64{})
		enc.Encode(api.LogFrame{Rank: v.rank, Node: api.NodeName(v.rank), End: true, Status: v.job.Status, Reason: v.job.Reason})
	}
}
