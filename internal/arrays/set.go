package arrays

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Span is a run of elements, both ends included.
type Span struct{ From, To int }

// Set is a set of elements: spans that rise and do not touch. As text and in JSON it reads "0-99,200".
type Set []Span

// Range is the set from..to, empty if to is lower.
func Range(from, to int) Set {
	if to < from {
		return nil
	}
	return Set{{from, to}}
}

// Of is the set of some elements, in any order.
func Of(elements ...int) Set {
	sorted := slices.Clone(elements)
	slices.Sort(sorted)
	var s Set
	for _, e := range sorted {
		if n := len(s); n > 0 && e <= s[n-1].To+1 {
			s[n-1].To = e
		} else {
			s = append(s, Span{e, e})
		}
	}
	return s
}

// Len is the number of elements.
func (s Set) Len() (n int) {
	for _, r := range s {
		n += r.To - r.From + 1
	}
	return n
}

// Has says that an element is in the set.
func (s Set) Has(e int) bool {
	for _, r := range s {
		if e >= r.From && e <= r.To {
			return true
		}
	}
	return false
}

// All calls f with each element in order, until it says false.
func (s Set) All(f func(int) bool) {
	for _, r := range s {
		for e := r.From; e <= r.To; e++ {
			if !f(e) {
				return
			}
		}
	}
}

// Union is the set of the elements in either.
func (s Set) Union(o Set) Set {
	all := slices.Concat(s, o)
	slices.SortFunc(all, func(a, b Span) int { return a.From - b.From })
	var out Set
	for _, r := range all {
		if n := len(out); n > 0 && r.From <= out[n-1].To+1 {
			out[n-1].To = max(out[n-1].To, r.To)
		} else {
			out = append(out, r)
		}
	}
	return out
}

// Take divides the set into its first n elements and the rest.
func (s Set) Take(n int) (first, rest Set) {
	for i, r := range s {
		size := r.To - r.From + 1
		if n >= size {
			first = append(first, r)
			n -= size
			continue
		}
		if n > 0 {
			first = append(first, Span{r.From, r.From + n - 1})
			r.From += n
		}
		rest = append(rest, r)
		rest = append(rest, s[i+1:]...)
		break
	}
	return first, rest
}

// String is the set as text, "" if it is empty.
func (s Set) String() string {
	var b strings.Builder
	for i, r := range s {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(r.From))
		if r.To > r.From {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(r.To))
		}
	}
	return b.String()
}

// Parse reads a set as String writes it; spans may come in any order.
func Parse(text string) (Set, error) {
	var s Set
	if text == "" {
		return s, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		lo, hi, ranged := strings.Cut(strings.TrimSpace(part), "-")
		from, err := strconv.Atoi(lo)
		to := from
		if err == nil && ranged {
			to, err = strconv.Atoi(hi)
		}
		if err != nil || from < 0 || to < from {
			return nil, fmt.Errorf("%q is no element or range; write 17 or 0-99", part)
		}
		s = s.Union(Set{{from, to}})
	}
	return s, nil
}

// MarshalJSON writes the set as text.
func (s Set) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// UnmarshalJSON reads what MarshalJSON wrote.
func (s *Set) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return err
	}
	var err error
	*s, err = Parse(text)
	return err
}
