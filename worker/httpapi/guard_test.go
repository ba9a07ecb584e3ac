package httpapi

import (
	"net/http"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/api"
)

func TestGuard(t *testing.T) {
	e := newEnv(t, func(o *Options) { o.AllowedHosts = []string{"sky.example.com:443"} })
	port := e.url[strings.LastIndex(e.url, ":")+1:]
	cookie := sessionCookie(port) + "=" + e.s.sessions.issue(e.s.now())
	foreign := sessionCookie(port) + "=" + newSessions("another token", "").issue(e.s.now())
	launch := `{"request_id":"3f0c9a52-6f0e-4b7e-9a55-0d4f3f9e8a11","task":"run: true"}`
	bearer := "Bearer " + testToken

	tests := []struct {
		name    string
		method  string
		path    string
		headers []string
		status  int
	}{
		{"health needs no login", "GET", "/api/v1/health", nil, 200},
		{"no token", "GET", "/api/v1/info", nil, 401},
		{"no token, mutating", "POST", "/api/v1/launch", nil, 401},
		{"no token, unknown route", "GET", "/api/v1/nothing", nil, 401},
		{"no token, web ui", "GET", "/temporal/", nil, 401},
		{"no token, codec", "POST", "/codec/decode", nil, 401},
		{"no token, landing", "GET", "/", nil, 401},
		{"no token, openapi", "GET", "/api/v1/openapi.json", nil, 401},
		{"wrong token", "GET", "/api/v1/info", []string{"Authorization", "Bearer nonsense"}, 401},
		{"token cut short", "GET", "/api/v1/info", []string{"Authorization", bearer[:len(bearer)-1]}, 401},
		{"empty token", "GET", "/api/v1/info", []string{"Authorization", "Bearer "}, 401},
		{"basic", "GET", "/api/v1/info", []string{"Authorization", "Basic " + testToken}, 401},
		{"token", "GET", "/api/v1/info", []string{"Authorization", bearer}, 200},
		{"token, lower case scheme", "GET", "/api/v1/info", []string{"Authorization", "bearer " + testToken}, 200},
		{"wrong token beats good cookie", "GET", "/api/v1/info", []string{"Authorization", "Bearer x", "Cookie", cookie}, 401},

		{"localhost", "GET", "/api/v1/info", []string{"Authorization", bearer, "Host", "localhost:" + port}, 200},
		{"IPv6 loopback", "GET", "/api/v1/info", []string{"Authorization", bearer, "Host", "[::1]:" + port}, 200},
		{"configured host", "GET", "/api/v1/info", []string{"Authorization", bearer, "Host", "sky.example.com:443"}, 200},
		{"evil host", "GET", "/api/v1/info", []string{"Authorization", bearer, "Host", "evil.example.com:" + port}, 403},
		{"evil host on health", "GET", "/api/v1/health", []string{"Host", "evil.example.com:" + port}, 403},
		{"host that begins like ours", "GET", "/api/v1/health", []string{"Host", "localhost.evil.example.com:" + port}, 403},
		{"another port", "GET", "/api/v1/health", []string{"Host", "localhost:1"}, 403},
		{"no port", "GET", "/api/v1/health", []string{"Host", "localhost"}, 403},

		{"our origin", "GET", "/api/v1/info", []string{"Authorization", bearer, "Origin", e.url}, 200},
		{"configured origin", "GET", "/api/v1/info", []string{"Authorization", bearer, "Origin", "https://sky.example.com:443"}, 200},
		{"evil origin", "GET", "/api/v1/info", []string{"Authorization", bearer, "Origin", "https://evil.example.com"}, 403},
		{"evil origin on health", "GET", "/api/v1/health", []string{"Origin", "https://evil.example.com"}, 403},
		{"origin of another port", "GET", "/api/v1/health", []string{"Origin", "http://127.0.0.1:1"}, 403},
		{"null origin", "GET", "/api/v1/health", []string{"Origin", "null"}, 403},
		{"preflight", "OPTIONS", "/api/v1/launch", []string{"Origin", "https://evil.example.com"}, 403},

		{"cookie", "GET", "/api/v1/info", []string{"Cookie", cookie}, 200},
		{"cookie of another token", "GET", "/api/v1/info", []string{"Cookie", foreign}, 401},
		{"cookie, damaged", "GET", "/api/v1/info", []string{"Cookie", cookie[:len(cookie)-2] + "AA"}, 401},
		{"cookie, same origin read", "GET", "/api/v1/info", []string{"Cookie", cookie, "Sec-Fetch-Site", "same-origin"}, 200},
		{"cookie, cross-site read", "GET", "/api/v1/info", []string{"Cookie", cookie, "Sec-Fetch-Site", "cross-site"}, 403},
		{"cookie, read by another port", "GET", "/api/v1/info", []string{"Cookie", cookie, "Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "no-cors"}, 403},
		{"cookie, link from another port", "GET", "/", []string{"Cookie", cookie, "Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"}, 200},
		{"cookie, framed by another port", "GET", "/", []string{"Cookie", cookie, "Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"}, 403},
		{"cookie, mutating, same origin", "POST", "/api/v1/launch", []string{"Cookie", cookie, "Sec-Fetch-Site", "same-origin", "Origin", e.url}, 202},
		{"cookie, mutating, origin only", "POST", "/api/v1/launch", []string{"Cookie", cookie, "Origin", e.url}, 202},
		{"cookie, mutating, says nothing", "POST", "/api/v1/launch", []string{"Cookie", cookie}, 403},
		{"cookie, mutating, cross-site", "POST", "/api/v1/launch", []string{"Cookie", cookie, "Sec-Fetch-Site", "cross-site"}, 403},
		{"cookie, mutating, another port", "POST", "/api/v1/launch", []string{"Cookie", cookie, "Sec-Fetch-Site", "same-site"}, 403},
		{"cookie, shutdown", "POST", "/api/v1/shutdown", []string{"Cookie", cookie, "Sec-Fetch-Site", "same-origin"}, 403},
		{"cookie, login link", "POST", "/api/v1/login-link", []string{"Cookie", cookie, "Sec-Fetch-Site", "same-origin"}, 403},

		{"old client", "GET", "/api/v1/info", []string{"Authorization", bearer, api.HeaderAPIVersion, "0"}, 400},
		{"newer client", "GET", "/api/v1/info", []string{"Authorization", bearer, api.HeaderAPIVersion, "99"}, 200},
		{"version is no number", "GET", "/api/v1/info", []string{"Authorization", bearer, api.HeaderAPIVersion, "x"}, 400},
		{"unknown route", "GET", "/api/v1/nothing", []string{"Authorization", bearer}, 404},
		{"wrong method", "DELETE", "/api/v1/launch", []string{"Authorization", bearer}, 405},
		{"pprof is off", "GET", "/debug/pprof/", []string{"Authorization", bearer}, 404},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e.t = t
			body := ""
			if tt.method == "POST" {
				body = launch
				if strings.HasSuffix(tt.path, "shutdown") || strings.HasSuffix(tt.path, "link") {
					body = "{}"
				}
			}
			resp, got := e.send(tt.method, tt.path, strings.NewReader(body), append([]string{"Content-Type", "application/json"}, tt.headers...)...)
			if resp.StatusCode != tt.status {
				t.Fatalf("got %d, want %d: %s", resp.StatusCode, tt.status, got)
			}
			if resp.StatusCode == 401 && resp.Header.Get("WWW-Authenticate") == "" {
				t.Error("401 without WWW-Authenticate")
			}
			if resp.StatusCode >= 400 && resp.Header.Get("Content-Type") != problemMedia {
				t.Errorf("content type %q", resp.Header.Get("Content-Type"))
			}
			for h := range resp.Header {
				if strings.HasPrefix(h, "Access-Control-") {
					t.Errorf("header %s", h)
				}
			}
		})
	}
	if strings.Contains(e.logs.String(), testToken) || strings.Contains(e.logs.String(), cookie) {
		t.Error("the log holds the token or a cookie")
	}
}

func TestHealthSaysWhoAsks(t *testing.T) {
	e := newEnv(t)
	for _, tt := range []struct {
		token  string
		status string
		inst   bool
	}{{"", "healthy", false}, {testToken, "healthy", true}, {"wrong", "needs_auth", false}} {
		h, err := api.NewClient(e.url, tt.token).Health(t.Context())
		if err != nil || h.Status != tt.status || (h.Installation != "") != tt.inst || h.Product != "skyloom" {
			t.Errorf("token %q: %+v, %v", tt.token, h, err)
		}
	}
}

func TestBrowserIsToldHowToLogIn(t *testing.T) {
	e := newEnv(t)
	resp, body := e.send("GET", "/temporal/", nil, "Accept", "text/html,*/*")
	if resp.StatusCode != http.StatusUnauthorized || !strings.Contains(body, "sky dashboard") || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
}

func TestStartingAndDraining(t *testing.T) {
	e := newEnv(t, func(o *Options) { o.Backend = nil })
	h, err := e.client().Health(t.Context())
	if err != nil || h.Status != "starting" {
		t.Fatalf("%+v, %v", h, err)
	}
	resp, body := e.call("GET", "/api/v1/info", "")
	e.refused(resp, body, 503, api.ErrUnavailable, "starting")
	if resp.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	e.s.SetBackend(e.be)
	if i, err := e.client().Info(t.Context()); err != nil || i.Temporal.Namespace != "skyloom" || i.PID == 0 || i.Home != e.home || i.StartedAt.IsZero() {
		t.Fatalf("%+v, %v", i, err)
	}
	e.s.Drain()
	if h, err := e.client().Health(t.Context()); err != nil || h.Status != "draining" {
		t.Fatalf("%+v, %v", h, err)
	}
	resp, body = e.call("GET", "/api/v1/info", "")
	e.refused(resp, body, 503, api.ErrUnavailable, "ending")
}

func TestPanicIsAnInternalError(t *testing.T) {
	e := newEnv(t)
	resp, body := e.call("POST", "/api/v1/optimize", `{"task":"panic"}`)
	e.refused(resp, body, 500, api.ErrInternal, "internal error")
	if !strings.Contains(e.logs.String(), "boom") {
		t.Error("the panic is not in the log")
	}
}

func TestActivity(t *testing.T) {
	e := newEnv(t)
	_, before := e.s.Activity()
	e.call("GET", "/api/v1/health", "")
	if n, last := e.s.Activity(); n != 0 || !last.Equal(before) {
		t.Errorf("health counts as activity: %d %v", n, last)
	}
	e.call("GET", "/api/v1/info", "")
	within(t, "the call's end", func() bool { n, last := e.s.Activity(); return n == 0 && last.After(before) })
}
