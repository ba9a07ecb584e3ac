// Package table prints aligned columns of text. It knows nothing of what stands in them, and keeps no state.
//
// Cells may hold colour sequences, which take no room. An empty cell shows "-".
package table

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Table collects rows. The zero value is empty; headers are optional.
type Table struct {
	header []string
	rows   [][]string
	// Style is applied to each header cell; nil leaves it as it is.
	Style func(string) string
	// Indent stands before each line.
	Indent string
}

// New makes a table with headers.
func New(header ...string) *Table { return &Table{header: header} }

// Row adds a row; cells are printed with fmt.Sprint. Missing cells at the end stay empty.
func (t *Table) Row(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		s, ok := c.(string)
		if !ok {
			s = fmt.Sprint(c)
		}
		if strings.ContainsAny(s, "\n\r\t") {
			s = strings.NewReplacer("\n", " ", "\r", " ", "\t", " ").Replace(s)
		}
		if s == "" {
			s = "-"
		}
		row[i] = s
	}
	t.rows = append(t.rows, row)
}

// Len is the number of rows.
func (t *Table) Len() int { return len(t.rows) }

// Print writes the table; columns are two spaces apart, and no line ends in spaces.
func (t *Table) Print(w io.Writer) error {
	widths := []int{}
	measure := func(cells []string) {
		for i, c := range cells {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], Width(c))
		}
	}
	measure(t.header)
	for _, r := range t.rows {
		measure(r)
	}
	var b strings.Builder
	line := func(cells []string, style func(string) string) {
		b.WriteString(t.Indent)
		for i, c := range cells {
			pad := widths[i] - Width(c)
			if style != nil {
				c = style(c)
			}
			b.WriteString(c)
			if i < len(cells)-1 {
				b.WriteString(strings.Repeat(" ", pad+2))
			}
		}
		b.WriteByte('\n')
	}
	if len(t.header) > 0 {
		line(t.header, t.Style)
	}
	for _, r := range t.rows {
		line(r, nil)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Width is the number of columns a cell takes: runes without colour sequences.
func Width(s string) int {
	if !strings.Contains(s, "\x1b") {
		return utf8.RuneCountInString(s)
	}
	n, esc := 0, false
	for _, r := range s {
		switch {
		case esc:
			esc = r != 'm'
		case r == '\x1b':
			esc = true
		default:
			n++
		}
	}
	return n
}

// Ago says how long ago t was: "3 mins ago". A zero time is "-".
func Ago(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := now.Sub(t)
	if d < 5*time.Second {
		return "a few secs ago"
	}
	return approx(d) + " ago"
}

// AgoPtr is Ago of a time that may be missing.
func AgoPtr(now time.Time, t *time.Time) string {
	if t == nil {
		return "-"
	}
	return Ago(now, *t)
}

// approx gives a duration in its largest unit.
func approx(d time.Duration) string {
	unit := func(n int, name string) string {
		if n == 1 {
			return "1 " + name
		}
		return strconv.Itoa(n) + " " + name + "s"
	}
	switch {
	case d < time.Minute:
		return unit(int(d.Seconds()), "sec")
	case d < time.Hour:
		return unit(int(d.Minutes()), "min")
	case d < 24*time.Hour:
		return unit(int(d.Hours()), "hr")
	case d < 7*24*time.Hour:
		return unit(int(d.Hours()/24), "day")
	case d < 60*24*time.Hour:
		return unit(int(d.Hours()/24/7), "week")
	case d < 2*365*24*time.Hour:
		return unit(int(d.Hours()/24/30), "month")
	}
	return unit(int(d.Hours()/24/365), "year")
}

// Span gives a duration in its two largest units: "1m 5s", "2h 10m", "3d 4h". Zero or less is "-".
func Span(d time.Duration) string {
	if d <= 0 {
		return "-"
	}
	s := int(d.Round(time.Second).Seconds())
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", max(s, 1))
	case s < 3600:
		return fmt.Sprintf("%dm %ds", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%dh %dm", s/3600, s%3600/60)
	}
	return fmt.Sprintf("%dd %dh", s/86400, s%86400/3600)
}

// Number prints a quantity without needless decimals: 4, 0.5, 1.25.
func Number(f float64) string {
	if f == 0 {
		return "-"
	}
	s := strconv.FormatFloat(f, 'f', 2, 64)
	return strings.TrimRight(strings.TrimRight(s, "0"), ".")
}

// Dollars prints a price; free is "0.00".
func Dollars(f float64) string {
	if f != 0 && f < 0.01 && f > -0.01 {
		return strconv.FormatFloat(f, 'f', 4, 64)
	}
	return strconv.FormatFloat(f, 'f', 2, 64)
}
