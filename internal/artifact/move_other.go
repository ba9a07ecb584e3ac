//go:build !linux

package artifact

import (
	"errors"
	"os"
)

func moveInto(string, *os.File, string) error { return errors.ErrUnsupported }
