package httpapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/skyloom/skyloom/api"
)

// Files in Options.Home by which clients find a server.
const (
	StateFile = "server.json"
	PIDFile   = "server.pid"
	TokenFile = "token"
)

// drainTime is how long plain calls may go on once the server is to end.
const drainTime = 5 * time.Second

// State is the content of StateFile.
type State struct {
	URL          string `json:"url"`
	PID          int    `json:"pid"`
	Installation string `json:"installation"`
	Version      string `json:"version"`
}

// Server serves the API. Make one with New.
type Server struct {
	o        Options
	log      *slog.Logger
	now      func() time.Time
	token    string
	sessions *sessions
	started  time.Time

	backend atomic.Pointer[Backend]
	webui   atomic.Pointer[http.Handler]
	handler http.Handler

	draining  chan struct{} // closed when the server is to end: streams are cut
	drainOnce sync.Once

	ln  net.Listener
	url string

	open     atomic.Int64 // calls being answered
	lastCall atomic.Int64 // when one began or ended, in nanoseconds

	lostAfter time.Duration // see the constant
}

// New makes a server, and the instance token if there is none yet.
func New(o Options) (*Server, error) {
	s := newServer(o)
	if s.token == "" {
		var err error
		if s.token, err = loadToken(filepath.Join(o.Home, TokenFile), s.log); err != nil {
			return nil, err
		}
	}
	if s.o.Installation == "" && o.Store != nil {
		s.o.Installation = o.Store.Installation()
	}
	s.sessions = newSessions(s.token, s.o.Installation)
	mux, _ := s.routes()
	s.handler = s.outer(s.guard(s.available(mux)))
	return s, nil
}

func newServer(o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Addr == "" {
		o.Addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(api.DefaultPort))
	}
	if o.LogPath == "" {
		o.LogPath = filepath.Join(o.Home, "server.log")
	}
	if o.MaxUpload == 0 {
		o.MaxUpload = 256 << 30
	}
	s := &Server{o: o, log: o.Logger, now: o.Now, token: o.Token, started: o.Now(), draining: make(chan struct{}),
		lostAfter: lostAfter}
	if o.Backend != nil {
		s.SetBackend(o.Backend)
	}
	if o.WebUI != nil {
		s.SetWebUI(o.WebUI)
	}
	return s
}

// SetBackend makes the server ready: before it, health says "starting" and other calls are answered 503.
func (s *Server) SetBackend(b Backend) { s.backend.Store(&b) }

// SetWebUI mounts the workflow Web UI at /temporal/.
func (s *Server) SetWebUI(h http.Handler) { s.webui.Store(&h) }

// be is the backend; routes run only once there is one.
func (s *Server) be() Backend { return *s.backend.Load() }

// Handler is the whole of the server, for tests and for a listener of one's own.
func (s *Server) Handler() http.Handler { return s.handler }

// Token is the instance token.
func (s *Server) Token() string { return s.token }

// URL is where the server listens, known after Listen.
func (s *Server) URL() string { return s.url }

// Activity tells how many calls are being answered, and when the last one began or ended; health is not counted. A
// server that is to end when idle looks here.
func (s *Server) Activity() (open int, last time.Time) {
	last = s.started
	if n := s.lastCall.Load(); n > 0 {
		last = time.Unix(0, n)
	}
	return int(s.open.Load()), last
}

func (s *Server) tokenPath() string { return filepath.Join(s.o.Home, TokenFile) }

// status is what health tells.
func (s *Server) status() string {
	select {
	case <-s.draining:
		return "draining"
	default:
	}
	if s.backend.Load() == nil {
		return "starting"
	}
	return "healthy"
}

// Serve makes a server, listens and serves until ctx ends.
func Serve(ctx context.Context, o Options) error {
	s, err := New(o)
	if err != nil {
		return err
	}
	if err := s.Listen(); err != nil {
		return err
	}
	return s.Serve(ctx)
}

// Listen binds the address, or a free port beside it when it is taken.
func (s *Server) Listen() error {
	host, _, err := net.SplitHostPort(s.o.Addr)
	if err != nil {
		return fmt.Errorf("the address to listen on is wrong: %w", err)
	}
	if !loopbackName(host) {
		return fmt.Errorf("the server listens on this machine only; %s is not a loopback address\nUse 127.0.0.1 and reach it through SSH: ssh -L 46580:127.0.0.1:46580 HOST", s.o.Addr)
	}
	ln, err := net.Listen("tcp", s.o.Addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		holder := portHolder(s.o.Addr)
		if s.o.FixedPort {
			return fmt.Errorf("the server can't listen on %s: it is taken by %s\nStop that, or set another server.port in config.yaml", s.o.Addr, holder)
		}
		if ln, err = net.Listen("tcp", net.JoinHostPort(host, "0")); err == nil {
			s.log.Warn("the port is taken; listening on a free one", "wanted", s.o.Addr, "holder", holder, "address", ln.Addr().String())
		}
	}
	if err != nil {
		return fmt.Errorf("the server can't listen on %s: %w", s.o.Addr, err)
	}
	s.ln, s.url = ln, "http://"+ln.Addr().String()
	return nil
}

// portHolder says who listens at an address.
func portHolder(addr string) string {
	c := &http.Client{Timeout: time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	get := func(path string) (map[string]any, bool) {
		resp, err := c.Get("http://" + addr + path)
		if err != nil {
			return nil, false
		}
		defer resp.Body.Close()
		var m map[string]any
		_ = json.NewDecoder(http.MaxBytesReader(nil, resp.Body, 1<<16)).Decode(&m)
		return m, true
	}
	m, answered := get(apiPrefix + "/health")
	if m["product"] == api.Product {
		return fmt.Sprintf("another %s server (version %v)", api.Product, m["version"])
	}
	if m, _ := get("/api/health"); m["api_version"] != nil {
		return "the API server of another product of the same command name"
	}
	if answered {
		return "another program's HTTP server"
	}
	return "another program"
}

// Serve writes StateFile and PIDFile and serves until ctx ends. Then it takes no new connection, cuts the streams (their
// readers resume at the next server), leaves plain calls five seconds, and removes the files.
func (s *Server) Serve(ctx context.Context) error {
	if s.ln == nil {
		return errors.New("httpapi: Serve before Listen")
	}
	srv := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	if err := s.writeState(); err != nil {
		s.ln.Close()
		return err
	}
	s.log.Info("listening", "url", s.url, "pid", os.Getpid(), "version", s.o.Version)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(s.ln) }()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		s.Drain()
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		if serr := srv.Shutdown(dctx); serr != nil {
			srv.Close()
		}
		cancel()
		<-ended
	}
	s.removeState()
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("the HTTP server ended: %w", err)
	}
	return nil
}

// Drain makes health say "draining" and ends all streams. Serve does it by itself.
func (s *Server) Drain() { s.drainOnce.Do(func() { close(s.draining) }) }

func (s *Server) writeState() error {
	st := State{URL: s.url, PID: os.Getpid(), Installation: s.o.Installation, Version: s.o.Version}
	b, _ := json.Marshal(st)
	if err := os.MkdirAll(s.o.Home, 0o700); err != nil {
		return fmt.Errorf("the server's folder can't be made: %w", err)
	}
	if err := writeFile(filepath.Join(s.o.Home, PIDFile), []byte(strconv.Itoa(st.PID)+"\n")); err != nil {
		return err
	}
	return writeFile(filepath.Join(s.o.Home, StateFile), append(b, '\n'))
}

// removeState removes the files, unless another server has replaced them meanwhile.
func (s *Server) removeState() {
	b, err := os.ReadFile(filepath.Join(s.o.Home, StateFile))
	var st State
	if err != nil || json.Unmarshal(b, &st) != nil || st.PID != os.Getpid() || st.URL != s.url {
		return
	}
	os.Remove(filepath.Join(s.o.Home, StateFile))
	os.Remove(filepath.Join(s.o.Home, PIDFile))
}

// writeFile replaces a file atomically, mode 0600.
func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // CreateTemp makes it 0600
	if err != nil {
		return fmt.Errorf("%s can't be written: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("%s can't be written: %w", path, err)
	}
	return nil
}

// loadToken reads the instance token, or makes it. Two servers that make it at once end with the same one.
func loadToken(path string, log *slog.Logger) (string, error) {
	for range 2 {
		b, err := os.ReadFile(path)
		if err == nil {
			if st, err := os.Stat(path); err == nil && st.Mode().Perm()&0o077 != 0 {
				log.Warn("the token file could be read by others; its mode is now 0600. To be safe, remove it and restart the server: that makes a new token", "path", path)
				if err := os.Chmod(path, 0o600); err != nil {
					return "", fmt.Errorf("the token file must not be readable by others: %w", err)
				}
			}
			tok := strings.TrimSpace(string(b))
			if len(tok) < 16 {
				return "", fmt.Errorf("the token in %s is damaged or too short\nRemove the file: the next start makes a new one", path)
			}
			return tok, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("the server's token can't be read: %w", err)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return "", fmt.Errorf("the server's folder can't be made: %w", err)
		}
		tmp := path + "." + randomText()[:8]
		if err := writeFile(tmp, []byte(randomText()+"\n")); err != nil {
			return "", err
		}
		err = os.Link(tmp, path) // fails if another server was faster
		os.Remove(tmp)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return "", fmt.Errorf("the server's token can't be written: %w", err)
		}
	}
	return "", fmt.Errorf("the server's token in %s comes and goes; is another program removing it?", path)
}

// digest is the hash of a body by which a repeated call is told from another one. Bodies may hold secrets: it is keyed.
func (s *Server) digest(b []byte) string {
	if s.o.Secrets != nil {
		return s.o.Secrets.Digest(b)
	}
	sum := sha256.Sum256(append([]byte(s.token+"\x00"), b...))
	return hex.EncodeToString(sum[:])
}
