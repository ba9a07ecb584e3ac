package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"

	"github.com/danielgtaylor/huma/v2"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/artifact"
	"github.com/skyloom/skyloom/internal/store"
)

// problemMedia is the media type of RFC 9457 documents.
const problemMedia = "application/problem+json"

// Problem is the body of every answer that is not a success: an RFC 9457 document whose type is one of the api.Err kinds.
type Problem struct {
	api.Problem
	header http.Header
}

func (p *Problem) Error() string { return p.Detail }

// GetStatus gives the HTTP status code.
func (p *Problem) GetStatus() int { return p.Status }

// GetHeaders gives headers that go with the answer, such as Retry-After.
func (p *Problem) GetHeaders() http.Header { return p.header }

// ContentType makes the answer a problem document.
func (p *Problem) ContentType(ct string) string {
	if ct == "application/json" {
		return problemMedia
	}
	return ct
}

// statusOf maps the kinds of errors to HTTP status codes; an unknown kind is an internal error.
var statusOf = map[string]int{
	api.ErrInvalid:              http.StatusBadRequest,
	api.ErrResourcesMismatch:    http.StatusBadRequest,
	api.ErrNotSupported:         http.StatusBadRequest,
	api.ErrPrechecks:            http.StatusBadRequest,
	api.ErrAuth:                 http.StatusUnauthorized,
	api.ErrNotFound:             http.StatusNotFound,
	api.ErrClusterDoesNotExist:  http.StatusNotFound,
	api.ErrJobNotFound:          http.StatusNotFound,
	api.ErrConflict:             http.StatusConflict,
	api.ErrPlanChanged:          http.StatusConflict,
	api.ErrClusterNotUp:         http.StatusConflict,
	api.ErrCancelled:            http.StatusConflict,
	api.ErrSetup:                http.StatusConflict,
	api.ErrResourcesUnavailable: http.StatusServiceUnavailable,
	api.ErrUnavailable:          http.StatusServiceUnavailable,
	api.ErrStorage:              http.StatusInsufficientStorage,
	api.ErrInternal:             http.StatusInternalServerError,
}

// kindOf is the kind that a bare HTTP status stands for.
func kindOf(status int) string {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return api.ErrAuth
	case http.StatusNotFound:
		return api.ErrNotFound
	case http.StatusConflict:
		return api.ErrConflict
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		return api.ErrUnavailable
	case http.StatusInsufficientStorage:
		return api.ErrStorage
	}
	if status >= 500 {
		return api.ErrInternal
	}
	return api.ErrInvalid
}

// problem makes a problem document of a status; its kind follows from the status.
func problem(status int, detail, hint string) *Problem {
	return &Problem{Problem: api.Problem{Type: kindOf(status), Title: http.StatusText(status), Status: status, Detail: detail, Hint: hint}}
}

// failure makes a problem document of a kind; its status follows from the kind.
func failure(kind, hint, format string, args ...any) *Problem {
	status, ok := statusOf[kind]
	if !ok {
		status = http.StatusInternalServerError
	}
	p := problem(status, fmt.Sprintf(format, args...), hint)
	p.Type = kind
	return p
}

// toProblem turns any error into the document that tells it. What is not an *api.Error or a *Problem is internal: its
// text goes to the log, not to the client.
func (s *Server) toProblem(ctx context.Context, err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	var e *api.Error
	if errors.As(err, &e) {
		p = failure(e.Kind, e.Hint, "%s", e.Message)
		p.Details = e.Details
		return p
	}
	var amb *store.AmbiguousError
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &amb):
		p = failure(api.ErrInvalid, "Give more characters of the id.", "the id %q is ambiguous: %d requests begin so", amb.Prefix, len(amb.IDs))
		p.Details = amb.IDs
		if len(p.Details) > 10 {
			p.Details = p.Details[:10]
		}
		return p
	case errors.Is(err, store.ErrNotFound):
		return failure(api.ErrNotFound, "", "there is no such thing here")
	case errors.Is(err, artifact.ErrFull), errors.Is(err, syscall.ENOSPC):
		return failure(api.ErrStorage, "Free some space on the server's disk, then try again.", "the server's disk is full")
	case errors.As(err, &big):
		return tooLarge(big.Limit)
	case errors.Is(err, context.Canceled):
		return failure(api.ErrUnavailable, "Ask again.", "the call was cut short")
	case errors.Is(err, context.DeadlineExceeded):
		return failure(api.ErrUnavailable, "Ask again in a moment.", "the server did not finish the call in time")
	}
	s.log.ErrorContext(ctx, "internal error", "err", err)
	return failure(api.ErrInternal, "The server's log says more: sky api logs --server-logs", "internal error")
}

// writeProblem writes a problem document on a plain response writer.
func writeProblem(w http.ResponseWriter, p *Problem) {
	for k, vs := range p.header {
		w.Header()[k] = vs
	}
	if p.Status == http.StatusServiceUnavailable && p.Type == api.ErrUnavailable && w.Header().Get("Retry-After") == "" {
		w.Header().Set("Retry-After", "1")
	}
	b, _ := json.Marshal(p) // plain strings and ints: it can't fail
	w.Header().Set("Content-Type", problemMedia)
	w.Header().Del("Content-Length")
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(b, '\n'))
}

func (s *Server) writeError(w http.ResponseWriter, r *http.Request, err error) {
	writeProblem(w, s.toProblem(r.Context(), err))
}

// init makes huma answer with our problem documents and take field names exactly as the API spells them.
func init() {
	huma.ValidateStrictCasing = true
	huma.NewError = newHumaError
}

// newHumaError turns what huma found wrong with a call into one readable line per finding.
func newHumaError(status int, msg string, errs ...error) huma.StatusError {
	var lines []string
	for _, err := range errs {
		if err == nil {
			continue
		}
		var d *huma.ErrorDetail
		if errors.As(err, &d) {
			lines = append(lines, tellDetail(d))
			continue
		}
		lines = append(lines, err.Error())
	}
	slices.Sort(lines)
	lines = slices.Compact(lines)
	p := problem(status, msg, "")
	switch {
	case len(lines) == 0:
	case len(lines) == 1:
		p.Detail = lines[0]
	default:
		const most = 20
		if n := len(lines); n > most {
			lines = append(lines[:most:most], fmt.Sprintf("and %d more", n-most))
		}
		p.Detail, p.Details = fmt.Sprintf("%d things are wrong with the call", len(lines)), lines
	}
	return p
}

// tellDetail words one finding. The value itself is never repeated: it may be a secret.
func tellDetail(d *huma.ErrorDetail) string {
	where, field, _ := strings.Cut(d.Location, ".")
	if len(field) > 200 {
		field = field[:200] + "…"
	}
	switch {
	case d.Message == "unexpected property":
		return fmt.Sprintf("unknown field %q", field)
	case d.Message == "unknown query parameter":
		return fmt.Sprintf("unknown parameter %q", field)
	case field == "":
		return fmt.Sprintf("the %s is wrong: %s", where, d.Message)
	case where == "body":
		return fmt.Sprintf("field %q: %s", field, d.Message)
	default:
		return fmt.Sprintf("%s parameter %q: %s", where, field, d.Message)
	}
}
