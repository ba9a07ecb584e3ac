package task

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/skyloom/skyloom/task/yamldoc"
)

// Error is one mistake, with its place.
type Error = yamldoc.Error

// ErrorList is all mistakes found, one per line when printed.
type ErrorList = yamldoc.ErrorList

// Suggest returns the candidate closest to word, or "".
func Suggest(word string, candidates []string) string { return yamldoc.Suggest(word, candidates) }

// DidYouMean is `; did you mean "x"?` for the closest candidate, or "".
func DidYouMean(word string, candidates []string) string {
	return yamldoc.DidYouMean(word, candidates)
}

// source remembers where fields stand, so that later checks can point there.
type source struct {
	file string
	root position
	pos  map[string]position
}

type position struct{ line, col int }

func (s *source) error(field, format string, args ...any) *Error {
	e := &Error{Field: field, Msg: fmt.Sprintf(format, args...)}
	if s == nil {
		return e
	}
	e.File = s.file
	for at := field; at != ""; {
		if p, ok := s.pos[at]; ok {
			e.Line, e.Column = p.line, p.col
			break
		}
		i := strings.LastIndexAny(at, ".[")
		if i < 0 {
			e.Line, e.Column = s.root.line, s.root.col
			break
		}
		at = at[:i]
	}
	return e
}

// parser collects what goes wrong while one document is read.
type parser struct {
	src         *source
	errs        ErrorList
	warnings    []string
	substituted map[*yaml.Node]bool // text that came out of a variable counts as a string too
	hooks       []Hook              // from the deprecated autostop.hook
	required    map[string]val      // envs without a value
}

// val is a node with its path.
type val struct {
	p    *parser
	n    *yaml.Node
	path string
}

const maxPath = 200

func joinPath(path, key string) string {
	if len(key) > maxPath {
		key = key[:maxPath]
	}
	switch {
	case path == "":
		return key
	case len(path) > maxPath:
		return path
	}
	return path + "." + key
}

func (v val) child(key string, n *yaml.Node) val {
	c := val{v.p, n, joinPath(v.path, key)}
	v.p.note(c)
	return c
}

func (p *parser) note(c val) {
	if len(p.src.pos) < 5000 && c.path != "" {
		p.src.pos[c.path] = position{c.n.Line, c.n.Column}
	}
}

func (v val) fail(format string, args ...any) {
	v.p.errs = append(v.p.errs, &Error{File: v.p.src.file, Line: v.n.Line, Column: v.n.Column, Field: v.path, Msg: fmt.Sprintf(format, args...)})
}

func (v val) failErr(err error) { v.fail("%s", err.Error()) }

func (v val) isNull() bool { return yamldoc.IsNull(v.n) }

// what names the kind of a value for a message.
func (v val) what() string {
	switch v.n.Kind {
	case yaml.MappingNode:
		return "an object"
	case yaml.SequenceNode:
		return "a list"
	}
	s := v.n.Value
	if len(s) > 40 {
		s = s[:37] + "..."
	}
	switch v.n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!bool", "!!int", "!!float":
		return s
	}
	return strconv.Quote(s)
}

func (v val) isScalar() bool { return v.n.Kind == yaml.ScalarNode && !v.isNull() }

func (v val) isString() bool {
	if !v.isScalar() {
		return false
	}
	switch v.n.ShortTag() {
	case "!!bool", "!!int", "!!float":
		return v.p.substituted[v.n]
	case "!!binary":
		return false
	}
	return true
}

func (v val) isNumber() bool {
	t := v.n.ShortTag()
	return v.isScalar() && (t == "!!int" || t == "!!float")
}

// str reads text.
func (v val) str() (string, bool) {
	if !v.isString() {
		v.fail("must be text, not %s%s", v.what(), v.quoteHint())
		return "", false
	}
	return v.n.Value, true
}

func (v val) quoteHint() string {
	if v.isScalar() {
		return "; put it in quotes"
	}
	return ""
}

// text reads any single value as it is written.
func (v val) text() (string, bool) {
	if !v.isScalar() {
		v.fail("must be a single value, not %s", v.what())
		return "", false
	}
	return v.n.Value, true
}

// boolean reads true or false, also as YAML 1.1 spells them.
func (v val) boolean() (bool, bool) {
	if !v.isBoolean() {
		v.fail("must be true or false, not %s", v.what())
		return false, false
	}
	switch strings.ToLower(v.n.Value) {
	case "true", "yes", "on":
		return true, true
	}
	return false, true
}

func (v val) isBoolean() bool {
	if !v.isScalar() || v.n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0 && !v.p.substituted[v.n] {
		return false
	}
	switch strings.ToLower(v.n.Value) {
	case "true", "yes", "on", "false", "no", "off":
		return true
	}
	return false
}

// integer reads a whole number between lo and hi.
func (v val) integer(lo, hi int) (int, bool) {
	var n int
	var f float64
	switch {
	case v.isScalar() && v.n.ShortTag() == "!!int" && v.n.Decode(&n) == nil:
	case v.isScalar() && v.n.ShortTag() == "!!float" && v.n.Decode(&f) == nil && f == math.Trunc(f) && math.Abs(f) < 1e15:
		n = int(f)
	default:
		v.fail("must be a whole number, not %s", v.what())
		return 0, false
	}
	if n < lo || n > hi {
		v.fail("must be %s, not %s", rangeText(lo, hi), v.what())
		return 0, false
	}
	return n, true
}

const maxInt = math.MaxInt32

func rangeText(lo, hi int) string {
	switch {
	case hi == maxInt:
		return fmt.Sprintf("at least %d", lo)
	case lo == -maxInt:
		return fmt.Sprintf("at most %d", hi)
	}
	return fmt.Sprintf("from %d to %d", lo, hi)
}

// number reads a finite number that is at least lo, or more than lo when open.
func (v val) number(lo float64, open bool) (float64, bool) {
	var f float64
	if !v.isNumber() || v.n.Decode(&f) != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		v.fail("must be a number, not %s", v.what())
		return 0, false
	}
	switch {
	case open && f <= lo:
		v.fail("must be more than %s, not %s", num(lo), v.what())
		return 0, false
	case f < lo:
		v.fail("must be at least %s, not %s", num(lo), v.what())
		return 0, false
	case f > 1e12:
		v.fail("is too large: %s", v.what())
		return 0, false
	}
	return f, true
}

// oneOf reads one of words without regard to case and returns it as listed.
func (v val) oneOf(words ...string) (string, bool) {
	if v.isScalar() {
		for _, w := range words {
			if strings.EqualFold(w, v.n.Value) {
				return w, true
			}
		}
	}
	hint := ""
	if v.isScalar() {
		hint = DidYouMean(v.n.Value, words)
	}
	v.fail("must be one of %s, not %s%s", strings.Join(words, ", "), v.what(), hint)
	return "", false
}

// each visits the entries of a mapping in the order of the file.
func (v val) each(f func(key string, keyVal, value val)) bool {
	if v.n.Kind != yaml.MappingNode {
		v.fail("must be an object (key: value), not %s", v.what())
		return false
	}
	for i := 0; i+1 < len(v.n.Content); i += 2 {
		k := v.n.Content[i]
		f(k.Value, val{v.p, k, v.path}, v.child(k.Value, v.n.Content[i+1]))
	}
	return true
}

// items visits the entries of a list.
func (v val) items(f func(i int, item val)) bool {
	if v.n.Kind != yaml.SequenceNode {
		v.fail("must be a list, not %s", v.what())
		return false
	}
	for i, n := range v.n.Content {
		c := val{v.p, n, fmt.Sprintf("%s[%d]", v.path, i)}
		v.p.note(c)
		f(i, c)
	}
	return true
}

// stringMap reads a mapping of text to single values as written.
func (v val) stringMap() map[string]string {
	out := map[string]string{}
	v.each(func(k string, kv, c val) {
		if c.isNull() {
			out[k] = ""
			return
		}
		if s, ok := c.text(); ok {
			out[k] = s
		}
	})
	if len(out) == 0 {
		return nil
	}
	return out
}

// plain reads anything as plain values, see yamldoc.Plain, and notes where they stand.
func (v val) plain() any {
	v.noteAll()
	return yamldoc.Plain(v.n)
}

func (v val) noteAll() {
	switch v.n.Kind {
	case yaml.MappingNode:
		v.each(func(_ string, _, c val) { c.noteAll() })
	case yaml.SequenceNode:
		v.items(func(_ int, c val) { c.noteAll() })
	}
}

// plainMap reads an object as plain values.
func (v val) plainMap() map[string]any {
	if v.n.Kind != yaml.MappingNode {
		v.fail("must be an object (key: value), not %s", v.what())
		return nil
	}
	m := v.plain().(map[string]any)
	if len(m) == 0 {
		return nil
	}
	return m
}
