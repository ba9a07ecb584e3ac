package agent

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/supervisor"
	"github.com/skyloom/skyloom/api"
)

// maxBody bounds a JSON body, in bytes.
const maxBody = 64 << 20

// statusOf gives the HTTP status of an error's kind.
var statusOf = map[string]int{
	agentapi.KindInvalid:    http.StatusBadRequest,
	agentapi.KindUnfit:      http.StatusUnprocessableEntity,
	agentapi.KindNotFound:   http.StatusNotFound,
	agentapi.KindStaleEpoch: http.StatusPreconditionFailed,
	agentapi.KindDraining:   http.StatusConflict,
	agentapi.KindConflict:   http.StatusConflict,
	agentapi.KindEnded:      http.StatusConflict,
	agentapi.KindDiskFull:   http.StatusInsufficientStorage,
	agentapi.KindBucket:     http.StatusBadGateway,
	agentapi.KindInternal:   http.StatusInternalServerError,
}

// server is one listener with its HTTP server.
type server struct{ *http.Server }

// Close lets answers that are on their way go out, then ends.
func (s server) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	if s.Shutdown(ctx) != nil {
		s.Server.Close()
	}
}

// listen opens the unix socket, and the peers' listener if there is one.
func (a *Agent) listen() ([]server, error) {
	if err := os.Remove(a.cfg.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	mask := syscall.Umask(0o177)
	l, err := net.Listen("unix", a.cfg.Socket)
	syscall.Umask(mask)
	if err != nil {
		return nil, err
	}
	a.listenPeers()
	return []server{a.serve(l, a.routes())}, nil
}

func (a *Agent) serve(l net.Listener, h http.Handler) server {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10}
	go s.Serve(l)
	return server{s}
}

// listenPeers serves peers by mutual TLS, once the keys are there. Later keys are taken as they come.
func (a *Agent) listenPeers() {
	if a.cfg.Listen == "" {
		return
	}
	a.peers.mu.Lock()
	defer a.peers.mu.Unlock()
	if a.peers.serving {
		return
	}
	if _, err := a.tlsConfig(); err != nil {
		a.log.Info("peers are not served yet", "reason", err)
		return
	}
	l, err := net.Listen("tcp", a.cfg.Listen)
	if err != nil {
		a.log.Error("peers cannot be served", "error", err)
		return
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return a.tlsConfig() }}
	mux := http.NewServeMux()
	a.peerRoutes(mux)
	s := a.serve(tls.NewListener(l, conf), mux)
	a.peers.serving = true
	go func() { <-a.stop; s.Close() }()
}

func (a *Agent) routes() http.Handler {
	m := http.NewServeMux()
	a.peerRoutes(m)
	handle(m, "GET /v1/info", func(r *http.Request) (any, error) { return a.Info(), nil })
	handle(m, "PUT /v1/cluster", with(func(s agentapi.ClusterSpec, _ *http.Request) (any, error) { return nil, a.Configure(s) }))
	handle(m, "PUT /v1/hosts", with(func(h agentapi.Hosts, _ *http.Request) (any, error) { return nil, a.SetHosts(h) }))
	handle(m, "POST /v1/peers/lost", with(func(l agentapi.PeerLost, _ *http.Request) (any, error) { return nil, a.PeerLost(l) }))
	handle(m, "POST /v1/jobs", with(func(s agentapi.JobSpec, _ *http.Request) (any, error) { return a.Submit(s) }))
	handle(m, "GET /v1/jobs", func(r *http.Request) (any, error) {
		return agentapi.JobList{Jobs: a.Jobs(r.URL.Query().Get("key"))}, nil
	})
	handle(m, "GET /v1/jobs/{id}", func(r *http.Request) (any, error) {
		id, err := jobID(r)
		if err != nil {
			return nil, err
		}
		return a.Job(id)
	})
	handle(m, "POST /v1/jobs/cancel", with(func(s agentapi.CancelSpec, r *http.Request) (any, error) { return a.Cancel(r.Context(), s) }))
	handle(m, "PUT /v1/autostop", with(func(s agentapi.Autostop, _ *http.Request) (any, error) { return a.SetAutostop(s) }))
	handle(m, "GET /v1/autostop", func(*http.Request) (any, error) { return a.Autostop(), nil })
	handle(m, "POST /v1/drain", with(func(d agentapi.Drain, _ *http.Request) (any, error) { return nil, a.Drain(d) }))
	handle(m, "POST /v1/hooks/{event}", with(func(h agentapi.HookRun, r *http.Request) (any, error) {
		return a.RunHooks(r.PathValue("event"), h)
	}))
	handle(m, "GET /v1/hooks/{event}", func(r *http.Request) (any, error) { return a.HookState(r.PathValue("event")) })
	handle(m, "POST /v1/notice", with(func(n struct{ Seconds int }, _ *http.Request) (any, error) { return nil, a.Notice(n.Seconds) }))
	handle(m, "GET /v1/ssh", func(*http.Request) (any, error) { return a.SSHHost() })
	m.HandleFunc("POST /v1/ssh", a.upgradeSSH)
	handle(m, "POST /v1/events/ack", with(func(s struct{ Seq int64 }, _ *http.Request) (any, error) { return nil, a.Ack(s.Seq) }))
	a.fileRoutes(m)
	a.checkpointRoutes(m)
	a.bucketRoutes(m)
	a.batchRoutes(m)
	m.HandleFunc("GET /v1/events", a.getEvents)
	m.HandleFunc("GET /v1/jobs/{id}/logs", a.getLogs)
	m.HandleFunc("GET /v1/hooks/{event}/log", a.getHookLog)
	m.HandleFunc("POST /v1/upgrade", a.postUpgrade)
	m.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, notFound("the agent has no %s %s", r.Method, r.URL.Path))
	})
	return m
}

func (a *Agent) peerRoutes(m *http.ServeMux) {
	a.peerFileRoutes(m)
	call := with(func(in peerCall, r *http.Request) (any, error) {
		return a.servePeer(r.Context(), r.PathValue("verb"), in)
	})
	handle(m, "POST /v1/peer/{verb}", func(r *http.Request) (any, error) {
		if !a.trusted(r) {
			return nil, conflict("the peer does not know this cluster's secret, or this node was not told of its cluster yet")
		}
		return call(r)
	})
}

// handle answers with the JSON of what f gives.
func handle(m *http.ServeMux, pattern string, f func(*http.Request) (any, error)) {
	m.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		out, err := f(r)
		answer(w, out, err)
	})
}

func answer(w http.ResponseWriter, out any, err error) {
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if out == nil {
		out = struct{}{}
	}
	json.NewEncoder(w).Encode(out)
}

// with decodes a JSON body.
func with[T any](f func(T, *http.Request) (any, error)) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		var in T
		body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
		if err != nil {
			return nil, invalid("the body cannot be read: %v", err)
		}
		if err := json.Unmarshal(body, &in); err != nil {
			return nil, invalid("the body is not understood: %v", err)
		}
		return f(in, r)
	}
}

func fail(w http.ResponseWriter, err error) {
	e := *asError(err)
	e.Status = statusOf[e.Kind]
	if e.Status == 0 {
		e.Status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(e.Status)
	json.NewEncoder(w).Encode(e)
}

func jobID(r *http.Request) (int64, error) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil || id <= 0 {
		return 0, invalid("%q is not a job id", r.PathValue("id"))
	}
	return id, nil
}

func flusher(w http.ResponseWriter) func() {
	c := http.NewResponseController(w)
	return func() { c.Flush() }
}

func (a *Agent) getEvents(w http.ResponseWriter, r *http.Request) {
	after, err := query(r, "after")
	a.mu.Lock()
	last := a.meta.LastEvent
	a.mu.Unlock()
	if err == nil && after > last {
		err = conflict("events up to %d were asked for, the last one here is %d: this agent's history began anew", after, last)
	}
	if err != nil {
		fail(w, err)
		return
	}
	every := keepAlive
	if beat, err := query(r, "beat"); err == nil && beat > 0 && beat < 60 {
		every = time.Duration(beat) * time.Second
	}
	var follow agentapi.LogFollow
	if id, err := query(r, "log"); err == nil {
		follow.JobID = id
		period, _ := query(r, "log_every")
		follow.Every = time.Duration(min(period, 3600)) * time.Second
		follow.Offsets = map[string]int64{}
		for _, phase := range []string{phaseSetup, phaseRun} {
			follow.Offsets[phase], _ = query(r, "offset_"+phase)
		}
	}
	if n, err := query(r, "batches"); err == nil && n > 0 {
		if follow.Kept, err = agentapi.ParseKeptOutput(r.URL.Query().Get("kept")); err != nil {
			fail(w, invalid("kept: %s", err))
			return
		}
		period, _ := query(r, "log_every")
		follow.Batches, follow.Every = true, time.Duration(min(period, 3600))*time.Second
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	a.streamEvents(r.Context(), w, flusher(w), after, every, a.pusherOf(follow))
}

func (a *Agent) getLogs(w http.ResponseWriter, r *http.Request) {
	id, err := jobID(r)
	q := agentapi.LogQuery{Follow: r.URL.Query().Get("follow") != ""}
	for _, phase := range []string{phaseSetup, phaseRun} {
		if off, qerr := query(r, "offset_"+phase); qerr != nil {
			err = qerr
		} else if off > 0 {
			if q.Offsets == nil {
				q.Offsets = map[string]int64{}
			}
			q.Offsets[phase] = off
		}
	}
	tail, terr := query(r, "tail")
	q.Tail = int(min(tail, 1<<30))
	err = errors.Join(err, terr)
	if err == nil && !(q.Follow && a.cfg.Rank != 0) {
		if _, known := a.viewLog(id); !known {
			err = notFound("there is no job %d on this node", id)
		}
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", api.LogMediaType)
	a.streamLogs(r.Context(), w, flusher(w), id, q)
}

func (a *Agent) getHookLog(w http.ResponseWriter, r *http.Request) {
	st, err := a.HookState(r.PathValue("event"))
	if err != nil {
		fail(w, err)
		return
	}
	f, err := os.Open(a.hookLog(st.Event))
	if errors.Is(err, fs.ErrNotExist) {
		return // nothing was printed
	}
	if err != nil {
		fail(w, err)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	io.Copy(w, f)
}

func (a *Agent) postUpgrade(w http.ResponseWriter, r *http.Request) {
	changed, err := a.Upgrade(r.Context(), r.URL.Query().Get("sha256"), r.Body)
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, "{}\n")
	flusher(w)()
	if changed {
		a.Stop(supervisor.ExitRestart)
	}
}
