//go:build !linux

package sharedhost

import (
	"fmt"
	"os"
)

// Main says that hosts run Linux.
func Main([]string) int {
	fmt.Fprintln(os.Stderr, "sky-agent host: shared hosts need Linux")
	return 2
}
