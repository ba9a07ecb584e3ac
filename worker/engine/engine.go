package engine

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	sdklog "go.temporal.io/sdk/log"
	"google.golang.org/grpc"
)

const (
	// DefaultNamespace is the namespace used unless Options or ExternalOptions name another.
	DefaultNamespace = "skyloom"
	// DefaultRetention is how long the engine keeps closed workflows unless Options say otherwise. Records that must
	// live longer belong into our own database.
	DefaultRetention = 72 * time.Hour

	// stopTimeout bounds how long Stop waits for the engine's services. They hold no state that a kill would lose.
	stopTimeout = 5 * time.Second
)

// Options of an embedded engine.
type Options struct {
	// Dir holds the engine's files: engine.db, ports.json, api-key, engine.lock. Made with mode 0700 if absent.
	Dir string
	// Token is the API key that the frontend demands. Empty: read from Dir/api-key, made there (0600) at the first start.
	Token string
	// Namespace defaults to DefaultNamespace. It is made if absent.
	Namespace string
	// Retention of closed workflows; defaults to DefaultRetention, at least one hour.
	Retention time.Duration
	// Logger receives the engine's warnings and errors, and its chatter at debug level. Nil discards them.
	Logger *slog.Logger
}

// Engine is a running or connected workflow engine. Its methods are safe for concurrent use.
type Engine struct {
	address   string
	namespace string
	logger    *slog.Logger
	conn      *grpc.ClientConn
	apiKey    func(context.Context) (string, error) // nil: no API key
	tlsConfig *tls.Config                           // nil: plain text
	tlsFiles  *TLSOptions                           // external only
	tokenFile string
	embedded  *embedded // nil: external

	stopOnce sync.Once
	stopErr  error
}

// Start brings up an embedded engine and returns when it is usable (see [Engine.Ready]). It fails with a [*SchemaError]
// when the database belongs to another version, with a [*LockedError] when another process runs on the same folder.
// ctx bounds the start only.
func Start(ctx context.Context, o Options) (*Engine, error) {
	if o.Dir == "" {
		return nil, errors.New("engine: no folder given")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	o.Dir = dir
	if o.Namespace == "" {
		o.Namespace = DefaultNamespace
	}
	if o.Retention == 0 {
		o.Retention = DefaultRetention
	}
	if o.Retention < time.Hour {
		return nil, fmt.Errorf("engine: retention of %s is too short: closed workflows must be kept for one hour at least", o.Retention)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("engine: make its folder: %w", err)
	}

	lock, err := acquireLock(filepath.Join(o.Dir, "engine.lock"))
	if err != nil {
		return nil, err
	}
	tokenFile := ""
	if o.Token == "" {
		tokenFile = filepath.Join(o.Dir, "api-key")
		if o.Token, err = loadToken(tokenFile); err != nil {
			lock.release()
			return nil, err
		}
	}
	database := filepath.Join(o.Dir, "engine.db")
	if err := prepareSchema(ctx, database, currentSchema, o.Logger); err != nil {
		lock.release()
		return nil, err
	}
	emb, err := startEmbedded(o, database, lock)
	if err != nil {
		lock.release()
		return nil, err
	}

	token := o.Token
	e := &Engine{
		address:   emb.address,
		namespace: o.Namespace,
		logger:    o.Logger,
		apiKey:    func(context.Context) (string, error) { return token, nil },
		tokenFile: tokenFile,
		embedded:  emb,
	}
	if e.conn, err = dialFrontend(e.address, nil, e.apiKey); err != nil {
		return nil, errors.Join(err, e.Stop())
	}
	if err := e.settle(ctx, o.Retention); err != nil {
		return nil, errors.Join(err, e.Stop())
	}
	emb.dynamic.settled.Store(true)
	return e, nil
}

// settle waits for the frontend and brings namespace and search attributes to what we want.
func (e *Engine) settle(ctx context.Context, retention time.Duration) error {
	if err := e.awaitNamespace(ctx); err != nil {
		return err
	}
	if err := e.ensureRetention(ctx, retention); err != nil {
		return err
	}
	if err := e.ensureSearchAttributes(ctx); err != nil {
		return err
	}
	return e.Ready(ctx)
}

// Embedded reports whether the engine runs inside this process.
func (e *Engine) Embedded() bool { return e.embedded != nil }

// Address is the frontend's host:port.
func (e *Engine) Address() string { return e.address }

// Namespace is the namespace our workflows live in.
func (e *Engine) Namespace() string { return e.namespace }

// Token is the API key that clients must send as "authorization: Bearer KEY"; "" if the engine takes none.
func (e *Engine) Token() string {
	if e.apiKey == nil {
		return ""
	}
	key, err := e.apiKey(context.Background())
	if err != nil {
		return ""
	}
	return key
}

// APIKey gives the API key anew at each call, so that a rotated key file is followed; nil if the engine takes none.
func (e *Engine) APIKey() func(context.Context) (string, error) { return e.apiKey }

// TokenFile is the file in which other processes of this user find the API key; "" if it was given inline.
func (e *Engine) TokenFile() string { return e.tokenFile }

// TLS returns the options an external engine was connected with; nil without TLS.
func (e *Engine) TLS() *TLSOptions { return e.tlsFiles }

// TLSConfig is what a gRPC client of the frontend must use; nil for plain text.
func (e *Engine) TLSConfig() *tls.Config {
	if e.tlsConfig == nil {
		return nil
	}
	return e.tlsConfig.Clone()
}

// Conn is a connection to the frontend that carries our credentials. It belongs to the engine: don't close it.
func (e *Engine) Conn() *grpc.ClientConn { return e.conn }

// DialOptions returns client options with address, namespace, credentials, TLS and logger filled in. The caller adds
// its data converter, failure converter and interceptors.
func (e *Engine) DialOptions() client.Options {
	o := client.Options{
		HostPort:  e.address,
		Namespace: e.namespace,
		Logger:    sdklog.NewStructuredLogger(e.logger),
		ConnectionOptions: client.ConnectionOptions{
			TLS:         e.TLSConfig(),
			TLSDisabled: e.tlsConfig == nil,
		},
	}
	if e.apiKey != nil {
		o.Credentials = client.NewAPIKeyDynamicCredentials(e.apiKey)
	}
	return o
}

// Dial connects an SDK client with the given converters; nil means the SDK's default.
func (e *Engine) Dial(ctx context.Context, dc converter.DataConverter, fc converter.FailureConverter) (client.Client, error) {
	o := e.DialOptions()
	o.DataConverter, o.FailureConverter = dc, fc
	c, err := client.DialContext(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("connect to the workflow engine at %s: %w", e.address, err)
	}
	return c, nil
}

// Stop ends an embedded engine, in at most five seconds; of an external one only our connection is closed. Workers and
// clients should be stopped before. Further calls return the first one's result.
func (e *Engine) Stop() error {
	e.stopOnce.Do(func() {
		if e.conn != nil {
			e.stopErr = e.conn.Close()
		}
		if e.embedded != nil {
			e.stopErr = errors.Join(e.stopErr, e.embedded.stop(stopTimeout))
		}
	})
	return e.stopErr
}
