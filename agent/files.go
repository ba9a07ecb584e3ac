package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/internal/filesync"
)

// spoolAge is how long blobs and manifests of a sync that was broken off are kept for its repetition.
const spoolAge = 6 * time.Hour

// fileStore holds what was sent for syncs: blobs by hash in spool/, manifests by id in manifests/. A manifest that was
// planned and not yet applied is pending, and keeps its blobs.
type fileStore struct {
	mu      sync.Mutex
	pending map[string]pendingSync // by manifest and destination
	dsts    map[string]*sync.Mutex // one sync at a time for each destination
}

type pendingSync struct {
	manifest string
	since    time.Time
}

// lock keeps others from a destination.
func (s *fileStore) lock(dst string) func() {
	s.mu.Lock()
	if s.dsts == nil {
		s.dsts = map[string]*sync.Mutex{}
	}
	m := s.dsts[dst]
	if m == nil {
		m = &sync.Mutex{}
		s.dsts[dst] = m
	}
	s.mu.Unlock()
	m.Lock()
	return m.Unlock
}

func (a *Agent) fileRoutes(m *http.ServeMux) {
	handle(m, "POST /v1/files/plan", func(r *http.Request) (any, error) {
		q := r.URL.Query()
		to := agentapi.FileApply{Dst: q.Get("dst"), File: q.Get("file") != "", Mirror: q.Get("mirror") != ""}
		return a.PlanFiles(r.Context(), to, r.Body)
	})
	handle(m, "PUT /v1/files/blobs", func(r *http.Request) (any, error) { return nil, a.TakeBlobs(r.Context(), r.Body) })
	handle(m, "POST /v1/files/apply", with(func(to agentapi.FileApply, r *http.Request) (any, error) {
		return a.ApplyFiles(r.Context(), to)
	}))
}

// target says where files go: an absolute path, one below the home, or one below the folder that commands run in.
func (a *Agent) target(to agentapi.FileApply) (filesync.Target, error) {
	dst := to.Dst
	switch {
	case dst == "":
		return filesync.Target{}, invalid("files need a destination")
	case strings.Contains(dst, "\x00"):
		return filesync.Target{}, invalid("the destination holds a zero byte")
	case dst == "~" || strings.HasPrefix(dst, "~/"):
		dst = filepath.Join(a.cfg.Home, strings.TrimPrefix(dst, "~"))
	case !filepath.IsAbs(dst):
		dst = filepath.Join(a.cfg.Home, "sky_workdir", dst)
	}
	dst = filepath.Clean(dst)
	if dst == "/" && to.Mirror {
		return filesync.Target{}, invalid("the root folder cannot be mirrored to")
	}
	sum := sha256.Sum256([]byte(dst))
	index := filesync.OpenIndex(a.path("index", hex.EncodeToString(sum[:16])))
	return filesync.Target{Dst: dst, File: to.File, Mirror: to.Mirror, Index: index}, nil
}

// PlanFiles takes a manifest and names the blobs that neither the destination nor the spool has.
func (a *Agent) PlanFiles(ctx context.Context, to agentapi.FileApply, body io.Reader) (agentapi.FilePlan, error) {
	m, err := filesync.Decode(body, filesync.Limits{})
	if err != nil {
		return agentapi.FilePlan{}, fileError(err)
	}
	t, err := a.target(to)
	if err != nil {
		return agentapi.FilePlan{}, err
	}
	defer a.files.lock(t.Dst)()
	for _, d := range []string{"spool", "manifests", "index"} {
		if err := os.MkdirAll(a.path(d), 0o700); err != nil {
			return agentapi.FilePlan{}, diskError(err)
		}
	}
	need, err := filesync.Plan(ctx, m, t)
	if err != nil {
		return agentapi.FilePlan{}, fileError(err)
	}
	id := m.ID()
	data, err := m.Bytes()
	if err != nil {
		return agentapi.FilePlan{}, err
	}
	tmp := a.path("manifests", "."+id)
	err = os.WriteFile(tmp, data, 0o600)
	if err == nil {
		err = os.Rename(tmp, a.path("manifests", id))
	}
	if err != nil {
		return agentapi.FilePlan{}, diskError(err)
	}
	a.files.mu.Lock()
	defer a.files.mu.Unlock()
	if a.files.pending == nil {
		a.files.pending = map[string]pendingSync{}
		a.sweepSpool()
	}
	a.files.pending[id+" "+t.Dst] = pendingSync{id, time.Now()}
	plan := agentapi.FilePlan{Missing: []string{}, Bytes: need.Bytes}
	for _, h := range need.Missing {
		if fi, err := os.Stat(a.blob(h)); err == nil {
			plan.Bytes -= fi.Size()
		} else {
			plan.Missing = append(plan.Missing, h)
		}
	}
	return plan, nil
}

func (a *Agent) blob(hash string) string { return a.path("spool", hash) }

// TakeBlobs keeps the blobs of a pack. Those that arrived whole before an error stay.
func (a *Agent) TakeBlobs(ctx context.Context, body io.Reader) error {
	if err := os.MkdirAll(a.path("spool"), 0o700); err != nil {
		return diskError(err)
	}
	_, err := filesync.ReadPack(ctx, body, filesync.PackLimits{}, func(hash string, _ int64, r io.Reader) error {
		tmp, err := os.CreateTemp(a.path("spool"), ".in-*")
		if err != nil {
			return err
		}
		_, err = io.Copy(tmp, r)
		if cerr := tmp.Close(); err == nil {
			err = cerr
		}
		if err == nil {
			err = os.Rename(tmp.Name(), a.blob(hash))
		}
		if err != nil {
			os.Remove(tmp.Name())
		}
		return err
	})
	return fileError(err)
}

// spool gives blobs to an apply.
type spool struct{ a *Agent }

// Open opens a blob that was sent.
func (s spool) Open(hash string) (io.ReadCloser, int64, error) {
	f, err := os.Open(s.a.blob(hash))
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

// ApplyFiles brings a destination to the state of a manifest that was planned.
func (a *Agent) ApplyFiles(ctx context.Context, to agentapi.FileApply) (agentapi.FileResult, error) {
	if !filesync.IsHash(to.Manifest) {
		return agentapi.FileResult{}, invalid("%q is not the id of a manifest", to.Manifest)
	}
	t, err := a.target(to)
	if err != nil {
		return agentapi.FileResult{}, err
	}
	defer a.files.lock(t.Dst)()
	m, err := a.manifest(to.Manifest)
	if err != nil {
		return agentapi.FileResult{}, err
	}
	res, err := filesync.Apply(ctx, m, t, spool{a})
	if errors.Is(err, fs.ErrNotExist) && ctx.Err() == nil {
		return agentapi.FileResult{}, notFound("%v: plan the sync again, and send what is missing", err)
	}
	if err != nil {
		return agentapi.FileResult{}, fileError(err)
	}
	a.files.mu.Lock()
	defer a.files.mu.Unlock()
	delete(a.files.pending, to.Manifest+" "+t.Dst)
	a.forget(m)
	return agentapi.FileResult{Written: res.Written, Removed: res.Removed, Bytes: res.Bytes, Warnings: res.Warnings}, nil
}

func (a *Agent) manifest(id string) (*filesync.Manifest, error) {
	f, err := os.Open(a.path("manifests", id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound("manifest %.12s was not planned here: plan the sync first", id)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, err := filesync.Decode(f, filesync.Limits{})
	return m, fileError(err)
}

// forget removes a manifest's blobs from the spool, those of pending syncs excepted. The caller holds files.mu.
func (a *Agent) forget(m *filesync.Manifest) {
	keep := map[string]bool{}
	for key, p := range a.files.pending {
		if time.Since(p.since) > spoolAge {
			delete(a.files.pending, key)
			continue
		}
		if other, err := a.manifest(p.manifest); err == nil {
			for _, h := range other.Hashes() {
				keep[h] = true
			}
		}
	}
	names, err := os.ReadDir(a.path("spool"))
	if err != nil || len(names) == 0 {
		return
	}
	mine := map[string]bool{}
	for _, h := range m.Hashes() {
		mine[h] = true
	}
	for _, n := range names {
		if mine[n.Name()] && !keep[n.Name()] {
			os.Remove(a.blob(n.Name()))
		}
	}
}

// sweepSpool removes what syncs left that were broken off long ago.
func (a *Agent) sweepSpool() {
	for _, dir := range []string{"spool", "manifests"} {
		names, _ := os.ReadDir(a.path(dir))
		for _, n := range names {
			if fi, err := n.Info(); err == nil && time.Since(fi.ModTime()) > spoolAge {
				os.Remove(a.path(dir, n.Name()))
			}
		}
	}
}

// fileError gives what went wrong with files its kind.
func fileError(err error) error {
	var e *agentapi.Error
	var pe *filesync.PathError
	switch {
	case err == nil || errors.As(err, &e):
		return err
	case errors.As(diskError(err), &e):
		return e
	case errors.Is(err, filesync.ErrInvalid):
		return invalid("%v", err)
	case errors.As(err, &pe):
		return conflict("%v", err)
	}
	return err
}
