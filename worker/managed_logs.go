package worker

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/worker/httpapi"
)

// StoredLog gives what was kept of the log of an attempt of a managed job's task.
func (b *backend) StoredLog(_ context.Context, jobID int64, taskID, attempt int) ([]httpapi.StoredLog, error) {
	dir := activities.LogDir(b.home, jobID, taskID, attempt)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []httpapi.StoredLog
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".log")
		r, phase, dash := strings.Cut(name, "-")
		rank, err := strconv.Atoi(r)
		if !ok || !dash || err != nil {
			continue // being written, or the mark of a whole log
		}
		path := filepath.Join(dir, e.Name())
		out = append(out, httpapi.StoredLog{Rank: rank, Phase: phase, Open: func() (io.ReadSeekCloser, error) { return os.Open(path) }})
	}
	return out, nil
}
