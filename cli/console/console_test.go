package console

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func testConsole(in string) (*Console, *strings.Builder) {
	var b strings.Builder
	return &Console{In: strings.NewReader(in), Out: &b, Err: &b, WidthFunc: func() int { return 60 }}, &b
}

func TestConfirm(t *testing.T) {
	for in, want := range map[string]bool{"\n": true, "y\n": true, "YES\n": true, "n\n": false, "what\nno\n": false} {
		c, _ := testConsole(in)
		if got, err := c.Confirm("Go?", true); err != nil || got != want {
			t.Errorf("%q: %v %v", in, got, err)
		}
	}
	c, out := testConsole("")
	_, err := c.Confirm("Go?", true)
	var abort *ErrAbort
	if !errors.As(err, &abort) || !strings.Contains(err.Error(), "-y") {
		t.Errorf("nobody there: %v", err)
	}
	if !strings.Contains(out.String(), "Go? [Y/n]: ") {
		t.Errorf("%q", out.String())
	}
	c, _ = testConsole("n\n")
	if err := c.Require("Go?"); !errors.As(err, &abort) || err.Error() != "Aborted." {
		t.Error(err)
	}
	c, _ = testConsole("y\ny\n") // both answers come from one buffer
	if c.Require("a") != nil || c.Require("b") != nil {
		t.Error("the second answer was lost")
	}
	c, _ = testConsole("delete\n")
	if err := c.RequireWord("Sure?", "delete"); err != nil {
		t.Error(err)
	}
	c, _ = testConsole("yes\n")
	if err := c.RequireWord("Sure?", "delete"); !errors.As(err, &abort) {
		t.Error(err)
	}
}

func TestLivePlain(t *testing.T) {
	c, out := testConsole("")
	now := time.Unix(0, 0)
	l := c.StartLive(func() time.Time { return now })
	l.Step("one")
	c.Notef("note")
	l.Update("1 of 2", false)
	l.Update("kept", true)
	l.Step("two")
	l.Done("")
	l.Step("three")
	l.Done("done three")
	l.Close()
	l.Close()
	if want := "one\nnote\nkept\ntwo\nthree\ndone three\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestLiveMoving(t *testing.T) {
	c, out := testConsole("")
	c.Moving = true
	now := time.Unix(0, 0)
	l := c.StartLive(func() time.Time { return now })
	l.Step("Bringing up " + strings.Repeat("x", 100))
	now = now.Add(1500 * time.Millisecond)
	c.Notef("a note")
	l.Step("second")
	now = now.Add(2 * time.Minute)
	l.Fail()
	l.Close()
	s := out.String()
	for _, want := range []string{"✓ Bringing up ", " (1.5s)\n", "\r\x1b[Ka note\n", "✗ second (2m 00s)\n"} {
		if !strings.Contains(s, want) {
			t.Errorf("%q lacks %q", s, want)
		}
	}
	for _, part := range strings.Split(s, "\r\x1b[K") {
		if line, _, done := strings.Cut(part, "\n"); !done && len([]rune(line)) > 60 {
			t.Errorf("a moving line of %d columns: %q", len([]rune(line)), line)
		}
	}
}

func TestStyles(t *testing.T) {
	c, _ := testConsole("")
	if c.OutStyle(Red, "x") != "x" {
		t.Error("colour without a terminal")
	}
	c.OutColor = true
	if c.OutStyle(Red, "x") != "\x1b[31mx\x1b[0m" || c.ErrStyle(Red, "x") != "x" {
		t.Error("styles go by stream")
	}
}

func TestSystem(t *testing.T) {
	c := System(func(k string) (string, bool) { return "1", k == "NO_COLOR" })
	if c.OutColor || c.ErrColor || c.Moving {
		t.Error("NO_COLOR is not heard")
	}
}
