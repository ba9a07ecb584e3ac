package task

import (
	"encoding/json"
	"fmt"
	"strings"
)

// row is a field without its type.
type row struct {
	name, forms, def, doc string
	alias                 []string
	schema                js
	later                 []Feature
	ours, hidden          bool
}

// section is a table without its type.
type section struct {
	title, doc string
	open       bool
	rows       []row
}

func describe[T any](o *object[T]) section {
	s := section{title: o.title, doc: o.doc, open: o.open}
	for _, f := range o.fields {
		s.rows = append(s.rows, row{f.name, f.forms, f.def, f.doc, f.alias, f.schema, f.later, f.ours, f.hidden})
	}
	return s
}

// sections lists all tables in the order of the reference.
func sections() []section {
	tables()
	return []section{
		describe(taskObject), describe(workdirObject), describe(resourcesObject), describe(acceleratorArgs), describe(jobRecoveryObject),
		describe(autostopObject), describe(diskVolumeObject), describe(storageObject), describe(storageConfigObject), describe(mountObject),
		describe(mountCachedObject), describe(volumeObject), describe(managedForm), describe(serviceObject), describe(probeObject),
		describe(loadBalancerObject), describe(replicaPolicyObject), describe(tlsObject), describe(poolObject), describe(configObject),
		describe(hookObject), describe(checkpointObject), describe(arrayObject), describe(scheduleObject), describe(notifyObject),
	}
}

// definition is the name of a section in the schema.
func definition(title string) string {
	return strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, title), "_")
}

// Schema is the JSON Schema (draft 7) of a document of a task file, for editors.
func Schema() []byte {
	list := sections()
	root := list[0].schema()
	root["$schema"] = "http://json-schema.org/draft-07/schema#"
	root["title"] = "Skyloom task file"
	header := root["properties"].(js)
	header["execution"] = js{"description": "In the first of several documents: serial makes a pipeline, parallel a job group.", "enum": []string{"serial", "parallel"}}
	header["primary_tasks"] = js{"description": "In the header of a job group: tasks whose end ends the group.", "type": "array", "items": jsText()}
	header["termination_delay"] = js{"description": "In the header of a job group: how long the other tasks may go on.", "anyOf": []js{jsInt(), jsText(), jsMapOf(jsOr(jsInt(), jsText()))}}
	definitions := js{}
	for _, s := range list[1:] {
		definitions[definition(s.title)] = s.schema()
	}
	root["definitions"] = definitions
	out, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		panic("task: the schema can't be encoded: " + err.Error())
	}
	return append(out, '\n')
}

func (s section) schema() js {
	props := js{}
	for _, r := range s.rows {
		value := r.schema
		if value == nil {
			value = jsAny()
		}
		prop := js{"anyOf": []js{value, jsNull()}}
		if len(value) == 0 {
			prop = js{}
		}
		switch {
		case r.hidden:
			prop["deprecated"] = true
		default:
			prop["description"] = r.text()
		}
		for _, name := range append([]string{r.name}, r.alias...) {
			props[name] = prop
		}
	}
	out := js{"type": "object", "description": s.doc, "properties": props}
	if !s.open {
		out["additionalProperties"] = false
	}
	return out
}

// text is the meaning with the default.
func (r row) text() string {
	if r.def == "" {
		return r.doc
	}
	return r.doc + " Default: " + r.def + "."
}

// Reference is the reference of the task file in Markdown.
func Reference() []byte { return ReferenceFor(nil) }

// ReferenceFor is Reference with a note at each field whose feature is not in set; nil means no notes.
func ReferenceFor(set FeatureSet) []byte {
	var b strings.Builder
	b.WriteString("# The task file\n\n")
	b.WriteString("A task file is YAML. Every field is optional. Unknown fields, keys given twice and wrong types are refused with file, line, column and a suggestion.\n")
	b.WriteString("`$VAR` and `${VAR}` from `envs` and inline `secrets` are replaced in `workdir`, `file_mounts`, `volumes` and `service`; unknown variables stay as they are.\n")
	b.WriteString("Fields marked with ⁺ are Skyloom's own.\n")
	for _, s := range sections() {
		if s.title == "" {
			b.WriteString("\n## Top level\n\n")
		} else {
			fmt.Fprintf(&b, "\n## `%s`\n\n%s", s.title, s.doc)
			if s.open {
				b.WriteString(" Other keys are let through.")
			}
			b.WriteString("\n\n")
		}
		b.WriteString("| Field | Forms | Default | Meaning |\n|---|---|---|---|\n")
		for _, r := range s.rows {
			if !r.hidden {
				r.markdown(&b, set)
			}
		}
	}
	b.WriteString(`
## Several documents

| Kind | How it is told | Rules |
|---|---|---|
| single task | one document | |
| pipeline | several documents; the first may be a header ` + "`{name}` or `{name, execution: serial}`" + ` | tasks run in order, each on its own cluster; unnamed tasks become ` + "`<name>-<index>`" + ` |
| job group | a header with ` + "`execution: parallel`" + ` | header: ` + "`name`" + ` (needed), ` + "`primary_tasks`" + ` (default: all), ` + "`termination_delay`" + ` (a duration, or a map task → duration with ` + "`default`" + `); every task needs a unique name |
`)
	return []byte(b.String())
}

func (r row) markdown(b *strings.Builder, set FeatureSet) {
	cell := func(s string) string { return strings.ReplaceAll(s, "|", "\\|") }
	names := "`" + r.name + "`"
	for _, a := range r.alias {
		names += ", `" + a + "`"
	}
	if r.ours {
		names += " ⁺"
	}
	doc := r.doc
	if set != nil {
		var missing []string
		for _, f := range r.later {
			if !set[f] {
				missing = append(missing, f.Describe())
			}
		}
		if len(missing) > 0 {
			doc += " *Not supported yet: " + strings.Join(missing, "; ") + ".*"
		}
	}
	fmt.Fprintf(b, "| %s | %s | %s | %s |\n", names, cell(r.forms), cell(r.def), cell(doc))
}
