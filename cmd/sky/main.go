// Command sky runs tasks on clusters. See package cli.
package main

import (
	"os"

	"github.com/skyloom/skyloom/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
