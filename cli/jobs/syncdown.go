package jobs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/session"
)

var notInPaths = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// syncDown writes the raw logs of a job below ~/sky_logs/managed_jobs, a folder per task and attempt, a file per rank and phase; those
// of an array into a file per element.
func syncDown(ctx context.Context, s *session.Session, c *api.Client, o *LogsOptions) error {
	rows, err := c.ManagedJob(ctx, o.JobID)
	if err != nil {
		var ae *api.Error
		if errors.As(err, &ae) && ae.Kind == api.ErrJobNotFound {
			s.IO.Notef("%s", s.IO.ErrStyle(session.Red, ae.Error()))
			return session.Exit(api.ExitNotFound)
		}
		return err
	}
	name := strconv.FormatInt(o.JobID, 10)
	if n := strings.Trim(notInPaths.ReplaceAllString(rows[0].Name, "-"), "-."); n != "" {
		name += "-" + n
	}
	dir := filepath.Join(s.UserHome, "sky_logs", "managed_jobs", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	d := &download{s: s, dir: dir, open: map[string]*os.File{}, many: len(rows) > 1, array: rows[0].Array != nil}
	_, err = c.ManagedLogs(ctx, o.JobID, o.filter(), d.take)
	if err = errors.Join(err, d.close()); err != nil {
		return err
	}
	if d.files == 0 {
		s.IO.Warnf("Managed job %d has no log yet.", o.JobID)
	}
	s.IO.Printf("Job %d logs: %s\n", o.JobID, dir)
	return nil
}

// download writes the raw logs of a job as they come.
type download struct {
	s           *session.Session
	dir         string
	many, array bool
	open        map[string]*os.File // of an array one at most: its elements come one after the other
	files       int
}

func (d *download) take(ch api.LogChunk) error {
	if len(ch.Data) == 0 {
		return nil
	}
	path := d.path(ch)
	f := d.open[path]
	if f == nil {
		if d.array {
			if err := d.close(); err != nil {
				return err
			}
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		var err error
		if f, err = os.Create(path); err != nil {
			return err
		}
		d.files++
		d.open[path] = f
	}
	if ch.Lost > 0 {
		d.s.IO.Warnf("%d bytes of %s are no longer there.", ch.Lost, path)
	}
	_, err := f.Write(ch.Data)
	return err
}

func (d *download) path(ch api.LogChunk) string {
	if ch.Element != nil {
		name := fmt.Sprintf("element-%06d", *ch.Element)
		if ch.Attempt > 1 {
			name += fmt.Sprintf("-attempt-%d", ch.Attempt)
		}
		if ch.Rank > 0 {
			name += fmt.Sprintf("-rank-%d", ch.Rank)
		}
		return filepath.Join(d.dir, name+".log")
	}
	sub := fmt.Sprintf("attempt-%d", ch.Attempt)
	if d.many {
		sub = filepath.Join(fmt.Sprintf("task-%d", ch.Task), sub)
	}
	return filepath.Join(d.dir, sub, fmt.Sprintf("%d-%s.log", ch.Rank, notInPaths.ReplaceAllString(ch.Phase, "-")))
}

func (d *download) close() error {
	var errs []error
	for _, f := range d.open {
		errs = append(errs, f.Close())
	}
	d.open = map[string]*os.File{}
	return errors.Join(errs...)
}
