package providers

import (
	"errors"
	"fmt"
	"time"
)

// Kind says what a caller may do about an error.
type Kind string

// Kinds of provider errors.
const (
	NoCapacity     Kind = "no-capacity"     // try the next place outside Scope
	QuotaExceeded  Kind = "quota-exceeded"  // try outside Scope; retrying here is no use
	AuthFailed     Kind = "auth-failed"     // stop using the infra and say so
	RateLimited    Kind = "rate-limited"    // the same again after After
	NotFound       Kind = "not-found"       // nothing is there (any more)
	Conflict       Kind = "conflict"        // the token or name is taken by something else
	UnknownOutcome Kind = "unknown-outcome" // look by tag and token; adopt or delete
	Invalid        Kind = "invalid"         // the request can never succeed here
	Unsupported    Kind = "unsupported"     // the infra lacks the capability
	Internal       Kind = "internal"        // a fault of ours or theirs; retry
)

// Scope says how far an error reaches.
type Scope string

// Scopes, widest first.
const (
	ScopeCloud  Scope = "cloud"
	ScopeRegion Scope = "region"
	ScopeZone   Scope = "zone"
)

// Error is what providers return.
type Error struct {
	Kind  Kind
	Scope Scope
	After time.Duration // with RateLimited
	Msg   string
	Hint  string // what the user can do next
	Err   error
}

func (e *Error) Error() string {
	s := e.Msg
	if e.Err != nil {
		if s != "" {
			s += ": "
		}
		s += e.Err.Error()
	}
	if s == "" {
		s = string(e.Kind)
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an error of a kind.
func Errorf(k Kind, scope Scope, format string, args ...any) *Error {
	return &Error{Kind: k, Scope: scope, Msg: fmt.Sprintf(format, args...)}
}

// KindOf tells the kind of an error; Internal for one that is not a provider's.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Is tells whether err is of the kind.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }
