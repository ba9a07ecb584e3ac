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
	"time"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/worker/httpapi"
)

// collectLogs removes what was kept of the logs of managed jobs that are no longer listed. A folder that was changed
// within a day is left alone.
func collectLogs(ctx context.Context, st *store.Store, home string) error {
	base := filepath.Dir(filepath.Dir(filepath.Dir(activities.LogDir(home, 0, 0, 0))))
	entries, err := os.ReadDir(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	listed := map[int64]bool{}
	if err := st.ManagedIDs(ctx, func(id int64) { listed[id] = true }); err != nil {
		return err
	}
	for _, e := range entries {
		id, err := strconv.ParseInt(e.Name(), 10, 64)
		if err != nil || listed[id] || ctx.Err() != nil {
			continue
		}
		if st, err := e.Info(); err != nil || time.Since(st.ModTime()) < 24*time.Hour {
			continue
		}
		if err := os.RemoveAll(filepath.Join(base, e.Name())); err != nil {
			return err
		}
	}
	return ctx.Err()
}

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
		if r, ok := strings.CutSuffix(e.Name(), ".cut"); ok {
			rank, err := strconv.Atoi(r)
			why, rerr := os.ReadFile(filepath.Join(dir, e.Name()))
			if err == nil && rerr == nil {
				out = append(out, httpapi.StoredLog{Rank: rank, Cut: string(why)})
			}
			continue
		}
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
