package webhook

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// The example of the Standard Webhooks specification.
func TestSign(t *testing.T) {
	got, err := Sign("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	if err != nil || got != "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=" {
		t.Errorf("%s %v", got, err)
	}
	a, b := NewSecret(), NewSecret()
	if a == b || len(a) != len("whsec_")+44 {
		t.Error(a, b)
	}
	for _, bad := range []string{"", "whsec_", "whsec_!"} {
		if got, err := Sign(bad, "x", time.Now(), nil); err == nil {
			t.Errorf("%q signs: %s", bad, got)
		}
	}
	if one, err := Sign("plain text", "x", time.Unix(1, 0), nil); err != nil || len(one) != 47 {
		t.Error(one, err)
	}
}

func TestHosts(t *testing.T) {
	for _, c := range []struct {
		rules         string
		host, addr    string
		name, reaches bool
	}{
		{"", "example.com", "93.184.216.34", true, true},
		{"", "localhost", "127.0.0.1", true, true},
		{"", "metadata", "169.254.169.254", true, false},
		{"", "169.254.169.254", "169.254.169.254", false, false},
		{"", "::ffff:169.254.169.254", "::ffff:169.254.169.254", false, false},
		{"", "fe80::1", "fe80::1", false, false},
		{"", "0.0.0.0", "0.0.0.0", false, false},
		{"169.254.7.0/24", "169.254.7.7", "169.254.7.7", true, true},
		{"hooks.example.com", "hooks.example.com", "10.0.0.1", true, true},
		{"hooks.example.com", "HOOKS.example.com.", "10.0.0.1", true, true},
		{"hooks.example.com", "evil.hooks.example.com", "10.0.0.1", false, false},
		{"hooks.example.com", "hooks.example.com", "169.254.169.254", true, false},
		{"*.example.com", "a.b.example.com", "10.0.0.1", true, true},
		{"*.example.com", "example.com", "10.0.0.1", false, false},
		{"10.0.0.0/8", "in.corp", "10.2.3.4", true, true},
		{"10.0.0.0/8", "in.corp", "192.168.0.1", true, false},
		{"10.0.0.0/8", "11.0.0.1", "11.0.0.1", false, false},
		{"!10.0.0.0/8 !*.corp", "example.com", "10.0.0.1", true, false},
		{"!10.0.0.0/8 !*.corp", "x.corp", "8.8.8.8", false, false},
		{"!10.0.0.0/8 !*.corp", "example.com", "8.8.8.8", true, true},
		{"*.example.com !bad.example.com", "bad.example.com", "8.8.8.8", false, false},
		{"*.example.com !127.0.0.1", "x.example.com", "127.0.0.1", true, false},
	} {
		h, err := ParseHosts(strings.Fields(c.rules))
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Check(c.host); (err == nil) != c.name {
			t.Errorf("%q: %s may be named: %v", c.rules, c.host, err)
		}
		if err := h.CheckAddr(c.host, netip.MustParseAddr(c.addr)); (err == nil) != c.reaches {
			t.Errorf("%q: %s reaches %s: %v", c.rules, c.host, c.addr, err)
		}
	}
	for _, bad := range []string{"", "!", "*", "http://x", "a b", "x:80", "10.0.0.0/99", "*.*.x", ".x"} {
		if _, err := ParseHosts([]string{bad}); err == nil {
			t.Errorf("%q is a rule", bad)
		}
	}
}

func TestParseURL(t *testing.T) {
	for _, good := range []string{"http://x", "https://x.example.com:8443/a/b?c=d", "http://[::1]:80/"} {
		if _, err := ParseURL(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "x", "ftp://x", "http://", "http:///x", "http://user:pw@x", "http://x#y", "http://x/" + strings.Repeat("a", MaxURL), "http://x\n"} {
		if _, err := ParseURL(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestSend(t *testing.T) {
	var got *http.Request
	var body string
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got, body = r, string(b)
		w.WriteHeader(204)
	})
	mux.HandleFunc("/busy", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "internal details", 503) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/ok", 307) })
	mux.HandleFunc("/read", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/ok", 302) })
	mux.HandleFunc("/round", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/round", 308) })
	mux.HandleFunc("/long", func(w http.ResponseWriter, r *http.Request) {
		for range 1 << 12 {
			if _, err := w.Write(make([]byte, 1<<10)); err != nil {
				return
			}
		}
	})
	srv := httptest.NewServer(mux)
	defer srv.Close()
	other := httptest.NewServer(mux)
	defer other.Close()
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL+"/ok", 307) })
	s := NewSender(Hosts{}, "agent")
	s.now = func() time.Time { return time.Unix(1614265330, 0) }
	send := func(path string) error {
		got, body = nil, ""
		return s.Send(context.Background(), Message{ID: "msg_1", URL: srv.URL + path, Body: []byte("{}")}, "whsec_c2VjcmV0")
	}
	for _, path := range []string{"/ok", "/moved"} {
		if err := send(path); err != nil || body != "{}" {
			t.Fatalf("%s: %v %q", path, err, body)
		}
		want, _ := Sign("whsec_c2VjcmV0", "msg_1", time.Unix(1614265330, 0), []byte("{}"))
		if h := got.Header; h.Get("webhook-id") != "msg_1" || h.Get("webhook-timestamp") != "1614265330" || h.Get("webhook-signature") != want || h.Get("Content-Type") != "application/json" {
			t.Errorf("%v", h)
		}
	}
	for path, want := range map[string]string{"/busy": "HTTP 503", "/read": "HTTP 302: a redirect", "/round": "HTTP 308: a redirect", "/away": "HTTP 307: a redirect", "/none": "HTTP 404"} {
		if err := send(path); err == nil || !strings.HasPrefix(err.Error(), want) || got != nil || strings.Contains(err.Error(), "details") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := send("/long"); err != nil {
		t.Error(err)
	}
	refusing := NewSender(must(ParseHosts([]string{"!127.0.0.0/8"})), "agent")
	if err := refusing.Send(context.Background(), Message{URL: srv.URL + "/ok"}, "x"); err == nil || !strings.Contains(err.Error(), "jobs.webhook_hosts") {
		t.Error(err)
	}
	// A name is judged by what it resolves to.
	if err := refusing.Send(context.Background(), Message{URL: strings.Replace(srv.URL, "127.0.0.1", "localhost", 1) + "/ok"}, "x"); err == nil {
		t.Error("a name leads past the rule")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Send(ctx, Message{URL: srv.URL + "/ok"}, "x"); err == nil {
		t.Error("it was sent")
	}
}

func must(h Hosts, err error) Hosts {
	if err != nil {
		panic(err)
	}
	return h
}

func TestBackoff(t *testing.T) {
	var sum time.Duration
	for tries := 1; tries < 40; tries++ {
		low := min(time.Second<<min(tries-1, 20), 10*time.Minute)
		d := Backoff(7, tries)
		if d < low || d > low+low/5 {
			t.Errorf("%d: %s", tries, d)
		}
		sum += d
	}
	spread := map[string]bool{}
	for seed := range int64(100) {
		spread[fmt.Sprint(Backoff(seed, 5))] = true
	}
	if len(spread) < 50 {
		t.Errorf("%d different pauses", len(spread))
	}
}
