package agent

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/internal/filesync"
)

// A node keeps, for each destination, the manifest that it was brought to last: in known/, and for a while in memory. The next
// sync then only names it, if nothing changed, or tells what changed. That the node knows a manifest says nothing about the
// destination, which is looked at all the same.

const (
	// knownAge is how long a manifest is kept after it was applied.
	knownAge = 30 * 24 * time.Hour
	// mostInMemory is how many entries a manifest may have to stay in memory, for memoryAge. With its index such a one takes
	// some 10 MB.
	mostInMemory = 20_000
	memoryAge    = 5 * time.Minute
)

// lastSync is what a destination was brought to last. The manifest and the index are let go of after memoryAge.
type lastSync struct {
	id       string
	manifest *filesync.Manifest
	index    *filesync.Index
	expiry   *time.Timer
}

// sentPlan is a manifest as it came: whole, as what it has otherwise than a base, or by its id only.
type sentPlan struct {
	id       string
	manifest *filesync.Manifest
	base     string
	delta    *filesync.Delta
}

func receive(to agentapi.FileApply, body io.Reader) (s sentPlan, err error) {
	if (to.Known || to.Base != "") && !filesync.IsHash(to.Manifest) || to.Base != "" && !filesync.IsHash(to.Base) {
		return s, invalid("%q or %q is not the id of a manifest", to.Manifest, to.Base)
	}
	switch {
	case to.Known:
		s.id = to.Manifest
	case to.Base != "":
		s.id, s.base = to.Manifest, to.Base
		s.delta, err = filesync.DecodeDelta(body, filesync.Limits{})
	default:
		if s.manifest, err = filesync.Decode(body, filesync.Limits{}); err == nil {
			s.id = s.manifest.ID()
		}
	}
	return s, err
}

// resolve gives the manifest that was meant; nil if it has to be sent whole.
func (a *Agent) resolve(s sentPlan, dst string) (*filesync.Manifest, string) {
	switch {
	case s.manifest != nil:
		return s.manifest, s.id
	case s.delta != nil:
		base := a.known(s.base, dst)
		if base == nil {
			return nil, ""
		}
		m, err := s.delta.Apply(base)
		if err == nil && m.ID() != s.id {
			err = errors.New("it is not the one that was announced")
		}
		if err != nil {
			a.log.Warn("a manifest was not made out of its changes and is asked for whole", "error", err)
			return nil, ""
		}
		return m, s.id
	}
	return a.known(s.id, dst), s.id
}

// known finds a manifest that is planned, or was applied to the destination last.
func (a *Agent) known(id, dst string) *filesync.Manifest {
	if l := a.inMemory(dst); l != nil && l.id == id {
		return l.manifest
	}
	a.files.mu.Lock()
	if p := a.files.pending[id+" "+dst]; p != nil && p.manifest != nil {
		defer a.files.mu.Unlock()
		return p.manifest
	}
	a.files.mu.Unlock()
	for _, path := range []string{a.knownPath(dst, id), a.path("manifests", id)} {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		m, err := filesync.Decode(f, filesync.Limits{})
		f.Close()
		if err == nil && m.ID() == id {
			return m
		}
	}
	return nil
}

func (a *Agent) knownPath(dst, id string) string { return a.path("known", dstKey(dst)+"-"+id) }

func (a *Agent) inMemory(dst string) *lastSync {
	a.files.mu.Lock()
	defer a.files.mu.Unlock()
	if l := a.files.last[dst]; l != nil && l.manifest != nil {
		copied := *l
		return &copied
	}
	return nil
}

// lastOf is the id of the manifest that a destination was brought to last; "" if it is not known.
func (a *Agent) lastOf(dst string) string {
	a.files.mu.Lock()
	l := a.files.last[dst]
	a.files.mu.Unlock()
	if l != nil {
		return l.id
	}
	found, _ := filepath.Glob(a.path("known", dstKey(dst)+"-*"))
	for _, p := range found {
		if _, id, _ := strings.Cut(filepath.Base(p), "-"); filesync.IsHash(id) {
			return id
		}
	}
	return ""
}

// remember notes what a destination was brought to. That it fails only makes the next sync send more.
func (a *Agent) remember(id string, m *filesync.Manifest, t filesync.Target) {
	path := a.knownPath(t.Dst, id)
	if _, err := os.Stat(path); err != nil {
		old, _ := filepath.Glob(a.path("known", dstKey(t.Dst)+"-*"))
		if os.Link(a.path("manifests", id), path) != nil {
			if err := writeManifest(m, path); err != nil {
				a.log.Warn("a manifest was not kept", "error", err)
			}
		}
		for _, p := range old {
			os.Remove(p)
		}
	}
	l := &lastSync{id: id}
	if len(m.Entries) <= mostInMemory {
		l.manifest, l.index = m, t.Index
		l.expiry = time.AfterFunc(memoryAge, func() {
			a.files.mu.Lock()
			l.manifest, l.index = nil, nil
			a.files.mu.Unlock()
			debug.FreeOSMemory() // a node at rest is small
		})
	}
	a.files.mu.Lock()
	defer a.files.mu.Unlock()
	if old := a.files.last[t.Dst]; old != nil && old.expiry != nil {
		old.expiry.Stop()
	}
	a.files.last[t.Dst] = l
}

// writeManifest writes a manifest; readers see none or the whole.
func writeManifest(m *filesync.Manifest, path string) error {
	data, err := m.Bytes()
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err = os.WriteFile(tmp, data, 0o600); err == nil {
		err = os.Rename(tmp, path)
	}
	return err
}

// sweepKnown removes manifests that were applied long ago.
func (a *Agent) sweepKnown() {
	names, _ := os.ReadDir(a.path("known"))
	for _, n := range names {
		if fi, err := n.Info(); err == nil && time.Since(fi.ModTime()) > knownAge {
			os.Remove(a.path("known", n.Name()))
		}
	}
}
