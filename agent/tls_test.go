package agent_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/rig"
)

// authority signs the keys of a cluster.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func sign(t *testing.T, by *authority) (*authority, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(5 * time.Minute), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true}
	parent := &authority{tmpl, key}
	if by == nil {
		tmpl.IsCA, tmpl.KeyUsage, tmpl.NotBefore = true, x509.KeyUsageCertSign, time.Now().Add(-time.Hour)
	} else {
		parent = by
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent.cert, &key.PublicKey, parent.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}, der
}

// install puts keys where an agent looks for them; they are valid only in five minutes, as on a node whose clock is behind.
func install(t *testing.T, dir string, ca *authority) tls.Certificate {
	t.Helper()
	leaf, der := sign(t, ca)
	key, err := x509.MarshalECPrivateKey(leaf.key)
	if err != nil {
		t.Fatal(err)
	}
	os.MkdirAll(dir, 0o700)
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key})
	for name, b := range map[string][]byte{
		"ca.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}), "cert.pem": certPEM, "key.pem": keyPEM,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func TestPeersOverTLS(t *testing.T) {
	ca, _ := sign(t, nil)
	over := config(func(c *agentapi.NodeConfig) {
		c.Listen = rig.Reserve(t)
		install(t, filepath.Join(c.Dir, "tls"), ca)
	})
	nodes := []*testNode{newNode(t, 0, quick, over), newNode(t, 1, quick, over)}
	form(t, 1, nodes...)
	j := nodes[0].submit(agentapi.JobSpec{NumNodes: 2, Run: "echo rank $SKYPILOT_NODE_RANK"})
	if row := nodes[0].reaches(j.ID, api.JobSucceeded); len(row.ExitCodes) != 2 {
		t.Errorf("%+v", row)
	}
	if got := nodes[1].log(j.ID); got != "rank 1\n" {
		t.Errorf("%q", got)
	}
	// Strangers: a key of another authority, none at all, and the right key without the secret.
	strange, _ := sign(t, nil)
	right := install(t, t.TempDir(), ca)
	wrong := install(t, t.TempDir(), strange)
	for _, c := range []struct {
		name  string
		certs []tls.Certificate
		want  string
	}{
		{"another authority", []tls.Certificate{wrong}, ""},
		{"no certificate", nil, ""},
		{"no secret", []tls.Certificate{right}, agentapi.KindConflict},
	} {
		client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: c.certs}}}
		resp, err := client.Post(fmt.Sprintf("https://%s/v1/peer/kill", nodes[1].cfg.Listen), "application/json", strings.NewReader(`{"ref":{"job_id":1}}`))
		if c.want == "" {
			if err == nil {
				t.Errorf("%s: let in with %s", c.name, resp.Status)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !strings.Contains(string(b), c.want) || resp.StatusCode < 400 {
			t.Errorf("%s: %s %s", c.name, resp.Status, b)
		}
		if resp, err := client.Get(fmt.Sprintf("https://%s/v1/info", nodes[1].cfg.Listen)); err == nil {
			resp.Body.Close()
			if resp.StatusCode != http.StatusNotFound {
				t.Errorf("the peers' address serves the server's calls: %s", resp.Status)
			}
		}
	}
}
