package yamldoc

import (
	"reflect"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

func TestLoad(t *testing.T) {
	tests := []struct {
		text string
		want []any
	}{
		{"", nil},
		{"---\n# c\n---\n~\n", nil},
		{"a: 1\nb: [x, 2.5, true, null, 0x10, 1e3]", []any{map[string]any{"a": 1, "b": []any{"x", 2.5, true, nil, 16, 1000}}}},
		{"\ufeffa: b", []any{map[string]any{"a": "b"}}},
		{"a: 1\n---\nb: 2\n", []any{map[string]any{"a": 1}, map[string]any{"b": 2}}},
		{"x: &x {k: 1}\ny: *x\nz: {<<: *x, k: 2}\nw: {<<: [*x, {k: 3, l: 4}]}", []any{map[string]any{
			"x": map[string]any{"k": 1}, "y": map[string]any{"k": 1}, "z": map[string]any{"k": 2}, "w": map[string]any{"k": 1, "l": 4}}}},
		{"a: &a 1\nb: &a 2\nc: *a", []any{map[string]any{"a": 1, "b": 2, "c": 2}}},
	}
	for _, tc := range tests {
		docs, err := Load("f", []byte(tc.text))
		if err != nil {
			t.Errorf("%q: %v", tc.text, err)
			continue
		}
		var got []any
		for _, d := range docs {
			got = append(got, Plain(d))
			noAlias(t, d)
		}
		if !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%q: got %v", tc.text, got)
		}
	}
}

func noAlias(t *testing.T, n *yaml.Node) {
	if n.Kind == yaml.AliasNode || n.Alias != nil || n.Anchor != "" {
		t.Errorf("an alias or anchor is left at line %d", n.Line)
	}
	for _, c := range n.Content {
		noAlias(t, c)
	}
}

func TestLoadErrors(t *testing.T) {
	for text, want := range map[string]string{
		"a: 1\na: 2":              `f:2:1: key "a" is given twice (first at line 1); remove one`,
		"b:\n  c: 1\n  'c': 2":    `f:3:3: b: key "c" is given twice (first at line 2); remove one`,
		"? [x]\n: 1":              "f:1:3: a key must be plain text",
		"a: b: c":                 `f:1: is not valid YAML: mapping values are not allowed in this context (a value that contains ": " needs quotes, and keys of one object the same indentation)`,
		"a:\n\tb: 1":              "f:2: is not valid YAML: found character that cannot start any token (indent with spaces, not tabs)",
		"a: 1\nb:\n  c: 1\n d: 2": "f:4: is not valid YAML: did not find expected key",
		"a: [b\nc: d\n":           "f:2: is not valid YAML: did not find expected ',' or ']'",
		"a: *nope":                "f:1:4: the alias *nope refers to nothing; quote the text if the * is meant as it is",
		"a: {<<: 3}":              "f:1:9: a: a merge key (<<) takes a mapping or a list of mappings",
		"a: \xff":                 "f:1:4: is not UTF-8 text; save the file as UTF-8",
		"é: \x00":                 "f:1:4: holds a NUL byte; a YAML file is UTF-8 text",
		strings.Repeat("[", 5000): "f:1: nested more than 100 levels deep",
	} {
		_, err := Load("f", []byte(text))
		if err == nil || err.Error() != want {
			t.Errorf("%.40q:\n got %v\nwant %s", text, err, want)
		}
	}
}

func TestErrorListShowsABoundedNumber(t *testing.T) {
	var l ErrorList
	for i := 0; i < 100; i++ {
		l = append(l, &Error{File: "f", Line: 100 - i, Msg: "x"})
	}
	text := l.Err().Error()
	if n := strings.Count(text, "\n"); n != maxShown || !strings.HasPrefix(text, "f:1: x\n") || !strings.HasSuffix(text, "and 80 more") {
		t.Errorf("%d lines\n%s", n, text)
	}
	if (ErrorList{}).Err() != nil {
		t.Error("an empty list is an error")
	}
}

func TestSuggest(t *testing.T) {
	words := []string{"accelerators", "cpus", "memory", "disk_size", "run", "setup", "file_mounts", "num_nodes"}
	for in, want := range map[string]string{
		"accelerator": "accelerators", "accelerater": "accelerators", "cpu": "cpus", "Memory": "memory", "disk-size": "disk_size", "rnu": "run", "setupp": "setup", "filemounts": "file_mounts", "nodes": "", "xyz": "", "": "", "num": "", "file": "file_mounts",
	} {
		if got := Suggest(in, words); got != want {
			t.Errorf("Suggest(%q) = %q, want %q", in, got, want)
		}
	}
	if got := DidYouMean("cpu", words); got != `; did you mean "cpus"?` {
		t.Errorf("got %q", got)
	}
}
