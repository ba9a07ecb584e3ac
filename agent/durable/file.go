package durable

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// WriteFile replaces a file at once and for good: a reader sees the old content or the new, also after a crash.
// A full disk gives ErrFull and leaves the old content.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return full(err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return full(err)
	}
	SyncDir(filepath.Dir(path))
	return nil
}

// WriteJSON is WriteFile of a value, mode 0600.
func WriteJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return WriteFile(path, append(b, '\n'), 0o600)
}

// ReadJSON reads a value; a missing file gives os.ErrNotExist.
func ReadJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// Full maps the errors of a full disk or quota to ErrFull; others stay.
func Full(err error) error {
	if err == nil {
		return nil
	}
	return full(err)
}

// SyncDir flushes a folder's entries, as far as the file system can.
func SyncDir(dir string) {
	if d, err := os.Open(dir); err == nil {
		d.Sync()
		d.Close()
	}
}
