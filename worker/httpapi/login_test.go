package httpapi

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
)

func TestLogin(t *testing.T) {
	seen := make(chan *http.Request, 10)
	web := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r
		io.WriteString(w, "web ui "+r.URL.Path)
	})
	codec := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r
		io.WriteString(w, "codec "+r.URL.Path)
	})
	e := newEnv(t, func(o *Options) { o.WebUI, o.Codec = web, codec })
	e.s.url = e.url
	link, err := e.client().LoginLink(t.Context())
	if err != nil || !strings.HasPrefix(link, e.url+"/login?code=") {
		t.Fatalf("%q %v", link, err)
	}
	jar, _ := cookiejar.New(nil)
	browser := &http.Client{Jar: jar}
	u, _ := url.Parse(e.url)
	jar.SetCookies(u, []*http.Cookie{{Name: "_csrf", Value: "theirs"}})
	get := func(c *http.Client, u string) (int, string) {
		t.Helper()
		resp, err := c.Get(u)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	if code, body := get(browser, link); code != 200 || body != "web ui /temporal/" {
		t.Fatalf("%d %s", code, body)
	}
	r := <-seen
	if r.Header.Get("Authorization") != "" || len(r.Cookies()) != 1 || r.Cookies()[0].Name != "_csrf" {
		t.Errorf("what proved the login reached the web ui: %v", r.Header)
	}
	if code, body := get(browser, e.url+"/"); code != 200 || !strings.Contains(body, "1.2.3") || !strings.Contains(body, "/temporal/") {
		t.Errorf("%d %s", code, body)
	}
	resp, err := browser.Post(e.url+"/codec/decode", "application/json", strings.NewReader("{}"))
	if err != nil || resp.StatusCode != 403 {
		t.Errorf("a post that does not say where it comes from: %v %v", resp, err)
	}
	req, _ := http.NewRequest("POST", e.url+"/codec/decode", strings.NewReader("{}"))
	req.Header.Set("Origin", e.url)
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	if resp, err = browser.Do(req); err != nil || resp.StatusCode != 200 {
		t.Errorf("%v %v", resp, err)
	}
	<-seen
	// The link works once.
	if code, body := get(http.DefaultClient, link); code != 401 || !strings.Contains(body, "used before") {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := get(http.DefaultClient, e.url+"/login"); code != 401 {
		t.Errorf("%d", code)
	}
	if strings.Contains(e.logs.String(), link[strings.Index(link, "=")+1:]) {
		t.Error("the login code is in the log")
	}
	req, _ = http.NewRequest("POST", e.url+"/logout", nil)
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	if resp, err = browser.Do(req); err != nil || resp.StatusCode != 204 {
		t.Errorf("%v %v", resp, err)
	}
	if code, _ := get(browser, e.url+"/"); code != 401 {
		t.Errorf("after logout: %d", code)
	}
}

func TestLoginLeadsNowhereElse(t *testing.T) {
	e := newEnv(t)
	code := func() string { return e.s.sessions.newCode(e.s.now(), "/temporal/") }
	for next, want := range map[string]string{
		"": "/temporal/", "/api/v1/info": "/api/v1/info", "/temporal/x?y=z": "/temporal/x?y=z", "//evil.example.com": "/temporal/",
		"https://evil.example.com": "/temporal/", "/\\evil.example.com": "/temporal/", "evil": "/temporal/", "/a\r\nSet-Cookie: x": "/temporal/",
	} {
		resp, _ := e.send("GET", "/login?code="+code()+"&next="+url.QueryEscape(next), nil)
		if resp.StatusCode != 303 || resp.Header.Get("Location") != want {
			t.Errorf("next %q: %d %s", next, resp.StatusCode, resp.Header.Get("Location"))
		}
		c := resp.Cookies()
		if len(c) != 1 || !c[0].HttpOnly || c[0].SameSite != http.SameSiteStrictMode || c[0].Path != "/" || c[0].Domain != "" {
			t.Errorf("cookie %+v", c)
		}
	}
	resp, body := e.send("GET", "/login?code="+code(), nil, "Sec-Fetch-Site", "cross-site")
	if resp.StatusCode != 200 || !strings.Contains(body, "url=/temporal/") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	resp, body = e.call("POST", "/api/v1/login-link", `{"next":"https://evil.example.com"}`)
	e.refused(resp, body, 400, api.ErrInvalid, "next")
	if resp, body = e.call("POST", "/api/v1/login-link", ""); resp.StatusCode != 200 {
		t.Errorf("without a body: %d %s", resp.StatusCode, body)
	}
	var l struct{ URL string }
	if json.Unmarshal([]byte(body), &l) != nil || !strings.Contains(l.URL, "/login?code=") {
		t.Errorf("%s", body)
	}
}

func TestSessionsAndCodesExpire(t *testing.T) {
	s := newSessions("token", "installation")
	now := time.Now()
	c := s.issue(now)
	for d, want := range map[time.Duration]bool{0: true, sessionLife - time.Minute: true, sessionLife + time.Second: false} {
		if s.valid(c, now.Add(d)) != want {
			t.Errorf("a session after %s: %v", d, !want)
		}
	}
	if !newSessions("token", "installation").valid(c, now) {
		t.Error("a session does not survive a restart")
	}
	if newSessions("token", "other").valid(c, now) || newSessions("new token", "installation").valid(c, now) {
		t.Error("a session of another server is taken")
	}
	code := s.newCode(now, "/x")
	if _, ok := s.redeem(now.Add(codeLife+time.Second), code); ok {
		t.Error("an old code is taken")
	}
	first := s.newCode(now, "/first")
	for range maxCodes {
		s.newCode(now.Add(time.Second), "/x")
	}
	if len(s.codes) > maxCodes {
		t.Errorf("%d codes wait", len(s.codes))
	}
	if _, ok := s.redeem(now, first); ok {
		t.Error("the oldest code did not give way")
	}
}
