package httpapi

import (
	"context"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/skyloom/skyloom/api"
)

// recorder remembers what was answered.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (w *recorder) WriteHeader(code int) {
	if w.status == 0 && code >= 200 {
		w.status = code
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *recorder) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController find the connection.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Flush is for handlers that look for http.Flusher.
func (w *recorder) Flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }

// outer logs each call in one line, without query, headers or body, and turns a panic into an internal error.
func (s *Server) outer(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w}
		start := s.now()
		if r.URL.Path != apiPrefix+"/health" {
			s.open.Add(1)
			s.lastCall.Store(start.UnixNano())
			defer func() {
				s.lastCall.Store(s.now().UnixNano())
				s.open.Add(-1)
			}()
		}
		defer func() {
			p := recover()
			if p == http.ErrAbortHandler {
				panic(p)
			}
			if p != nil && r.Context().Err() == nil {
				s.log.Error("a call panicked", "method", r.Method, "path", shorten(r.URL.Path), "panic", p, "stack", string(debug.Stack()))
			}
			half := rec.status != 0
			if p != nil && !half {
				writeProblem(rec, failure(api.ErrInternal, "The server's log says more: sky api logs --server-logs", "internal error"))
			}
			level := slog.LevelInfo
			switch {
			case rec.status >= 500 && rec.status != http.StatusServiceUnavailable:
				level = slog.LevelWarn
			case r.URL.Path == apiPrefix+"/health", strings.HasPrefix(r.URL.Path, "/temporal/"), strings.HasPrefix(r.URL.Path, "/codec/"):
				level = slog.LevelDebug
			}
			s.log.Log(context.WithoutCancel(r.Context()), level, "call", "method", r.Method, "path", shorten(r.URL.Path), "status", rec.status,
				"bytes", rec.bytes, "took", s.now().Sub(start).Round(time.Microsecond))
			if p != nil && half {
				panic(http.ErrAbortHandler) // the answer is half written: cut it, so that nobody takes it for whole
			}
		}()
		next.ServeHTTP(rec, r)
	})
}

// available answers 503 while the server starts or ends, and knows the routes that do not exist.
func (s *Server) available(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != apiPrefix+"/health" {
			switch s.status() {
			case "starting":
				writeProblem(w, failure(api.ErrUnavailable, "Ask again in a moment.", "the server is starting"))
				return
			case "draining":
				w.Header().Set("Connection", "close")
				writeProblem(w, failure(api.ErrUnavailable, "Ask again in a moment.", "the server is ending"))
				return
			}
		}
		h, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		probe := &probe{header: http.Header{}}
		h.ServeHTTP(probe, r)
		if allow := probe.header.Get("Allow"); allow != "" {
			w.Header().Set("Allow", allow)
		}
		if probe.status == http.StatusMethodNotAllowed {
			writeProblem(w, problem(probe.status, r.Method+" is not possible here", ""))
			return
		}
		writeProblem(w, problem(http.StatusNotFound, "there is no such address on this server", "GET /api/v1/openapi.json describes what there is."))
	})
}

// probe takes the mux's own refusal, to learn its status.
type probe struct {
	header http.Header
	status int
}

func (p *probe) Header() http.Header         { return p.header }
func (p *probe) Write(b []byte) (int, error) { return len(b), nil }
func (p *probe) WriteHeader(code int)        { p.status = code }

// streamContext ends with the call, or when the server is to end.
func (s *Server) streamContext(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-s.draining:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
