// Package journal keeps records in a file of JSON lines that several processes may share: whoever holds the lock reads
// what others appended, changes, and appends. A line that a crash cut short is dropped.
//
// It must not know what the records mean. Invariant: a line that Append returned for is read by every later Sync.
package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// Journal is one such file. Lock and Unlock frame every other call.
type Journal struct {
	path   string
	mu     sync.Mutex
	guard  *os.File // its flock is the lock between processes
	file   *os.File
	offset int64 // read or written up to here
	lines  int
}

// Open opens or makes the file (0600) and its folder. Nothing is read yet.
func Open(path string) (*Journal, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("state file: %w", err)
	}
	guard, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state file: %w", err)
	}
	return &Journal{path: path, guard: guard}, nil
}

// Lock takes the lock within the process and between processes. After an error it holds the first one only, and
// Unlock is still due.
func (j *Journal) Lock() error {
	j.mu.Lock()
	for {
		err := syscall.Flock(int(j.guard.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// Unlock gives the lock back.
func (j *Journal) Unlock() {
	syscall.Flock(int(j.guard.Fd()), syscall.LOCK_UN)
	j.mu.Unlock()
}

// Sync calls f for every line that was not read yet; for all of them if another process rewrote the file.
func (j *Journal) Sync(f func([]byte) error) error {
	if j.file != nil {
		mine, err1 := j.file.Stat()
		now, err2 := os.Stat(j.path)
		if err1 == nil && err2 == nil && os.SameFile(mine, now) {
			if now.Size() == j.offset {
				return nil
			}
		} else {
			j.file.Close()
			j.file = nil
		}
	}
	if j.file == nil {
		file, err := os.OpenFile(j.path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		j.file, j.offset, j.lines = file, 0, 0
	}
	b, err := io.ReadAll(io.NewSectionReader(j.file, j.offset, 1<<62))
	if err != nil {
		return err
	}
	for {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		if !whole {
			break
		}
		if err := f(line); err != nil {
			return fmt.Errorf("%s: line %d: %w", j.path, j.lines+1, err)
		}
		j.offset += int64(len(line)) + 1
		j.lines++
		b = rest
	}
	if len(b) > 0 {
		return j.file.Truncate(j.offset) // cut short by a crash
	}
	return nil
}

// Lines is the number of lines in the file.
func (j *Journal) Lines() int { return j.lines }

// Append adds one line per record. The caller has synced.
func (j *Journal) Append(records ...any) error {
	if len(records) == 0 {
		return nil
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	for _, r := range records {
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	if j.file == nil {
		return fmt.Errorf("%s is not open", j.path)
	}
	if _, err := j.file.WriteAt(buf.Bytes(), j.offset); err != nil {
		return err
	}
	j.offset += int64(buf.Len())
	j.lines += len(records)
	return nil
}

// Rewrite replaces the whole file, atomically.
func (j *Journal) Rewrite(records ...any) error {
	tmp, err := os.CreateTemp(filepath.Dir(j.path), ".state-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	fresh := &Journal{path: j.path, file: tmp}
	if err := fresh.Append(records...); err != nil {
		tmp.Close()
		return err
	}
	if err := os.Rename(tmp.Name(), j.path); err != nil {
		tmp.Close()
		return err
	}
	if j.file != nil {
		j.file.Close()
	}
	j.file, j.offset, j.lines = tmp, fresh.offset, fresh.lines
	return nil
}

// Close gives the file up.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	err := j.guard.Close()
	if j.file != nil {
		err = errors.Join(err, j.file.Close())
		j.file = nil
	}
	return err
}
