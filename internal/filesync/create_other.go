//go:build !linux

package filesync

import (
	"errors"
	"io/fs"
	"os"
	"time"
)

// newFile is a file that is being made.
type newFile struct {
	f    *os.File
	root *os.Root
	name string
	mode uint32
}

// create makes a file that must not exist yet.
func (c *chunk) create(name string, mode uint32) (*newFile, error) {
	f, err := c.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &newFile{f, c.root, name, mode}, nil
}

// take is for systems on which a file can be moved into an open folder.
func (c *chunk) take(Mover, *Entry, string) error { return errors.ErrUnsupported }

func (f *newFile) Write(p []byte) (int, error) { return f.f.Write(p) }

// finish sets mode and time and closes the file.
func (f *newFile) finish(mtime time.Time) error {
	err := f.f.Chmod(fs.FileMode(f.mode))
	if cerr := f.f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = f.root.Chtimes(f.name, mtime, mtime)
	}
	return err
}

// abort closes the file; it is of no use.
func (f *newFile) abort() { _ = f.f.Close() }
