package engine

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.temporal.io/sdk/worker"
	"go.temporal.io/server/common/authorization"
	"go.temporal.io/server/common/config"
	"go.temporal.io/server/temporal"
)

// embedded is a Temporal server in this process.
type embedded struct {
	server   temporal.Server
	address  string
	database string
	dynamic  *dynamicConfig
	lock     *fileLock
	logger   *slog.Logger
	stopping *atomic.Bool
}

// startAttempts is how often the start is tried: a port that was free a moment ago may be taken by somebody else.
const startAttempts = 3

func startEmbedded(o Options, database string, lock *fileLock) (*embedded, error) {
	var errs []error
	for range startAttempts {
		ports, err := choosePorts(o.Dir)
		if err != nil {
			return nil, err
		}
		e, err := startOnce(o, database, ports)
		if err == nil {
			e.lock = lock
			// Only a convenience: without the file the next start takes another port.
			if err := ports.save(o.Dir); err != nil {
				o.Logger.Warn("the engine's port can't be kept for the next start", "error", err)
			}
			return e, nil
		}
		errs = append(errs, err)
		var fatal *fatalError
		if !errors.As(err, &fatal) {
			break
		}
	}
	return nil, fmt.Errorf("engine: start the embedded Temporal server: %w", errors.Join(errs...))
}

func startOnce(o Options, database string, ports ports) (e *embedded, err error) {
	// The server ends the process on some start errors (a port that is taken); our logger turns that into a panic.
	defer func() {
		if r := recover(); r != nil {
			fatal, ok := r.(*fatalError)
			if !ok {
				panic(r)
			}
			e, err = nil, fatal
		}
	}()
	setBuildID()
	tlsProvider, err := newInnerTLS()
	if err != nil {
		return nil, err
	}
	dynamic := newDynamicConfig()
	stopping := new(atomic.Bool)
	cfg := serverConfig(database, ports)
	if err := createNamespace(cfg, o.Namespace, o.Retention); err != nil {
		return nil, err
	}
	server, err := temporal.NewServer(
		temporal.WithConfig(cfg),
		temporal.ForServices(serviceNames()),
		temporal.WithStaticHosts(ports.hosts()),
		temporal.WithDynamicConfigClient(dynamic),
		temporal.WithTLSConfigFactory(tlsProvider),
		temporal.WithClaimMapper(func(*config.Config) authorization.ClaimMapper { return newClaimMapper(o.Token) }),
		temporal.WithAuthorizer(authorizer{}),
		temporal.WithLogger(newServerLogger(o.Logger, stopping)),
	)
	if err != nil {
		return nil, err
	}
	if err := server.Start(); err != nil {
		return nil, err
	}
	return &embedded{
		server:   server,
		address:  ports.address(ports.Frontend),
		database: database,
		dynamic:  dynamic,
		logger:   o.Logger,
		stopping: stopping,
	}, nil
}

// stop ends the services. What does not end in time is left to the end of the process: every acknowledged write is on
// disk already.
func (e *embedded) stop(timeout time.Duration) error {
	e.stopping.Store(true)
	done := make(chan error, 1)
	go func() { done <- e.server.Stop() }()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	var err error
	select {
	case err = <-done:
		e.checkpoint()
	case <-timer.C:
		e.logger.Warn("the embedded Temporal server did not stop in time; nothing is lost", "after", timeout)
	}
	e.lock.release()
	return err
}

// checkpoint moves the write-ahead log into the database file, so that a copy of the folder made while nothing runs is
// one file. Failing is harmless: the next start replays the log.
func (e *embedded) checkpoint() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	db, err := openDatabase(e.database, 500*time.Millisecond)
	if err != nil {
		return
	}
	defer func() { _ = db.Close() }()
	_, _ = db.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
}

// setBuildID tells the SDK what identifies this binary. It would hash the whole file otherwise, for 0.3 s of CPU at each
// start.
var setBuildID = sync.OnceFunc(func() {
	id := "skyloom"
	if info, ok := debug.ReadBuildInfo(); ok {
		id += " " + info.Main.Version
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" || s.Key == "vcs.time" || s.Key == "vcs.modified" {
				id += " " + s.Value
			}
		}
	}
	// A build of changed sources bears the revision of the last commit: the file tells it apart.
	if path, err := os.Executable(); err == nil {
		if file, err := os.Stat(path); err == nil {
			id += fmt.Sprintf(" %d %d", file.Size(), file.ModTime().UnixNano())
		}
	}
	sum := sha256.Sum256([]byte(id))
	worker.SetBinaryChecksum(hex.EncodeToString(sum[:16]))
})

// openDatabase opens the engine's database file for our own statements, with one connection and full sync.
func openDatabase(path string, busy time.Duration) (*sql.DB, error) {
	dsn := fmt.Sprintf("file:%s?mode=rwc&_pragma=busy_timeout(%d)&_pragma=journal_mode(wal)&_pragma=synchronous(2)",
		escapePath(path), busy.Milliseconds())
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}
