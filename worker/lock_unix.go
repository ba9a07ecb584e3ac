//go:build unix

package worker

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// lockHome makes sure that one server works on a home at a time.
func lockHome(home string) (func(), error) {
	path := filepath.Join(home, "server.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the state folder can't be used: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		who := "another server"
		if pid, err := os.ReadFile(filepath.Join(home, "server.pid")); err == nil { // else it has just begun
			who += " (process " + strings.TrimSpace(string(pid)) + ")"
		}
		f.Close()
		return nil, fmt.Errorf("%s works on %s; stop it with `sky api stop`, or set SKY_HOME to another folder", who, home)
	}
	return func() { f.Close() }, nil
}
