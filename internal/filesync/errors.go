package filesync

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// ErrInvalid is in the chain of every error about a manifest or a blob stream that is damaged or hostile.
var ErrInvalid = errors.New("invalid file data")

// ErrChanged is in the chain of every error about a source that changed or vanished while it was read.
var ErrChanged = errors.New("changed while it was read")

// PathError names the file or folder that an operation failed on, and what to do about it.
type PathError struct {
	Op   string // read, write, remove, …
	Path string
	Err  error
	Hint string
}

func (e *PathError) Error() string {
	msg := fmt.Sprintf("cannot %s %q: %v", e.Op, e.Path, cause(e.Err))
	if e.Hint != "" {
		msg += "; " + e.Hint
	}
	return msg
}

func (e *PathError) Unwrap() error { return e.Err }

// cause strips the wrapping of the os package, which repeats the call and the path.
func cause(err error) error {
	var pe *fs.PathError
	var le *os.LinkError
	switch {
	case errors.Is(err, ErrChanged):
		return ErrChanged
	case errors.As(err, &pe):
		return pe.Err
	case errors.As(err, &le):
		return le.Err
	}
	return err
}

func readErr(path string, err error) error {
	return &PathError{Op: "read", Path: path, Err: err, Hint: "make it readable, or list it in .skyignore"}
}

func changedErr(path string) error {
	return &PathError{Op: "sync", Path: path, Err: ErrChanged, Hint: "try again when nothing writes to it, or list it in .skyignore"}
}

func writeErr(op, path string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, errQuota):
		hint = "free some space there and sync again; what is already there is kept"
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EROFS):
		hint = "choose a destination that this user may write to"
	}
	return &PathError{Op: op, Path: path, Err: err, Hint: hint}
}

func invalidf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}
