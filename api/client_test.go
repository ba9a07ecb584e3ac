package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// quick is a client that does not really sleep.
func quick(t *testing.T, h http.Handler, opts ...Option) *Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return NewClient(srv.URL, "tok", append([]Option{WithSleep(func(ctx context.Context, d time.Duration) error { return ctx.Err() })}, opts...)...)
}

// cut ends a connection in the middle of whatever was being sent.
func cut() { panic(http.ErrAbortHandler) }

func writeProblem(w http.ResponseWriter, status int, p Problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(p)
}

func TestHeadersAndBody(t *testing.T) {
	c := quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Authorization"); got != "Bearer tok" {
			t.Errorf("Authorization = %q", got)
		}
		if got := r.Header.Get(HeaderAPIVersion); got != "1" {
			t.Errorf("version header = %q", got)
		}
		var b LaunchBody
		if err := json.NewDecoder(r.Body).Decode(&b); err != nil {
			t.Error(err)
		}
		if len(b.RequestID) != 36 || b.Task != "run: true" || r.URL.Path != "/api/v1/launch" || r.Method != "POST" {
			t.Errorf("%s %s %+v", r.Method, r.URL.Path, b)
		}
		w.WriteHeader(202)
		fmt.Fprintf(w, `{"request_id":%q,"name":"sky.launch"}`, b.RequestID)
	}))
	b := &LaunchBody{Task: "run: true"}
	ref, err := c.Launch(context.Background(), b)
	if err != nil || ref.RequestID != b.RequestID || ref.Name != "sky.launch" {
		t.Fatalf("%+v %v", ref, err)
	}
}

// Every kind of transient failure is repeated, with the very same request.
func TestRepeats(t *testing.T) {
	var n atomic.Int32
	var ids []string
	c := quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var b StopOrDownBody
		_ = json.NewDecoder(r.Body).Decode(&b)
		ids = append(ids, b.RequestID)
		switch n.Add(1) {
		case 1:
			cut()
		case 2:
			w.Header().Set("Content-Length", "500")
			io.WriteString(w, `{"request_id":`)
			cut()
		case 3:
			writeProblem(w, 503, Problem{Type: ErrUnavailable, Detail: "starting"})
		case 4:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(429)
		case 5:
			w.WriteHeader(502)
		default:
			io.WriteString(w, `{"request_id":"x"}`)
		}
	}))
	if _, err := c.Down(context.Background(), &StopOrDownBody{Cluster: "a"}); err != nil {
		t.Fatal(err)
	}
	if len(ids) != 6 {
		t.Fatalf("%d tries", len(ids))
	}
	for _, id := range ids {
		if id != ids[0] || id == "" {
			t.Fatalf("ids differ: %v", ids)
		}
	}
}

func TestProblems(t *testing.T) {
	cases := []struct {
		name   string
		status int
		ctype  string
		body   string
		kind   string
		want   []string
	}{
		{"ours", 409, "application/problem+json", `{"type":"ClusterNotUp","detail":"cluster a is STOPPED","hint":"sky start a","details":["one"]}`, ErrClusterNotUp, []string{"cluster a is STOPPED", "\n  one", "\nsky start a"}},
		{"type is an address", 404, "application/problem+json; charset=utf-8", `{"type":"https://x.test/errors/JobNotFound","title":"t"}`, ErrJobNotFound, []string{"t"}},
		{"no type", 422, "application/problem+json", `{"detail":"bad","errors":[{"message":"too long","location":"body.name"}]}`, ErrInvalid, []string{"bad", "body.name: too long"}},
		{"no resources is an answer", 503, "application/problem+json", `{"type":"ResourcesUnavailable","detail":"none"}`, ErrResourcesUnavailable, []string{"none"}},
		{"truncated", 400, "application/problem+json", `{"type":"Inva`, ErrInvalid, []string{"the server answered 400 Bad Request"}},
		{"plain", 404, "text/plain; charset=utf-8", "404 page not found\nmore", ErrNotFound, []string{"404 Not Found", "404 page not found", "Skyloom server?"}},
		{"html of a proxy", 403, "text/html", "<html>", ErrAuth, []string{"refused the login", "--token"}},
		{"wrong token", 401, "application/problem+json", `{"type":"Unauthorized","detail":"wrong token"}`, ErrAuth, []string{"wrong token", "--token"}},
		{"empty", 500, "", "", ErrInternal, []string{"500 Internal Server Error"}},
		{"full", 507, "application/problem+json", `{}`, ErrStorage, []string{"507"}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			n := 0
			c := quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n++
				w.Header().Set("Content-Type", tc.ctype)
				w.WriteHeader(tc.status)
				io.WriteString(w, tc.body)
			}))
			_, err := c.Info(context.Background())
			var e *Error
			if !errors.As(err, &e) || e.Kind != tc.kind {
				t.Fatalf("%T %v", err, err)
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q lacks %q", err, w)
				}
			}
			if n != 1 {
				t.Errorf("%d tries", n)
			}
		})
	}
}

func TestPatienceEnds(t *testing.T) {
	now := time.Unix(0, 0)
	srv := httptest.NewServer(http.NotFoundHandler())
	url := srv.URL
	srv.Close()
	c := NewClient(url, "", WithSleep(func(ctx context.Context, d time.Duration) error { now = now.Add(d); return nil }), WithPatience(2*time.Second))
	c.now = func() time.Time { return now }
	_, err := c.Health(context.Background())
	var u *Unreachable
	if !errors.As(err, &u) || !strings.Contains(err.Error(), "can't be reached") || strings.Contains(err.Error(), "Get \"") {
		t.Fatalf("%v", err)
	}
	if d := now.Sub(time.Unix(0, 0)); d < 2*time.Second || d > 6*time.Second {
		t.Errorf("gave up after %s", d)
	}
}

// A busy server's own words are what the user sees in the end.
func TestBusyToTheEnd(t *testing.T) {
	c := quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, 503, Problem{Type: ErrUnavailable, Detail: "the server is draining"})
	}), WithPatience(0))
	if _, err := c.Info(context.Background()); err == nil || err.Error() != "the server is draining" {
		t.Fatal(err)
	}
}

func TestReconnect(t *testing.T) {
	alive := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer new" {
			t.Error("the new token is not used")
		}
		io.WriteString(w, `{"product":"skyloom"}`)
	}))
	defer alive.Close()
	dead := httptest.NewServer(http.NotFoundHandler())
	url := dead.URL
	dead.Close()
	c := NewClient(url, "old", WithReconnect(func(context.Context) (string, string, error) { return alive.URL, "new", nil }))
	if h, err := c.Health(context.Background()); err != nil || h.Product != "skyloom" || c.Endpoint() != alive.URL {
		t.Fatal(h, err)
	}
	stop := errors.New("it was stopped")
	c = NewClient(url, "old", WithReconnect(func(context.Context) (string, string, error) { return "", "", stop }))
	if _, err := c.Health(context.Background()); !errors.Is(err, stop) {
		t.Fatal(err)
	}
}

func TestOldServerIsRefused(t *testing.T) {
	c := quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(HeaderAPIVersion, "0")
		io.WriteString(w, `{}`)
	}))
	if _, err := c.Info(context.Background()); err == nil || !strings.Contains(err.Error(), "Upgrade the server") {
		t.Fatal(err)
	}
}

func TestNotJSON(t *testing.T) {
	c := quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>hello") }))
	if _, err := c.Info(context.Background()); err == nil || !strings.Contains(err.Error(), "not what the API promises") {
		t.Fatal(err)
	}
}

func TestCancelledContextEndsTheWait(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	c := quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { cancel(); cut() }))
	if _, err := c.Info(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestWaitRequest(t *testing.T) {
	n := 0
	c := quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("wait") != "30s" || r.URL.Path != "/api/v1/requests/ab" {
			t.Errorf("%s", r.URL)
		}
		st := RequestRunning
		if n++; n == 3 {
			st = RequestSucceeded
		}
		fmt.Fprintf(w, `{"request_id":"ab","status":%q}`, st)
	}))
	r, err := c.WaitRequest(context.Background(), "ab")
	if err != nil || r.Status != RequestSucceeded || n != 3 {
		t.Fatal(r, n, err)
	}
}

func TestPutBlobs(t *testing.T) {
	n := 0
	c := quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if n++; n == 1 {
			cut()
		}
		if n == 2 && (err != nil || string(b) != "pack") || r.Header.Get("Content-Type") != PackMediaType {
			t.Errorf("%q %v", b, err)
		}
	}))
	opens := 0
	err := c.PutBlobs(context.Background(), func() (io.ReadCloser, error) {
		opens++
		return io.NopCloser(strings.NewReader("pack")), nil
	})
	if err != nil || opens != 2 {
		t.Fatal(opens, err)
	}
	// A source that fails is not the network's fault: one try, and its own words.
	bad := errors.New("file vanished")
	opens = 0
	err = c.PutBlobs(context.Background(), func() (io.ReadCloser, error) {
		opens++
		r, w := io.Pipe()
		go func() { w.Write([]byte("pa")); w.CloseWithError(bad) }()
		return r, nil
	})
	if !errors.Is(err, bad) || opens != 1 {
		t.Fatal(opens, err)
	}
}
