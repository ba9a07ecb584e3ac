package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/api"
)

// batchRecord is a batch of jobs, each for an element of an array, until the server has what it needs of them.
type batchRecord struct {
	Number int64 `json:"number"`
	// First and Last are the numbers of its jobs, in the order of Elements.
	First    int64                   `json:"first"`
	Last     int64                   `json:"last"`
	Slots    int                     `json:"slots"`
	Spec     agentapi.JobSpec        `json:"spec"` // without secrets
	Elements []agentapi.BatchElement `json:"elements"`
}

// batchLogs is where the logs of a batch stand, below the home of each node.
func batchLogs(number int64) string { return filepath.Join("sky_logs", "array", fmt.Sprint(number)) }

func batchKey(number int64) string { return fmt.Sprint(keyBatch, number) }

func (a *Agent) batchSecrets(number int64) string {
	return a.path("secrets", fmt.Sprintf("batch-%d.json", number))
}

// spec makes the spec of the i-th job of a batch.
func (r *batchRecord) spec(i int) *agentapi.JobSpec {
	s, e := r.Spec, r.Elements[i]
	s.Key = fmt.Sprintf("%s/%d", s.Key, e.Index)
	if len(e.Envs) > 0 {
		s.Envs = maps.Clone(s.Envs)
		if s.Envs == nil {
			s.Envs = map[string]string{}
		}
		maps.Copy(s.Envs, e.Envs)
	}
	return &s
}

// SubmitBatch queues the jobs of a batch, once: POST /v1/batches.
func (a *Agent) SubmitBatch(in agentapi.JobBatch) (agentapi.BatchState, error) {
	spec := in.Spec
	switch {
	case in.Number < 1 || len(in.Elements) == 0:
		return agentapi.BatchState{}, invalid("a batch needs a number from 1, and elements")
	case spec.Key == "" || spec.Run == "" || spec.Setup != "":
		return agentapi.BatchState{}, invalid("the jobs of a batch need a key and a run script, and take no setup")
	}
	if err := errors.Join(checkEnv(spec.Envs), checkEnv(spec.Secrets)); err != nil {
		return agentapi.BatchState{}, err
	}
	for _, e := range in.Elements {
		if err := checkEnv(e.Envs); err != nil {
			return agentapi.BatchState{}, err
		}
	}
	st, err := a.enqueueBatch(in)
	if err != nil {
		return st, err
	}
	if err := a.journal.Sync(); err != nil {
		return st, diskError(err)
	}
	a.wakeScheduler()
	return st, nil
}

func (a *Agent) enqueueBatch(in agentapi.JobBatch) (agentapi.BatchState, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if in.Number <= a.meta.LastBatch {
		if r := a.batches[in.Number]; r != nil {
			return a.batchState(r), nil
		}
		return agentapi.BatchState{Number: in.Number}, nil
	}
	if err := a.accepts(in.Spec); err != nil {
		return agentapi.BatchState{}, err
	}
	c := a.cluster.Spec
	d, err := demandOf(in.Spec, c.Resources, len(c.Nodes))
	if err != nil {
		return agentapi.BatchState{}, err
	}
	if len(in.Spec.Secrets) > 0 {
		if err := durable.WriteJSON(a.batchSecrets(in.Number), in.Spec.Secrets); err != nil {
			return agentapi.BatchState{}, diskError(err)
		}
	}
	r := &batchRecord{Number: in.Number, First: a.meta.LastJob + 1, Last: a.meta.LastJob + int64(len(in.Elements)), Spec: in.Spec, Elements: in.Elements}
	r.Spec.Secrets = nil
	r.Slots = a.slots(d, len(in.Elements))
	b := &durable.Batch{}
	b.Put(batchKey(r.Number), r)
	jobs := make([]*jobState, len(r.Elements))
	when := a.now()
	for i := range r.Elements {
		jobs[i] = a.elementJob(r, i, d, when)
		b.Put(jobKey(jobs[i].Row.ID), jobs[i].jobRecord)
	}
	m := a.meta
	m.LastJob, m.LastBatch = r.Last, r.Number
	b.Put(keyMeta, m)
	if err := a.tryCommit(b); err != nil {
		os.Remove(a.batchSecrets(in.Number))
		return agentapi.BatchState{}, err
	}
	a.meta = m
	a.batches[r.Number] = r
	for _, j := range jobs {
		a.jobs[j.Row.ID], a.keys[j.Row.Key] = j, j.Row.ID
		a.open = append(a.open, j.Row.ID)
	}
	a.resetIdle()
	a.notify()
	a.failpoint("batch-after-journal")
	return a.batchState(r), nil
}

// slots is how many jobs of a demand the cluster runs at once when it has nothing else to do, at most limit. The caller holds a.mu.
func (a *Agent) slots(d demand, limit int) int {
	c := a.cluster.Spec
	var placed []*jobState
	for len(placed) < limit {
		ranks, _ := place(d, c.Resources, loads(c.Resources, len(c.Nodes), placed), func(int) bool { return true })
		if ranks == nil {
			break
		}
		placed = append(placed, &jobState{jobRecord: jobRecord{Place: &placement{Ranks: ranks}, Demand: d}})
	}
	return max(len(placed), 1)
}

// elementJob makes the record of the i-th job of a batch. No event tells of it before it runs. The caller holds a.mu.
func (a *Agent) elementJob(r *batchRecord, i int, d demand, when time.Time) *jobState {
	spec, e := r.spec(i), r.Elements[i]
	j := a.jobOf(*spec, d, when)
	j.spec, j.Run = spec, true
	j.Batch, j.Element = r.Number, e.Index
	j.TaskID = fmt.Sprintf("%s-%d", spec.TaskID, e.Index)
	j.LogDir = filepath.Join(batchLogs(r.Number), fmt.Sprint(e.Index))
	j.Row.ID, j.Row.LogPath = r.First+int64(i), "~/"+j.LogDir
	return j
}

// batchState counts what is open. The caller holds a.mu.
func (a *Agent) batchState(r *batchRecord) agentapi.BatchState {
	st := agentapi.BatchState{Number: r.Number, First: r.First, Last: r.Last, Slots: r.Slots}
	lo, _ := slices.BinarySearch(a.open, r.First)
	hi, _ := slices.BinarySearch(a.open, r.Last+1)
	st.Open = hi - lo
	return st
}

// batchEnded tells when the last job of a batch has ended. The caller holds a.mu, has taken the job from a.open, and commits the batch.
func (a *Agent) batchEnded(b *durable.Batch, number int64) {
	r := a.batches[number]
	if r == nil || a.batchState(r).Open > 0 {
		return
	}
	os.Remove(a.batchSecrets(number))
	a.addEvent(b, agentapi.Event{Type: agentapi.EventBatch, Batch: number})
}

// Batch tells how the jobs of a batch stand: GET /v1/batches/{number}.
func (a *Agent) Batch(number int64) (agentapi.BatchState, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.batches[number]
	if r == nil {
		return agentapi.BatchState{}, notFound("there is no batch %d on this cluster", number)
	}
	st := a.batchState(r)
	for i, e := range r.Elements {
		if j := a.jobs[r.First+int64(i)]; j != nil {
			st.Jobs = append(st.Jobs, agentapi.ElementJob{Index: e.Index, Job: j.Row})
		}
	}
	return st, nil
}

// ForgetBatches drops batches up to a number whose jobs have all ended: DELETE /v1/batches/{number}.
func (a *Agent) ForgetBatches(ctx context.Context, upTo int64) error {
	for {
		a.mu.Lock()
		var r *batchRecord
		for n, one := range a.batches {
			if n <= upTo && a.batchOver(one) {
				r = one
				break
			}
		}
		if r == nil {
			a.mu.Unlock()
			return nil
		}
		call := peerCall{Forget: &forgetCall{First: r.First, Last: r.Last, Batch: r.Number}}
		nodes := slices.Clone(a.cluster.Spec.Nodes)
		secret := a.cluster.Spec.Secret
		a.mu.Unlock()
		for _, p := range nodes {
			if p.NodeID == a.cfg.NodeID {
				continue
			}
			peer := remoteNode{a.peers.client(a, p.Addr), secret}
			if _, err := peer.call(ctx, "forget", peerTimeout, call); err != nil {
				return fmt.Errorf("%s: %w", api.NodeName(p.Rank), err)
			}
		}
		a.forgetParts(*call.Forget)
		a.mu.Lock()
		b := &durable.Batch{}
		for id := r.First; id <= r.Last; id++ {
			if j := a.jobs[id]; j != nil {
				delete(a.keys, j.Row.Key)
				delete(a.jobs, id)
				b.Delete(jobKey(id))
			}
		}
		delete(a.batches, r.Number)
		b.Delete(batchKey(r.Number))
		a.commit(b)
		a.mu.Unlock()
	}
}

// batchOver says that nothing is left to do for a batch. The caller holds a.mu.
func (a *Agent) batchOver(r *batchRecord) bool {
	for id := r.First; id <= r.Last; id++ {
		if j := a.jobs[id]; j != nil && (!j.Row.Status.Terminal() || j.Stage != stageDone || j.driver != nil) {
			return false
		}
	}
	return true
}

// forgetCall names the jobs of a batch to a node that is to drop its part in them.
type forgetCall struct {
	First int64 `json:"first"`
	Last  int64 `json:"last"`
	Batch int64 `json:"batch"`
}

// forgetParts drops what this node knows of the jobs of a batch, and their logs.
func (a *Agent) forgetParts(f forgetCall) {
	a.mu.Lock()
	b := &durable.Batch{}
	for id := f.First; id <= f.Last; id++ {
		if p := a.parts[id]; p != nil && p.over() {
			delete(a.parts, id)
			b.Delete(partKey(id))
		}
	}
	if b.Len() > 0 {
		a.commit(b)
	}
	a.mu.Unlock()
	if err := os.RemoveAll(filepath.Join(a.cfg.Home, batchLogs(f.Batch))); err != nil {
		a.log.Warn("logs of a batch were not removed", "batch", f.Batch, "error", err)
	}
}

func (a *Agent) batchRoutes(m *http.ServeMux) {
	number := func(r *http.Request) (int64, error) {
		n, err := strconv.ParseInt(r.PathValue("number"), 10, 64)
		if err != nil {
			return 0, invalid("%q is not a batch's number", r.PathValue("number"))
		}
		return n, nil
	}
	handle(m, "POST /v1/batches", with(func(b agentapi.JobBatch, _ *http.Request) (any, error) { return a.SubmitBatch(b) }))
	handle(m, "GET /v1/batches/{number}", func(r *http.Request) (any, error) {
		n, err := number(r)
		if err != nil {
			return nil, err
		}
		return a.Batch(n)
	})
	handle(m, "DELETE /v1/batches/{number}", func(r *http.Request) (any, error) {
		n, err := number(r)
		if err != nil {
			return nil, err
		}
		return nil, a.ForgetBatches(r.Context(), n)
	})
	m.HandleFunc("GET /v1/logs", a.getRangeLogs)
}

// getRangeLogs sends what the jobs of a range have printed here, one stream after the other.
func (a *Agent) getRangeLogs(w http.ResponseWriter, r *http.Request) {
	first, err := query(r, "first")
	last, lerr := query(r, "last")
	if err = errors.Join(err, lerr); err != nil || last-first > 100_000 {
		fail(w, invalid("first and last are the numbers of at most 100,000 jobs"))
		return
	}
	kept, err := agentapi.ParseKeptOutput(r.URL.Query().Get("kept"))
	if err != nil {
		fail(w, invalid("kept: %s", err))
		return
	}
	w.Header().Set("Content-Type", api.LogMediaType)
	a.streamRange(r.Context(), w, first, last, kept)
}

func (a *Agent) streamRange(ctx context.Context, w io.Writer, first, last int64, kept agentapi.KeptOutput) {
	for id := first; id <= last && ctx.Err() == nil; id++ {
		v, known := a.viewLog(id)
		if !known {
			continue
		}
		var q agentapi.LogQuery
		if v.part != nil {
			if e, ok := elementOf(v.part.LogDir); ok && kept[e] > 0 {
				q.Offsets = map[string]int64{phaseRun: kept[e]}
			}
		}
		if err := a.streamLogs(ctx, w, func() {}, id, q); err != nil {
			return // cut short: the reader knows by the missing End frame
		}
	}
}
