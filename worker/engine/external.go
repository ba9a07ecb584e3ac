package engine

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
)

// TLSOptions of the connection to an external engine.
type TLSOptions struct {
	// Enabled turns TLS on with the system's roots; any file below implies it.
	Enabled bool
	// CAFile holds PEM certificates to trust instead of the system's roots.
	CAFile string
	// CertFile and KeyFile hold the client's certificate (mutual TLS). They are read again at each handshake.
	CertFile, KeyFile string
	// ServerName overrides the name that the server's certificate must bear.
	ServerName string
}

// ExternalOptions of an engine that runs elsewhere: a self-hosted Temporal cluster or Temporal Cloud.
type ExternalOptions struct {
	Address   string // host:port of the frontend
	Namespace string // defaults to DefaultNamespace; must exist
	// APIKey is sent with each call. APIKeyFile, if given instead, is read anew at each call.
	APIKey, APIKeyFile string
	// TLS is on by default with an API key, unless the address is of this machine.
	TLS    TLSOptions
	Logger *slog.Logger // nil discards
}

// Connect reaches an external engine, checks that its namespace is there, registers our search attributes, and returns
// when it is usable (see [Engine.Ready]). ctx bounds the wait.
func Connect(ctx context.Context, o ExternalOptions) (*Engine, error) {
	if o.Address == "" {
		return nil, errors.New("engine: no address given for the external Temporal cluster (temporal.address)")
	}
	host, _, err := net.SplitHostPort(o.Address)
	if err != nil {
		return nil, fmt.Errorf("engine: temporal.address %q: %w; write it as host:port, for example temporal.example.com:7233", o.Address, err)
	}
	if o.APIKey != "" && o.APIKeyFile != "" {
		return nil, errors.New("engine: give the API key of the external Temporal cluster inline or as a file, not both")
	}
	if o.Namespace == "" {
		o.Namespace = DefaultNamespace
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Engine{
		address:   o.Address,
		namespace: o.Namespace,
		logger:    o.Logger,
		apiKey:    externalKey(o),
		tokenFile: o.APIKeyFile,
	}
	if o.APIKeyFile != "" {
		if _, err := e.apiKey(ctx); err != nil {
			return nil, err
		}
	}
	files := o.TLS
	files.Enabled = files.Enabled || files.CAFile != "" || files.CertFile != "" || files.KeyFile != "" || files.ServerName != "" ||
		e.apiKey != nil && !isLoopback(host)
	if files.Enabled {
		e.tlsFiles = &files
		if e.tlsConfig, err = files.config(host); err != nil {
			return nil, err
		}
	}
	if e.conn, err = dialFrontend(e.address, e.tlsConfig, e.apiKey); err != nil {
		return nil, err
	}
	if err := e.reach(ctx); err != nil {
		return nil, errors.Join(err, e.Stop())
	}
	return e, nil
}

func (e *Engine) reach(ctx context.Context) error {
	if err := e.awaitNamespace(ctx); err != nil {
		return err
	}
	if err := e.ensureSearchAttributes(ctx); err != nil {
		return err
	}
	return e.Ready(ctx)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func externalKey(o ExternalOptions) func(context.Context) (string, error) {
	switch {
	case o.APIKeyFile != "":
		return func(context.Context) (string, error) {
			data, err := os.ReadFile(o.APIKeyFile)
			if err != nil {
				return "", fmt.Errorf("engine: read the API key of the external Temporal cluster: %w", err)
			}
			key := strings.TrimSpace(string(data))
			if key == "" {
				return "", fmt.Errorf("engine: the API key file %s is empty", o.APIKeyFile)
			}
			return key, nil
		}
	case o.APIKey != "":
		return func(context.Context) (string, error) { return o.APIKey, nil }
	default:
		return nil
	}
}

// config reads the files. host is the name to verify unless the options name another.
func (t TLSOptions) config(host string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if t.ServerName != "" {
		c.ServerName = t.ServerName
	}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("engine: read the CA of the external Temporal cluster: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("engine: %s holds no PEM certificate", t.CAFile)
		}
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		return nil, errors.New("engine: mutual TLS with the external Temporal cluster needs both a certificate and its key")
	}
	if t.CertFile != "" {
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("engine: load the client certificate for the external Temporal cluster: %w", err)
			}
			return &pair, nil
		}
		if _, err := load(); err != nil { // tell now rather than at the first handshake
			return nil, err
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return c, nil
}
