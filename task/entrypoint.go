package task

import (
	"fmt"
	"regexp"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/skyloom/skyloom/task/yamldoc"
)

// EntryKind is what the words after a command turned out to be.
type EntryKind int

// The kinds of an entry point.
const (
	EntryCommand    EntryKind = iota // a shell command: Text
	EntryYAML                        // a task file: Path, Data
	EntryBrokenYAML                  // named like a task file but not readable as one: Problem; ask before running it as a command
	EntryRecipe                      // a stored recipe: Text is its name
)

// Entrypoint is what the words after `sky launch` and the like mean.
type Entrypoint struct {
	Kind    EntryKind
	Text    string // the words joined with single spaces; of a recipe only the name
	Path    string // of a file, as given
	Data    []byte // of a file
	Problem error  // why a broken file is broken
}

var recipeName = regexp.MustCompile(`^[A-Za-z](?:[A-Za-z0-9-]{0,38}[A-Za-z0-9])?$`)

// LoadEntrypoint tells whether words are a task file, a recipe or a shell command. The error is for a malformed recipe
// name only; a file that can't be read as YAML comes back as EntryBrokenYAML.
func LoadEntrypoint(words []string, on FS) (Entrypoint, error) {
	text := strings.Join(words, " ")
	if name, ok := strings.CutPrefix(text, "recipes:"); ok {
		if !recipeName.MatchString(name) {
			return Entrypoint{}, fmt.Errorf("%q is not the name of a recipe; names start with a letter and hold letters, digits and -, at most 40 characters", clip(name))
		}
		return Entrypoint{Kind: EntryRecipe, Text: name}, nil
	}
	e := Entrypoint{Kind: EntryCommand, Text: text}
	if text == "" || strings.ContainsAny(text, "\n\x00") {
		return e, nil
	}
	named := !strings.ContainsAny(text, " \t") && (strings.HasSuffix(strings.ToLower(text), "yaml") || strings.HasSuffix(strings.ToLower(text), ".yml"))
	broken := func(err error) (Entrypoint, error) {
		if named {
			e.Kind, e.Path, e.Problem = EntryBrokenYAML, text, err
		}
		return e, nil
	}
	abs, err := on.Abs(text)
	if err != nil {
		return broken(err)
	}
	info, err := on.Stat(abs)
	if err != nil {
		return broken(fmt.Errorf("%s %s", text, reason(err)))
	}
	if info.IsDir() {
		return broken(fmt.Errorf("%s is a folder", text))
	}
	data, err := on.ReadFile(abs)
	if err != nil {
		return broken(fmt.Errorf("%s %s", text, reason(err)))
	}
	docs, err := yamldoc.Load(text, data)
	switch {
	case err != nil && named:
		return broken(err)
	case err != nil:
		return e, nil // a script, most likely
	case len(docs) == 1 && docs[0].Kind == yaml.ScalarNode:
		return broken(fmt.Errorf("%s holds only text, no task", text))
	case len(docs) == 0 && !named:
		return e, nil
	}
	return Entrypoint{Kind: EntryYAML, Text: text, Path: text, Data: data}, nil
}
