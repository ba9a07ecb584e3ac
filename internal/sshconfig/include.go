package sshconfig

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The marks around the one block of the user's configuration that is ours.
const (
	blockBegin = "# >>> skyloom: written by sky, so that `ssh CLUSTER` works >>>"
	blockEnd   = "# <<< skyloom <<<"
)

// Include makes the user's ssh configuration include this folder's, by a line in a block at its top. userHome is the
// user's home folder. The error tells the line to add by hand.
func (d Dir) Include(userHome string) error {
	if userHome == "" {
		return nil
	}
	path := filepath.Join(userHome, ".ssh", "config")
	err := d.include(path)
	if err != nil {
		err = fmt.Errorf("%s can't be changed: %w\nTo use ssh with clusters add this line at its top: %s", path, err, d.includeLine())
	}
	return err
}

func (d Dir) includeLine() string {
	return `Include "` + filepath.ToSlash(d.ConfigFile()) + `"`
}

func (d Dir) include(path string) error {
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if hasLine(string(old), d.includeLine()) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	unlock, err := lock(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer unlock()
	if old, err = os.ReadFile(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text := addInclude(string(old), d.includeLine())
	if text == string(old) {
		return nil
	}
	target, mode := path, os.FileMode(0o600)
	if real, err := filepath.EvalSymlinks(path); err == nil { // a link stays a link
		target = real
	}
	st, err := os.Stat(target)
	if err == nil {
		mode = st.Mode().Perm()
	}
	if err := replace(target, []byte(text), mode); err != nil {
		return err
	}
	if st != nil {
		sameOwner(target, st)
	}
	return nil
}

func hasLine(text, line string) bool {
	for l := range strings.Lines(text) {
		if strings.TrimSpace(l) == line {
			return true
		}
	}
	return false
}

// addInclude puts a line into our block, which is made at the top if there is none. Lines of the block whose file is
// gone are dropped.
func addInclude(text, line string) string {
	if hasLine(text, line) {
		return text
	}
	begin := strings.Index(text, blockBegin+"\n")
	if begin >= 0 {
		inside := begin + len(blockBegin) + 1
		if n := strings.Index(text[inside:], blockEnd); n >= 0 {
			kept := line + "\n"
			for l := range strings.Lines(text[inside : inside+n]) {
				if file, ok := included(l); !ok || exists(file) {
					kept += strings.TrimRight(l, "\n") + "\n"
				}
			}
			return text[:inside] + kept + text[inside+n:]
		}
	}
	block := blockBegin + "\n" + line + "\n" + blockEnd + "\n"
	if text != "" {
		block += "\n"
	}
	return block + text
}

// included is the file of an Include line as we write them.
func included(line string) (string, bool) {
	f, ok := strings.CutPrefix(strings.TrimSpace(line), `Include "`)
	if !ok {
		return "", false
	}
	return strings.CutSuffix(f, `"`)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
