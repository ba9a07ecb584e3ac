package httpapi

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/skyloom/skyloom/api"
)

const apiPrefix = "/api/v1"

// access says how a call proved that it may come in.
type access int

const (
	accessNone    access = iota
	accessToken          // Authorization: Bearer
	accessSession        // the cookie of a browser
	accessWrong          // a token or cookie that is not ours
)

type accessKey struct{}

func accessOf(ctx context.Context) access {
	a, _ := ctx.Value(accessKey{}).(access)
	return a
}

// guard is passed by every call before it reaches a route.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "SAMEORIGIN")
		h.Set("Referrer-Policy", "same-origin")
		h.Set(api.HeaderAPIVersion, strconv.Itoa(api.Version))

		port := localPort(r)
		if !s.knownHost(r.Host, port) {
			writeProblem(w, problem(http.StatusForbidden, fmt.Sprintf("this server does not answer to the name %q", shorten(r.Host)),
				"Use the address that sky api info prints."))
			return
		}
		if origin := r.Header.Get("Origin"); origin != "" && !s.knownOrigin(origin, port) {
			writeProblem(w, problem(http.StatusForbidden, "calls from other web sites are refused", ""))
			return
		}
		a := s.accessOfRequest(r, port)
		if a == accessSession {
			if p := sameOriginOnly(r); p != nil {
				writeProblem(w, p)
				return
			}
		}
		public := r.URL.Path == apiPrefix+"/health" || r.URL.Path == "/login"
		if !public && a != accessToken && a != accessSession {
			s.refuseLogin(w, r, a)
			return
		}
		if strings.HasPrefix(r.URL.Path, apiPrefix+"/") && !public {
			if p := checkVersion(r.Header.Get(api.HeaderAPIVersion)); p != nil {
				writeProblem(w, p)
				return
			}
			if r.Method == http.MethodPost {
				if p := readJSON(w, r); p != nil {
					refuseUnread(w, r, p)
					return
				}
			}
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), accessKey{}, a)))
	})
}

// localPort is the port at which the call came in.
func localPort(r *http.Request) string {
	addr, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return ""
	}
	_, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return ""
	}
	return port
}

// knownHost refuses names that a stranger's DNS may point at us. A Host without a port means port 80.
func (s *Server) knownHost(host, port string) bool {
	if slices.ContainsFunc(s.o.AllowedHosts, func(h string) bool { return strings.EqualFold(h, host) }) {
		return true
	}
	name, p, err := net.SplitHostPort(host)
	if err != nil {
		name, p = strings.Trim(host, "[]"), "80"
	}
	return p == port && loopbackName(name)
}

func loopbackName(name string) bool {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if name == "localhost" {
		return true
	}
	ip := net.ParseIP(name)
	return ip != nil && ip.IsLoopback()
}

func (s *Server) knownOrigin(origin, port string) bool {
	u, err := url.Parse(origin)
	if err != nil || u.Host == "" || u.Path != "" || u.User != nil {
		return false
	}
	if u.Scheme == "http" && s.knownHost(u.Host, port) {
		return true
	}
	return u.Scheme == "https" && slices.ContainsFunc(s.o.AllowedHosts, func(h string) bool { return strings.EqualFold(h, u.Host) })
}

func (s *Server) accessOfRequest(r *http.Request, port string) access {
	if auth := r.Header.Get("Authorization"); auth != "" {
		scheme, tok, _ := strings.Cut(auth, " ")
		if strings.EqualFold(scheme, "Bearer") && s.tokenIs(strings.TrimSpace(tok)) {
			return accessToken
		}
		return accessWrong
	}
	if c, err := r.Cookie(sessionCookie(port)); err == nil {
		if s.sessions.valid(c.Value, s.now()) {
			return accessSession
		}
		return accessWrong
	}
	return accessNone
}

// tokenIs compares in a time that does not depend on the token.
func (s *Server) tokenIs(tok string) bool {
	a, b := sha256.Sum256([]byte(tok)), sha256.Sum256([]byte(s.token))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// sameOriginOnly keeps other sites, and other ports of this machine (which share our cookies), from using a browser's
// session. A browser that sends neither header gets no mutating call through.
func sameOriginOnly(r *http.Request) *Problem {
	safe := r.Method == http.MethodGet || r.Method == http.MethodHead
	refusal := problem(http.StatusForbidden, "calls from other web sites are refused", "Scripts use the token instead of a browser's session.")
	switch site := r.Header.Get("Sec-Fetch-Site"); site {
	case "same-origin", "none":
		return nil
	case "":
		if safe || r.Header.Get("Origin") != "" { // a foreign Origin was refused before
			return nil
		}
		return refusal
	default:
		if safe && r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document" {
			return nil
		}
		return refusal
	}
}

func (s *Server) refuseLogin(w http.ResponseWriter, r *http.Request, a access) {
	w.Header().Set("WWW-Authenticate", `Bearer realm="skyloom"`)
	if r.Method == http.MethodGet && strings.Contains(r.Header.Get("Accept"), "text/html") && !strings.HasPrefix(r.URL.Path, "/api/") {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(http.StatusUnauthorized)
		_ = loginNeeded.Execute(w, nil)
		return
	}
	p := problem(http.StatusUnauthorized, "this server needs a login", "On the server's own machine the token stands in "+s.tokenPath()+"; from elsewhere: sky api login -e ADDRESS --token TOKEN")
	if a == accessWrong {
		p.Detail = "the token or session is not valid for this server"
	}
	writeProblem(w, p)
}

// checkVersion refuses clients older than the server can talk to; a client that does not say is let through.
func checkVersion(v string) *Problem {
	if v == "" {
		return nil
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		return problem(http.StatusBadRequest, "the header "+api.HeaderAPIVersion+" must be a whole number", "")
	}
	if n < api.MinVersion {
		return problem(http.StatusBadRequest, fmt.Sprintf("this client speaks version %d of the API; the server needs at least %d", n, api.MinVersion),
			"Upgrade sky to the version of the server.")
	}
	return nil
}

func shorten(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
