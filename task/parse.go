package task

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/skyloom/skyloom/task/yamldoc"
)

// ParseOptions change how a file is read.
type ParseOptions struct {
	// Vars are merged into envs and secrets before anything is checked or substituted.
	Vars Vars
}

// Vars are environment variables and secrets from outside the file. Envs beat EnvFile; Secrets beat SecretFile, which
// beats EnvFile. A variable of EnvFile that the file declares as a secret becomes a secret and not an env.
type Vars struct {
	EnvFile, Envs, SecretFile, Secrets map[string]string
}

// Parse reads a task file. name is only for messages. The function is pure: it touches neither disk nor environment.
// The error is an ErrorList with everything that is wrong.
func Parse(name string, data []byte, opts ParseOptions) (*File, error) {
	docs, err := yamldoc.Load(name, data)
	if err != nil {
		return nil, err
	}
	if len(docs) == 0 {
		return nil, ErrorList{{File: name, Msg: "is empty or contains no task definition"}}
	}
	f := &File{Kind: Single}
	var errs ErrorList
	if len(docs) > 1 || isGroupHeader(docs[0]) {
		f.Kind = Pipeline
		if isHeader(docs[0]) {
			p := newParser(name)
			p.readHeader(docs[0], f)
			errs = append(errs, p.errs...)
			f.Warnings = append(f.Warnings, p.warnings...)
			docs = docs[1:]
		}
	}
	for _, d := range docs {
		p := newParser(name)
		f.Tasks = append(f.Tasks, p.readTask(d, opts.Vars))
		errs = append(errs, p.errs...)
		f.Warnings = append(f.Warnings, p.warnings...)
	}
	if len(errs) == 0 {
		errs = append(errs, f.settle(name)...)
	}
	if err := errs.Err(); err != nil {
		return nil, err
	}
	return f, nil
}

// FromCommand makes the task of a shell command.
func FromCommand(command string, vars Vars) (*File, error) {
	p := newParser("")
	t := &Task{Name: CommandTaskName, NumNodes: 1, Run: command}
	p.applyVars(t, vars)
	if err := p.errs.Err(); err != nil {
		return nil, err
	}
	if err := t.Validate(); err != nil {
		return nil, err
	}
	return &File{Kind: Single, Name: t.Name, Tasks: []*Task{t}}, nil
}

func newParser(name string) *parser {
	tables()
	return &parser{src: &source{file: name, pos: map[string]position{}}, substituted: map[*yaml.Node]bool{}, required: map[string]val{}}
}

func mapKeys(n *yaml.Node) map[string]*yaml.Node {
	out := map[string]*yaml.Node{}
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			out[n.Content[i].Value] = n.Content[i+1]
		}
	}
	return out
}

func isGroupHeader(n *yaml.Node) bool {
	e := mapKeys(n)["execution"]
	return e != nil && e.Value == "parallel"
}

// isHeader tells whether the first of several documents is a header: it says how the tasks are executed, or has only a
// name.
func isHeader(n *yaml.Node) bool {
	keys := mapKeys(n)
	if keys["execution"] != nil {
		return true
	}
	return len(keys) == 1 && keys["name"] != nil
}

var headerKeys = []string{"name", "execution", "primary_tasks", "termination_delay"}

func (p *parser) readHeader(n *yaml.Node, f *File) {
	keys := mapKeys(n)
	root := val{p, n, ""}
	if e := keys["execution"]; e != nil {
		mode, _ := root.child("execution", e).oneOf("serial", "parallel")
		if mode == "parallel" {
			f.Kind = JobGroup
		}
	}
	root.each(func(key string, kv, c val) {
		switch {
		case key == "execution" || c.isNull():
		case key == "name":
			f.Name, _ = c.str()
		case f.Kind == Pipeline:
			kv.fail("unknown field %q in the header of a pipeline%s", clip(key), DidYouMean(key, headerKeys))
		case key == "primary_tasks":
			f.PrimaryTasks, _ = c.texts()
		case key == "termination_delay":
			f.TerminationDelay = readTerminationDelay(c)
		default:
			p.warnings = append(p.warnings, fmt.Sprintf("%s:%d: unknown field %q in the header of a job group is ignored%s", p.src.file, kv.n.Line, clip(key), DidYouMean(key, headerKeys)))
		}
	})
	switch {
	case f.Kind == JobGroup && f.Name == "":
		root.fail("a job group needs a name")
	case f.Kind == JobGroup && !safeName.MatchString(f.Name):
		root.child("name", keys["name"]).fail("%q is not a name for a job group; letters, digits, - and _ are allowed", clip(f.Name))
	case f.Name != "" && !taskName.MatchString(f.Name):
		root.child("name", keys["name"]).fail("%s", badName(f.Name))
	}
}

func readTerminationDelay(v val) map[string]time.Duration {
	out := map[string]time.Duration{}
	if v.n.Kind != yaml.MappingNode {
		if d, ok := v.duration(); ok {
			out["default"] = d
		}
		return out
	}
	v.each(func(key string, _, c val) {
		if d, ok := c.duration(); ok {
			out[key] = d
		}
	})
	return out
}

// settle checks and completes what needs all tasks.
func (f *File) settle(name string) (errs ErrorList) {
	if len(f.Tasks) == 0 {
		return ErrorList{{File: name, Msg: "has a header but no task"}}
	}
	if f.Kind == Pipeline && len(f.Tasks) == 1 {
		f.Kind = Single
		if t := f.Tasks[0]; t.Name == "" {
			t.Name = f.Name
		}
	}
	switch f.Kind {
	case Single:
		if f.Name == "" {
			f.Name = f.Tasks[0].Name
		}
	case Pipeline:
		f.nameTasks()
	case JobGroup:
		errs = append(errs, f.settleGroup()...)
	}
	return errs
}

// nameTasks names the tasks of a pipeline that have no name of their own.
func (f *File) nameTasks() {
	for i, t := range f.Tasks {
		if t.Name == "" && f.Name != "" {
			t.Name = fmt.Sprintf("%s-%d", f.Name, i)
		}
	}
}

// Rename gives the file another name, and tasks of a pipeline without one theirs. A single task keeps its own.
func (f *File) Rename(name string) error {
	if err := ValidateName(name); err != nil && (f.Kind != JobGroup || len(name) > MaxTaskName || !safeName.MatchString(name)) {
		return err
	}
	f.Name = name
	if f.Kind == Pipeline {
		f.nameTasks()
	}
	return nil
}

func (f *File) settleGroup() (errs ErrorList) {
	names := map[string]bool{}
	var list []string
	for i, t := range f.Tasks {
		switch {
		case t.Name == "":
			errs = append(errs, t.src.error("run", "task %d of the job group has no name; every task of a group needs one", i+1))
		case !safeName.MatchString(t.Name):
			errs = append(errs, t.src.error("name", "%q can't be used in a job group, where names become host names; letters, digits, - and _ are allowed", clip(t.Name)))
		case names[t.Name]:
			errs = append(errs, t.src.error("name", "two tasks of the job group are named %q", t.Name))
		}
		names[t.Name] = true
		list = append(list, t.Name)
	}
	file := f.Tasks[0].src.file
	for _, p := range f.PrimaryTasks {
		if !names[p] {
			errs = append(errs, &Error{File: file, Line: 1, Field: "primary_tasks", Msg: fmt.Sprintf("no task is named %q%s", clip(p), DidYouMean(p, list))})
		}
	}
	for _, p := range sortedKeys(f.TerminationDelay) {
		if p != "default" && !names[p] {
			errs = append(errs, &Error{File: file, Line: 1, Field: "termination_delay", Msg: fmt.Sprintf("no task is named %q%s", clip(p), DidYouMean(p, list))})
		}
	}
	return errs
}

var substitutedSections = []string{"workdir", "file_mounts", "volumes", "service"}

func (p *parser) readTask(n *yaml.Node, vars Vars) *Task {
	t := &Task{NumNodes: 1, src: p.src}
	root := val{p, n, ""}
	p.src.root = position{n.Line, n.Column}
	if n.Kind != yaml.MappingNode {
		root.fail("a task is an object (fields like run: and resources:), not %s", root.what())
		return t
	}
	if m := mapKeys(n)[metadataKey]; m == nil || mapKeys(m)[substitutedKey] == nil || mapKeys(m)[substitutedKey].Value != "true" {
		p.substitute(n, vars)
	}
	taskObject.read(root, t)
	p.applyVars(t, vars)
	t.Config.Hooks = append(t.Config.Hooks, uniqueHooks(p.hooks)...)
	if len(t.Envs) == 0 {
		t.Envs = nil
	}
	if len(t.Secrets) == 0 {
		t.Secrets = nil
	}
	if len(p.errs) == 0 {
		p.errs = append(p.errs, t.check()...)
	}
	t.mask(p.errs)
	return t
}

// shortestMasked is the length below which a secret is not looked for in messages: replacing it would only garble them.
const shortestMasked = 4

// mask takes the values of secrets out of messages; they get there where a variable was replaced.
func (t *Task) mask(errs ErrorList) ErrorList {
	for _, s := range t.Secrets {
		if len(s.Value) < shortestMasked {
			continue
		}
		for _, e := range errs {
			e.Msg, e.Field = maskText(e.Msg, s.Value), maskText(e.Field, s.Value)
		}
	}
	return errs
}

// maskText replaces secret in text, also where only its beginning is left because a long value was cut.
func maskText(text, secret string) string {
	head := secret[:min(len(secret), 6)]
	var b strings.Builder
	for {
		i := strings.Index(text, head)
		if i < 0 {
			b.WriteString(text)
			return b.String()
		}
		b.WriteString(text[:i])
		b.WriteString(Redacted)
		n := 0
		for n < len(secret) && i+n < len(text) && text[i+n] == secret[n] {
			n++
		}
		text = text[i+n:]
	}
}

func uniqueHooks(in []Hook) (out []Hook) {
	for _, h := range in {
		if len(out) == 0 || out[len(out)-1].Run != h.Run {
			out = append(out, h)
		}
	}
	return out
}

// applyVars merges what was given outside of the file and reports envs that still have no value.
func (p *parser) applyVars(t *Task, vars Vars) {
	set := func(m map[string]string, what string, put func(k, v string)) {
		for _, k := range sortedKeys(m) {
			if msg := checkEnv(k, m[k]); msg != "" {
				p.errs = append(p.errs, &Error{File: what, Msg: msg})
				continue
			}
			put(k, m[k])
		}
	}
	if t.Envs == nil {
		t.Envs = map[string]string{}
	}
	if t.Secrets == nil {
		t.Secrets = map[string]Secret{}
	}
	secret := func(k, v string) { t.Secrets[k] = Secret{Value: v, Inline: true, Ref: t.Secrets[k].Ref} }
	env := func(k, v string) { t.Envs[k] = v }
	set(vars.EnvFile, "--env-file", func(k, v string) {
		_, declared := t.Secrets[k]
		_, inFile := vars.SecretFile[k]
		_, given := vars.Secrets[k]
		if declared || inFile || given {
			secret(k, v)
		} else {
			env(k, v)
		}
	})
	set(vars.Envs, "--env", env)
	set(vars.SecretFile, "--secret-file", secret)
	set(vars.Secrets, "--secret", secret)
	for _, k := range sortedKeys(p.required) {
		if _, ok := t.Envs[k]; ok {
			continue
		}
		if _, ok := t.Secrets[k]; ok {
			continue
		}
		p.required[k].fail(`has no value; give it with --env %s=VALUE, or write "" for an empty one`, k)
	}
	if len(t.Envs) == 0 {
		t.Envs = nil
	}
	if len(t.Secrets) == 0 {
		t.Secrets = nil
	}
}

var variable = regexp.MustCompile(`\$\{([a-zA-Z_][a-zA-Z0-9_]*)\}|\$([a-zA-Z_][a-zA-Z0-9_]*)`)

// maxSubstituted bounds the text that substitution may produce in one task.
const maxSubstituted = 4 << 20

// substitute replaces $VAR and ${VAR} in the sections that allow it. Unknown variables stay as written.
func (p *parser) substitute(n *yaml.Node, vars Vars) {
	scratch := newParser(p.src.file)
	known := &Task{}
	keys := mapKeys(n)
	if e := keys["envs"]; e != nil && e.Kind == yaml.MappingNode {
		readEnvs(val{scratch, e, "envs"}, known)
	}
	if s := keys["secrets"]; s != nil && s.Kind == yaml.MappingNode {
		readSecrets(val{scratch, s, "secrets"}, known)
	}
	scratch.applyVars(known, vars)
	lookup := func(name string) (string, bool) {
		if s := known.Secrets[name]; s.Inline {
			return s.Value, true
		}
		v, ok := known.Envs[name]
		return v, ok
	}
	budget := maxSubstituted
	leaked := map[string]bool{}
	for _, section := range substitutedSections {
		if node := keys[section]; node != nil {
			p.substituteNode(val{p, node, section}, lookup, &budget, func(name string) {
				if known.Secrets[name].Inline && !leaked[section+name] {
					leaked[section+name] = true
					p.warnings = append(p.warnings, fmt.Sprintf("%s: the value of the secret %s is written out where $%s stood, and shows wherever the task does", section, name, name))
				}
			})
		}
	}
}

func (p *parser) substituteNode(v val, lookup func(string) (string, bool), budget *int, used func(string)) {
	for i, c := range v.n.Content {
		p.substituteNode(val{p, c, v.path}, lookup, budget, used)
		if v.n.Kind == yaml.MappingNode && i%2 == 0 && p.substituted[c] {
			for j := 0; j < i; j += 2 {
				if v.n.Content[j].Value == c.Value {
					val{p, c, v.path}.fail("key %q is given twice after its variables are replaced", clip(c.Value))
				}
			}
		}
	}
	if v.n.Kind != yaml.ScalarNode || !strings.Contains(v.n.Value, "$") || *budget < 0 {
		return
	}
	var b strings.Builder
	text, last, changed := v.n.Value, 0, false
	for _, m := range variable.FindAllStringSubmatchIndex(text, -1) {
		var name string
		if m[2] >= 0 {
			name = text[m[2]:m[3]]
		} else {
			name = text[m[4]:m[5]]
		}
		value, ok := lookup(name)
		if !ok {
			continue
		}
		if *budget -= len(value); *budget < 0 {
			v.fail("variables expand to more than %d bytes", maxSubstituted)
			return
		}
		used(name)
		b.WriteString(text[last:m[0]])
		b.WriteString(value)
		last, changed = m[1], true
	}
	if !changed {
		return
	}
	b.WriteString(text[last:])
	v.n.Value = b.String()
	if v.n.ShortTag() == "!!str" {
		v.n.Tag = "" // an unquoted variable may turn into a number
	}
	p.substituted[v.n] = true
}
