package config

import (
	"fmt"
	"sort"
	"strings"
)

// Idle lists the settings in c that this version accepts and does nothing with, sorted.
func (c *Config) Idle() []string {
	var out []string
	var walk func(prefix string, at *branch, m map[string]any)
	walk = func(prefix string, at *branch, m map[string]any) {
		for k, v := range m {
			next, path := at.next[k], prefix+k
			inner, isMap := v.(map[string]any)
			switch {
			case v == nil || next == nil:
			case next.leaf != nil:
				if next.leaf.Idle {
					out = append(out, path)
				}
			case isMap:
				walk(path+".", next, inner)
			}
		}
	}
	if c != nil {
		walk("", tree(), c.tree)
	}
	sort.Strings(out)
	return out
}

// CheckServer refuses settings that must not be passed over in silence: what they promise would not be kept.
func (c *Config) CheckServer() error {
	for _, k := range []struct{ path, why string }{
		{"db", "a database of one's own comes with a later release; this one keeps its records in SKY_HOME"},
		{"admin_policy", "policies come with a later release; nothing would be asked of this one"},
	} {
		if v, ok := c.Get(k.path); ok && v != nil && v != "" {
			return fmt.Errorf("%s: %s: %s\nRemove it there, or give the server a configuration of its own: config.yaml in SKY_HOME", strings.Join(c.Sources(), ", "), k.path, k.why)
		}
	}
	return nil
}

// Reference is the reference of the configuration in Markdown.
func Reference() []byte {
	var b strings.Builder
	b.WriteString("# The configuration\n\n")
	b.WriteString("`config.yaml` in `SKY_HOME` (`~/.skyloom`), else `~/.sky/config.yaml`; `SKYPILOT_GLOBAL_CONFIG` names another file. A command lays `.sky.yaml` of the folder where it is started\n")
	b.WriteString("(or the file that `SKYPILOT_PROJECT_CONFIG` names) over it, and over that what `--config FILE` or `--config KEY=VALUE` says. A task's own `config` section lies between the project's file and the\n")
	b.WriteString("flags. Maps merge key by key, lists are replaced. The server reads its file when it starts. An unknown setting is refused with its file and line.\n\n")
	b.WriteString("Settings marked with ⁺ are Skyloom's own. Those marked with ○ are accepted and do nothing in this version; the server's log names them when it starts.\n")
	heading := func(title string) {
		fmt.Fprintf(&b, "\n## %s\n\n| Setting | Form | Default | Meaning |\n|---|---|---|---|\n", title)
	}
	row := func(k Key) {
		mark := ""
		if k.Ours {
			mark += " ⁺"
		}
		if k.Idle {
			mark += " ○"
		}
		fmt.Fprintf(&b, "| `%s`%s | %s | %s | %s |\n", k.Path, mark, formNames[k.kind], k.Default, k.Doc)
	}
	heading("Top level")
	for _, k := range Keys() {
		if top(k.Path) == k.Path {
			row(k)
		}
	}
	section := ""
	var infra []string
	for _, k := range Keys() {
		switch t := top(k.Path); {
		case t == k.Path:
			continue
		case k.Doc == "": // of an infra that comes later
			if len(infra) == 0 || infra[len(infra)-1] != t {
				infra = append(infra, t)
			}
			continue
		case t != section:
			section = t
			heading("`" + t + "`")
		}
		row(k)
	}
	fmt.Fprintf(&b, "\n## Other infra ○\n\nThe sections %s are accepted, with the settings that belong there, for the sake of files that have them.\n", "`"+strings.Join(infra, "`, `")+"`")
	return []byte(b.String())
}

// formNames say what a setting takes.
var formNames = map[kind]string{
	free: "anything", text: "text", texts: "text, or a list", whole: "whole number", number: "number", truth: "`true`, `false`", object: "object", list: "list",
	duration: "duration: `30s`, `10m`, `2h`", address: "http or https address",
}
