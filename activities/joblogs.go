package activities

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/providers"
)

// What is kept of the log of an attempt of a managed job is a folder: a file RANK-PHASE.log holds the raw log from its beginning, up
// to where it was brought; RANK.cut tells why no more of a rank could be brought; complete says that all of it is there.
// The files only grow, and whoever writes puts the bytes at the offset they have on the node: two writers change nothing.

// LogDir is where the logs of an attempt of a managed job are kept.
func LogDir(home string, managed int64, taskID, attempt int) string {
	return filepath.Join(home, "logs", "jobs", fmt.Sprint(managed), fmt.Sprint(taskID), fmt.Sprint(attempt))
}

// WatchedLog is the attempt of a managed job that a cluster runs, and what the agents know it by.
type WatchedLog struct {
	Job        int64 `json:"job"` // number of the managed job
	Task       int   `json:"task"`
	Attempt    int   `json:"attempt"`
	ClusterJob int64 `json:"cluster_job"`
}

// ErrLogGap is in the chain of the error about bytes that would leave a gap before them.
var ErrLogGap = errors.New("bytes before these are missing")

// KeptUpTo tells how many bytes are kept of the log of a rank, by phase.
func KeptUpTo(dir string, rank int) (map[string]int64, error) {
	out := map[string]int64{}
	files, err := filepath.Glob(filepath.Join(dir, fmt.Sprintf("%d-*.log", rank)))
	if err != nil {
		return nil, err
	}
	for _, path := range files {
		fi, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		_, phase, _ := strings.Cut(strings.TrimSuffix(filepath.Base(path), ".log"), "-")
		out[phase] = fi.Size()
	}
	return out, nil
}

// KeepLog adds bytes of a rank's log to what is kept of it. Idempotent.
func KeepLog(dir string, rank int, phase string, offset int64, data []byte) error {
	f, err := openKept(dir, rank, phase)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if offset > fi.Size() {
		return fmt.Errorf("%s: %w: %d bytes are kept, these begin at %d", f.Name(), ErrLogGap, fi.Size(), offset)
	}
	if _, err := f.WriteAt(data, offset); err != nil {
		return err
	}
	return f.Close()
}

func openKept(dir string, rank int, phase string) (*os.File, error) {
	if phase == "" || phase != filepath.Base(phase) {
		return nil, fmt.Errorf("a log has no phase %q", phase)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return os.OpenFile(filepath.Join(dir, fmt.Sprintf("%d-%s.log", rank, phase)), os.O_RDWR|os.O_CREATE, 0o600)
}

func cutPath(dir string, rank int) string { return filepath.Join(dir, fmt.Sprintf("%d.cut", rank)) }

func cutReason(err error) string {
	var unreached *url.Error
	if errors.As(err, &unreached) {
		return "it can't be reached any more"
	}
	return err.Error()
}

// keepLogsPatiently is keepLogs again and again while a node that can't be reached may come back: its agent is being restarted,
// say, or its host is cut off. What is not brought before the nodes are deleted is lost.
func (a *Activities) keepLogsPatiently(ctx context.Context, in EndInput) error {
	p, err := a.provider(in.Nodes.Provider)
	if err != nil {
		return err
	}
	began := time.Now()
	for {
		err := a.keepLogs(ctx, in)
		var answered *agentapi.Error
		var here *fs.PathError
		if err == nil || errors.As(err, &answered) || errors.As(err, &here) || in.Nodes.Lost || time.Since(began) > a.giveUpAfter(false) {
			return err
		}
		if later := a.unreached(ctx, p, in.Nodes.Ref, in.Nodes.Nodes, err); later != err {
			return later
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// keepLogs brings what is missing of the raw logs of every rank, and marks those that can't be read to their end.
func (a *Activities) keepLogs(ctx context.Context, in EndInput) error {
	dir := LogDir(a.Home, in.Managed, in.Task, in.Attempt)
	if _, err := os.Stat(filepath.Join(dir, "complete")); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	p, err := a.provider(in.Nodes.Provider)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range in.Nodes.Nodes {
		if err := a.keepNodeLog(ctx, p, n, in.JobID, dir); err != nil {
			errs = append(errs, fmt.Errorf("node %d: %w", n.Rank, err), os.WriteFile(cutPath(dir, n.Rank), []byte(cutReason(err)), 0o600))
		} else if err := os.Remove(cutPath(dir, n.Rank)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "complete"), nil, 0o600)
}

func (a *Activities) keepNodeLog(ctx context.Context, p providers.Provider, n providers.Node, job int64, dir string) (err error) {
	quick, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	c, err := NodeClient(quick, p, n)
	if err != nil {
		return err
	}
	defer c.Close()
	have, err := KeptUpTo(dir, n.Rank)
	if err != nil {
		return err
	}
	body, err := c.Logs(quick, job, agentapi.LogQuery{Offsets: have})
	if err != nil {
		var said *agentapi.Error
		if errors.As(err, &said) && said.Kind == agentapi.KindNotFound {
			return nil // no rank of the job ran there
		}
		return err
	}
	defer body.Close()
	r := agentapi.NewLogReader(body)
	files := map[string]*os.File{}
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.Sync(), f.Close())
		}
	}()
	for {
		h, data, err := r.Next()
		if err == io.EOF || err == nil && h.End {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Phase == "" || h.Len == 0 {
			continue
		}
		if h.Offset > have[h.Phase] {
			return fmt.Errorf("%s log: %w: %d bytes are kept, the node goes on at %d", h.Phase, ErrLogGap, have[h.Phase], h.Offset)
		}
		if files[h.Phase] == nil {
			if files[h.Phase], err = openKept(dir, n.Rank, h.Phase); err != nil {
				return err
			}
		}
		k, err := io.Copy(io.NewOffsetWriter(files[h.Phase], h.Offset), data)
		if err != nil {
			return err
		}
		have[h.Phase] = max(have[h.Phase], h.Offset+k)
	}
}
