// Command openapigen writes the description of the HTTP API: go run ./worker/httpapi/openapigen docs/reference/openapi.json
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/skyloom/skyloom/worker/httpapi"
)

func main() {
	path := "docs/reference/openapi.json"
	if len(os.Args) > 1 {
		path = os.Args[1]
	}
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, httpapi.OpenAPI(), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
