package simagent

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

// routes is the protocol. One handler serves all agents: the connection says which.
func routes() http.Handler {
	m := http.NewServeMux()
	m.Handle("GET /v1/info", plain(func(a *agent, r *http.Request) (any, error) { return a.info(), nil }))
	m.Handle("PUT /v1/cluster", with(func(a *agent, in agentapi.ClusterSpec) (any, error) { return nil, a.configure(in) }))
	m.Handle("POST /v1/jobs", with(func(a *agent, in agentapi.JobSpec) (any, error) { return a.submit(in) }))
	m.Handle("POST /v1/jobs/cancel", with(func(a *agent, in agentapi.CancelSpec) (any, error) { return a.cancel(in), nil }))
	m.Handle("GET /v1/jobs", plain(func(a *agent, r *http.Request) (any, error) {
		list := agentapi.JobList{Jobs: []api.Job{}}
		for _, j := range a.state.Jobs {
			if k := r.URL.Query().Get("key"); k == "" || k == j.Row.Key {
				list.Jobs = append(list.Jobs, j.Row)
			}
		}
		return list, nil
	}))
	m.Handle("GET /v1/jobs/{id}", plain(func(a *agent, r *http.Request) (any, error) {
		j, err := a.job(r.PathValue("id"))
		if err != nil {
			return nil, err
		}
		return j.Row, nil
	}))
	m.HandleFunc("GET /v1/jobs/{id}/logs", logs)
	m.Handle("POST /v1/events/ack", with(func(a *agent, in struct{ Seq int64 }) (any, error) { return nil, a.ack(in.Seq) }))
	m.Handle("PUT /v1/autostop", with(func(a *agent, in agentapi.Autostop) (any, error) { return a.setAutostop(in), nil }))
	m.Handle("GET /v1/autostop", plain(func(a *agent, r *http.Request) (any, error) { return a.state.Autostop, nil }))
	m.Handle("POST /v1/drain", with(func(a *agent, in agentapi.Drain) (any, error) { return nil, a.drain(in) }))
	m.HandleFunc("POST /v1/hooks/{event}", func(w http.ResponseWriter, r *http.Request) {
		with(func(a *agent, in agentapi.HookRun) (any, error) { return a.runHooks(r.PathValue("event"), in) }).ServeHTTP(w, r)
	})
	m.Handle("GET /v1/hooks/{event}", plain(func(a *agent, r *http.Request) (any, error) {
		h, err := a.hook(r.PathValue("event"))
		if err != nil {
			return nil, err
		}
		return h.State, nil
	}))
	m.Handle("GET /v1/hooks/{event}/log", plain(func(a *agent, r *http.Request) (any, error) {
		h, err := a.hook(r.PathValue("event"))
		if err != nil {
			return nil, err
		}
		return text(h.Log), nil
	}))
	m.Handle("POST /v1/notice", with(func(a *agent, in struct{ Seconds int }) (any, error) {
		a.notice(time.Duration(in.Seconds) * time.Second)
		return nil, nil
	}))
	m.Handle("POST /v1/peers/lost", with(func(a *agent, in agentapi.PeerLost) (any, error) { return nil, a.peerLost(in) }))
	batchRoutes(m)
	// Files and programs are taken as they come, and thrown away.
	m.Handle("POST /v1/files/plan", upload(func(a *agent, r *http.Request) (any, error) { return agentapi.FilePlan{Missing: []string{}}, nil }))
	m.Handle("PUT /v1/files/blobs", upload(func(a *agent, r *http.Request) (any, error) { return nil, nil }))
	m.Handle("POST /v1/files/apply", with(func(a *agent, in agentapi.FileApply) (any, error) { return agentapi.FileResult{}, nil }))
	m.Handle("POST /v1/upgrade", upload(func(a *agent, r *http.Request) (any, error) {
		a.state.BinarySHA = r.URL.Query().Get("sha256")
		a.dirty = true
		return nil, nil
	}))
	return m
}

// text is an answer that is not JSON.
type text string

func agentOf(r *http.Request) *agent { return r.Context().Value(agentKey{}).(*agent) }

// plain serves a call without a body, under the agent's lock.
func plain(f func(*agent, *http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := agentOf(r)
		end := a.begin()
		out, err := f(a, r)
		var b []byte
		if _, ok := out.(text); err == nil && out != nil && !ok {
			b, err = json.Marshal(out) // under the lock: it reads the state
		}
		end()
		if err != nil {
			refuse(w, err)
			return
		}
		if t, ok := out.(text); ok {
			w.Header().Set("Content-Type", "text/plain")
			io.WriteString(w, string(t))
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(b)
	})
}

// upload reads the body to its end first.
func upload(f func(*agent, *http.Request) (any, error)) http.Handler {
	h := plain(f)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		h.ServeHTTP(w, r)
	})
}

// with serves a call with a JSON body.
func with[T any](f func(*agent, T) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in T
		if err := json.NewDecoder(io.LimitReader(r.Body, 64<<20)).Decode(&in); err != nil {
			refuse(w, fail(agentapi.KindInvalid, "the body is not understood: %v", err))
			return
		}
		plain(func(a *agent, _ *http.Request) (any, error) { return f(a, in) }).ServeHTTP(w, r)
	})
}

func refuse(w http.ResponseWriter, err error) {
	var e *agentapi.Error
	if !errors.As(err, &e) {
		e = &agentapi.Error{Kind: agentapi.KindInternal, Detail: err.Error(), Status: 500}
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(e.Status)
	json.NewEncoder(w).Encode(e)
}

func (a *agent) job(id string) (*job, error) {
	n, _ := strconv.ParseInt(id, 10, 64)
	for _, j := range a.state.Jobs {
		if j.Row.ID == n {
			return j, nil
		}
	}
	return nil, fail(agentapi.KindNotFound, "there is no job %s", id)
}

func (a *agent) hook(event string) (*hookRun, error) {
	if h := a.state.Hooks[event]; h != nil {
		return h, nil
	}
	return nil, fail(agentapi.KindNotFound, "no hooks ran for %s", event)
}

func (a *agent) ack(seq int64) error {
	s := &a.state
	if seq > s.Seq {
		return fail(agentapi.KindConflict, "event %d was never sent, the last one is %d", seq, s.Seq)
	}
	if seq <= s.Acked {
		return nil
	}
	s.Acked = seq
	for len(s.Events) > 0 && s.Events[0].Seq <= seq {
		s.Events = s.Events[1:]
	}
	s.Events = append([]agentapi.Event(nil), s.Events...)
	a.dirty = true
	return nil
}

// logView is what a reader of a job's log sees at one moment.
type logView struct {
	job     api.Job
	rank    int // of the node that serves it
	setup   string
	run     string
	ended   bool
	changes <-chan struct{}
	next    time.Duration // until more output comes by itself; 0: none will
}

// view reads the log of a job; a worker asks the head, which knows what the job does.
func (a *agent) view(id string) (logView, error) {
	head := a
	end := a.begin()
	rank := a.state.Node.Rank
	if rank != 0 && a.state.Spec != nil && len(a.state.Spec.Nodes) > 0 {
		head = a.fleet.find(a.state.Spec.Nodes[0].NodeID)
	}
	end()
	if head == nil {
		return logView{}, fail(agentapi.KindNotFound, "there is no job %s", id)
	}
	defer head.begin()()
	j, err := head.job(id)
	if err != nil {
		return logView{}, err
	}
	v := logView{job: j.Row, rank: rank, ended: j.Row.Status.Terminal(), changes: head.listen()}
	if j.Begun.IsZero() {
		return v, nil
	}
	now := head.now()
	if v.ended && j.Row.EndAt != nil {
		now = *j.Row.EndAt
	}
	since := now.Sub(j.Begun)
	setup, run := j.plans()
	v.setup = setup.until(since)
	if at, more := setup.nextAfter(since); more {
		v.next = at - since
	}
	if j.Row.StartAt != nil {
		v.run = run.until(now.Sub(*j.Row.StartAt))
		if at, more := run.nextAfter(now.Sub(*j.Row.StartAt)); more {
			v.next = at - now.Sub(*j.Row.StartAt)
		}
	}
	return v, nil
}

// logs streams a job's log in frames, to its end if followed.
func logs(w http.ResponseWriter, r *http.Request) {
	a := agentOf(r)
	q := r.URL.Query()
	follow := q.Get("follow") == "1"
	sent := map[string]int64{}
	for _, p := range []string{"setup", "run"} {
		sent[p], _ = strconv.ParseInt(q.Get("offset_"+p), 10, 64)
	}
	tail, _ := strconv.Atoi(q.Get("tail"))
	v, err := a.view(r.PathValue("id"))
	if err != nil {
		refuse(w, err)
		return
	}
	rank, node := v.rank, api.NodeName(v.rank)
	w.Header().Set("Content-Type", api.LogMediaType)
	flush := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	v.name(enc)
	if tail > 0 {
		sent["setup"], sent["run"] = tailOffsets(v.setup, v.run, tail)
	}
	for {
		v.send(enc, w, sent)
		if v.ended || !follow {
			enc.Encode(api.LogFrame{Rank: rank, Node: node, End: true, Status: v.job.Status, Reason: v.job.Reason})
			return
		}
		if flush.Flush() != nil {
			return
		}
		more := make(chan struct{})
		stop := func() bool { return true }
		if v.next > 0 {
			stop = a.fleet.o.Clock.AfterFunc(v.next, func() { close(more) })
		}
		select {
		case <-r.Context().Done():
			stop()
			return
		case <-v.changes:
		case <-more:
		}
		stop()
		if v, err = a.view(r.PathValue("id")); err != nil {
			return // cut: the reader asks again and is told
		}
	}
}

// name says whose log follows.
func (v logView) name(enc *json.Encoder) {
	enc.Encode(api.LogFrame{Rank: v.rank, Node: api.NodeName(v.rank), JobID: v.job.ID, JobName: v.job.Name, Nodes: v.job.NumNodes})
}

// send writes what there is beyond what was sent before.
func (v logView) send(enc *json.Encoder, w io.Writer, sent map[string]int64) {
	for _, p := range []struct{ phase, text string }{{"setup", v.setup}, {"run", v.run}} {
		if off := sent[p.phase]; off < int64(len(p.text)) {
			b := p.text[off:]
			enc.Encode(api.LogFrame{Rank: v.rank, Node: api.NodeName(v.rank), Phase: p.phase, PID: int(v.job.ID), Offset: off, Len: len(b)})
			io.WriteString(w, b)
			sent[p.phase] = int64(len(p.text))
		}
	}
}

// tailOffsets is where the last n lines of setup and run together begin.
func tailOffsets(setup, run string, n int) (inSetup, inRun int64) {
	all := setup + run
	at := len(all)
	for i := len(all) - 1; i >= 0; i-- {
		if all[i] == '\n' && i != len(all)-1 {
			if n--; n == 0 {
				break
			}
		}
		at = i
	}
	if at <= len(setup) {
		return int64(at), 0
	}
	return int64(len(setup)), int64(at - len(setup))
}
