package api

import (
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
)

// Problem is the body of every error answer: an RFC 9457 problem document (application/problem+json). Type is one of
// the Err* kinds.
type Problem struct {
	Type    string          `json:"type"`
	Title   string          `json:"title,omitempty"`
	Status  int             `json:"status,omitempty"`
	Detail  string          `json:"detail,omitempty"`
	Hint    string          `json:"hint,omitempty"`
	Details []string        `json:"details,omitempty"`
	Errors  []ProblemDetail `json:"errors,omitempty" doc:"which parts of the call are wrong"`
}

// ProblemDetail points at one wrong part of a call.
type ProblemDetail struct {
	Message  string `json:"message"`
	Location string `json:"location,omitempty"`
}

// AsError turns the document into the error a person sees.
func (p *Problem) AsError() *Error {
	e := &Error{Kind: kindOf(p.Type, p.Status), Message: p.Detail, Hint: p.Hint, Details: p.Details}
	if e.Message == "" {
		e.Message = p.Title
	}
	for _, d := range p.Errors {
		line := d.Message
		if d.Location != "" {
			line = d.Location + ": " + line
		}
		e.Details = append(e.Details, line)
	}
	if e.Message == "" {
		e.Message = fmt.Sprintf("the server answered %d %s", p.Status, http.StatusText(p.Status))
	}
	return e
}

// kindOf takes the last word of a problem's type, or judges by the status when there is none.
func kindOf(typ string, status int) string {
	if typ != "" && typ != "about:blank" {
		return typ[strings.LastIndexAny(typ, "/:#")+1:]
	}
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return ErrAuth
	case status == http.StatusNotFound:
		return ErrNotFound
	case status == http.StatusConflict:
		return ErrConflict
	case status == http.StatusNotImplemented:
		return ErrNotSupported
	case status == http.StatusInsufficientStorage:
		return ErrStorage
	case retryableStatus(status):
		return ErrUnavailable
	case status >= 500:
		return ErrInternal
	}
	return ErrInvalid
}

// readProblem reads an error answer, whatever shape it has.
func readProblem(resp *http.Response) *Error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
	p := Problem{}
	mt, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if strings.HasSuffix(mt, "json") && json.Unmarshal(b, &p) == nil {
		p.Status = resp.StatusCode
		e := p.AsError()
		if e.Kind == ErrAuth && e.Hint == "" {
			e.Hint = authHint
		}
		return e
	}
	p = Problem{Status: resp.StatusCode}
	e := p.AsError()
	switch {
	case e.Kind == ErrAuth:
		e.Message = "the server refused the login: " + e.Message
		e.Hint = authHint
	case resp.StatusCode < 400:
		e.Message += " (a redirect; it is not followed)"
		e.Hint = "Give the final address: sky api login -e ADDRESS"
	default:
		if line := firstLine(string(b)); line != "" && strings.HasPrefix(mt, "text/plain") {
			e.Message += ": " + line
		}
		e.Hint = "Is this address a Skyloom server? See: sky api info"
	}
	return e
}

const authHint = "A local server's token stands in $SKY_HOME/token; for a remote one: sky api login -e ADDRESS --token TOKEN"

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return s
}
