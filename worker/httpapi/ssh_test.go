package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

// sshNode is an agent whose SSH server gives back what it gets, and says who may log in.
func sshNode(t *testing.T) NodeClient {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/ssh", func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get(agentapi.SSHKeyHeader)
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+agentapi.SSHProtocol+"\r\n\r\n"+key+"\n")
		io.Copy(conn, rw)
	})
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return NodeClient{Node: "head", Client: agentapi.NewUnix(l.Addr().String())}
}

func TestTunnel(t *testing.T) {
	e := newEnv(t)
	node := sshNode(t)
	e.be.nodes = func(string) ([]NodeClient, error) { return []NodeClient{node}, nil }
	c := api.NewClient(e.url, testToken, api.WithPatience(0))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	tun, err := c.DialSSH(ctx, "c", 0, "ssh-ed25519 KEY")
	if err != nil {
		t.Fatal(err)
	}
	cancel() // it bounds the opening only
	defer tun.Close()
	if tun.HostKey != "ssh-ed25519 HOST" {
		t.Errorf("host key %q", tun.HostKey)
	}
	line := make([]byte, len("ssh-ed25519 KEY\n"))
	if _, err := io.ReadFull(tun, line); err != nil || string(line) != "ssh-ed25519 KEY\n" {
		t.Fatalf("the node was told of key %q, %v", line, err)
	}
	sent := make([]byte, 3<<20)
	src := rand.NewChaCha8([32]byte{1})
	src.Read(sent)
	go func() {
		for at, n := 0, 1; at < len(sent); at, n = at+n, n*3+1 { // frames of every size
			n = min(n, len(sent)-at, 400<<10)
			if _, err := tun.Write(sent[at : at+n]); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	got := make([]byte, len(sent))
	if n, err := io.ReadFull(tun, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes came back, %v; equal: %v", n, err, bytes.Equal(got, sent))
	}
	e.s.Drain()
	if _, err := io.ReadFull(tun, line); err == nil || !strings.Contains(err.Error(), "the server is ending") {
		t.Errorf("after the server's end: %v", err)
	}
}

func TestTunnelEnd(t *testing.T) {
	e := newEnv(t)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		http.ReadRequest(bufio.NewReader(conn))
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+agentapi.SSHProtocol+"\r\n\r\nbye")
		conn.Close()
	}()
	e.be.nodes = func(string) ([]NodeClient, error) {
		return []NodeClient{{Client: agentapi.NewUnix(l.Addr().String())}}, nil
	}
	tun, err := api.NewClient(e.url, testToken, api.WithPatience(0)).DialSSH(context.Background(), "c", 0, "k k")
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	if b, err := io.ReadAll(tun); string(b) != "bye" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

func TestTunnelRefused(t *testing.T) {
	e := newEnv(t)
	get := func(path string, head ...string) (int, string) {
		req, _ := http.NewRequest("GET", e.url+"/api/v1"+path, nil)
		for i := 0; i < len(head); i += 2 {
			req.Header.Set(head[i], head[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	auth := []string{"Authorization", "Bearer " + testToken}
	ws := append([]string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "MDEyMzQ1Njc4OWFiY2RlZg=="}, auth...)
	for _, tt := range []struct {
		name, path string
		head       []string
		status     int
		text       string
	}{
		{"no login", "/clusters/c/ssh", ws[:8], 401, "login"},
		{"no websocket", "/clusters/c/ssh", auth, 426, "websocket"},
		{"no key", "/clusters/c/ssh", ws, 400, "X-Skyloom-SSH-Key"},
		{"cluster not up", "/clusters/c/ssh", append(ws, api.HeaderSSHKey, "a b"), 409, "is STOPPED"},
		{"a page of another site", "/clusters/c/ssh", append(ws, api.HeaderSSHKey, "a b", "Origin", "http://evil.example"), 403, "other web sites"},
		{"hosts of a cluster not up", "/clusters/c/ssh-hosts", auth, 409, "is STOPPED"},
	} {
		if code, body := get(tt.path, tt.head...); code != tt.status || !strings.Contains(body, tt.text) {
			t.Errorf("%s: %d %s", tt.name, code, body)
		}
	}
}
