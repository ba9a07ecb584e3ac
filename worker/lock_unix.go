//go:build unix

package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockPatience is how long a lock is waited for whose server is dead: a process that it was starting when it was killed
// holds what it had open, until it has become another program.
const lockPatience = 5 * time.Second

// endPatience is how long a server is waited for that has not written its process id yet, or has removed it and is about to
// end.
const endPatience = 20 * time.Second

// lockHome makes sure that one server works on a home at a time.
func lockHome(home string) (func(), error) {
	path := filepath.Join(home, "server.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the state folder can't be used: %w", err)
	}
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			return func() { f.Close() }, nil
		}
		pid, alive := holder(home)
		if waited := time.Since(began); pid == 0 && waited < endPatience || pid != 0 && !alive && waited < lockPatience {
			continue
		}
		f.Close()
		who := "another server"
		if pid != 0 {
			who += fmt.Sprintf(" (process %d)", pid)
		}
		return nil, fmt.Errorf("%s works on %s; stop it with `sky api stop`, or set SKY_HOME to another folder", who, home)
	}
}

// holder is the server that wrote its process id into a home last, 0 if none did.
func holder(home string) (pid int, alive bool) {
	b, err := os.ReadFile(filepath.Join(home, "server.pid"))
	if err != nil {
		return 0, false
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil || pid <= 0 {
		return 0, false
	}
	return pid, !errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}
