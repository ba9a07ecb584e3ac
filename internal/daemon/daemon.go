package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/skyloom/skyloom/api"
)

// Binary is the server's file name.
const Binary = "sky-server"

// Daemon deals with the local server of one SKY_HOME.
type Daemon struct {
	Layout
	// HTTP is used for health checks; nil means a client with short timeouts.
	HTTP *http.Client
	// Progress gets a line for a person when a start takes place; nil is silent.
	Progress func(msg string)
	// Server is the server's binary; "" looks beside the running program, then on the PATH.
	Server string
	// Args are given to the server.
	Args []string
	// Environ is the server's environment; nil means this process's, with SKY_HOME set.
	Environ []string
	// Timeout is how long a start may take; 0 means 60 s.
	Timeout time.Duration
	// Port is the port that the configuration insists on; 0: the default one, or else a free one.
	Port int
	// NoStart makes Ensure fail instead of starting a server.
	NoStart bool
}

// Server is a server that answered.
type Server struct {
	URL    string
	Token  string
	PID    int
	Health api.Health
	// Started says that this call started it.
	Started bool
}

// ErrNotRunning says that no server of this SKY_HOME answers.
var ErrNotRunning = errors.New("no server is running")

// ErrStopped says that the server was ended by order, not by a crash.
var ErrStopped = errors.New("the server was stopped")

// errSlow says that the server's process is there but gives no answer in time.
var errSlow = errors.New("the server does not answer in time")

// StartError says why a server could not be started.
type StartError struct {
	Reason string
	Log    string // last lines of the server's log
	Path   string // of the log
	Hint   string
}

func (e *StartError) Error() string {
	var b strings.Builder
	b.WriteString("the server could not be started: " + e.Reason)
	if e.Log != "" {
		b.WriteString("\nLast lines of " + e.Path + ":\n  " + strings.ReplaceAll(e.Log, "\n", "\n  "))
	}
	if e.Hint != "" {
		b.WriteString("\n" + e.Hint)
	}
	return b.String()
}

func (d *Daemon) client() *http.Client {
	if d.HTTP != nil {
		return d.HTTP
	}
	return &http.Client{Timeout: 3 * time.Second}
}

func (d *Daemon) say(format string, args ...any) {
	if d.Progress != nil {
		d.Progress(fmt.Sprintf(format, args...))
	}
}

// Find asks the server named in server.json whether it is there. It returns ErrNotRunning when none answers.
func (d *Daemon) Find(ctx context.Context) (Server, error) {
	st, err := d.ReadState()
	if errors.Is(err, fs.ErrNotExist) {
		return Server{}, ErrNotRunning
	}
	if err != nil {
		return Server{}, fmt.Errorf("server.json can't be read: %w", err)
	}
	token, err := d.ReadToken()
	if err != nil {
		return Server{}, err
	}
	h, err := d.health(ctx, st.URL, token)
	if err != nil {
		if ctx.Err() != nil {
			return Server{}, ctx.Err()
		}
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() && alive(st.PID) {
			return Server{PID: st.PID, URL: st.URL}, errSlow
		}
		return Server{}, ErrNotRunning
	}
	if h.Product != api.Product {
		return Server{}, ErrNotRunning
	}
	if st.Installation != "" && h.Installation != "" && st.Installation != h.Installation {
		return Server{}, ErrNotRunning // another SKY_HOME's server got the port since
	}
	return Server{URL: st.URL, Token: token, PID: st.PID, Health: *h}, nil
}

func (d *Daemon) health(ctx context.Context, url, token string) (*api.Health, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", strings.TrimRight(url, "/")+"/api/v1/health", nil)
	if err != nil {
		return nil, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Header.Set(api.HeaderAPIVersion, strconv.Itoa(api.Version))
	resp, err := d.client().Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	h := &api.Health{}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(h); err != nil {
		return nil, err
	}
	return h, nil
}

// ready tells whether a server takes calls. One with a token we don't know is another SKY_HOME's.
func (s Server) ready() bool { return s.Health.Status == "healthy" }

// Ensure returns the running server, and starts one when there is none. Two callers at once start one.
func (d *Daemon) Ensure(ctx context.Context) (Server, error) {
	s, err := d.Find(ctx)
	if err == nil && s.ready() {
		return s, nil
	}
	if err != nil && !errors.Is(err, ErrNotRunning) && !errors.Is(err, errSlow) {
		return Server{}, err
	}
	if d.NoStart && errors.Is(err, ErrNotRunning) {
		return Server{}, fmt.Errorf("%w (and SKYLOOM_NO_AUTOSTART is set)\nStart it: sky api start", ErrNotRunning)
	}
	if err := os.MkdirAll(d.Home, 0o700); err != nil {
		return Server{}, fmt.Errorf("SKY_HOME can't be made: %w\nSet SKY_HOME to a folder that you may write.", err)
	}
	unlock, err := lock(ctx, d.LockPath())
	if err != nil {
		return Server{}, fmt.Errorf("waiting for another sky that starts the server: %w", err)
	}
	defer unlock()
	return d.ensureLocked(ctx)
}

func (d *Daemon) ensureLocked(ctx context.Context) (Server, error) {
	limit := d.Timeout
	if limit == 0 {
		limit = 60 * time.Second
	}
	ctx2, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	s, err := d.settle(ctx2)
	if err == nil || !errors.Is(err, ErrNotRunning) {
		return s, err
	}
	return d.start(ctx, limit)
}

// settle waits while a server that is there starts or drains. ErrNotRunning means: start one.
func (d *Daemon) settle(ctx context.Context) (Server, error) {
	told := ""
	for {
		s, err := d.Find(ctx)
		switch {
		case errors.Is(err, errSlow):
			s.Health.Status = "slow to answer"
		case ctx.Err() != nil:
			return s, fmt.Errorf("the server is there but did not become ready in time\nSee: %s", d.LogPath())
		case err != nil:
			return s, err
		case s.ready():
			return s, nil
		case s.Health.Status == "needs_auth":
			return s, fmt.Errorf("the server at %s refuses the token in %s\nIs it another SKY_HOME's? Set SKY_HOME, or stop it (process %d) and try again.", s.URL, d.TokenPath(), s.PID)
		}
		if told != s.Health.Status {
			told = s.Health.Status
			d.say("Waiting for the server (%s)", told)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return s, fmt.Errorf("the server (process %d) stays %s\nSee: %s", s.PID, told, d.LogPath())
		}
	}
}

// Locate finds the server's binary.
func (d *Daemon) Locate() (string, error) {
	if d.Server != "" {
		return d.Server, nil
	}
	if self, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(self); err == nil {
			self = real
		}
		p := filepath.Join(filepath.Dir(self), Binary)
		if st, err := os.Stat(p); err == nil && !st.IsDir() {
			return p, nil
		}
	}
	if p, err := exec.LookPath(Binary); err == nil {
		return filepath.Abs(p)
	}
	if runtime.GOOS == "windows" {
		return "", &StartError{Reason: "the server does not run on Windows",
			Hint: "Use a server elsewhere: sky api login -e ADDRESS"}
	}
	return "", &StartError{Reason: Binary + " is neither beside sky nor on the PATH",
		Hint: "Install it (make install), or use a server elsewhere: sky api login -e ADDRESS"}
}

func (d *Daemon) env() []string {
	env := d.Environ
	if env == nil {
		env = os.Environ()
	}
	out := make([]string, 0, len(env)+1)
	for _, kv := range env {
		if !strings.HasPrefix(kv, "SKY_HOME=") {
			out = append(out, kv)
		}
	}
	return append(out, "SKY_HOME="+d.Home)
}

// Command is the server as a command that is not started yet, with SKY_HOME set.
func (d *Daemon) Command() (*exec.Cmd, error) {
	bin, err := d.Locate()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(bin, d.Args...)
	cmd.Env = d.env()
	return cmd, nil
}

func (d *Daemon) start(ctx context.Context, limit time.Duration) (Server, error) {
	cmd, err := d.Command()
	if err != nil {
		return Server{}, err
	}
	if d.Port == 0 { // one that was set is insisted on by the server, which then says so itself
		if who := d.Holder(ctx, net.JoinHostPort("127.0.0.1", strconv.Itoa(api.DefaultPort))); who != "" {
			d.say("Port %d is taken by %s; the server takes a free one", api.DefaultPort, who)
		}
	}
	log, err := os.OpenFile(d.LogPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return Server{}, &StartError{Reason: err.Error()}
	}
	defer log.Close()
	var from int64
	if st, err := log.Stat(); err == nil {
		from = st.Size()
	}
	cmd.Dir = d.Home
	cmd.Stdout, cmd.Stderr = log, log
	detach(cmd)
	if err := cmd.Start(); err != nil {
		return Server{}, &StartError{Reason: err.Error(), Hint: "Is " + cmd.Path + " a program of this machine?"}
	}
	d.say("Starting the server")
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	deadline := time.Now().Add(limit)
	for {
		s, err := d.Find(ctx)
		if err == nil && s.ready() {
			s.Started = true
			return s, nil
		}
		if ctx.Err() != nil {
			return Server{}, ctx.Err()
		}
		select {
		case werr := <-exited:
			// It may have lost a race with a server that someone started by hand.
			if s, err := d.Find(ctx); err == nil && s.ready() {
				return s, nil
			}
			reason := "it ended at once"
			if werr != nil {
				reason = "it ended (" + werr.Error() + ")"
			}
			return Server{}, &StartError{Reason: reason, Log: tail(d.LogPath(), from, 15), Path: d.LogPath()}
		case <-time.After(25 * time.Millisecond):
		case <-ctx.Done():
		}
		if time.Now().After(deadline) {
			return Server{}, &StartError{Reason: fmt.Sprintf("it is not ready after %s", limit), Log: tail(d.LogPath(), from, 15),
				Path: d.LogPath(), Hint: fmt.Sprintf("It still runs as process %d.", cmd.Process.Pid)}
		}
	}
}

// Reconnect finds the server again after a connection to it broke. A server that crashed is started anew; for one
// that was stopped by order it waits a little, in case it is being restarted, and returns ErrStopped.
func (d *Daemon) Reconnect(ctx context.Context) (Server, error) {
	began := time.Now()
	for {
		s, err := d.Find(ctx)
		if err == nil && s.ready() {
			return s, nil
		}
		if ctx.Err() != nil {
			return Server{}, ctx.Err()
		}
		st, serr := d.ReadState()
		// A number that stays alive for long may be a process nobody reaped, or someone else's by now.
		crashed := serr == nil && errors.Is(err, ErrNotRunning) && (!alive(st.PID) || time.Since(began) > 3*time.Second)
		if (err == nil || errors.Is(err, errSlow) || crashed) && !d.NoStart {
			return d.Ensure(ctx)
		}
		if time.Since(began) > 5*time.Second {
			if d.NoStart && serr == nil {
				return Server{}, ErrNotRunning
			}
			return Server{}, ErrStopped
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return Server{}, err
		}
	}
}

// AwaitExit waits until process pid is gone, and tells whether it is.
func AwaitExit(ctx context.Context, pid int, limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for alive(pid) {
		if time.Now().After(deadline) || pause(ctx, 25*time.Millisecond) != nil {
			return !alive(pid)
		}
	}
	return true
}

// WithLock runs f while no other client starts or stops the server.
func (d *Daemon) WithLock(ctx context.Context, f func() error) error {
	if err := os.MkdirAll(d.Home, 0o700); err != nil {
		return err
	}
	unlock, err := lock(ctx, d.LockPath())
	if err != nil {
		return err
	}
	defer unlock()
	return f()
}

// Holder tells, in words, what listens on an address; "" when nothing does.
func (d *Daemon) Holder(ctx context.Context, addr string) string {
	conn, err := net.DialTimeout("tcp", addr, 300*time.Millisecond)
	if err != nil {
		return ""
	}
	conn.Close()
	hc := &http.Client{Timeout: time.Second}
	get := func(path string) map[string]any {
		req, err := http.NewRequestWithContext(ctx, "GET", "http://"+addr+path, nil)
		if err != nil {
			return nil
		}
		resp, err := hc.Do(req)
		if err != nil {
			return nil
		}
		defer resp.Body.Close()
		m := map[string]any{}
		_ = json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&m)
		return m
	}
	if m := get("/api/v1/health"); m["product"] == api.Product {
		return "the Skyloom server of another SKY_HOME"
	}
	if m := get("/api/health"); m["status"] != nil && m["api_version"] != nil {
		return "another product's API server (SkyPilot?)"
	}
	return "another program"
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// lock waits for an exclusive lock on a file. It ends with the process, so a killed sky leaves none behind.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		ok, err := tryLock(f)
		if err != nil {
			f.Close()
			return nil, err
		}
		if ok {
			return func() { f.Close() }, nil
		}
		if err := pause(ctx, 25*time.Millisecond); err != nil {
			f.Close()
			return nil, err
		}
	}
}
