// Package session is what every command is given: the console, the clock, the environment, the configuration, the
// identity of the caller, and a client of the server, which is found or started when it is first needed.
//
// It must not know any single command. Nothing is read or dialled before a command asks for it, so that
// `sky --version` costs nothing.
package session

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/user"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/console"
	"github.com/skyloom/skyloom/internal/config"
	"github.com/skyloom/skyloom/internal/daemon"
	"github.com/skyloom/skyloom/internal/version"
)

// Environment variables that the session reads.
const (
	EnvEndpoint    = "SKYPILOT_API_SERVER_ENDPOINT"
	EnvToken       = "SKYPILOT_SERVICE_ACCOUNT_TOKEN"
	EnvUser        = "SKYPILOT_USER"
	EnvUserID      = "SKYPILOT_USER_ID"
	EnvNoAutostart = "SKYLOOM_NO_AUTOSTART"
)

// Config is the merged client configuration.
type Config interface {
	// Get looks a dotted path up.
	Get(path string) (any, bool)
	// Tree is the whole of it, as it travels to the server.
	Tree() map[string]any
}

// Session is the surroundings of one command.
type Session struct {
	IO        *console.Console
	Now       func() time.Time
	Args      []string // as typed, without the program's name
	LookupEnv func(string) (string, bool)
	Environ   []string // given to a server that has to be started
	Dir       string   // working directory
	UserHome  string   // the person's home folder

	// LoadConfig merges the client's layers; flags are the values of --config.
	LoadConfig func(s *Session, flags []string) (Config, error)
	// OpenBrowser shows an address to a person; it may fail.
	OpenBrowser func(url string) error
	// ClientOptions are added to those of each client; for tests.
	ClientOptions []api.Option

	// Features are what a local server said it can do; nil when not known. Set by Client.
	Features []string

	// ConfigFlags and Workspace hold --config and --workspace once parsed.
	ConfigFlags []string
	Workspace   string

	cfgOnce sync.Once
	cfg     Config
	cfgErr  error
	client  *api.Client

	notifyMu   sync.Mutex
	notified   string
	notifiedAt time.Time
}

// System makes the session of this process.
func System(args []string) *Session {
	dir, _ := os.Getwd()
	home, _ := os.UserHomeDir()
	return &Session{
		IO:          console.System(os.LookupEnv),
		Now:         time.Now,
		Args:        args,
		LookupEnv:   os.LookupEnv,
		Environ:     os.Environ(),
		Dir:         dir,
		UserHome:    home,
		LoadConfig:  LoadConfig,
		OpenBrowser: openBrowser,
	}
}

// Env reads an environment variable.
func (s *Session) Env(name string) string {
	v, _ := s.LookupEnv(name)
	return v
}

// Home is SKY_HOME, absolute.
func (s *Session) Home() (string, error) { return config.HomeOf(s.Env(config.EnvHome), s.UserHome) }

// Config is the client's configuration with the command's --config flags on top.
func (s *Session) Config() (Config, error) {
	s.cfgOnce.Do(func() { s.cfg, s.cfgErr = s.LoadConfig(s, s.ConfigFlags) })
	return s.cfg, s.cfgErr
}

func (s *Session) configString(path string) (string, error) {
	cfg, err := s.Config()
	if err != nil {
		return "", err
	}
	v, ok := cfg.Get(path)
	if !ok || v == nil {
		return "", nil
	}
	str, ok := v.(string)
	if !ok {
		return "", fmt.Errorf("the configuration's %s must be text, not %v", path, v)
	}
	return str, nil
}

// Endpoint is the address of the server the user chose, or "" for the local one.
func (s *Session) Endpoint() (string, error) {
	ep, _, err := s.endpoint()
	return ep, err
}

// endpoint is Endpoint and where it comes from.
func (s *Session) endpoint() (ep, from string, err error) {
	ep, from = s.Env(EnvEndpoint), EnvEndpoint
	if ep == "" {
		if ep, err = s.configString("api_server.endpoint"); err != nil || ep == "" {
			return "", "", err
		}
		from = "api_server.endpoint in the configuration"
		if env, err := s.ConfigEnv(); err == nil {
			if path, exists := env.UserFile(); exists {
				from = "api_server.endpoint in the configuration, such as " + path
			}
		}
	}
	ep, err = CheckEndpoint(ep, from)
	return ep, from, err
}

// CheckEndpoint judges a server's address.
func CheckEndpoint(ep, from string) (string, error) {
	u, err := url.Parse(ep)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return "", fmt.Errorf("%s: %q is no server address; it looks like http://HOST:PORT or https://HOST", from, ep)
	}
	return strings.TrimRight(ep, "/"), nil
}

// Daemon deals with the local server of this SKY_HOME.
func (s *Session) Daemon() (*daemon.Daemon, error) {
	home, err := s.Home()
	if err != nil {
		return nil, err
	}
	d := &daemon.Daemon{
		Layout:  daemon.Layout{Home: home},
		Environ: s.Environ,
		NoStart: s.Env(EnvNoAutostart) != "",
	}
	if cfg, err := s.Config(); err == nil {
		if p, ok := cfg.Get("server.port"); ok {
			d.Port, _ = p.(int)
		}
	}
	return d, nil
}

// token finds the API token for a chosen server.
func (s *Session) token(endpoint string) (string, error) {
	if t := s.Env(EnvToken); t != "" {
		return t, nil
	}
	t, err := s.configString("api_server.service_account_token")
	if err != nil || t != "" {
		return t, err
	}
	if u, err := url.Parse(endpoint); err == nil && loopback(u.Hostname()) {
		if home, err := s.Home(); err == nil {
			return daemon.Layout{Home: home}.ReadToken()
		}
	}
	return "", nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// notifyAgain is how long the same notice of a connection is not repeated: a command may have several.
const notifyAgain = 10 * time.Second

// notify says something about the connection to the server.
func (s *Session) notify(text string) {
	s.notifyMu.Lock()
	defer s.notifyMu.Unlock()
	if text == s.notified && time.Since(s.notifiedAt) < notifyAgain {
		return
	}
	s.notified, s.notifiedAt = text, time.Now()
	s.IO.Notef("%s", text)
}

func (s *Session) options() []api.Option {
	return append([]api.Option{
		api.WithUserAgent("sky/" + version.Version),
		api.WithNotify(s.notify),
	}, s.ClientOptions...)
}

// Client is a client of the chosen server; a local one is started if none runs.
func (s *Session) Client(ctx context.Context) (*api.Client, error) {
	if s.client != nil {
		return s.client, nil
	}
	ep, err := s.Endpoint()
	if err != nil {
		return nil, err
	}
	if ep != "" {
		tok, err := s.token(ep)
		if err != nil {
			return nil, err
		}
		s.client = api.NewClient(ep, tok, s.options()...)
		return s.client, nil
	}
	d, err := s.Daemon()
	if err != nil {
		return nil, err
	}
	srv, err := s.Ensure(ctx, d)
	if err != nil {
		return nil, err
	}
	s.hintVersion(srv)
	s.Features = srv.Health.Features
	d.Progress = func(msg string) { s.IO.Notef("%s", msg) } // a restart on the way: another display may be live
	s.client = api.NewClient(srv.URL, srv.Token, append([]api.Option{api.WithReconnect(func(ctx context.Context) (string, string, error) {
		srv, err := d.Reconnect(ctx)
		if errors.Is(err, daemon.ErrStopped) {
			err = &api.Unreachable{Err: errors.New("the API server was stopped; requests go on once it is started: sky api start")}
		}
		return srv.URL, srv.Token, err
	})}, s.options()...)...)
	return s.client, nil
}

// Ensure returns the running local server or starts one, showing progress if that takes a moment.
func (s *Session) Ensure(ctx context.Context, d *daemon.Daemon) (daemon.Server, error) {
	var live *console.Live
	d.Progress = func(msg string) {
		if live == nil {
			live = s.IO.StartLive(s.Now)
		}
		live.Step(msg)
	}
	srv, err := d.Ensure(ctx)
	if live != nil {
		if err != nil {
			live.Fail()
		} else {
			live.Done("The server runs at " + srv.URL)
		}
		live.Close()
	}
	return srv, err
}

// Running is a client of the server if it is there now; it never starts one. nil means there is none.
func (s *Session) Running(ctx context.Context) (*api.Client, error) {
	ep, err := s.Endpoint()
	if err != nil {
		return nil, err
	}
	if ep != "" {
		tok, err := s.token(ep)
		return api.NewClient(ep, tok, append(s.options(), api.WithPatience(0))...), err
	}
	d, err := s.Daemon()
	if err != nil {
		return nil, err
	}
	srv, err := d.Find(ctx)
	if errors.Is(err, daemon.ErrNotRunning) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return api.NewClient(srv.URL, srv.Token, append(s.options(), api.WithPatience(0))...), nil
}

func (s *Session) hintVersion(srv daemon.Server) {
	if v := srv.Health.Version; v != "" && v != version.Version {
		s.IO.Warnf("The running server is version %s, this sky is %s. To bring them together: sky api stop, then sky api start.", v, version.Version)
	}
}

// Identity is who calls. A remote server goes by the login instead.
type Identity struct{ Name, Hash string }

// User tells who calls.
func (s *Session) User() Identity {
	id := Identity{Name: s.Env(EnvUser), Hash: s.Env(EnvUserID)}
	if id.Name == "" {
		if u, err := user.Current(); err == nil {
			id.Name = u.Username
		}
	}
	if i := strings.LastIndexAny(id.Name, `\/`); i >= 0 { // DOMAIN\name
		id.Name = id.Name[i+1:]
	}
	if id.Name == "" {
		id.Name = "user"
	}
	if id.Hash == "" {
		sum := sha256.Sum256([]byte("user\x00" + id.Name))
		id.Hash = hex.EncodeToString(sum[:4])
	}
	return id
}

// Base fills in what is common to all mutating calls, with a new request id.
func (s *Session) Base() (api.Base, error) {
	cfg, err := s.Config()
	if err != nil {
		return api.Base{}, err
	}
	ws, err := s.configString("active_workspace")
	if err != nil {
		return api.Base{}, err
	}
	id := s.User()
	return api.Base{
		RequestID: api.NewRequestID(),
		Command:   s.CommandLine(),
		User:      id.Name,
		UserHash:  id.Hash,
		Workspace: ws,
		Config:    config.New(cfg.Tree()).ForServer().Tree(),
	}, nil
}

// CommandLine is what was typed, with the values of secrets left out.
func (s *Session) CommandLine() string {
	out := []string{"sky"}
	secret := false
	for _, a := range s.Args {
		switch {
		case secret:
			a, secret = redact(a), false
		case a == "--secret" || a == "--token" || a == "--service-account-token":
			secret = true
		case strings.HasPrefix(a, "--secret="), strings.HasPrefix(a, "--token="), strings.HasPrefix(a, "--service-account-token="):
			flag, v, _ := strings.Cut(a, "=")
			a = flag + "=" + redact(v)
		case strings.HasPrefix(a, "sky_"): // the value of -t
			a = redact(a)
		}
		out = append(out, Quote(a))
	}
	return strings.Join(out, " ")
}

func redact(kv string) string {
	if k, _, ok := strings.Cut(kv, "="); ok {
		return k + "=<redacted>"
	}
	if strings.HasPrefix(kv, "sky_") {
		return "<redacted>"
	}
	return kv
}

// Quote makes a word safe to paste into a shell.
func Quote(a string) string {
	if a != "" && !strings.ContainsAny(a, " \t\n'\"\\$`&|;<>()*?[]{}!#~") {
		return a
	}
	return "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
}
