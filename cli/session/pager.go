package session

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Group is what a command that only holds others does: it shows its help, and refuses words it doesn't know.
func Group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	msg := "sky has no command " + cmd.Name() + " " + args[0]
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		msg += "; did you mean " + strings.Join(near, ", ") + "?"
	}
	return Usagef("%s", msg)
}

// Pager gives a writer for long output: the person's pager on a terminal if want is set, else Out. done must be called
// at the end; it waits until the person has read.
func (s *Session) Pager(want bool) (w io.Writer, done func()) {
	if !want || !s.IO.OutTTY || !s.IO.InTTY {
		return s.IO.Out, func() {}
	}
	name := s.Env("PAGER")
	if name == "" {
		name = "less"
	}
	words := strings.Fields(name)
	path, err := exec.LookPath(words[0])
	if err != nil || words[0] == "cat" {
		return s.IO.Out, func() {}
	}
	cmd := exec.Command(path, words[1:]...)
	cmd.Stdout, cmd.Stderr = s.IO.Out, s.IO.Err
	cmd.Env = append(os.Environ(), "LESS=FRX")
	in, err := cmd.StdinPipe()
	if err != nil || cmd.Start() != nil {
		return s.IO.Out, func() {}
	}
	return untilClosed{in}, func() {
		in.Close()
		_ = cmd.Wait()
	}
}

// untilClosed takes what is written after a person has left the pager as read.
type untilClosed struct{ io.Writer }

func (w untilClosed) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if errors.Is(err, syscall.EPIPE) {
		return len(p), nil
	}
	return n, err
}
