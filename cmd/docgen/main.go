// Command docgen writes the generated references: docgen DIR.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/cli"
	"github.com/skyloom/skyloom/internal/config"
	"github.com/skyloom/skyloom/task"
	"github.com/skyloom/skyloom/worker/httpapi"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: docgen DIR")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "docgen:", err)
		os.Exit(1)
	}
}

func write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		"task-file.md":     task.ReferenceFor(activities.Features),
		"config.md":        config.Reference(),
		"task.schema.json": task.Schema(),
		"openapi.json":     httpapi.OpenAPI(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	if code := cli.Main([]string{"docs-gen", dir}); code != 0 {
		return fmt.Errorf("the command reference could not be written: exit %d", code)
	}
	return nil
}
