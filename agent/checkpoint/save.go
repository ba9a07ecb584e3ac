package checkpoint

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/skyloom/skyloom/agent/proctree"
)

// longestQuiet bounds how long a folder must be quiet after a save that came late.
const longestQuiet = 2 * time.Second

// Saving is a folder as it was before a program was told to save into it.
type Saving struct {
	dir   string
	print Print
	temps map[string]string // files of a save under way, with what they looked like
	open  map[string]bool   // files that are open for writing all the time
}

// Before takes note of a folder, and of what the processes that may write to it have open.
func Before(dir string, procs []proctree.Proc) Saving {
	return Saving{dir: dir, print: Look(dir), temps: temps(dir), open: written(dir, procs)}
}

// Outcomes of a save.
const (
	SavedNothing = "nothing was written" // the program has not touched the folder
	SavedPartly  = "the save was still under way"
	SavedAll     = ""
)

// Await waits until the save of a program that was told to save is over: something has changed, no file of a save is left
// over or being written, and nothing more follows. A program that was slow to begin is given as long to go on, as its disk or
// its processor may be slow in the middle of the save as well. When within is over it tells what is missing.
func (s Saving) Await(ctx context.Context, procs func() []proctree.Proc, within time.Duration) string {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if !AwaitChange(ctx, s.dir, s.print, within) {
		return SavedNothing
	}
	pause := min(max(time.Since(began), quietLeast), longestQuiet)
	for last, since := Look(s.dir), time.Now(); ; {
		select {
		case <-ctx.Done():
			if s.underWay(procs()) {
				return SavedPartly
			}
			return SavedAll
		case <-time.After(pollEvery):
		}
		if now := Look(s.dir); now != last || s.underWay(procs()) {
			last, since = now, time.Now()
		}
		if time.Since(since) >= pause {
			return SavedAll
		}
	}
}

// underWay says that a file of a save that began since is there, or that a file is open for writing that was not before.
func (s Saving) underWay(procs []proctree.Proc) bool {
	for path, mark := range temps(s.dir) {
		if s.temps[path] != mark {
			return true
		}
	}
	for path := range written(s.dir, procs) {
		if !s.open[path] {
			return true
		}
	}
	return false
}

// temps gives the files of a folder whose names say that they are going to be renamed.
func temps(dir string) map[string]string {
	out := map[string]string{}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !temporary(d.Name()) {
			return nil
		}
		if fi, err := d.Info(); err == nil {
			out[path] = fi.ModTime().String() + strconv.FormatInt(fi.Size(), 10)
		}
		return nil
	})
	return out
}

func temporary(name string) bool {
	return strings.Contains(name, ".tmp") || strings.HasPrefix(name, "tmp")
}

// written gives the files below a folder that processes have open for writing. See proc_pid_fdinfo(5).
func written(dir string, procs []proctree.Proc) map[string]bool {
	out := map[string]bool{}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	for _, p := range procs {
		base := "/proc/" + strconv.Itoa(p.PID)
		fds, err := os.ReadDir(base + "/fd")
		if err != nil {
			continue // it has ended, or is not ours to look into
		}
		for _, fd := range fds {
			path, err := os.Readlink(base + "/fd/" + fd.Name())
			if err == nil && strings.HasPrefix(path, dir+"/") && writes(base+"/fdinfo/"+fd.Name()) {
				out[path] = true
			}
		}
	}
	return out
}

func writes(fdinfo string) bool {
	b, err := os.ReadFile(fdinfo)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(rest), 8, 64)
			return err == nil && flags&(uint64(os.O_WRONLY)|uint64(os.O_RDWR)) != 0
		}
	}
	return false
}
