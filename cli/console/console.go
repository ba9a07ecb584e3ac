// Package console is what a command writes to and reads from: the three streams, whether they are terminals, colours,
// questions, and a line of live progress.
//
// Rule: Out carries what was asked for (tables, JSON, log bytes); Err carries how it goes (progress, notices, hints,
// questions). It knows nothing of commands or of the server. Colours and moving lines appear on terminals only, and
// never with NO_COLOR, TERM=dumb or CI.
package console

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// Console is the streams of one command.
type Console struct {
	In       io.Reader
	Out      io.Writer
	Err      io.Writer
	InTTY    bool // questions can be answered by a person
	OutTTY   bool
	ErrTTY   bool
	OutColor bool
	ErrColor bool
	// Moving says that a line may be redrawn in place on Err.
	Moving bool
	// Interrupted ends a question without an answer once it is closed, as Ctrl-C does; nil: nothing does.
	Interrupted <-chan struct{}
	// WidthFunc tells the width of Out in columns; nil or 0 means unlimited.
	WidthFunc func() int

	mu   sync.Mutex
	in   *bufio.Reader
	live *Live
}

// System is the process's own console. lookup reads the environment.
func System(lookup func(string) (string, bool)) *Console {
	c := &Console{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}
	c.InTTY = term.IsTerminal(int(os.Stdin.Fd()))
	c.OutTTY = term.IsTerminal(int(os.Stdout.Fd()))
	c.ErrTTY = term.IsTerminal(int(os.Stderr.Fd()))
	set := func(k string) bool { v, ok := lookup(k); return ok && v != "" }
	t, _ := lookup("TERM")
	plain := set("NO_COLOR") || t == "dumb"
	c.OutColor = c.OutTTY && !plain
	c.ErrColor = c.ErrTTY && !plain
	c.Moving = c.ErrTTY && !plain && !set("CI")
	c.WidthFunc = func() int {
		if !c.OutTTY {
			return 0
		}
		w, _, err := term.GetSize(int(os.Stdout.Fd()))
		if err != nil {
			return 0
		}
		return w
	}
	enableANSI(c)
	return c
}

// errWidth is the width of Err's terminal, 80 when unknown.
func (c *Console) errWidth() int {
	if c.WidthFunc != nil {
		if w := c.WidthFunc(); w > 0 {
			return w
		}
	}
	if f, ok := c.Err.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			return w
		}
	}
	return 80
}

// Width is the width of Out in columns; 0 means unlimited.
func (c *Console) Width() int {
	if c.WidthFunc == nil {
		return 0
	}
	return c.WidthFunc()
}

// Printf writes to Out.
func (c *Console) Printf(format string, args ...any) { fmt.Fprintf(c.Out, format, args...) }

// Notef writes a line to Err.
func (c *Console) Notef(format string, args ...any) { c.note(fmt.Sprintf(format, args...)) }

// Warnf writes a yellow line to Err.
func (c *Console) Warnf(format string, args ...any) {
	c.note(c.ErrStyle(Yellow, fmt.Sprintf(format, args...)))
}

func (c *Console) note(s string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live != nil {
		c.live.erase()
		defer c.live.draw()
	}
	io.WriteString(c.Err, strings.TrimRight(s, "\n")+"\n")
}

// Style is a terminal colour or weight.
type Style string

// Styles.
const (
	Bold   Style = "1"
	Dim    Style = "2"
	Red    Style = "31"
	Green  Style = "32"
	Yellow Style = "33"
	Blue   Style = "34"
	Cyan   Style = "36"
)

// OutStyle colours s for Out, if it takes colours.
func (c *Console) OutStyle(st Style, s string) string { return paint(c.OutColor, st, s) }

// ErrStyle colours s for Err, if it takes colours.
func (c *Console) ErrStyle(st Style, s string) string { return paint(c.ErrColor, st, s) }

func paint(on bool, st Style, s string) string {
	if !on || s == "" {
		return s
	}
	return "\x1b[" + string(st) + "m" + s + "\x1b[0m"
}

// ErrAbort says that a person answered no, or that nobody was there to answer.
type ErrAbort struct{ Hint string }

func (e *ErrAbort) Error() string {
	if e.Hint != "" {
		return "Aborted. " + e.Hint
	}
	return "Aborted."
}

// Confirm asks a yes-no question; Enter means def. A closed input is an abort, never a yes.
func (c *Console) Confirm(question string, def bool) (bool, error) {
	choice := "[Y/n]"
	if !def {
		choice = "[y/N]"
	}
	for {
		answer, err := c.ask(question + " " + choice + ": ")
		if err != nil {
			return false, err
		}
		switch strings.ToLower(answer) {
		case "":
			return def, nil
		case "y", "yes":
			return true, nil
		case "n", "no":
			return false, nil
		}
		fmt.Fprintln(c.Err, "Please answer y or n.")
	}
}

// Require asks a yes-no question (Enter means yes) and returns ErrAbort unless the answer is yes.
func (c *Console) Require(question string) error {
	ok, err := c.Confirm(question, true)
	if err == nil && !ok {
		err = &ErrAbort{}
	}
	return err
}

// RequireWord asks a person to type word.
func (c *Console) RequireWord(question, word string) error {
	answer, err := c.ask(fmt.Sprintf("%s Type %q to confirm: ", question, word))
	if err == nil && answer != word {
		err = &ErrAbort{}
	}
	return err
}

// Ask asks for a line; what is around it is cut off.
func (c *Console) Ask(prompt string) (string, error) { return c.ask(prompt) }

func (c *Console) ask(prompt string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.in == nil {
		c.in = bufio.NewReader(c.In)
	}
	io.WriteString(c.Err, prompt)
	type answer struct {
		line string
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		line, err := c.in.ReadString('\n')
		got <- answer{line, err}
	}()
	var line string
	var err error
	select {
	case a := <-got:
		line, err = a.line, a.err
	case <-c.Interrupted: // the reading goes on, but nobody asks again
		fmt.Fprintln(c.Err)
		return "", &ErrAbort{}
	}
	if err != nil && line == "" {
		fmt.Fprintln(c.Err)
		return "", &ErrAbort{Hint: "Nobody answered; -y says yes beforehand."}
	}
	if !c.InTTY {
		fmt.Fprintln(c.Err)
	}
	return strings.TrimSpace(line), nil
}
