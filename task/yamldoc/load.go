package yamldoc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// Bounds on a file. They are far above what a person writes and keep a hostile file cheap.
const (
	MaxBytes     = 1 << 20 // of the file
	maxNodes     = 200_000 // after expansion of aliases
	maxAliased   = 20_000  // nodes that exist only because an alias was expanded
	maxDepth     = 100
	maxDocuments = 1000
)

// Load parses data into its documents. Each is the node under the document node; a document that holds nothing is left
// out. Aliases and merge keys are expanded. The error is an ErrorList.
func Load(name string, data []byte) ([]*yaml.Node, error) {
	if err := checkBytes(name, data); err != nil {
		return nil, ErrorList{err}
	}
	if err := checkNesting(name, data); err != nil {
		return nil, ErrorList{err}
	}
	raw, err := decodeAll(name, data)
	if err != nil {
		return nil, ErrorList{err}
	}
	x := &expander{file: name, open: map[*yaml.Node]bool{}}
	var docs []*yaml.Node
	for _, d := range raw {
		n := x.expand(d, 0, "", false)
		if x.fatal {
			break
		}
		if n == nil || IsNull(n) {
			continue
		}
		docs = append(docs, n)
	}
	if err := x.errs.Err(); err != nil {
		return nil, err
	}
	return docs, nil
}

// IsNull tells whether n is absent or a YAML null.
func IsNull(n *yaml.Node) bool {
	return n == nil || n.Kind == 0 || n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

func checkBytes(name string, data []byte) *Error {
	if len(data) > MaxBytes {
		return &Error{File: name, Msg: fmt.Sprintf("the file has %d bytes; at most %d are read (put large data in file_mounts)", len(data), MaxBytes)}
	}
	if i := bytes.IndexByte(data, 0); i >= 0 {
		l, c := position(data, i)
		return &Error{File: name, Line: l, Column: c, Msg: "holds a NUL byte; a YAML file is UTF-8 text"}
	}
	if !utf8.Valid(data) {
		i := 0
		for i < len(data) {
			r, n := utf8.DecodeRune(data[i:])
			if r == utf8.RuneError && n <= 1 {
				break
			}
			i += n
		}
		l, c := position(data, i)
		return &Error{File: name, Line: l, Column: c, Msg: "is not UTF-8 text; save the file as UTF-8"}
	}
	return nil
}

// checkNesting refuses absurd nesting before the YAML parser, which takes quadratic time on it, sees the text. It counts
// runs of opening characters and indentation only, so it never refuses what the depth limit would let through.
func checkNesting(name string, data []byte) *Error {
	line, run := 1, 0
	for _, b := range data {
		switch b {
		case '[', '{':
			run++
			if run > 20*maxDepth {
				return &Error{File: name, Line: line, Msg: fmt.Sprintf("nested more than %d levels deep", maxDepth)}
			}
		case ']', '}':
			if run > 0 {
				run--
			}
		case '\n':
			line++
		}
	}
	line = 1
	for _, l := range bytes.Split(data, []byte("\n")) {
		dashes := 0
		for i := 0; i+1 < len(l) && (l[i] == '-' || l[i] == ' ' || l[i] == '?' || l[i] == ':'); i++ {
			if l[i] != ' ' && l[i+1] == ' ' {
				dashes++
			}
		}
		if dashes > maxDepth {
			return &Error{File: name, Line: line, Msg: fmt.Sprintf("nested more than %d levels deep", maxDepth)}
		}
		line++
	}
	return nil
}

func position(data []byte, offset int) (line, col int) {
	head := data[:offset]
	line = bytes.Count(head, []byte("\n")) + 1
	col = utf8.RuneCount(head[bytes.LastIndexByte(head, '\n')+1:]) + 1
	return line, col
}

func decodeAll(name string, data []byte) (docs []*yaml.Node, e *Error) {
	defer func() {
		if r := recover(); r != nil {
			docs, e = nil, &Error{File: name, Msg: fmt.Sprintf("is not valid YAML: %v", r)}
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var n yaml.Node
		err := dec.Decode(&n)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, syntaxError(name, data, err)
		}
		if len(docs) == maxDocuments {
			return nil, &Error{File: name, Line: n.Line, Msg: fmt.Sprintf("holds more than %d documents", maxDocuments)}
		}
		docs = append(docs, &n)
	}
}

var (
	lineInMessage = regexp.MustCompile(`^line (\d+): `)
	unknownAnchor = regexp.MustCompile(`^unknown anchor '([^']*)' referenced`)
)

// grammarErrors are the messages of the YAML parser proper, which counts lines from 0 (its scanner counts from 1).
var grammarErrors = []string{
	"did not find expected node content", "did not find expected key", "did not find expected '-' indicator",
	"did not find expected ',' or ']'", "did not find expected ',' or '}'", "did not find expected <document start>", "found undefined tag handle",
}

func syntaxError(name string, data []byte, err error) *Error {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	e := &Error{File: name}
	m := lineInMessage.FindStringSubmatch(msg)
	if m != nil {
		e.Line, _ = strconv.Atoi(m[1])
		msg = msg[len(m[0]):]
		for _, g := range grammarErrors {
			if msg == g {
				e.Line++
			}
		}
	}
	e.Msg = "is not valid YAML: " + msg
	switch anchor := unknownAnchor.FindStringSubmatch(msg); {
	case anchor != nil:
		e.Msg = fmt.Sprintf("the alias *%s refers to nothing; quote the text if the * is meant as it is", anchor[1])
		if i := bytes.Index(data, []byte("*"+anchor[1])); i >= 0 {
			e.Line, e.Column = position(data, i)
		}
	case m == nil:
		e.Line = 1 // the parser leaves out the first line
	}
	switch {
	case strings.Contains(msg, "mapping values are not allowed"):
		e.Msg += ` (a value that contains ": " needs quotes, and keys of one object the same indentation)`
	case strings.Contains(msg, "cannot start any token") && indentedWithTab(data, e.Line):
		e.Msg += " (indent with spaces, not tabs)"
	}
	return e
}

func indentedWithTab(data []byte, line int) bool {
	lines := bytes.SplitN(data, []byte("\n"), line+1)
	return line >= 1 && line <= len(lines) && bytes.HasPrefix(bytes.TrimLeft(lines[line-1], " "), []byte("\t"))
}

type expander struct {
	file    string
	open    map[*yaml.Node]bool // anchored nodes that are being copied
	nodes   int
	aliased int
	fatal   bool
	errs    ErrorList
}

func (x *expander) fail(n *yaml.Node, field, format string, args ...any) {
	x.errs = append(x.errs, &Error{File: x.file, Line: n.Line, Column: n.Column, Field: field, Msg: fmt.Sprintf(format, args...)})
}

func (x *expander) stop(n *yaml.Node, field, format string, args ...any) *yaml.Node {
	if !x.fatal {
		x.fail(n, field, format, args...)
	}
	x.fatal = true
	return nil
}

// enter marks an anchored node as being copied until the returned function is called.
func (x *expander) enter(n *yaml.Node) func() {
	if n.Anchor == "" {
		return func() {}
	}
	x.open[n] = true
	return func() { delete(x.open, n) }
}

// expand copies n without aliases and merge keys. inAlias marks copies made on behalf of an alias.
func (x *expander) expand(n *yaml.Node, depth int, field string, inAlias bool) *yaml.Node {
	if x.fatal || n == nil {
		return nil
	}
	if depth > maxDepth {
		return x.stop(n, field, "nested more than %d levels deep", maxDepth)
	}
	if x.nodes++; x.nodes > maxNodes {
		return x.stop(n, field, "holds more than %d values", maxNodes)
	}
	if inAlias {
		if x.aliased++; x.aliased > maxAliased {
			return x.stop(n, field, "aliases (*name) expand to more than %d values; write the values out", maxAliased)
		}
	}
	switch n.Kind {
	case yaml.DocumentNode:
		if len(n.Content) == 0 {
			return nil
		}
		return x.expand(n.Content[0], depth, field, inAlias)
	case yaml.AliasNode:
		if x.open[n.Alias] {
			return x.stop(n, field, "the alias *%s stands inside what it refers to", n.Value)
		}
		return x.expand(n.Alias, depth+1, field, true)
	case yaml.ScalarNode:
		c := *n
		c.Anchor = ""
		return &c
	case yaml.SequenceNode:
		defer x.enter(n)()
		c := *n
		c.Anchor, c.Content = "", make([]*yaml.Node, 0, len(n.Content))
		for i, child := range n.Content {
			if e := x.expand(child, depth+1, index(field, i), inAlias); e != nil {
				c.Content = append(c.Content, e)
			}
		}
		return &c
	case yaml.MappingNode:
		return x.mapping(n, depth, field, inAlias)
	}
	return nil
}

func (x *expander) mapping(n *yaml.Node, depth int, field string, inAlias bool) *yaml.Node {
	defer x.enter(n)()
	c := *n
	c.Anchor, c.Content = "", make([]*yaml.Node, 0, len(n.Content))
	seen := make(map[string]*yaml.Node, len(n.Content)/2)
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		rawKey, rawVal := n.Content[i], n.Content[i+1]
		if rawKey.Kind == yaml.ScalarNode && rawKey.Tag == "!!merge" {
			m := x.expand(rawVal, depth+1, field, inAlias)
			if m == nil {
				return nil
			}
			merged = append(merged, m)
			continue
		}
		key := x.expand(rawKey, depth+1, field, inAlias)
		if key == nil {
			return nil
		}
		if key.Kind != yaml.ScalarNode {
			x.fail(rawKey, field, "a key must be plain text")
			continue
		}
		if first, dup := seen[key.Value]; dup {
			x.fail(rawKey, field, "key %q is given twice (first at line %d); remove one", key.Value, first.Line)
			continue
		}
		seen[key.Value] = key
		val := x.expand(rawVal, depth+1, join(field, key.Value), inAlias)
		if val == nil {
			if x.fatal {
				return nil
			}
			val = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Line: key.Line, Column: key.Column}
		}
		c.Content = append(c.Content, key, val)
	}
	for _, m := range merged {
		x.merge(&c, m, seen, field)
	}
	return &c
}

// merge applies one `<<` value: a mapping or a list of them; keys that are there already win.
func (x *expander) merge(dst, m *yaml.Node, seen map[string]*yaml.Node, field string) {
	switch m.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(m.Content); i += 2 {
			if _, dup := seen[m.Content[i].Value]; dup {
				continue
			}
			seen[m.Content[i].Value] = m.Content[i]
			dst.Content = append(dst.Content, m.Content[i], m.Content[i+1])
		}
	case yaml.SequenceNode:
		for _, e := range m.Content {
			if e.Kind != yaml.MappingNode {
				x.fail(e, field, "a merge key (<<) takes mappings only")
				continue
			}
			x.merge(dst, e, seen, field)
		}
	default:
		x.fail(m, field, "a merge key (<<) takes a mapping or a list of mappings")
	}
}

// maxFieldPath bounds a path in a message, and with it the cost of building paths under hostile keys.
const maxFieldPath = 200

func index(path string, i int) string {
	if len(path) > maxFieldPath {
		return path
	}
	return path + "[" + strconv.Itoa(i) + "]"
}

// join appends a key to a dotted path.
func join(path, key string) string {
	switch {
	case len(path) > maxFieldPath:
		return path
	case len(key) > maxFieldPath:
		key = key[:maxFieldPath]
	}
	if path == "" {
		return key
	}
	return path + "." + key
}
