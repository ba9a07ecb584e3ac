// Command sky runs tasks on clusters. See package cli.
package main

import (
	"os"
	"runtime/debug"

	"github.com/skyloom/skyloom/cli"
)

func main() {
	debug.SetGCPercent(400) // it lives for milliseconds: collecting costs more than it gives
	os.Exit(cli.Main(os.Args[1:]))
}
