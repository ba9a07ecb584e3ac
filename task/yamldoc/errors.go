package yamldoc

import (
	"fmt"
	"sort"
	"strings"
)

// Error is one mistake in a file.
type Error struct {
	File   string // as the user named it; may be empty
	Line   int    // 1-based; 0 when unknown
	Column int    // 1-based; 0 when unknown
	Field  string // dotted path of the field, empty at the top
	Msg    string // what is wrong and what to do
}

// Error formats as `file:line:col: field: message`, leaving out what is unknown.
func (e *Error) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File)
		b.WriteByte(':')
	}
	if e.Line > 0 {
		fmt.Fprintf(&b, "%d:", e.Line)
		if e.Column > 0 {
			fmt.Fprintf(&b, "%d:", e.Column)
		}
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	if e.Field != "" {
		b.WriteString(e.Field)
		b.WriteString(": ")
	}
	b.WriteString(e.Msg)
	return b.String()
}

// ErrorList is every mistake found in one pass, at least one.
type ErrorList []*Error

// maxShown bounds what a hostile file can print.
const maxShown = 20

// Error prints one mistake per line, in the order of the file.
func (l ErrorList) Error() string {
	var b strings.Builder
	for i, e := range l {
		if i > 0 {
			b.WriteByte('\n')
		}
		if i == maxShown {
			fmt.Fprintf(&b, "and %d more", len(l)-i)
			break
		}
		b.WriteString(e.Error())
	}
	return b.String()
}

// Unwrap lets errors.As find each Error.
func (l ErrorList) Unwrap() []error {
	out := make([]error, len(l))
	for i, e := range l {
		out[i] = e
	}
	return out
}

// Err is nil for an empty list, else the list sorted by position.
func (l ErrorList) Err() error {
	if len(l) == 0 {
		return nil
	}
	sort.SliceStable(l, func(i, j int) bool {
		if l[i].Line != l[j].Line {
			return l[i].Line < l[j].Line
		}
		return l[i].Column < l[j].Column
	})
	return l
}

// Suggest returns the candidate that looks most like word, or "" if none is close. Case and the choice between "-" and
// "_" do not count as differences.
func Suggest(word string, candidates []string) string {
	w := fold(word)
	if w == "" || len(w) > 64 {
		return ""
	}
	limit := 1 + len(w)/5
	best, bestDist := "", limit+1
	for _, c := range candidates {
		f := fold(c)
		if abs(len(f)-len(w)) >= bestDist {
			continue
		}
		if d := distance(w, f); d < bestDist && d < max(len(f), len(w)) {
			best, bestDist = c, d
		}
	}
	if best == "" && len(w) >= 4 {
		for _, c := range candidates {
			f := fold(c)
			if strings.HasPrefix(f, w) || (len(f) >= 4 && strings.HasPrefix(w, f)) {
				return c
			}
		}
	}
	return best
}

// DidYouMean is `; did you mean "x"?` for the closest candidate, or "".
func DidYouMean(word string, candidates []string) string {
	if s := Suggest(word, candidates); s != "" {
		return fmt.Sprintf("; did you mean %q?", s)
	}
	return ""
}

func fold(s string) string { return strings.ReplaceAll(strings.ToLower(s), "-", "_") }

func abs(n int) int {
	if n < 0 {
		return -n
	}
	return n
}

// distance is the optimal string alignment distance: insertions, deletions, replacements and swaps of neighbours.
func distance(a, b string) int {
	prev2 := make([]int, len(b)+1)
	prev := make([]int, len(b)+1)
	cur := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}
