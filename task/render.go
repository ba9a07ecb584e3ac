package task

import (
	"bytes"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"unicode"

	"gopkg.in/yaml.v3"
)

// The values that a table's write functions return: text, numbers, booleans, lists, maps (their keys are sorted), and
// these three.
type (
	omap  []entry // a mapping in this order
	entry struct {
		key string
		val any
	}
	null struct{} // a null that is written
)

func (m omap) orNil() any {
	if len(m) == 0 {
		return nil
	}
	return m
}

// writeObject is the mapping for t by its table; nil when t is nil or nothing is set.
func writeObject[T any](o *object[T], t *T) any {
	if t == nil {
		return nil
	}
	var out omap
	for _, f := range o.fields {
		if f.write == nil {
			continue
		}
		if x := f.write(t); x != nil {
			out = append(out, entry{f.name, x})
		}
	}
	if o.rest != nil {
		rest := o.rest(t)
		for _, k := range sortedKeys(rest) {
			x := rest[k]
			if x == nil {
				x = null{}
			}
			out = append(out, entry{k, x})
		}
	}
	return out.orNil()
}

func writeList[T any](o *object[T], list []T) any {
	if len(list) == 0 {
		return nil
	}
	var out []any
	for i := range list {
		x := writeObject(o, &list[i])
		if x == nil {
			x = omap{}
		}
		out = append(out, x)
	}
	return out
}

func plainMap(m map[string]any) any {
	if len(m) == 0 {
		return nil
	}
	return m
}

// toNode builds the node for a value.
func toNode(x any) *yaml.Node {
	switch x := x.(type) {
	case nil, null:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}
	case string:
		return textNode(x)
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(x)}
	case int:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.Itoa(x)}
	case float64:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: num(x)}
	case omap:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for _, e := range x {
			n.Content = append(n.Content, textNode(e.key), toNode(e.val))
		}
		if len(x) == 0 {
			n.Style = yaml.FlowStyle
		}
		return n
	case map[string]string:
		var m omap
		for _, k := range sortedKeys(x) {
			m = append(m, entry{k, x[k]})
		}
		return toNode(m)
	case map[string]any:
		var m omap
		for _, k := range sortedKeys(x) {
			m = append(m, entry{k, x[k]})
		}
		return toNode(m)
	case []string:
		return listNode(x)
	case []int:
		return listNode(x)
	case []any:
		return listNode(x)
	}
	panic(fmt.Sprintf("task: %T can't be rendered", x))
}

func listNode[V any](list []V) *yaml.Node {
	n := &yaml.Node{Kind: yaml.SequenceNode}
	for _, e := range list {
		n.Content = append(n.Content, toNode(e))
	}
	if len(list) == 0 {
		n.Style = yaml.FlowStyle
	}
	return n
}

// textNode picks a style that every YAML reader takes for the same text.
func textNode(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	switch {
	case s == "":
		n.Style = yaml.DoubleQuotedStyle
	case strings.Contains(s, "\n") && plainLines(s):
		n.Style = yaml.LiteralStyle
	case strings.ContainsFunc(s, awkward) || strings.TrimSpace(s) != s || oldBool(s) || strings.Contains(s, "\n") || strings.HasPrefix(s, "<<"):
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

// oldBool tells whether a reader of YAML 1.1 takes the word for a boolean, a number or the like.
func oldBool(s string) bool {
	switch strings.ToLower(s) {
	case "yes", "no", "on", "off", "y", "n", "=", "null", "~":
		return true
	}
	return s[0] >= '0' && s[0] <= '9' && strings.ContainsAny(s, ":_.e-")
}

func awkward(r rune) bool {
	return r != '\n' && (!unicode.IsPrint(r) || r == '\ufeff' || r == '\u0085' || r == '\u2028' || r == '\u2029')
}

// plainLines tells whether s keeps all its bytes in a literal block.
func plainLines(s string) bool {
	if strings.ContainsFunc(s, awkward) || strings.HasPrefix(s, "\n") || strings.HasPrefix(s, " ") || strings.TrimSpace(s) == "" {
		return false
	}
	for _, l := range strings.Split(s, "\n") {
		if strings.TrimRight(l, " ") != l {
			return false
		}
	}
	return true
}

func encode(docs ...*yaml.Node) []byte {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	for _, d := range docs {
		if err := enc.Encode(d); err != nil {
			panic("task: a rendered task can't be encoded: " + err.Error())
		}
	}
	enc.Close()
	return b.Bytes()
}

// SecretMode says what Render does with the values of secrets.
type SecretMode int

// The modes.
const (
	SecretsRedacted   SecretMode = iota // values become "<redacted>"; for people
	SecretsReferenced                   // values become null, a reference by name; for storage
	SecretsInline                       // values are written; for a file that stays with its owner
)

// Redacted stands for the value of a secret.
const Redacted = "<redacted>"

// Render is the canonical YAML of the task: fields in the order of the reference, defaults left out. Parsing it gives an
// equal task, secrets aside.
func (t *Task) Render(mode SecretMode) []byte { return encode(t.node(mode)) }

func (t *Task) node(mode SecretMode) *yaml.Node {
	tables()
	c := *t
	if mode != SecretsInline && len(t.Secrets) > 0 {
		c.Secrets = make(map[string]Secret, len(t.Secrets))
		for k, s := range t.Secrets {
			switch {
			case !s.Inline:
			case mode == SecretsRedacted:
				s.Value = Redacted
			default:
				s = Secret{Ref: s.Ref}
			}
			c.Secrets[k] = s
		}
	}
	x := writeObject(taskObject, &c)
	if x == nil {
		x = omap{}
	}
	n := toNode(x)
	if t.hasVariables(n) {
		mark := toNode(omap{{metadataKey, omap{{substitutedKey, true}}}})
		n.Content, n.Style = append(n.Content, mark.Content...), 0
	}
	return n
}

// A rendered task says `_metadata: {substituted: true}` when its variables were replaced and what came out looks like a
// variable again, which reading it must then leave alone.
const (
	metadataKey    = "_metadata"
	substitutedKey = "substituted"
)

// hasVariables tells whether reading the rendered task would replace a variable in it.
func (t *Task) hasVariables(n *yaml.Node) bool {
	known := func(text string) bool {
		for _, m := range variable.FindAllStringSubmatch(text, -1) {
			_, env := t.Envs[m[1]+m[2]]
			_, secret := t.Secrets[m[1]+m[2]]
			if env || secret {
				return true
			}
		}
		return false
	}
	var walk func(*yaml.Node) bool
	walk = func(n *yaml.Node) bool {
		if n.Kind == yaml.ScalarNode && strings.Contains(n.Value, "$") && known(n.Value) {
			return true
		}
		for _, c := range n.Content {
			if walk(c) {
				return true
			}
		}
		return false
	}
	keys := mapKeys(n)
	for _, section := range substitutedSections {
		if c := keys[section]; c != nil && walk(c) {
			return true
		}
	}
	return false
}

// Render is the canonical YAML of all documents, with a header for pipelines and groups.
func (f *File) Render(mode SecretMode) []byte {
	var docs []*yaml.Node
	if f.Kind != Single {
		docs = append(docs, f.header())
	}
	for _, t := range f.Tasks {
		docs = append(docs, t.node(mode))
	}
	return encode(docs...)
}

func (f *File) header() *yaml.Node {
	m := omap{{"name", f.Name}}
	if f.Kind == Pipeline {
		return toNode(append(m, entry{"execution", "serial"}))
	}
	m = append(m, entry{"execution", "parallel"})
	if len(f.PrimaryTasks) > 0 {
		m = append(m, entry{"primary_tasks", f.PrimaryTasks})
	}
	if len(f.TerminationDelay) > 0 {
		var d omap
		for _, k := range sortedKeys(f.TerminationDelay) {
			d = append(d, entry{k, FormatDuration(f.TerminationDelay[k])})
		}
		m = append(m, entry{"termination_delay", d})
	}
	return toNode(m)
}

// ExtractSecrets takes the inline values out of the task and returns them by name. What stays in the task are references.
func (t *Task) ExtractSecrets() map[string]string {
	out := map[string]string{}
	for k, s := range t.Secrets {
		if s.Inline {
			out[k] = s.Value
			t.Secrets[k] = Secret{Ref: s.Ref}
		}
	}
	return out
}

// SecretNames lists the environment names of all secrets, sorted.
func (t *Task) SecretNames() []string { return sortedKeys(t.Secrets) }

// UnresolvedSecrets lists the secrets that have no value in the task and none in given, sorted.
func (t *Task) UnresolvedSecrets(given map[string]string) []string {
	var out []string
	for k, s := range t.Secrets {
		if _, ok := given[k]; !ok && !s.Inline {
			out = append(out, k)
		}
	}
	sort.Strings(out)
	return out
}
