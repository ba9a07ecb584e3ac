package engine

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// LockedError says that another process runs an engine on the same folder.
type LockedError struct {
	Path string // of the lock file
	PID  int    // of the holder, 0 if unknown
}

func (e *LockedError) Error() string {
	who := "another process"
	if e.PID != 0 {
		who = fmt.Sprintf("process %d", e.PID)
	}
	return fmt.Sprintf("engine: %s already runs the workflow engine of this folder (lock %s): use that server, or stop it first", who, e.Path)
}

// fileLock is held by the process: the kernel drops it however the process ends.
type fileLock struct{ file *os.File }

func acquireLock(path string) (*fileLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("engine: open its lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer func() { _ = f.Close() }()
		if errors.Is(err, unix.EWOULDBLOCK) {
			text := make([]byte, 32)
			n, _ := f.Read(text)
			pid, _ := strconv.Atoi(strings.TrimSpace(string(text[:n])))
			return nil, &LockedError{Path: path, PID: pid}
		}
		return nil, fmt.Errorf("engine: lock %s: %w", path, err)
	}
	// The number is for the message above only.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return &fileLock{file: f}, nil
}

func (l *fileLock) release() { _ = l.file.Close() }
