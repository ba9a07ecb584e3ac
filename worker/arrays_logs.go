package worker

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/skyloom/skyloom/activities"
)

// BatchLogs is the folder with the output of an array's elements, as internal/batchlog keeps it.
func (b *backend) BatchLogs(jobID int64) string { return activities.BatchLogs(b.home, jobID) }

// StoredAttempts lists the attempts of a managed job's task of whose log something was kept.
func (b *backend) StoredAttempts(_ context.Context, jobID int64, taskID int) ([]int, error) {
	entries, err := os.ReadDir(filepath.Dir(activities.LogDir(b.home, jobID, taskID, 0)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && n > 0 {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}
