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
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/internal/artifact"
	"github.com/skyloom/skyloom/internal/filesync"
)

// spoolAge is how long blobs and manifests of a sync that was broken off are kept for its repetition.
const spoolAge = 6 * time.Hour

// planAge is how long a plan stays in memory for its apply; after that the manifest is read back from the disk.
const planAge = 10 * time.Minute

// planFresh is how long an apply need not look again at files that the plan found in order.
const planFresh = 30 * time.Second

// fileStore holds what was sent for syncs: blobs by hash in spool/, manifests by id in manifests/. A manifest that was
// planned and not yet applied is pending, and keeps its blobs.
type fileStore struct {
	mu      sync.Mutex
	spool   *artifact.Store         // opened at the first use
	pending map[string]*pendingSync // by manifest and destination
	dsts    map[string]*sync.Mutex  // one sync at a time for each destination
	last    map[string]*lastSync    // by destination: see files_known.go
}

// pendingSync is a sync that was planned. The manifest and the target are let go of after planAge.
type pendingSync struct {
	id       string
	since    time.Time
	missing  []string // what the destination lacked
	manifest *filesync.Manifest
	target   filesync.Target
	need     filesync.Need
	expiry   *time.Timer
}

// blobs opens the spool; what was left there long ago is removed first.
func (a *Agent) blobs() (*artifact.Store, error) {
	s := &a.files
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spool != nil {
		return s.spool, nil
	}
	for _, d := range []string{"manifests", "index", "known"} {
		if err := os.MkdirAll(a.path(d), 0o700); err != nil {
			return nil, diskError(err)
		}
	}
	spool, err := artifact.Open(a.path("spool"), artifact.Options{Logger: a.log, Spool: true})
	if err != nil {
		return nil, diskError(err)
	}
	if _, err := spool.GC(context.Background(), func(string) bool { return false }, spoolAge); err != nil {
		a.log.Warn("old files of syncs were not removed", "error", err)
	}
	names, _ := os.ReadDir(a.path("manifests"))
	for _, n := range names {
		if fi, err := n.Info(); err == nil && time.Since(fi.ModTime()) > spoolAge {
			os.Remove(a.path("manifests", n.Name()))
		}
	}
	s.spool, s.pending, s.last = spool, map[string]*pendingSync{}, map[string]*lastSync{}
	a.sweepKnown()
	return spool, nil
}

// close lets go of the spool; the process is about to end.
func (s *fileStore) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spool != nil {
		s.spool.Close()
	}
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
		to := agentapi.FileApply{Dst: q.Get("dst"), File: q.Get("file") != "", Mirror: q.Get("mirror") != "", Prune: q.Get("prune") != "", Now: q.Get("now") != "", Place: q.Get("place") != "",
			Known: q.Get("known") != "", Base: q.Get("base"), Manifest: q.Get("manifest")}
		return a.PlanFiles(r.Context(), to, r.Body)
	})
	handle(m, "POST /v1/files/fetch", with(func(f agentapi.FileFetch, r *http.Request) (any, error) {
		return a.FetchBlobs(r.Context(), f)
	}))
	m.HandleFunc("PUT /v1/files/blobs", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		body := &livelyBody{r: r.Body, rc: http.NewResponseController(w)}
		err := a.TakeBlobs(r.Context(), agentapi.FileApply{Dst: q.Get("dst"), Manifest: q.Get("manifest")}, body)
		body.done()
		answer(w, nil, err)
	})
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
	return filesync.Target{Dst: dst, File: to.File, Mirror: to.Mirror, Prune: to.Prune}, nil
}

// index reads what is known of the files at a destination.
func (a *Agent) index(dst string) *filesync.Index {
	if l := a.inMemory(dst); l != nil {
		return l.index
	}
	return filesync.OpenIndex(a.path("index", dstKey(dst)))
}

// dstKey is a destination as part of a file's name.
func dstKey(dst string) string {
	sum := sha256.Sum256([]byte(dst))
	return hex.EncodeToString(sum[:16])
}

// PlanFiles takes a manifest and names the blobs that neither the destination nor the spool has.
func (a *Agent) PlanFiles(ctx context.Context, to agentapi.FileApply, body io.Reader) (agentapi.FilePlan, error) {
	t, err := a.target(to)
	if err != nil {
		return agentapi.FilePlan{}, err
	}
	sent, err := receive(to, body)
	if err != nil {
		return agentapi.FilePlan{}, fileError(err)
	}
	defer a.files.lock(t.Dst)()
	spool, err := a.blobs()
	if err != nil {
		return agentapi.FilePlan{}, err
	}
	m, id := a.resolve(sent, t.Dst)
	if m == nil {
		return agentapi.FilePlan{Missing: []string{}, Unknown: true, Base: a.lastOf(t.Dst)}, nil
	}
	t.Index = a.index(t.Dst)
	need, err := filesync.Plan(ctx, m, t)
	if err != nil {
		return agentapi.FilePlan{}, fileError(err)
	}
	if to.Now && len(need.Missing) == 0 {
		t.Planned = &need
		res, err := a.bring(ctx, id, m, t, spool)
		return agentapi.FilePlan{Missing: []string{}, Applied: &res}, err
	}
	lacks, err := spool.Has(ctx, need.Missing)
	if err != nil {
		return agentapi.FilePlan{}, fileError(err)
	}
	p := &pendingSync{id: id, since: time.Now(), missing: need.Missing, manifest: m, target: t, need: need}
	if err := a.roomFor(m, need, lacks, t.Dst, to.Place); err != nil {
		return agentapi.FilePlan{}, err
	}
	if err := a.keepManifest(p); err != nil {
		return agentapi.FilePlan{}, diskError(err)
	}
	a.files.mu.Lock()
	if old := a.files.pending[p.id+" "+t.Dst]; old != nil { // what was sent for it goes too in the end
		p.missing = append(slices.Clone(need.Missing), old.missing...)
		slices.Sort(p.missing)
		p.missing = slices.Compact(p.missing)
	}
	a.files.pending[p.id+" "+t.Dst] = p
	p.expiry = time.AfterFunc(planAge, func() {
		a.files.mu.Lock()
		defer a.files.mu.Unlock()
		p.manifest, p.target, p.need = nil, filesync.Target{}, filesync.Need{}
	})
	a.files.mu.Unlock()
	plan := agentapi.FilePlan{Missing: []string{}}
	if len(lacks) > 0 {
		sizes := m.Sizes()
		plan.Missing = lacks
		for _, h := range lacks {
			plan.Bytes += sizes[h]
		}
	}
	return plan, nil
}

// keepManifest writes a manifest down for an apply after a restart of the agent.
func (a *Agent) keepManifest(p *pendingSync) error {
	path := a.path("manifests", p.id)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	return writeManifest(p.manifest, path)
}

// TakeBlobs keeps the blobs of a pack. If they are for a plan whose destination was empty, they go straight there. Those
// that arrived whole before an error stay.
func (a *Agent) TakeBlobs(ctx context.Context, to agentapi.FileApply, body io.Reader) error {
	spool, err := a.blobs()
	if err != nil {
		return err
	}
	placer, done, err := a.placer(ctx, to)
	if err != nil {
		return fileError(err)
	}
	if placer == nil {
		_, err = spool.PutPack(ctx, body, filesync.PackLimits{})
	} else {
		_, err = filesync.ReadPack(ctx, body, filesync.PackLimits{}, func(hash string, size int64, r io.Reader) error {
			placed, err := placer.Add(hash, size, r)
			if err == nil && !placed {
				err = spool.PutChecked(hash, r)
			}
			return err
		})
		err = done(err)
	}
	if err != nil {
		// What is left is read, or the sender might see a broken connection before it sees the reason.
		_, _ = io.CopyN(io.Discard, body, drainBytes)
	}
	return fileError(err)
}

// placer is for blobs that need not wait for the apply; nil if these do. done ends it, is told why no more came, and gives
// the reason for that.
func (a *Agent) placer(ctx context.Context, to agentapi.FileApply) (_ *filesync.Placer, done func(error) error, _ error) {
	if to.Manifest == "" {
		return nil, nil, nil
	}
	t, err := a.target(to)
	if err != nil {
		return nil, nil, err
	}
	unlock := a.files.lock(t.Dst)
	a.files.mu.Lock()
	p := a.files.pending[to.Manifest+" "+t.Dst]
	var m *filesync.Manifest
	var need *filesync.Need
	if p != nil && p.manifest != nil && p.need.Fresh() && p.expiry.Reset(planAge) {
		n := p.need // the timer may clear that one
		m, t, need = p.manifest, p.target, &n
	}
	a.files.mu.Unlock()
	if m == nil {
		unlock()
		return nil, nil, nil
	}
	placer, err := filesync.NewPlacer(ctx, m, t, need)
	if err != nil {
		unlock()
		return nil, nil, err
	}
	return placer, func(err error) error {
		defer unlock()
		return placer.Close(err)
	}, nil
}

// blobSilence is how long a sender may say nothing: it keeps others from the destination.
const blobSilence = time.Minute

// livelyBody fails when nothing comes for blobSilence.
type livelyBody struct {
	r   io.Reader
	rc  *http.ResponseController
	set time.Time
}

func (b *livelyBody) Read(p []byte) (int, error) {
	if now := time.Now(); now.Sub(b.set) > blobSilence/10 {
		b.set = now
		_ = b.rc.SetReadDeadline(now.Add(blobSilence))
	}
	return b.r.Read(p)
}

// done takes the deadline away, so that it does not cut the answer.
func (b *livelyBody) done() { _ = b.rc.SetReadDeadline(time.Time{}) }

// drainBytes is how much of a refused pack is read, in bytes: somewhat more than senders put into one.
const drainBytes = 64 << 20

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
	spool, err := a.blobs()
	if err != nil {
		return agentapi.FileResult{}, err
	}
	a.files.mu.Lock()
	p := a.files.pending[to.Manifest+" "+t.Dst]
	var m *filesync.Manifest
	if p != nil && p.manifest != nil {
		m, t.Index = p.manifest, p.target.Index
		// Of a fresh plan only what was placed since is in order.
		if time.Since(p.since) < planFresh || p.need.Fresh() {
			need := p.need
			t.Planned = &need
		}
	}
	a.files.mu.Unlock()
	if m == nil {
		if m, err = a.manifest(to.Manifest); err != nil {
			return agentapi.FileResult{}, err
		}
		t.Index = a.index(t.Dst)
	}
	return a.bring(ctx, to.Manifest, m, t, spool)
}

// bring brings the target to the state of a manifest and lets go of the sync.
func (a *Agent) bring(ctx context.Context, id string, m *filesync.Manifest, t filesync.Target, spool *artifact.Store) (agentapi.FileResult, error) {
	t.Trusted = true // the spool checked what it took
	res, err := filesync.Apply(ctx, m, t, spool)
	if errors.Is(err, fs.ErrNotExist) && ctx.Err() == nil {
		return agentapi.FileResult{}, notFound("%v: plan the sync again, and send what is missing", err)
	}
	if err != nil {
		return agentapi.FileResult{}, fileError(err)
	}
	a.remember(id, m, t)
	a.forget(id, m, t)
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

// forget ends a sync: its blobs leave the spool, unless another one that is pending needs them.
func (a *Agent) forget(id string, m *filesync.Manifest, t filesync.Target) {
	a.files.mu.Lock()
	defer a.files.mu.Unlock()
	key := id + " " + t.Dst
	var gone []string
	switch p := a.files.pending[key]; {
	case p != nil:
		gone = p.missing
		delete(a.files.pending, key)
	case t.Planned == nil: // planned long ago, maybe before the agent was restarted
		gone = m.Hashes()
	}
	keep, named := map[string]bool{}, false
	for other, p := range a.files.pending {
		if time.Since(p.since) > spoolAge {
			delete(a.files.pending, other)
			continue
		}
		named = named || p.id == id
		if p.target.Dst == t.Dst { // what it knows of the destination is out of date
			p.manifest, p.target, p.need = nil, filesync.Target{}, filesync.Need{}
		}
		for _, h := range p.missing {
			keep[h] = true
		}
	}
	gone = slices.DeleteFunc(gone, func(h string) bool { return keep[h] })
	if err := a.files.spool.Remove(gone...); err != nil {
		a.log.Warn("files of a sync were not removed", "error", err)
	}
	if !named {
		os.Remove(a.path("manifests", id))
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
