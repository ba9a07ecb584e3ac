// Package upload brings a task's local files to the server: it describes them (by content), sends what the server
// lacks, and returns what stands in the request. It must not know what the server does with them.
package upload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/console"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/taskflags"
	"github.com/skyloom/skyloom/internal/filesync"
	"github.com/skyloom/skyloom/task"
)

// WorkdirDst is where the workdir goes on every node.
const WorkdirDst = "~/sky_workdir"

// Batch limits of one upload call: a cut connection repeats no more than that.
const (
	batchBytes = 64 << 20
	batchBlobs = 4000
)

// Files is what a request carries.
type Files struct {
	Mounts    []api.FileMount
	GitCommit string // of the workdir's repository, "" if it is in none
}

// Options say what to bring.
type Options struct {
	WorkdirOnly bool
	// Repository is what Resolve gave for the task.
	Repository *Repository
}

// Upload brings the local files of t to the server, with progress on a terminal.
func Upload(ctx context.Context, s *session.Session, c *api.Client, t *task.Task, o Options) (*Files, error) {
	u := &uploader{s: s, c: c, raw: loopback(c.Endpoint())}
	out := &Files{}
	on := taskflags.FS(s)
	add := func(src, dst string, mirror bool) error {
		abs, err := on.Abs(src)
		if err != nil {
			return err
		}
		m, err := u.one(ctx, abs, src)
		if err != nil {
			return err
		}
		m.Dst, m.Mirror, m.Source = dst, mirror, src
		out.Mounts = append(out.Mounts, *m)
		return nil
	}
	switch {
	case t.Workdir.IsGit():
		m, err := u.bring(ctx, o.Repository)
		if err != nil {
			return nil, err
		}
		out.Mounts, out.GitCommit = append(out.Mounts, *m), o.Repository.version.Commit
	case t.Workdir != nil:
		if err := add(t.Workdir.Path, WorkdirDst, t.Workdir.Mirror); err != nil {
			return nil, err
		}
		if abs, err := on.Abs(t.Workdir.Path); err == nil {
			out.GitCommit = gitCommit(abs)
		}
	}
	if o.WorkdirOnly {
		return out, nil
	}
	for _, m := range t.FileMounts {
		if m.IsRemote() {
			continue
		}
		if err := add(m.Src, m.Dst, false); err != nil {
			return nil, err
		}
	}
	return out, nil
}

type uploader struct {
	s   *session.Session
	c   *api.Client
	raw bool
}

// tries is how often bringing a folder is begun anew because a file changed between its reading and its sending.
const tries = 4

// unsteady is what is known of files that change while they are brought to the server.
type unsteady struct {
	since time.Time       // it began
	paths map[string]bool // they did change
	said  map[string]bool // warnings
}

// copied says which files must be copied when they are read, for what is sent not to depend on them: those that changed, and
// those that something has just written to.
func (c *unsteady) copied(path string, fi fs.FileInfo) bool {
	return c.paths[path] || fi.ModTime().After(c.since.Add(-time.Second))
}

// one brings one folder or file. A file that changes between reading and sending starts it over.
func (u *uploader) one(ctx context.Context, path, shown string) (*api.FileMount, error) {
	live := u.s.IO.StartLive(u.s.Now)
	defer live.Close()
	c := &unsteady{since: u.s.Now(), paths: map[string]bool{}, said: map[string]bool{}}
	for try := 1; ; try++ {
		m, err := u.attempt(ctx, path, shown, c, live)
		if errors.Is(err, filesync.ErrChanged) && try < tries {
			var pe *filesync.PathError
			if errors.As(err, &pe) {
				c.paths[pe.Path] = true
			}
			continue
		}
		if err != nil {
			live.Fail()
			if try > 1 && errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("it vanished meanwhile (%w)\nPut it back, or give the path of another folder, and launch again", err)
			}
			return nil, fmt.Errorf("%s could not be brought to the server: %w", shown, err)
		}
		return m, nil
	}
}

func (u *uploader) attempt(ctx context.Context, path, shown string, c *unsteady, live *console.Live) (*api.FileMount, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	so := filesync.ScanOptions{Tolerant: true, Progress: func(p filesync.Progress) {
		if p.TotalFiles > 0 {
			live.Update(fmt.Sprintf("Reading %s: %d of %d files, %s of %s", shown, p.Files, p.TotalFiles, filesync.SizeText(p.Bytes), filesync.SizeText(p.TotalBytes)), false)
		} else {
			live.Update(fmt.Sprintf("Listing %s: %d files", shown, p.Files), false)
		}
	}}
	if len(c.paths) > 0 {
		so.Copy = c.copied
	}
	if home, err := u.s.Home(); err == nil {
		dir := filepath.Join(home, "cache", "scan")
		if os.MkdirAll(dir, 0o700) == nil {
			so.Cache = filesync.OpenHashCache(filesync.CacheFile(dir, path))
		}
	}
	var tree *filesync.Tree
	file := !st.IsDir()
	if file {
		tree, err = filesync.ScanFile(ctx, path, so)
	} else {
		tree, err = filesync.Scan(ctx, path, so)
	}
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	if so.Cache != nil {
		_ = so.Cache.Save() // only costs time the next time
	}
	for _, w := range tree.Warnings {
		if !c.said[w] {
			c.said[w] = true
			u.s.IO.Warnf("%s", w)
		}
	}
	encoded, err := tree.Manifest.Bytes()
	if err != nil {
		return nil, err
	}
	for round := 0; ; round++ {
		reply, err := u.c.PutManifest(ctx, encoded)
		if err != nil {
			return nil, err
		}
		if len(reply.Missing) == 0 {
			if round > 0 {
				files, bytes := tree.Manifest.Totals()
				live.Done(fmt.Sprintf("Synced %s: %s", shown, filesync.AmountText(files, bytes)))
			} else {
				live.Drop()
			}
			return &api.FileMount{Manifest: reply.ID, File: file}, nil
		}
		if round == 3 {
			return nil, fmt.Errorf("the server still lacks %d files after they were sent three times\nIs its disk full? See: sky api logs --server-logs", len(reply.Missing))
		}
		if err := u.send(ctx, tree, tree.Manifest.InOrder(reply.Missing), shown, live); err != nil {
			return nil, err
		}
	}
}

// send uploads blobs in batches.
func (u *uploader) send(ctx context.Context, tree *filesync.Tree, missing []string, shown string, live *console.Live) error {
	sizes := tree.Manifest.Sizes()
	var total, sent int64
	for _, h := range missing {
		total += sizes[h]
	}
	sentBlobs := 0
	for len(missing) > 0 {
		n, bytes := 0, int64(0)
		for n < len(missing) && n < batchBlobs && (n == 0 || bytes+sizes[missing[n]] <= batchBytes) {
			bytes += sizes[missing[n]]
			n++
		}
		batch := missing[:n]
		missing = missing[n:]
		all := sentBlobs + n + len(missing)
		po := filesync.PackOptions{Raw: u.raw, Progress: func(blobs int, b int64) {
			live.Update(fmt.Sprintf("Sending %s: %d of %d files, %s of %s", shown, sentBlobs+blobs, all, filesync.SizeText(sent+b), filesync.SizeText(total)), false)
		}}
		err := u.c.PutBlobs(ctx, func() (io.ReadCloser, error) {
			return filesync.NewPackBody(ctx, tree, batch, po), nil
		})
		if err != nil {
			return err
		}
		sent += bytes
		sentBlobs += n
	}
	return nil
}

func loopback(endpoint string) bool {
	u, err := url.Parse(endpoint)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || (ip != nil && ip.IsLoopback())
}

// gitCommit reads the commit that the repository around dir is at, without running git; "" when there is none.
func gitCommit(dir string) string {
	for {
		git := filepath.Join(dir, ".git")
		if st, err := os.Stat(git); err == nil {
			if !st.IsDir() { // a worktree or submodule: a file that points to the folder
				b, err := os.ReadFile(git)
				target, ok := strings.CutPrefix(strings.TrimSpace(string(b)), "gitdir: ")
				if err != nil || !ok {
					return ""
				}
				if git = target; !filepath.IsAbs(git) {
					git = filepath.Join(dir, target)
				}
			}
			return headOf(git)
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return ""
		}
		dir = parent
	}
}

func headOf(git string) string {
	b, err := os.ReadFile(filepath.Join(git, "HEAD"))
	if err != nil {
		return ""
	}
	head := strings.TrimSpace(string(b))
	ref, ok := strings.CutPrefix(head, "ref: ")
	if !ok {
		return commitHash(head)
	}
	dirs := []string{git}
	if b, err := os.ReadFile(filepath.Join(git, "commondir")); err == nil {
		common := strings.TrimSpace(string(b))
		if !filepath.IsAbs(common) {
			common = filepath.Join(git, common)
		}
		dirs = append(dirs, common)
	}
	for _, d := range dirs {
		if b, err := os.ReadFile(filepath.Join(d, filepath.FromSlash(ref))); err == nil {
			return commitHash(strings.TrimSpace(string(b)))
		}
		b, err := os.ReadFile(filepath.Join(d, "packed-refs"))
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(b), "\n") {
			if hash, name, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name == ref {
				return commitHash(hash)
			}
		}
	}
	return ""
}

func commitHash(s string) string {
	if (len(s) == 40 || len(s) == 64) && strings.Trim(s, "0123456789abcdef") == "" {
		return s
	}
	return ""
}
