//go:build unix

package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
)

// The test binary is the server too, when asked to be: it does what a server does with SKY_HOME.
func TestMain(m *testing.M) {
	if mode := os.Getenv("DAEMON_TEST_SERVER"); mode != "" {
		os.Exit(serve(mode))
	}
	os.Exit(m.Run())
}

func serve(mode string) int {
	l := Layout{Home: os.Getenv("SKY_HOME")}
	if mode == "fail" {
		fmt.Fprintln(os.Stderr, "engine.db is of a newer version")
		return 3
	}
	f, err := os.OpenFile(filepath.Join(l.Home, "server.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return 1
	}
	if ok, _ := tryLock(f); !ok {
		fmt.Fprintln(os.Stderr, "another server runs")
		return 4
	}
	starts, _ := os.OpenFile(filepath.Join(l.Home, "starts"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	fmt.Fprintln(starts, os.Getpid())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 1
	}
	began := time.Now()
	st := State{URL: "http://" + ln.Addr().String(), PID: os.Getpid(), Installation: "inst-1"}
	b, _ := json.Marshal(st)
	_ = os.WriteFile(l.TokenPath(), []byte("secret\n"), 0o600)
	_ = os.WriteFile(l.StatePath(), b, 0o600)
	mux := http.NewServeMux()
	mux.HandleFunc("/api/v1/health", func(w http.ResponseWriter, r *http.Request) {
		h := api.Health{Product: api.Product, Status: "healthy", Version: "1", APIVersion: 1}
		if time.Since(began) < 100*time.Millisecond {
			h.Status = "starting"
		}
		if r.Header.Get("Authorization") == "Bearer secret" {
			h.Installation = "inst-1"
		} else {
			h.Status = "needs_auth"
		}
		_ = json.NewEncoder(w).Encode(h)
	})
	go http.Serve(ln, mux)
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGTERM)
	select {
	case <-ch:
		_ = os.Remove(l.StatePath())
	case <-time.After(60 * time.Second):
	}
	return 0
}

func testDaemon(t *testing.T, mode string) *Daemon {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{Layout: Layout{Home: t.TempDir()}, Server: self, Environ: append(os.Environ(), "DAEMON_TEST_SERVER="+mode), Timeout: 20 * time.Second}
	t.Cleanup(func() {
		for _, pid := range pids(d) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	return d
}

// pids lists the servers that were started for d.
func pids(d *Daemon) []int {
	b, _ := os.ReadFile(filepath.Join(d.Home, "starts"))
	var out []int
	for _, f := range strings.Fields(string(b)) {
		n, _ := strconv.Atoi(f)
		out = append(out, n)
	}
	return out
}

func TestEnsureStartsOne(t *testing.T) {
	d := testDaemon(t, "ok")
	if _, err := d.Find(context.Background()); !errors.Is(err, ErrNotRunning) {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	started := 0
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			e := *d
			s, err := e.Ensure(context.Background())
			if err != nil || s.Token != "secret" || s.Health.Status != "healthy" || s.Health.Installation != "inst-1" {
				t.Errorf("%+v %v", s, err)
			}
			mu.Lock()
			defer mu.Unlock()
			if s.Started {
				started++
			}
		}()
	}
	wg.Wait()
	if n := len(pids(d)); n != 1 || started != 1 {
		t.Fatalf("%d servers, %d say they started it", n, started)
	}
	if st, err := os.Stat(d.LogPath()); err != nil || st.Mode().Perm() != 0o600 {
		t.Error("the log is missing or readable by others", err)
	}
}

func TestStaleFiles(t *testing.T) {
	cases := map[string]string{
		"dead":    `{"url":"http://127.0.0.1:1","pid":999999}`,
		"damaged": `{"url":`,
		"empty":   ``,
		"foreign": `{"url":"ftp://x","pid":1}`,
	}
	for name, content := range cases {
		t.Run(name, func(t *testing.T) {
			d := testDaemon(t, "ok")
			if err := os.WriteFile(d.StatePath(), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if s, err := d.Ensure(context.Background()); err != nil || !s.Started {
				t.Fatal(s, err)
			}
		})
	}
}

func TestStartFailureShowsTheLog(t *testing.T) {
	d := testDaemon(t, "fail")
	_ = os.WriteFile(d.LogPath(), []byte("an old line\n"), 0o600)
	_, err := d.Ensure(context.Background())
	var se *StartError
	if !errors.As(err, &se) || !strings.Contains(err.Error(), "engine.db is of a newer version") || !strings.Contains(err.Error(), "exit status 3") {
		t.Fatal(err)
	}
	if strings.Contains(err.Error(), "an old line") {
		t.Error("lines of an earlier start are shown")
	}
}

func TestNoBinary(t *testing.T) {
	d := testDaemon(t, "ok")
	d.Server = ""
	t.Setenv("PATH", t.TempDir())
	if _, err := d.Ensure(context.Background()); err == nil || !strings.Contains(err.Error(), "neither beside sky nor on the PATH") {
		t.Fatal(err)
	}
}

func TestNoStart(t *testing.T) {
	d := testDaemon(t, "ok")
	d.NoStart = true
	if _, err := d.Ensure(context.Background()); !errors.Is(err, ErrNotRunning) || len(pids(d)) != 0 {
		t.Fatal(err)
	}
}

// A server that crashed is started anew on the way; one that was stopped is not.
func TestReconnect(t *testing.T) {
	d := testDaemon(t, "ok")
	ctx := context.Background()
	s, err := d.Ensure(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_ = syscall.Kill(s.PID, syscall.SIGKILL)
	if !AwaitExit(ctx, s.PID, time.Minute) {
		t.Fatal("still there")
	}
	again, err := d.Reconnect(ctx)
	if err != nil || again.PID == s.PID || !again.Started {
		t.Fatal(again, err)
	}
	_ = Terminate(again.PID)
	if !AwaitExit(ctx, again.PID, time.Minute) {
		t.Fatal("still there")
	}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if _, err := d.Reconnect(short); !errors.Is(err, context.DeadlineExceeded) || len(pids(d)) != 2 {
		t.Fatal(err)
	}
}

// Another SKY_HOME's server on the remembered port is not ours: neither its token nor its id fits.
func TestAnothersServer(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/api/v1/health", func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(api.Health{Product: api.Product, Status: "healthy", Installation: "other"})
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go http.Serve(ln, mux)
	d := testDaemon(t, "ok")
	b, _ := json.Marshal(State{URL: "http://" + ln.Addr().String(), PID: os.Getpid(), Installation: "mine"})
	_ = os.WriteFile(d.StatePath(), b, 0o600)
	if _, err := d.Find(context.Background()); !errors.Is(err, ErrNotRunning) {
		t.Fatal(err)
	}
	if who := d.Holder(context.Background(), ln.Addr().String()); who != "the Skyloom server of another SKY_HOME" {
		t.Error(who)
	}
}

func TestHolder(t *testing.T) {
	d := &Daemon{}
	for body, want := range map[string]string{
		`{"status":"healthy","api_version":"56","version":"0.12"}`: "another product's API server (SkyPilot?)",
		`hello`: "another program",
	} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, body) }))
		if got := d.Holder(context.Background(), ln.Addr().String()); got != want {
			t.Errorf("%s: %q", body, got)
		}
		ln.Close()
	}
	ln, _ := net.Listen("tcp", "127.0.0.1:0")
	addr := ln.Addr().String()
	ln.Close()
	if got := d.Holder(context.Background(), addr); got != "" {
		t.Errorf("nobody: %q", got)
	}
}

func TestTail(t *testing.T) {
	p := filepath.Join(t.TempDir(), "log")
	_ = os.WriteFile(p, []byte("old\none\ntwo\nthree\n"), 0o600)
	if got := tail(p, 4, 2); got != "two\nthree" {
		t.Errorf("%q", got)
	}
	if got := tail(p+"x", 0, 2); got != "" {
		t.Errorf("%q", got)
	}
}
