package httpapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

// fakeAgent serves the log of one job over a unix socket, as an agent does.
type fakeAgent struct {
	t      *testing.T
	socket string
	srv    *http.Server
	jobID  int64

	mu     sync.Mutex
	log    map[string][]byte // by phase
	status api.JobStatus
	hooks  map[string]string
	bell   chan struct{}
	// patient makes it wait for a job that it does not know, when asked to follow it.
	patient bool
	cut     int // bytes of log after which a connection breaks; 0: never
	opened  atomic.Int32
}

func newFakeAgent(t *testing.T, jobID int64) *fakeAgent {
	a := &fakeAgent{t: t, socket: filepath.Join(t.TempDir(), "a.sock"), jobID: jobID, log: map[string][]byte{}, status: api.JobRunning, bell: make(chan struct{})}
	a.start()
	t.Cleanup(a.stop)
	return a
}

func (a *fakeAgent) start() {
	a.t.Helper()
	ln, err := net.Listen("unix", a.socket)
	if err != nil {
		a.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/jobs/{id}/logs", a.logs)
	mux.HandleFunc("GET /v1/jobs/{id}", a.job)
	mux.HandleFunc("GET /v1/jobs", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(agentapi.JobList{Jobs: []api.Job{{ID: a.jobID, Name: "j"}}})
	})
	mux.HandleFunc("GET /v1/hooks/{event}/log", func(w http.ResponseWriter, r *http.Request) {
		if out, ok := a.hooks[r.PathValue("event")]; ok {
			io.WriteString(w, out)
			return
		}
		a.notFound(w)
	})
	a.srv = &http.Server{Handler: mux}
	go a.srv.Serve(ln)
}

func (a *fakeAgent) stop() { a.srv.Close() }

func (a *fakeAgent) notFound(w http.ResponseWriter) {
	w.WriteHeader(404)
	json.NewEncoder(w).Encode(agentapi.Error{Kind: agentapi.KindNotFound, Detail: "no such job", Status: 404})
}

func (a *fakeAgent) change(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
	close(a.bell)
	a.bell = make(chan struct{})
}

func (a *fakeAgent) write(phase, s string) {
	a.change(func() { a.log[phase] = append(a.log[phase], s...) })
}

func (a *fakeAgent) end(st api.JobStatus) { a.change(func() { a.status = st }) }

func (a *fakeAgent) job(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.PathValue("id") != fmt.Sprint(a.jobID) {
		a.notFound(w)
		return
	}
	json.NewEncoder(w).Encode(api.Job{ID: a.jobID, Name: "j", Status: a.status})
}

func (a *fakeAgent) logs(w http.ResponseWriter, r *http.Request) {
	if r.PathValue("id") != fmt.Sprint(a.jobID) {
		if a.patient && r.URL.Query().Get("follow") != "" {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return
		}
		a.notFound(w)
		return
	}
	a.opened.Add(1)
	q := r.URL.Query()
	at := map[string]int{}
	for _, p := range []string{"setup", "run"} {
		at[p], _ = strconv.Atoi(q.Get("offset_" + p))
	}
	a.mu.Lock()
	if tail, _ := strconv.Atoi(q.Get("tail")); tail > 0 { // of the run only; setup is past
		at["setup"] = len(a.log["setup"])
		lines := bytes.SplitAfter(a.log["run"], []byte("\n"))
		if n := len(lines) - 1 - tail; n > 0 {
			at["run"] = len(bytes.Join(lines[:n], nil))
		}
	}
	a.mu.Unlock()
	sent := 0
	send := func(f api.LogFrame, b []byte) bool {
		f.Len = len(b)
		head, _ := json.Marshal(f)
		w.Write(append(head, '\n'))
		if a.cut > 0 && sent+len(b) > a.cut { // in the middle of a frame
			w.Write(b[:max(0, a.cut-sent)])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		w.Write(b)
		w.(http.Flusher).Flush()
		sent += len(b)
		return true
	}
	send(api.LogFrame{JobID: a.jobID}, nil)
	for {
		a.mu.Lock()
		bell, status := a.bell, a.status
		var phase string
		var b []byte
		for _, p := range []string{"setup", "run"} {
			if at[p] < len(a.log[p]) {
				phase, b = p, a.log[p][at[p]:min(len(a.log[p]), at[p]+100_000)]
				break
			}
		}
		a.mu.Unlock()
		if phase != "" {
			send(api.LogFrame{Rank: 99, Phase: phase, PID: 12, Offset: int64(at[phase])}, b)
			at[phase] += len(b)
			continue
		}
		if status.Terminal() || q.Get("follow") == "" {
			send(api.LogFrame{End: true, Status: status}, nil)
			return
		}
		select {
		case <-bell:
		case <-r.Context().Done():
			return
		}
	}
}
