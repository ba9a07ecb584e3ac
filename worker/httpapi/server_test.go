package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
)

var errNoSpace = syscall.ENOSPC

func TestServe(t *testing.T) {
	e := newEnv(t)
	// Another product's server holds the port.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go http.Serve(taken, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/health" {
			io.WriteString(w, `{"status":"healthy","api_version":"56"}`)
			return
		}
		http.NotFound(w, r)
	}))
	defer taken.Close()
	home := t.TempDir()
	o := e.s.o
	o.Home, o.Token, o.Addr = home, "", taken.Addr().String()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(e.logs.String(), "another product") || strings.HasSuffix(s.URL(), taken.Addr().String()) {
		t.Errorf("url %s, log %s", s.URL(), e.logs)
	}
	o.FixedPort = true
	if f, err := New(o); err != nil || f.Listen() == nil {
		t.Errorf("a fixed port that is taken: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	var st State
	within(t, "server.json", func() bool {
		b, err := os.ReadFile(filepath.Join(home, StateFile))
		return err == nil && json.Unmarshal(b, &st) == nil
	})
	if st.URL != s.URL() || st.PID != os.Getpid() || st.Installation != e.st.Installation() || st.Version != "1.2.3" {
		t.Errorf("%+v", st)
	}
	pid, _ := os.ReadFile(filepath.Join(home, PIDFile))
	if strings.TrimSpace(string(pid)) != strconv.Itoa(os.Getpid()) {
		t.Errorf("pid %q", pid)
	}
	for _, f := range []string{StateFile, TokenFile} {
		if fi, err := os.Stat(filepath.Join(home, f)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, fi, err)
		}
	}
	tok, _ := os.ReadFile(filepath.Join(home, TokenFile))
	c := api.NewClient(st.URL, strings.TrimSpace(string(tok)), api.WithPatience(0))
	if h, err := c.Health(t.Context()); err != nil || h.Status != "healthy" || h.Installation == "" {
		t.Fatalf("%+v %v", h, err)
	}
	// A stream that is open does not hold the end up.
	e.createRequest(idA, "c")
	follow := make(chan error, 1)
	go func() {
		_, err := c.FollowRequest(t.Context(), idA, 0, func(api.Event) error { return nil })
		follow <- err
	}()
	within(t, "the stream", func() bool {
		resp, body := e.call("GET", "/api/v1/health", "")
		return resp.StatusCode == 200 && body != ""
	})
	if err := c.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-e.be.shutdown:
		cancel()
	case <-time.After(time.Minute):
		t.Fatal("Shutdown was not called")
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	<-follow
	if _, err := os.Stat(filepath.Join(home, StateFile)); !os.IsNotExist(err) {
		t.Error("server.json is still there")
	}
	if _, err := os.Stat(filepath.Join(home, PIDFile)); !os.IsNotExist(err) {
		t.Error("server.pid is still there")
	}
	if _, err := c.Health(t.Context()); err == nil {
		t.Error("the server still answers")
	}
}

func TestListenOnLoopbackOnly(t *testing.T) {
	e := newEnv(t)
	for _, addr := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:0", "example.com:0", "nonsense"} {
		o := e.s.o
		o.Addr = addr
		s, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Listen(); err == nil {
			t.Errorf("listens on %s", addr)
			s.ln.Close()
		}
	}
}

// The files of a server that took over meanwhile are left alone.
func TestStateOfAnotherServerStays(t *testing.T) {
	e := newEnv(t)
	e.s.url = "http://127.0.0.1:1"
	if err := e.s.writeState(); err != nil {
		t.Fatal(err)
	}
	other := []byte(`{"url":"http://127.0.0.1:2","pid":1}`)
	os.WriteFile(filepath.Join(e.home, StateFile), other, 0o600)
	e.s.removeState()
	if b, _ := os.ReadFile(filepath.Join(e.home, StateFile)); !bytes.Equal(b, other) {
		t.Errorf("%s", b)
	}
}

func TestToken(t *testing.T) {
	e := newEnv(t)
	path := filepath.Join(t.TempDir(), "sub", TokenFile)
	tokens := make(chan string, 8)
	for range 8 { // all at once: one token
		go func() {
			tok, err := loadToken(path, e.s.log)
			if err != nil {
				t.Error(err)
			}
			tokens <- tok
		}()
	}
	first := <-tokens
	for range 7 {
		if tok := <-tokens; tok != first || len(tok) < 40 {
			t.Errorf("%q and %q", tok, first)
		}
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("%v", left)
	}
	os.Chmod(path, 0o644)
	if tok, err := loadToken(path, e.s.log); err != nil || tok != first || !strings.Contains(e.logs.String(), "could be read by others") {
		t.Errorf("%q %v", tok, err)
	}
	if fi, _ := os.Stat(path); fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", fi.Mode())
	}
	os.WriteFile(path, []byte("short"), 0o600)
	if _, err := loadToken(path, e.s.log); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("%v", err)
	}
}

func TestServerLog(t *testing.T) {
	e := newEnv(t)
	c := e.client()
	resp, body := e.call("GET", "/api/v1/server-log", "")
	e.refused(resp, body, 404, api.ErrNotFound, "no log file")
	path := filepath.Join(e.home, "server.log")
	var all strings.Builder
	for i := range 20_000 {
		all.WriteString("line " + strconv.Itoa(i) + "\n")
	}
	os.WriteFile(path, []byte(all.String()), 0o600)
	for tail, want := range map[int]string{0: all.String(), 1: "line 19999\n", 3: "line 19997\nline 19998\nline 19999\n", 50_000: all.String()} {
		var b bytes.Buffer
		if err := c.ServerLog(t.Context(), tail, false, &b); err != nil || b.String() != want {
			t.Errorf("tail %d: %d bytes, want %d: %v", tail, b.Len(), len(want), err)
		}
	}
	got := &lockedBuffer{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.ServerLog(ctx, 1, true, got) }()
	add := func(s string) {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteString(s)
		f.Close()
	}
	within(t, "the last line", func() bool { return strings.Contains(got.String(), "19999") })
	add("more\n")
	within(t, "more", func() bool { return strings.HasSuffix(got.String(), "19999\nmore\n") })
	os.Rename(path, path+".1")
	add("rotated\n")
	within(t, "what follows a rotation", func() bool { return strings.HasSuffix(got.String(), "more\nrotated\n") })
	os.Truncate(path, 0)
	time.Sleep(300 * time.Millisecond)
	add("anew\n")
	within(t, "what follows a truncation", func() bool { return strings.HasSuffix(got.String(), "anew\n") })
	cancel()
	<-done
}

func TestSeekTail(t *testing.T) {
	for _, tt := range []struct {
		text string
		n    int
		want string
	}{
		{"", 1, ""}, {"a", 1, "a"}, {"a\n", 1, "a\n"}, {"a\nb", 1, "b"}, {"a\nb\n", 1, "b\n"}, {"a\nb\n", 2, "a\nb\n"}, {"a\nb\n", 9, "a\nb\n"},
		{"\n\n\n", 2, "\n\n"}, {strings.Repeat("x", 40<<10) + "\ny\n", 1, "y\n"}, {"z\n" + strings.Repeat("x", 40<<10) + "\n", 1, strings.Repeat("x", 40<<10) + "\n"},
	} {
		r := strings.NewReader(tt.text)
		if err := seekTail(r, tt.n); err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(r); string(b) != tt.want {
			t.Errorf("last %d of %.20q: %.20q", tt.n, tt.text, b)
		}
	}
}

func TestOpenAPI(t *testing.T) {
	a, b := OpenAPI(), OpenAPI()
	if !bytes.Equal(a, b) {
		t.Fatal("the description differs from one call to the next")
	}
	var d struct {
		OpenAPI string
		Paths   map[string]map[string]struct {
			OperationID string `json:"operationId"`
			Summary     string
			Responses   map[string]any
		}
	}
	if err := json.Unmarshal(a, &d); err != nil || d.OpenAPI != "3.1.0" {
		t.Fatalf("%s %v", d.OpenAPI, err)
	}
	ids := map[string]bool{}
	for path, ops := range d.Paths {
		for method, op := range ops {
			if !strings.HasPrefix(path, "/api/v1/") || op.OperationID == "" || op.Summary == "" || ids[op.OperationID] {
				t.Errorf("%s %s: %+v", method, path, op)
			}
			ids[op.OperationID] = true
			for _, code := range []string{"401", "422", "503"} {
				if op.Responses[code] == nil && op.OperationID != "health" {
					t.Errorf("%s %s does not tell of %s", method, path, code)
				}
			}
			if op.OperationID == "ssh" && op.Responses["200"] != nil {
				t.Error("a tunnel answers 101")
			}
		}
	}
	if len(ids) < 34 {
		t.Errorf("%d operations", len(ids))
	}
	e := newEnv(t)
	if _, body := e.call("GET", "/api/v1/openapi.json", ""); body != string(a) {
		t.Error("the server describes itself otherwise")
	}
}
