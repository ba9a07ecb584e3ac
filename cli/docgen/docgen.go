// Package docgen renders the command reference from the command tree. It knows nothing of single commands.
package docgen

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Render gives the reference as Markdown; hidden commands and flags are left out.
func Render(root *cobra.Command) []byte {
	var b strings.Builder
	b.WriteString("# Commands\n\nGenerated from the program; `sky COMMAND --help` shows the same.\n\n")
	list(&b, root, 0)
	b.WriteByte('\n')
	section(&b, root)
	return []byte(b.String())
}

func list(b *strings.Builder, cmd *cobra.Command, depth int) {
	for _, c := range cmd.Commands() {
		if c.Hidden {
			continue
		}
		path := c.CommandPath()
		fmt.Fprintf(b, "%s- [`%s`](#%s): %s\n", strings.Repeat("  ", depth), path, anchor(path), c.Short)
		list(b, c, depth+1)
	}
}

func anchor(path string) string { return strings.ReplaceAll(path, " ", "-") }

func section(b *strings.Builder, cmd *cobra.Command) {
	fmt.Fprintf(b, "## %s\n\n", cmd.CommandPath())
	text := cmd.Long
	if text == "" {
		text = cmd.Short + "."
	}
	b.WriteString(strings.TrimSpace(text) + "\n\n")
	if cmd.Runnable() {
		fmt.Fprintf(b, "```\n%s\n```\n\n", cmd.UseLine())
	}
	if cmd.Example != "" {
		fmt.Fprintf(b, "Examples:\n\n```\n%s\n```\n\n", dedent(cmd.Example))
	}
	flagTable(b, cmd.LocalFlags())
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			section(b, c)
		}
	}
}

func flagTable(b *strings.Builder, fs *pflag.FlagSet) {
	rows := 0
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		if rows++; rows == 1 {
			b.WriteString("| Flag | Meaning |\n|---|---|\n")
		}
		arg, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if arg != "" {
			name += " " + arg
		}
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" {
			usage += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(b, "| `%s` | %s |\n", strings.ReplaceAll(name, "|", "\\|"), strings.ReplaceAll(usage, "|", "\\|"))
	})
	if rows > 0 {
		b.WriteByte('\n')
	}
}

func dedent(s string) string {
	lines := strings.Split(strings.Trim(s, "\n"), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimPrefix(l, "  ")
	}
	return strings.Join(lines, "\n")
}
