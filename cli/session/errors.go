package session

import "fmt"

// UsageError is a wrong command line: exit code 2.
type UsageError struct{ Msg string }

func (e *UsageError) Error() string { return e.Msg }

// Usagef makes a UsageError.
func Usagef(format string, args ...any) error { return &UsageError{fmt.Sprintf(format, args...)} }

// ExitError ends the program with a code and without another word.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return fmt.Sprintf("exit code %d", e.Code) }

// Exit is nil for code 0, else an ExitError.
func Exit(code int) error {
	if code == 0 {
		return nil
	}
	return &ExitError{code}
}
