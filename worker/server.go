package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.temporal.io/sdk/client"
	sdkworker "go.temporal.io/sdk/worker"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/agentbin"
	"github.com/skyloom/skyloom/internal/artifact"
	"github.com/skyloom/skyloom/internal/config"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/internal/secret"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/internal/version"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/worker/codec"
	"github.com/skyloom/skyloom/worker/engine"
	"github.com/skyloom/skyloom/worker/httpapi"
	"github.com/skyloom/skyloom/worker/webui"
)

// Options are what a server needs to know beyond its configuration.
type Options struct {
	Home   string // SKY_HOME, absolute
	Config *config.Config
	Addr   string // overrides the configured address; empty: 127.0.0.1 and the configured port
	Debug  bool   // profiles under /debug/pprof/
	Log    *slog.Logger
	// ReapAge is how old a node or a row must be before the reaper may take it for nobody's; 0: a minute.
	ReapAge time.Duration
}

// Run starts a server and serves until ctx ends.
func Run(ctx context.Context, o Options) error {
	if err := failpoint.Check(); err != nil {
		return err
	}
	if err := os.MkdirAll(o.Home, 0o700); err != nil {
		return fmt.Errorf("the state folder can't be made: %w; set SKY_HOME to a folder that can be written", err)
	}
	unlock, err := lockHome(o.Home)
	if err != nil {
		return err
	}
	defer unlock()
	s := &server{o: o, log: o.Log, started: time.Now()}
	ctx, s.shutdown = context.WithCancel(ctx)
	defer s.shutdown()
	defer s.close()
	return s.run(ctx)
}

type server struct {
	o        Options
	log      *slog.Logger
	started  time.Time
	shutdown context.CancelFunc

	store     *store.Store
	artifacts *artifact.Store
	secrets   *secret.Store
	ring      *codec.Ring
	api       *httpapi.Server
	engine    *engine.Engine
	client    client.Client
	acts      *activities.Activities
	infra     *infra
	workers   []sdkworker.Worker
	closers   []func()
	wg        sync.WaitGroup
}

func (s *server) run(ctx context.Context) error {
	if err := s.open(ctx); err != nil {
		return err
	}
	set := s.o.Config.Server()
	addr := s.o.Addr
	if addr == "" {
		addr = fmt.Sprintf("127.0.0.1:%d", set.Port)
	}
	var err error
	s.api, err = httpapi.New(httpapi.Options{
		Store: s.store, Artifacts: s.artifacts, Secrets: s.secrets, Codec: codec.Handler(s.ring), Home: s.o.Home, Addr: addr,
		FixedPort: set.PortSet && s.o.Addr == "", Version: version.Version, Commit: version.Commit, Logger: s.log, Debug: s.o.Debug,
	})
	if err != nil {
		return err
	}
	if err := s.api.Listen(); err != nil {
		return err
	}
	serving := make(chan error, 1)
	go func() { serving <- s.api.Serve(ctx) }()
	if err := s.bringUp(ctx, set); err != nil {
		s.shutdown()
		<-serving
		return err
	}
	s.log.Info("ready", "url", s.api.URL(), "installation", s.store.Installation(), "after", time.Since(s.started).Round(time.Millisecond))
	return <-serving
}

// open opens what stands on disk.
func (s *server) open(ctx context.Context) error {
	home := s.o.Home
	var err error
	if s.store, err = store.Open(ctx, filepath.Join(home, "sky.db"), store.Options{Logger: s.log}); err != nil {
		return err
	}
	s.closers = append(s.closers, func() { s.closing("store", s.store.Close()) })
	if s.artifacts, err = artifact.Open(filepath.Join(home, "artifacts"), artifact.Options{Logger: s.log}); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(home, "keys"), 0o700); err != nil {
		return err
	}
	ring, err := secret.LoadRing(filepath.Join(home, "keys", "secrets.json"))
	if err != nil {
		return err
	}
	s.secrets = secret.New(s.store, ring)
	s.ring, err = codec.LoadRing(filepath.Join(home, "keys", "payloads.json"))
	return err
}

// bringUp starts engine, infra, workers and watcher, then lets the API answer.
func (s *server) bringUp(ctx context.Context, set config.Server) error {
	tc, err := s.o.Config.Temporal()
	if err != nil {
		return err
	}
	keep := s.o.Config.Retention()
	if tc.Address == "" {
		s.engine, err = engine.Start(ctx, engine.Options{Dir: filepath.Join(s.o.Home, "engine"), Logger: s.log, Retention: max(keep.Requests, 24*time.Hour)})
	} else {
		s.engine, err = engine.Connect(ctx, engine.ExternalOptions{Address: tc.Address, Namespace: tc.Namespace, APIKey: tc.APIKey, APIKeyFile: tc.APIKeyFile, Logger: s.log,
			TLS: engine.TLSOptions{Enabled: tc.TLS.Enabled, CAFile: tc.TLS.CAFile, CertFile: tc.TLS.CertFile, KeyFile: tc.TLS.KeyFile, ServerName: tc.TLS.ServerName}})
	}
	if err != nil {
		return err
	}
	s.closers = append(s.closers, func() { s.closing("engine", s.engine.Stop()) })
	dc := codec.New(s.ring)
	if s.client, err = s.engine.Dial(ctx, dc, codec.FailureConverter(dc)); err != nil {
		return err
	}
	s.closers = append(s.closers, s.client.Close)
	if err := claim(ctx, s.engine, s.client, s.store.Installation()); err != nil {
		return err
	}

	agents := agentbin.New(filepath.Join(s.o.Home, "cache", "agent"))
	if s.infra, err = openInfra(s.o.Config, s.o.Home, s.store.Installation(), agents, s.engine.Embedded(), s.log); err != nil {
		return err
	}
	s.closers = append(s.closers, s.infra.close)
	buckets, err := openBuckets(s.o.Config)
	if err != nil {
		return err
	}
	s.acts = &activities.Activities{Store: s.store, Artifacts: s.artifacts, Buckets: buckets, Secrets: s.secrets, Providers: s.infra.registry, Agent: agents, Home: s.o.Home, Engine: s.client, Log: s.log,
		Allowed: s.o.Config.AllowedClouds(), Limits: admissionLimits(s.o.Config), LostAfter: s.o.Config.Health().LostAfter, ReapAge: s.o.ReapAge}
	if s.workers, err = startWorkers(s.client, s.acts); err != nil {
		return err
	}
	s.closers = append(s.closers, func() { stopWorkers(s.workers) })

	// With an engine of its own there is one server per home: it takes its watches up again at once after a crash.
	owner := "embedded"
	if !s.engine.Embedded() {
		owner = uuid.NewString()
	}
	watch := newWatcher(s.store, s.infra.registry, s.client, s.log, owner, s.o.Config.Health())
	if s.engine.Embedded() {
		watch.ttl = soleTTL
	}
	bg, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.closers = append(s.closers, func() { cancel(); s.wg.Wait() })
	watch.home = s.o.Home
	watch.saver = newSaver(s.store, s.artifacts, buckets, s.infra.registry, s.log)
	s.acts.SaveLast = watch.saver.saveLast
	back := &backend{flight: make(chan struct{}, inFlight), saver: watch.saver, acts: s.acts, store: s.store, engine: s.engine, client: s.client, started: s.started, home: s.o.Home, shutdown: s.shutdown}
	s.background(func() { watch.run(bg) })
	s.background(func() { s.admission(bg) })
	if back.hosts, err = WebhookHosts(s.o.Config); err != nil {
		return err
	}
	if back.webhook, err = webhookSecret(ctx, s.o.Config, s.store, s.secrets); err != nil {
		return err
	}
	notify := newNotifier(s.store, s.secrets, s.acts, back.hosts, back.webhook, owner, s.log)
	s.background(func() { notify.run(bg) })
	s.background(func() { Afters(bg, s.store, s.client, s.log) })
	s.background(func() { trim(bg) })
	s.background(func() { s.resume(bg, back) })
	s.background(func() { s.collect(bg, keep) })
	s.background(func() { s.acts.Enabled(bg) }) // the first call need not wait for the check
	if set.IdleExit > 0 && s.engine.Embedded() {
		s.background(func() { s.idle(bg, set.IdleExit) })
	}
	if set.WebUI && s.engine.Embedded() {
		ui, err := webui.Start(webui.Options{Conn: s.engine.Conn(), Namespace: s.engine.Namespace(), CodecEndpoint: "/codec", Logger: s.log})
		if err != nil {
			return err
		}
		s.closers = append(s.closers, func() { s.closing("web ui", ui.Close()) })
		s.api.SetWebUI(ui.Handler())
	}
	s.api.SetBackend(back)
	return nil
}

func (s *server) background(f func()) {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		f()
	}()
}

// resume hands over what a crash may have left between store and engine, until that has worked once.
func (s *server) resume(ctx context.Context, b *backend) {
	for pause := time.Second; ctx.Err() == nil; pause = min(pause*2, time.Minute) {
		err := b.resume(ctx)
		if err == nil {
			return
		}
		s.log.Warn("requests not resumed yet", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// collect removes what has been kept long enough, every hour.
func (s *server) collect(ctx context.Context, keep config.Retention) {
	age := func(d time.Duration) time.Duration { return max(d, 0) } // zero: for ever
	t := time.NewTimer(time.Minute)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		t.Reset(time.Hour)
		got, err := s.store.Collect(ctx, store.Retention{Requests: age(keep.Requests), Events: age(keep.Events), Clusters: age(keep.TerminalEvents), Jobs: age(keep.Logs), ManagedJobs: age(keep.Logs)})
		if err != nil {
			if ctx.Err() == nil {
				s.log.Warn("collecting old rows", "error", err)
			}
			continue
		}
		s.log.Debug("collected", "rows", got)
		if err := collectLogs(ctx, s.store, s.acts.Home); err != nil && ctx.Err() == nil {
			s.log.Warn("collecting old logs", "error", err)
		}
		if err := s.collectFiles(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("collecting old files", "error", err)
		}
	}
}

// collectFiles removes uploaded content that no open request names and that was not used for a day.
func (s *server) collectFiles(ctx context.Context) error {
	open, err := s.store.OpenRequests(ctx, "launch", "exec")
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, r := range open {
		for _, id := range manifestsOf(r.Body) {
			keep[id] = true
		}
	}
	if err := s.store.EachCheckpoint(ctx, func(c api.Checkpoint) {
		for _, id := range c.Manifests {
			keep[id] = true
		}
	}); err != nil {
		return err
	}
	// What managed jobs run with stays until they end: a recovery brings it to other nodes.
	if err := s.store.EachManagedFile(ctx, func(id string) { keep[id] = true }); err != nil {
		return err
	}
	// What schedules submit stays as long as they are there.
	if err := s.store.EachScheduleBody(ctx, func(body []byte) {
		for _, id := range manifestsOfJobs(body) {
			keep[id] = true
		}
	}); err != nil {
		return err
	}
	_, err = s.artifacts.GC(ctx, func(id string) bool { return keep[id] }, 24*time.Hour)
	return err
}

func (s *server) closing(what string, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		s.log.Warn("closing", "what", what, "error", err)
	}
}

func (s *server) close() {
	for i := len(s.closers) - 1; i >= 0; i-- {
		s.closers[i]()
	}
}

// infra is the providers of a server.
type infra struct {
	registry *providers.Registry
	closers  []func() error
}

func (i *infra) close() {
	for _, f := range i.closers {
		if err := f(); err != nil {
			slog.Warn("closing infra", "error", err)
		}
	}
}
