package engine_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/skyloom/skyloom/worker/engine"
)

func TestExternal(t *testing.T) {
	inner := shared(t) // to a client, an engine in another process is no different
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for name, o := range map[string]engine.ExternalOptions{
		"inline key": {APIKey: inner.Token()},
		"key file":   {APIKeyFile: inner.TokenFile()},
	} {
		t.Run(name, func(t *testing.T) {
			o.Address = inner.Address()
			e, err := engine.Connect(ctx, o)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = e.Stop() }()
			if e.Embedded() || e.Namespace() != engine.DefaultNamespace || e.Token() != inner.Token() || e.TLSConfig() != nil {
				t.Fatalf("%+v", e)
			}
			c, err := e.Dial(ctx, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.CheckHealth(ctx, &client.CheckHealthRequest{}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestExternalFailures(t *testing.T) {
	inner := shared(t)
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	for want, o := range map[string]engine.ExternalOptions{
		"no address":                  {},
		"host:port":                   {Address: "temporal.example.com"},
		"API key":                     {Address: inner.Address(), APIKey: "wrong"},
		"not both":                    {Address: inner.Address(), APIKey: "x", APIKeyFile: "y"},
		"no such file":                {Address: inner.Address(), APIKeyFile: "/does/not/exist"},
		"is empty":                    {Address: inner.Address(), APIKeyFile: empty},
		"temporal operator":           {Address: inner.Address(), APIKey: inner.Token(), Namespace: "missing"},
		"not ready":                   {Address: closed.Addr().String()},
		"no PEM certificate":          {Address: inner.Address(), TLS: engine.TLSOptions{CAFile: empty}},
		"certificate and its key":     {Address: inner.Address(), TLS: engine.TLSOptions{CertFile: empty}},
		"load the client certificate": {Address: inner.Address(), TLS: engine.TLSOptions{CertFile: empty, KeyFile: empty}},
	} {
		t.Run(want, func(t *testing.T) {
			patience := time.Minute
			if want == "not ready" {
				patience = 300 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			_, err := engine.Connect(ctx, o)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Fatalf("want %q, got %v", want, err)
			}
		})
	}
}

// TestMutualTLS puts a TLS endpoint that demands a client certificate in front of the shared engine.
func TestMutualTLS(t *testing.T) {
	inner := shared(t)
	dir := t.TempDir()
	caFile, certFile, keyFile, server := certificates(t, dir)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	proxy := grpc.NewServer(grpc.Creds(credentials.NewTLS(server)), grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(forward(inner.Conn())))
	go func() { _ = proxy.Serve(listener) }()
	t.Cleanup(proxy.Stop)

	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	o := engine.ExternalOptions{
		Address: listener.Addr().String(),
		TLS:     engine.TLSOptions{CAFile: caFile, CertFile: certFile, KeyFile: keyFile, ServerName: "temporal.test"},
	}
	e, err := engine.Connect(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Stop() }()
	if e.TLS() == nil || e.Token() != "" {
		t.Fatalf("%+v", e.TLS())
	}
	c, err := e.Dial(ctx, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()

	short, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	o.TLS.CertFile, o.TLS.KeyFile = "", ""
	if _, err := engine.Connect(short, o); err == nil {
		t.Fatal("connected without the client certificate")
	}
}

// forward passes unary calls on, bytes as they are.
func forward(to *grpc.ClientConn) grpc.StreamHandler {
	return func(_ any, in grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(in)
		var req, resp rawMessage
		if err := in.RecvMsg(&req); err != nil {
			return err
		}
		if err := to.Invoke(in.Context(), method, &req, &resp, grpc.ForceCodec(rawCodec{})); err != nil {
			return err
		}
		return in.SendMsg(&resp)
	}
}

func certificates(t *testing.T, dir string) (caFile, certFile, keyFile string, server *tls.Config) {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{"temporal.test"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	must(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		must(os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	caFile = write("ca.pem", "CERTIFICATE", caDER)
	certFile = write("cert.pem", "CERTIFICATE", leafDER)
	keyFile = write("key.pem", "PRIVATE KEY", keyDER)
	pool := x509.NewCertPool()
	parsed, err := x509.ParseCertificate(caDER)
	must(err)
	pool.AddCert(parsed)
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	must(err)
	return caFile, certFile, keyFile, &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}
}
