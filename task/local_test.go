package task

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// folder is a folder with files for tests that look at the disk.
func folder(t *testing.T) (string, FS) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("task.yaml", "run: echo hi\n")
	write("odd", "run: echo hi\n")
	write("broken.yaml", "run: [\n")
	write("words.yml", "just words\n")
	write("empty.yaml", "")
	write("script.sh", "#!/bin/sh\necho hi: [\n")
	write("plain", "hello\n")
	write("with space.yaml", "run: x\n")
	write("big.yaml", strings.Repeat("# x\n", 300_000))
	write("env", "A=1\nTOKEN='s'\n")
	write("data/file", "x")
	write("home/h.yaml", "run: x\n")
	os.Symlink("data", filepath.Join(dir, "link"))
	os.Mkdir(filepath.Join(dir, "d.yaml"), 0o755)
	return dir, NewOSFS(dir, filepath.Join(dir, "home"))
}

func TestLoadEntrypoint(t *testing.T) {
	_, on := folder(t)
	tests := []struct {
		words   string
		kind    EntryKind
		text    string
		problem string
	}{
		{"task.yaml", EntryYAML, "task.yaml", ""},
		{"odd", EntryYAML, "odd", ""},
		{"with space.yaml", EntryYAML, "with space.yaml", ""},
		{"~/h.yaml", EntryYAML, "~/h.yaml", ""},
		{"empty.yaml", EntryYAML, "empty.yaml", ""},
		{"echo   hi", EntryCommand, "echo   hi", ""},
		{"python train.yaml", EntryCommand, "python train.yaml", ""},
		{"script.sh", EntryCommand, "script.sh", ""},
		{"plain", EntryCommand, "plain", ""},
		{"data", EntryCommand, "data", ""},
		{"", EntryCommand, "", ""},
		{"nope.yaml", EntryBrokenYAML, "nope.yaml", "nope.yaml does not exist"},
		{"broken.yaml", EntryBrokenYAML, "broken.yaml", "broken.yaml:2: is not valid YAML"},
		{"words.yml", EntryBrokenYAML, "words.yml", "words.yml holds only text, no task"},
		{"d.yaml", EntryBrokenYAML, "d.yaml", "d.yaml is a folder"},
		{"big.yaml", EntryBrokenYAML, "big.yaml", "big.yaml: the file has 1048577 bytes"},
		{"recipes:my-recipe", EntryRecipe, "my-recipe", ""},
	}
	for _, tc := range tests {
		e, err := LoadEntrypoint([]string{tc.words}, on)
		if err != nil || e.Kind != tc.kind || e.Text != tc.text {
			t.Errorf("%q: %+v %v", tc.words, e, err)
		}
		if tc.problem != "" && (e.Problem == nil || !strings.HasPrefix(e.Problem.Error(), tc.problem)) {
			t.Errorf("%q: problem %v", tc.words, e.Problem)
		}
	}
	if e, _ := LoadEntrypoint([]string{"echo", "a b", "c"}, on); e.Text != "echo a b c" {
		t.Errorf("joined %q", e.Text)
	}
	for _, bad := range []string{"recipes:", "recipes:1a", "recipes:a-", "recipes:../x", "recipes:" + strings.Repeat("a", 41)} {
		if _, err := LoadEntrypoint([]string{bad}, on); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestCheckLocal(t *testing.T) {
	_, on := folder(t)
	tests := []struct{ text, want string }{
		{"workdir: data\nfile_mounts: {/a: data/file, /b: ./data/, /c: s3://x}", ""},
		{"workdir: link", ""},
		{"workdir: ~", ""},
		{"workdir: {url: 'https://x/y'}", ""},
		{"workdir: nope", `t.yaml:1:10: workdir: "nope" does not exist; paths are relative to the folder where sky was started`},
		{"workdir: {path: nope}", `t.yaml:1:17: workdir.path: "nope" does not exist; paths are relative to the folder where sky was started`},
		{"workdir: task.yaml", `t.yaml:1:10: workdir: "task.yaml" is a file; workdir must be a folder (single files go under file_mounts)`},
		{"file_mounts:\n  /a: gone\n", `t.yaml:2:7: file_mounts./a: the source "gone" does not exist; paths are relative to the folder where sky was started`},
		{"file_mounts: {/a: {name: b, source: task.yaml}}", `t.yaml:1:19: file_mounts./a: the source "task.yaml" of a bucket is a file; write it as a list: source: [task.yaml]`},
	}
	for _, tc := range tests {
		f, err := Parse("t.yaml", []byte(tc.text), ParseOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if err := f.Tasks[0].CheckLocal(on); err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.text, got, tc.want)
		}
	}
}

func TestOverridesVars(t *testing.T) {
	_, on := folder(t)
	lookup := func(k string) (string, bool) { return "from-env", k == "HERE" }
	o := Overrides{EnvFile: "env", Env: []string{"A=2", "HERE", "E=", "X=a=b"}, Secret: []string{"S=1"}, SecretFile: "~/../env"}
	got, err := o.Vars(on, lookup)
	want := Vars{EnvFile: map[string]string{"A": "1", "TOKEN": "s"}, Envs: map[string]string{"A": "2", "HERE": "from-env", "E": "", "X": "a=b"}, SecretFile: map[string]string{"A": "1", "TOKEN": "s"}, Secrets: map[string]string{"S": "1"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v %v", got, err)
	}
	for _, tc := range []struct {
		o    Overrides
		want string
	}{
		{Overrides{Env: []string{"GONE"}}, "--env GONE: GONE is not set in your environment; set it, or write --env GONE=VALUE"},
		{Overrides{Secret: []string{"1A=topsecret"}}, `--secret: "1A" is not an environment name (letters, digits and _, not starting with a digit)`},
		{Overrides{EnvFile: "gone"}, `--env-file: the file "gone" does not exist`},
		{Overrides{SecretFile: "data"}, `--secret-file: the file "data" can't be used: is not a file`},
	} {
		if _, err := tc.o.Vars(on, lookup); err == nil || err.Error() != tc.want {
			t.Errorf("got %v, want %s", err, tc.want)
		}
	}
}

func TestFromCommand(t *testing.T) {
	f, err := FromCommand("echo hi", Vars{Envs: map[string]string{"A": "1"}, Secrets: map[string]string{"S": "x"}})
	if err != nil || f.Kind != Single || f.Tasks[0].Name != "sky-cmd" || f.Tasks[0].Run != "echo hi" || f.Tasks[0].Envs["A"] != "1" || !f.Tasks[0].Secrets["S"].Inline {
		t.Errorf("%+v %v", f, err)
	}
	if _, err := FromCommand("x", Vars{Envs: map[string]string{"A": "\xff"}}); err == nil || err.Error() != "--env: the value of A is not UTF-8 text" {
		t.Errorf("got %v", err)
	}
}

func TestParseDotenv(t *testing.T) {
	text := "\ufeff# comment\n\nA=1\n export B = two words # note\nC='lit $X\\n'\nD=\"a\\nb \\\"q\\\" \\$H\" # c\r\nE=\nF=#x\nG=a#b\nH=\"first\nsecond\"\nI='x' \nA=last\nJ=a=b\n"
	want := map[string]string{"A": "last", "B": "two words", "C": `lit $X\n`, "D": "a\nb \"q\" $H", "E": "", "F": "", "G": "a#b", "H": "first\nsecond", "I": "x", "J": "a=b"}
	if got, err := ParseDotenv("f", []byte(text), nil); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%q %v", got, err)
	}
	lookup := func(k string) (string, bool) { return "from-" + k, k == "USER" || k == "A" }
	text = "A=1\nB=${A}/${USER} $A\nC=\"${A} \\${A} ${NOBODY} ${NOBODY:-d e}\"\nD='${A}'\nE=\nF=${E:-x}${E}\nG=${ A}${A\nH=${H}$\n"
	want = map[string]string{"A": "1", "B": "1/from-USER $A", "C": "1 ${A} ${NOBODY} d e", "D": "${A}", "E": "", "F": "x", "G": "${ A}${A", "H": "${H}$"}
	if got, err := ParseDotenv("f", []byte(text), lookup); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%q %v", got, err)
	}
	text = "A=0123456789\n" + strings.Repeat("A=${A}${A}${A}${A}\n", 12)
	if _, err := ParseDotenv("f", []byte(text), nil); err == nil || !strings.HasPrefix(err.Error(), "f:10: the value of A has more than") {
		t.Errorf("got %v", err)
	}
	for text, want := range map[string]string{
		"A=1\nnope\n2=x\n": "f:2: must be NAME=VALUE\nf:3: must be NAME=VALUE",
		"A='x":             "f:1: the value of A has no closing quote",
		"A=\"x\ny\" z\n":   "f:2: the value of A goes on after its closing quote",
		"A=\x00":           "f: holds a NUL byte",
		"A=\xff":           "f: is not UTF-8 text",
	} {
		if _, err := ParseDotenv("f", []byte(text), nil); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}
