package httpapi

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"html/template"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	// sessionLife is how long a browser stays logged in.
	sessionLife = 12 * time.Hour
	// codeLife is how long a login link can be used, once.
	codeLife = 5 * time.Minute
	// maxCodes bounds the login links waiting to be used; the oldest gives way.
	maxCodes = 64
)

// sessionCookie names the cookie. Cookies are shared by all ports of a host: the port in the name keeps two servers apart.
func sessionCookie(port string) string { return "skyloom_session_" + port }

// sessions makes and checks the logins of browsers. A session is signed, not stored: it survives a restart of the
// server, and ends with the token it was made from.
type sessions struct {
	key []byte

	mu    sync.Mutex
	codes map[string]loginCode
}

type loginCode struct {
	expires time.Time
	next    string
}

func newSessions(token, installation string) *sessions {
	m := hmac.New(sha256.New, []byte(token))
	m.Write([]byte("skyloom browser session\x00" + installation))
	return &sessions{key: m.Sum(nil), codes: map[string]loginCode{}}
}

func randomText() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

// newCode makes a one-time code that leads to next.
func (s *sessions) newCode(now time.Time, next string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var oldest string
	for c, v := range s.codes {
		if now.After(v.expires) {
			delete(s.codes, c)
		} else if oldest == "" || v.expires.Before(s.codes[oldest].expires) {
			oldest = c
		}
	}
	if len(s.codes) >= maxCodes {
		delete(s.codes, oldest)
	}
	code := randomText()
	s.codes[code] = loginCode{now.Add(codeLife), next}
	return code
}

// redeem uses a code up. A code is 256 random bits, so the map's timing tells nothing.
func (s *sessions) redeem(now time.Time, code string) (next string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.codes[code]
	delete(s.codes, code)
	return c.next, ok && now.Before(c.expires)
}

// issue makes the value of a session cookie: expiry, nonce and their signature.
func (s *sessions) issue(now time.Time) string {
	b := make([]byte, 24)
	binary.BigEndian.PutUint64(b, uint64(now.Add(sessionLife).Unix()))
	_, _ = rand.Read(b[8:])
	return base64.RawURLEncoding.EncodeToString(append(b, s.sign(b)...))
}

func (s *sessions) sign(b []byte) []byte {
	m := hmac.New(sha256.New, s.key)
	m.Write(b)
	return m.Sum(nil)
}

func (s *sessions) valid(cookie string, now time.Time) bool {
	b, err := base64.RawURLEncoding.DecodeString(cookie)
	if err != nil || len(b) != 24+sha256.Size {
		return false
	}
	if !hmac.Equal(b[24:], s.sign(b[:24])) {
		return false
	}
	return now.Unix() < int64(binary.BigEndian.Uint64(b))
}

// localPath accepts a path on this server only, so that a login link can't lead elsewhere.
func localPath(p string) bool {
	if !strings.HasPrefix(p, "/") || strings.HasPrefix(p, "//") || len(p) > 2000 {
		return false
	}
	return !strings.ContainsFunc(p, func(r rune) bool { return r < 0x20 || r == '\\' || r == 0x7f })
}

// login turns a one-time code into a session.
func (s *Server) login(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	next, ok := s.sessions.redeem(s.now(), r.URL.Query().Get("code"))
	if !ok {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(http.StatusUnauthorized)
		_ = loginNeeded.Execute(w, "This login link was used before, or is too old.")
		return
	}
	if n := r.URL.Query().Get("next"); n != "" {
		next = n
	}
	if !localPath(next) {
		next = "/temporal/"
	}
	http.SetCookie(w, &http.Cookie{
		Name: sessionCookie(localPort(r)), Value: s.sessions.issue(s.now()), Path: "/", MaxAge: int(sessionLife / time.Second),
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil,
	})
	if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
		// The link was clicked on another site: a redirect would still count as coming from there, and go without the
		// strict cookie. A page of ours that moves on does not.
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_ = moveOn.Execute(w, next)
		return
	}
	http.Redirect(w, r, next, http.StatusSeeOther)
}

func (s *Server) logout(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, &http.Cookie{Name: sessionCookie(localPort(r)), Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteStrictMode})
	w.WriteHeader(http.StatusNoContent)
}

const pageHead = `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Skyloom</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:4rem auto;padding:0 1rem;color:#222}code{background:#eee;padding:.1em .3em}li{margin:.4em 0}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}a{color:#8bf}code{background:#333}}</style>`

var (
	loginNeeded = template.Must(template.New("").Parse(pageHead + `</head><body><h1>Skyloom</h1>{{with .}}<p>{{.}}</p>{{end}}
<p>This page needs a login. Run <code>sky dashboard</code>, and open the address that it prints: it logs you in.</p></body></html>
`))
	moveOn = template.Must(template.New("").Parse(pageHead + `<meta http-equiv="refresh" content="0;url={{.}}"></head><body><p><a href="{{.}}">Go on</a></p></body></html>
`))
	landing = template.Must(template.New("").Parse(pageHead + `</head><body><h1>Skyloom</h1>
<p>Version {{.Version}}{{with .Commit}} ({{.}}){{end}}, running since {{.StartedAt.Format "2006-01-02 15:04:05 MST"}}.</p>
<ul><li><a href="/temporal/">Workflows</a>: what is going on, step by step</li>
<li><a href="/api/v1/clusters">Clusters</a> and <a href="/api/v1/requests">requests</a>, as JSON</li>
<li><a href="/api/v1/info">About this server</a></li>
<li><a href="/api/v1/openapi.json">Description of the API</a> (OpenAPI 3.1)</li></ul></body></html>
`))
)
