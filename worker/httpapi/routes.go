package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/skyloom/skyloom/api"
)

// reply is the shape huma wants of an answer.
type reply[T any] struct{ Body T }

func answer[T any](v T) *reply[T] { return &reply[T]{v} }

// empty is the input of a call without any.
type empty struct{}

// routes builds the mux and the API's description. It touches nothing of the server, so that the description can be
// made without one.
func (s *Server) routes() (*http.ServeMux, huma.API) {
	mux := http.NewServeMux()
	h := humago.New(mux, humaConfig())
	s.serverRoutes(h)
	s.submitRoutes(h)
	s.requestRoutes(h)
	s.clusterRoutes(h)
	s.logRoutes(h)
	s.managedRoutes(h)
	s.checkpointRoutes(h)
	s.scheduleRoutes(h)
	s.webhookRoutes(h)
	s.sshRoutes(h)
	s.poolRoutes(h)
	s.uploadRoutes(h)

	spec := encodeOpenAPI(h.OpenAPI())
	mux.HandleFunc("GET "+apiPrefix+"/openapi.json", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(spec)
	})
	mux.HandleFunc("GET /{$}", s.landing)
	mux.HandleFunc("GET /login", s.login)
	mux.HandleFunc("POST /logout", s.logout)
	mux.HandleFunc("/temporal/", s.serveWebUI)
	mux.HandleFunc("GET /temporal", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/temporal/", http.StatusSeeOther)
	})
	if s.o.Codec != nil {
		mux.HandleFunc("POST /codec/", func(w http.ResponseWriter, r *http.Request) {
			r = withoutLogin(r)
			r.Body = http.MaxBytesReader(w, r.Body, maxCodecBody)
			s.o.Codec.ServeHTTP(w, r)
		})
	}
	if s.o.Debug {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux, h
}

func humaConfig() huma.Config {
	c := huma.DefaultConfig("Skyloom", "1")
	c.Info.Description = "The API of sky-server. Mutating calls carry a request id chosen by the client and answer 202 at once; " +
		"repeating one with the same id and body has no further effect. Follow a request by its events. Errors are RFC 9457 problem " +
		"documents whose type names the kind of error."
	c.Info.License = &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"}
	c.OpenAPIPath, c.DocsPath, c.SchemasPath = "", "", ""
	c.CreateHooks, c.Transformers = nil, nil
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"token":   {Type: "http", Scheme: "bearer", Description: "the content of the file token in SKY_HOME"},
		"session": {Type: "apiKey", In: "cookie", Name: "skyloom_session_PORT", Description: "the login of a browser, from a link of POST /api/v1/login-link"},
	}
	c.Security = []map[string][]string{{"token": {}}, {"session": {}}}
	return c
}

// operation describes a call in short.
func operation(method, path, id, tag, summary string, errs ...int) huma.Operation {
	op := huma.Operation{
		Method: method, Path: apiPrefix + path, OperationID: id, Summary: summary, Tags: []string{tag},
		Errors: append([]int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusUnprocessableEntity,
			http.StatusInternalServerError, http.StatusServiceUnavailable}, errs...), // 503: while the server starts or ends
		MaxBodyBytes: maxJSONBody + 1, BodyReadTimeout: -1, // the guard has read the body, within its limits
		RejectUnknownQueryParameters: true, // a filter that is spelt wrongly must not list everything
	}
	if method != http.MethodGet {
		op.Errors = append(op.Errors, http.StatusRequestTimeout, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType)
	}
	slices.Sort(op.Errors)
	op.Errors = slices.Compact(op.Errors)
	return op
}

// get registers a read whose answer is T.
func get[I, T any](h huma.API, op huma.Operation, s *Server, f func(context.Context, *I) (T, error)) {
	huma.Register(h, op, func(ctx context.Context, in *I) (*reply[T], error) {
		v, err := f(ctx, in)
		if err != nil {
			return nil, s.toProblem(ctx, err)
		}
		return answer(v), nil
	})
}

// stream registers a call that writes its answer itself. f may return an error as long as it has written nothing.
func stream[I any](h huma.API, op huma.Operation, s *Server, media, what string, f func(http.ResponseWriter, *http.Request, *I) error) {
	schema := &huma.Schema{Type: "string", Description: what}
	op.Responses = map[string]*huma.Response{"200": {Description: what, Content: map[string]*huma.MediaType{media: {Schema: schema}}}}
	huma.Register(h, op, func(ctx context.Context, in *I) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			r, w := humago.Unwrap(hc)
			if err := f(w, r, in); err != nil {
				s.writeError(w, r, err)
			}
		}}, nil
	})
}

func (s *Server) serverRoutes(h huma.API) {
	op := operation("GET", "/health", "health", "server", "Whether the server is well; needs no login")
	op.Security = []map[string][]string{}
	op.Errors, op.RejectUnknownQueryParameters = []int{http.StatusForbidden}, false
	get(h, op, s, func(ctx context.Context, _ *empty) (api.Health, error) { return s.health(ctx), nil })

	get(h, operation("GET", "/info", "info", "server", "What the server is, and how to reach its workflow engine"), s,
		func(ctx context.Context, _ *empty) (api.Info, error) { return s.info(ctx), nil })

	op = operation("POST", "/shutdown", "shutdown", "server", "End the server in order; requests in flight go on when it starts again")
	op.DefaultStatus = http.StatusAccepted
	get(h, op, s, func(ctx context.Context, _ *struct{ Body *struct{} }) (api.Health, error) {
		if accessOf(ctx) != accessToken {
			return api.Health{}, problem(http.StatusForbidden, "ending the server needs the token", "Run: sky api stop")
		}
		s.log.Info("asked to end")
		go s.be().Shutdown()
		hh := s.health(ctx)
		hh.Status = "draining"
		return hh, nil
	})

	type link struct {
		URL string `json:"url" doc:"open it in a browser within 5 minutes; it works once"`
	}
	type linkBody struct {
		Next string `json:"next,omitempty" doc:"path on this server to go to; default /temporal/" maxLength:"2000"`
	}
	get(h, operation("POST", "/login-link", "login-link", "server", "Make an address that logs a browser in, once"), s,
		func(ctx context.Context, in *struct{ Body *linkBody }) (link, error) {
			if accessOf(ctx) != accessToken {
				return link{}, problem(http.StatusForbidden, "making a login link needs the token", "Run: sky dashboard")
			}
			next := "/temporal/"
			if in.Body != nil && in.Body.Next != "" {
				if next = in.Body.Next; !localPath(next) {
					return link{}, failure(api.ErrInvalid, "", "next must be a path on this server")
				}
			}
			base := s.url
			if base == "" {
				base = s.be().Info().URL
			}
			return link{base + "/login?code=" + s.sessions.newCode(s.now(), next)}, nil
		})

	stream(h, operation("GET", "/server-log", "server-log", "server", "The server's own log", http.StatusNotFound), s, "text/plain", "the log, as text", s.serverLog)

	gpuOp := operation("GET", "/gpus", "gpus", "infra", "Accelerators with prices and availability", http.StatusServiceUnavailable)
	get(h, gpuOp, s, func(ctx context.Context, in *gpuQuery) (api.GPUList, error) {
		f, err := in.filter()
		if err != nil {
			return api.GPUList{}, err
		}
		l, err := s.be().GPUs(ctx, f)
		if l.Pools == nil {
			l.Pools = []api.GPUPool{}
		}
		if l.Offers == nil {
			l.Offers = map[string][]api.GPUOffer{}
		}
		return l, err
	})
	type optimizeIn struct{ Body api.OptimizeBody }
	op = operation("POST", "/optimize", "optimize", "clusters", "What a launch would choose; nothing is created",
		http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable)
	get(h, op, s, func(ctx context.Context, in *optimizeIn) (api.Plan, error) {
		p, err := s.be().Optimize(ctx, in.Body)
		if p.Candidates == nil {
			p.Candidates = []api.Candidate{}
		}
		return p, err
	})
}

func (s *Server) health(ctx context.Context) api.Health {
	h := api.Health{Product: api.Product, Status: s.status(), Version: s.o.Version, Commit: s.o.Commit, APIVersion: api.Version}
	switch accessOf(ctx) {
	case accessToken, accessSession:
		h.Installation = s.o.Installation
		if h.Features = s.o.Features; h.Features == nil && s.backend.Load() != nil {
			h.Features = s.be().Info().Features
		}
	case accessWrong:
		if h.Status == "healthy" {
			h.Status = "needs_auth"
		}
	}
	return h
}

func (s *Server) info(ctx context.Context) api.Info {
	i := s.be().Info()
	i.Health = s.health(ctx)
	i.URL = first(i.URL, s.url)
	i.WebUI = first(i.WebUI, i.URL+"/temporal/")
	i.Home = first(i.Home, s.o.Home)
	if i.PID == 0 {
		i.PID = pid()
	}
	if i.StartedAt.IsZero() {
		i.StartedAt = s.started
	}
	return i
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// serveWebUI hands a call to the workflow Web UI, without what proved the login.
func (s *Server) serveWebUI(w http.ResponseWriter, r *http.Request) {
	h := s.webui.Load()
	if h == nil {
		writeProblem(w, problem(http.StatusNotFound, "this server has no workflow Web UI", ""))
		return
	}
	(*h).ServeHTTP(w, withoutLogin(r))
}

// withoutLogin takes the token and our cookie off a call.
func withoutLogin(r *http.Request) *http.Request {
	r2 := r.Clone(r.Context())
	r2.Header.Del("Authorization")
	cookies := r.Cookies()
	r2.Header.Del("Cookie")
	for _, c := range cookies {
		if !strings.HasPrefix(c.Name, "skyloom_session_") {
			r2.AddCookie(c)
		}
	}
	return r2
}

func (s *Server) landing(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	_ = landing.Execute(w, s.info(r.Context()))
}

// OpenAPI is the description of the API, the same bytes for the same build.
func OpenAPI() []byte {
	_, h := newServer(Options{}).routes()
	return encodeOpenAPI(h.OpenAPI())
}

func encodeOpenAPI(o *huma.OpenAPI) []byte {
	b, err := json.Marshal(o)
	if err != nil {
		panic("httpapi: the API's description can't be encoded: " + err.Error())
	}
	var v any // through a map: keys sorted
	if err := json.Unmarshal(b, &v); err != nil {
		panic("httpapi: the API's description is not JSON: " + err.Error())
	}
	b, _ = json.MarshalIndent(v, "", "  ")
	return append(b, '\n')
}
