package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Layout names the files in a SKY_HOME that client and server share.
type Layout struct {
	Home string // absolute
}

// StatePath is server.json.
func (l Layout) StatePath() string { return filepath.Join(l.Home, "server.json") }

// PIDPath is server.pid.
func (l Layout) PIDPath() string { return filepath.Join(l.Home, "server.pid") }

// LogPath is server.log.
func (l Layout) LogPath() string { return filepath.Join(l.Home, "server.log") }

// TokenPath is the file of the API token, mode 0600.
func (l Layout) TokenPath() string { return filepath.Join(l.Home, "token") }

// LockPath is held while a server is being started or stopped by a client.
func (l Layout) LockPath() string { return filepath.Join(l.Home, "start.lock") }

// State is server.json: where a server listens. The server writes it once it does, and removes it when it ends by
// order; a file that is still there after the server's death says that it was not asked to end.
type State struct {
	URL          string `json:"url"`
	PID          int    `json:"pid"`
	Installation string `json:"installation,omitempty"`
	Version      string `json:"version,omitempty"`
}

// ReadState reads server.json. A missing file is fs.ErrNotExist; a damaged one is treated like a missing one, since a
// start replaces it.
func (l Layout) ReadState() (State, error) {
	b, err := os.ReadFile(l.StatePath())
	if err != nil {
		return State{}, err
	}
	var s State
	if json.Unmarshal(b, &s) != nil || !strings.HasPrefix(s.URL, "http") {
		return State{}, fs.ErrNotExist
	}
	return s, nil
}

// ReadToken reads the API token; a missing file gives "".
func (l Layout) ReadToken() (string, error) {
	b, err := os.ReadFile(l.TokenPath())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("the server's token can't be read: %w\nIs SKY_HOME another user's folder?", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// tail gives the last n lines of what a file holds beyond offset from, at most 64 KiB.
func tail(path string, from int64, n int) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const most = 64 << 10
	if st, err := f.Stat(); err == nil && st.Size()-from > most {
		from = st.Size() - most
	}
	buf := make([]byte, most)
	k, _ := f.ReadAt(buf, from)
	lines := strings.Split(strings.TrimRight(string(buf[:k]), "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}
