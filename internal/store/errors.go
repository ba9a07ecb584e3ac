package store

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Errors that callers tell apart.
var (
	ErrNotFound = errors.New("not found")
	// ErrConflict: the request id was used for another request.
	ErrConflict = errors.New("conflict")
	// ErrFenced: the lease has moved on; whoever holds it now does the work.
	ErrFenced = errors.New("the lease is held by someone else")
)

// AmbiguousError is the answer to a prefix that several requests share.
type AmbiguousError struct {
	Prefix string
	IDs    []string // up to 10
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("request id %q is ambiguous: it may mean %s; give more of it", e.Prefix, strings.Join(e.IDs, ", "))
}

// SchemaError says that the database is not one that this version can use.
type SchemaError struct {
	Path        string
	Found, Want int
	Reason      string
}

func (e *SchemaError) Error() string {
	return fmt.Sprintf("the database %s can't be used: %s (its schema is %d, this version knows up to %d)", e.Path, e.Reason, e.Found, e.Want)
}

// CorruptError says that the database file is damaged.
type CorruptError struct {
	Path string
	Err  error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("the database %s is damaged: %v; stop the server, move the file and its -wal and -shm files away, and put a backup in their place (or start with none: running clusters are read back from their workflows, the history is lost)", e.Path, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }

// FullError says that the disk is full. It matches syscall.ENOSPC.
type FullError struct {
	Path string
	Err  error
}

func (e *FullError) Error() string {
	return fmt.Sprintf("cannot write to the database %s: the disk is full; free some space, nothing that was acknowledged is lost", e.Path)
}

func (e *FullError) Unwrap() []error { return []error{e.Err, syscall.ENOSPC} }

// wrap gives the driver's errors their meaning.
func (s *Store) wrap(err error) error { return wrapErr(s.path, err) }

func wrapErr(path string, err error) error {
	var se *sqlite.Error
	if !errors.As(err, &se) {
		return err
	}
	switch se.Code() & 0xff {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return &CorruptError{Path: path, Err: err}
	case sqlite3.SQLITE_FULL:
		return &FullError{Path: path, Err: err}
	case sqlite3.SQLITE_IOERR:
		if strings.Contains(strings.ToLower(err.Error()), "disk is full") {
			return &FullError{Path: path, Err: err}
		}
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
		return fmt.Errorf("cannot open the database %s for writing: %w; check that its folder belongs to this user", path, err)
	}
	return err
}
