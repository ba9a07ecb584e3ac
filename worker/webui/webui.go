package webui

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"path"
	"regexp"
	"strings"

	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"
	"github.com/temporalio/ui-server/v2/server/api"
	"github.com/temporalio/ui-server/v2/server/config"
	"github.com/temporalio/ui-server/v2/server/headers"
	"github.com/temporalio/ui-server/v2/server/route"
	"github.com/temporalio/ui-server/v2/ui"
	"go.temporal.io/api/workflowservice/v1"
	"google.golang.org/grpc"
)

// DefaultPath is where the UI is mounted unless Options say otherwise.
const DefaultPath = "/temporal"

// Options of the Web UI.
type Options struct {
	// Conn reaches the engine's frontend with our credentials (engine.Engine.Conn). It stays the caller's.
	Conn *grpc.ClientConn
	// Namespace is shown first.
	Namespace string
	// PublicPath is where Handler is mounted; DefaultPath if empty.
	PublicPath string
	// CodecEndpoint is the path, on the same origin, under which codec.Handler answers decode and encode. The browser
	// calls it with its cookies. Empty: payloads are shown as they are stored.
	CodecEndpoint string
	// ReadOnly refuses everything that changes a workflow. Terminating one from here can leave machines behind for the
	// reaper to find.
	ReadOnly bool
	// Logger receives errors; nil discards them.
	Logger *slog.Logger
}

// UI is the assembled Web UI.
type UI struct {
	handler http.Handler
	close   func()
}

// Start assembles the Web UI. The engine may come up later.
func Start(o Options) (*UI, error) {
	if o.Conn == nil {
		return nil, errors.New("webui: no connection to the workflow engine given")
	}
	if o.PublicPath == "" {
		o.PublicPath = DefaultPath
	}
	if o.PublicPath != path.Clean(o.PublicPath) || !strings.HasPrefix(o.PublicPath, "/") || o.PublicPath == "/" {
		return nil, fmt.Errorf("webui: %q can't be the path of the Web UI: it must look like %s", o.PublicPath, DefaultPath)
	}
	if o.CodecEndpoint != "" && !strings.HasPrefix(o.CodecEndpoint, "/") {
		return nil, fmt.Errorf("webui: the codec endpoint %q must be a path on the same origin, like /codec", o.CodecEndpoint)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	settings, err := config.NewConfigProviderWithRefresh(uiConfig(o))
	if err != nil {
		return nil, fmt.Errorf("webui: %w", err)
	}
	assets, err := ui.Assets()
	if err != nil {
		return nil, fmt.Errorf("webui: %w", err)
	}
	if assets, err = fs.Sub(assets, "local"); err != nil {
		return nil, fmt.Errorf("webui: %w", err)
	}
	page, err := loadPage(assets, o.PublicPath)
	if err != nil {
		return nil, err
	}

	e := echo.New()
	e.Logger.SetOutput(errorWriter{o.Logger})
	e.Use(middleware.Recover())
	e.Pre(route.PublicPath(o.PublicPath))
	setAPI(e, settings, o.Conn)
	route.SetRenderRoute(e, "") // markdown of summaries and details, shown in a sandboxed frame
	static := http.FileServerFS(assets)
	e.GET("/_app/*", echo.WrapHandler(cached(static)))
	e.GET("/favicon*", echo.WrapHandler(static))
	e.GET("/*", page.serve) // the rest is the UI's own routing

	return &UI{handler: guard(o.PublicPath, e), close: settings.Close}, nil
}

// Handler serves the UI below its PublicPath. The caller mounts it there, behind its login.
func (u *UI) Handler() http.Handler { return u.handler }

// Close releases what Start made. The connection is the caller's.
func (u *UI) Close() error {
	u.close()
	return nil
}

func uiConfig(o Options) *config.Config {
	return &config.Config{
		// Never dialled: we bring the connection.
		TemporalGRPCAddress: o.Conn.Target(),
		PublicPath:          o.PublicPath,
		EnableUI:            true,
		HideLogs:            true,
		DefaultNamespace:    o.Namespace,
		DisableNewsFetch:    true,
		FeedbackURL:         "about:blank",
		Codec:               config.Codec{Endpoint: o.CodecEndpoint, IncludeCredentials: o.CodecEndpoint != ""},
		DisableWriteActions: o.ReadOnly,
		// Our workflows are started by our API, take their input encrypted, and know no way back to an earlier event.
		StartWorkflowDisabled: true,
		WorkflowResetDisabled: true,
		WorkflowPauseDisabled: true,
		BatchActionsDisabled:  true,
	}
}

// setAPI routes what the UI asks of the engine. The UI server's own routing would open a connection without
// credentials, and rely on the browser to send them.
func setAPI(e *echo.Echo, settings *config.ConfigProviderWithRefresh, conn *grpc.ClientConn) {
	group := e.Group("/api/v1")
	group.GET("/settings", api.GetSettings(settings))
	readOnly := route.DisableWriteMiddleware(settings)
	group.GET(api.WorkflowRawHistoryUrl, api.WorkflowRawHistoryHandler(workflowservice.NewWorkflowServiceClient(conn)), readOnly)
	gateway := api.TemporalAPIHandler(settings, []api.Middleware{headers.WithForwardHeaders([]string{"Caller-Type"})}, conn)
	group.Match([]string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}, "/*", gateway, readOnly)
}

// guard drops the browser's authorization, keeps foreign sites from changing anything, and sets what is common to all
// answers.
func guard(publicPath string, next http.Handler) http.Handler {
	inner := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == publicPath {
			http.Redirect(w, r, publicPath+"/", http.StatusMovedPermanently)
			return
		}
		if !strings.HasPrefix(r.URL.Path, publicPath+"/") {
			http.NotFound(w, r)
			return
		}
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "SAMEORIGIN")
		h.Set("Referrer-Policy", "same-origin")
		if r.Header.Get("Authorization") != "" || r.Header.Get("Authorization-Extras") != "" {
			r = r.Clone(r.Context())
			r.Header.Del("Authorization")
			r.Header.Del("Authorization-Extras")
		}
		next.ServeHTTP(w, r)
	})
	return http.NewCrossOriginProtection().Handler(inner)
}

// cached marks files whose name carries a hash of their content.
func cached(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/immutable/") {
			w.Header().Set("Cache-Control", "private, max-age=31536000, immutable")
		}
		next.ServeHTTP(w, r)
	})
}

// page is the one HTML page of the UI, told where it lives, with a policy that fits it.
type page struct {
	html   []byte
	policy string
}

var (
	inlineScript = regexp.MustCompile(`(?s)<script>(.*?)</script>`)
	metaPolicy   = regexp.MustCompile(`(?i)<meta[^>]*http-equiv\s*=\s*["']content-security-policy["'][^>]*>`)
)

func loadPage(assets fs.FS, publicPath string) (*page, error) {
	html, err := fs.ReadFile(assets, "index.html")
	if err != nil {
		return nil, fmt.Errorf("webui: %w", err)
	}
	for _, change := range [][2]string{
		{`base: ""`, fmt.Sprintf("base: %q", publicPath)},
		{`"/_app/`, `"` + publicPath + `/_app/`},
	} {
		if !bytes.Contains(html, []byte(change[0])) {
			return nil, fmt.Errorf("webui: this version of the Web UI can't be moved to %s: its page lacks %s", publicPath, change[0])
		}
		html = bytes.ReplaceAll(html, []byte(change[0]), []byte(change[1]))
	}
	// Its own policy names a hash that was true before the changes above.
	html = metaPolicy.ReplaceAll(html, nil)
	scripts := "'strict-dynamic'"
	for _, m := range inlineScript.FindAllSubmatch(html, -1) {
		sum := sha256.Sum256(m[1])
		scripts += " 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	return &page{
		html: html,
		policy: "default-src 'self'; script-src " + scripts + "; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; " +
			"font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; frame-src 'self'; object-src 'none'; " +
			"base-uri 'self'; form-action 'self'; frame-ancestors 'self'",
	}, nil
}

func (p *page) serve(c echo.Context) error {
	h := c.Response().Header()
	h.Set("Content-Security-Policy", p.policy)
	h.Set("Cache-Control", "no-cache")
	return c.HTMLBlob(http.StatusOK, p.html)
}

// errorWriter turns the lines of the UI server's logger into log records.
type errorWriter struct{ to *slog.Logger }

func (w errorWriter) Write(line []byte) (int, error) {
	w.to.Error("web ui", "detail", strings.TrimSpace(string(line)))
	return len(line), nil
}
