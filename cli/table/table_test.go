package table

import (
	"strings"
	"testing"
	"time"
)

func TestPrint(t *testing.T) {
	tb := New("NAME", "N", "STATUS")
	tb.Row("a", 1, "UP")
	tb.Row("a-long-name", "", "\x1b[32mUP\x1b[0m")
	tb.Row("übung", 10, "two\nlines")
	tb.Row("short")
	var b strings.Builder
	if err := tb.Print(&b); err != nil {
		t.Fatal(err)
	}
	want := `NAME         N   STATUS
a            1   UP
a-long-name  -   ` + "\x1b[32mUP\x1b[0m" + `
übung        10  two lines
short
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestIndentAndStyle(t *testing.T) {
	tb := New("A", "B")
	tb.Indent, tb.Style = "  ", func(s string) string { return "<" + s + ">" }
	tb.Row("x", "y")
	var b strings.Builder
	_ = tb.Print(&b)
	if b.String() != "  <A>  <B>\n  x  y\n" {
		t.Errorf("%q", b.String())
	}
}

func TestAgo(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		-time.Second: "a few secs ago", 2 * time.Second: "a few secs ago", 7 * time.Second: "7 secs ago", time.Minute: "1 min ago",
		3*time.Minute + 50*time.Second: "3 mins ago", time.Hour: "1 hr ago", 5 * time.Hour: "5 hrs ago", 24 * time.Hour: "1 day ago",
		6 * 24 * time.Hour: "6 days ago", 15 * 24 * time.Hour: "2 weeks ago", 100 * 24 * time.Hour: "3 months ago", 800 * 24 * time.Hour: "2 years ago",
	} {
		if got := Ago(now, now.Add(-d)); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
	if Ago(now, time.Time{}) != "-" || AgoPtr(now, nil) != "-" {
		t.Error("a missing time is -")
	}
}

func TestNumbers(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "-", 300 * time.Millisecond: "1s", 59 * time.Second: "59s", 65 * time.Second: "1m 5s", 7500 * time.Second: "2h 5m", 50 * time.Hour: "2d 2h"} {
		if got := Span(d); got != want {
			t.Errorf("Span(%s) = %q, want %q", d, got, want)
		}
	}
	for f, want := range map[float64]string{0: "-", 4: "4", 0.5: "0.5", 1.25: "1.25", 100: "100", 3.999: "4"} {
		if got := Number(f); got != want {
			t.Errorf("Number(%v) = %q, want %q", f, got, want)
		}
	}
	for f, want := range map[float64]string{0: "0.00", 3.06: "3.06", 0.0042: "0.0042", 1234.5: "1234.50"} {
		if got := Dollars(f); got != want {
			t.Errorf("Dollars(%v) = %q, want %q", f, got, want)
		}
	}
}
