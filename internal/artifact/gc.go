package artifact

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/skyloom/skyloom/internal/filesync"
)

// GCStats counts what a collection did.
type GCStats struct {
	Manifests, Blobs int   // removed
	Bytes            int64 // freed
	Kept             int   // blobs
}

// GC removes manifests that keep says no to, and blobs that no manifest left names, if they are older than olderThan.
// Uploads may go on meanwhile: what a client is told to be here stays. A manifest that can't be read stops the collection,
// since its blobs are unknown.
func (s *Store) GC(ctx context.Context, keep func(manifestID string) bool, olderThan time.Duration) (st GCStats, err error) {
	s.gcMu.Lock()
	defer s.gcMu.Unlock()
	s.mu.Lock()
	s.asked = map[key]struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.asked = nil
		s.mu.Unlock()
	}()
	cutoff := time.Now().Add(-olderThan)

	marked := map[key]struct{}{}
	err = s.each(ctx, manifestDir, func(id, path string, fi os.FileInfo) error {
		if fi.ModTime().Before(cutoff) && !keep(id) {
			if err := os.Remove(path); err != nil {
				return err
			}
			st.Manifests++
			return nil
		}
		m, err := s.Manifest(id)
		if err != nil {
			return fmt.Errorf("cannot collect old files: %w", err)
		}
		for _, h := range m.Hashes() {
			k, _ := keyOf(h)
			marked[k] = struct{}{}
		}
		return nil
	})
	if err != nil {
		return st, err
	}
	err = s.each(ctx, blobDir, func(hash, path string, fi os.FileInfo) error {
		k, _ := keyOf(hash)
		if _, use := marked[k]; use || !fi.ModTime().Before(cutoff) {
			st.Kept++
			return nil
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, ok := s.asked[k]; ok {
			st.Kept++
			return nil
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		st.Blobs++
		st.Bytes += fi.Size()
		return nil
	})
	if err != nil {
		return st, err
	}
	err = s.small.collect(cutoff, func(k key) bool {
		if _, use := marked[k]; use {
			return true
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		_, asked := s.asked[k]
		return asked
	}, &st)
	if err != nil {
		return st, s.full(err)
	}
	return st, s.clearTemps(cutoff)
}

// each visits the files of a sharded folder.
func (s *Store) each(ctx context.Context, area string, visit func(name, path string, fi os.FileInfo) error) error {
	shards, err := os.ReadDir(filepath.Join(s.dir, area))
	if err != nil {
		return err
	}
	for _, shard := range shards {
		dir := filepath.Join(s.dir, area, shard.Name())
		list, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, d := range list {
			if err := ctx.Err(); err != nil {
				return err
			}
			fi, err := d.Info()
			if os.IsNotExist(err) || !filesync.IsHash(d.Name()) {
				continue
			}
			if err != nil {
				return err
			}
			if err := visit(d.Name(), filepath.Join(dir, d.Name()), fi); err != nil {
				return err
			}
		}
	}
	return nil
}

// clearTemps removes unfinished files whose writer is long gone.
func (s *Store) clearTemps(cutoff time.Time) error {
	dir := filepath.Join(s.dir, pendingDir)
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, d := range list {
		if fi, err := d.Info(); err == nil && isTemp(d.Name()) && fi.ModTime().Before(cutoff) {
			_ = os.Remove(filepath.Join(dir, d.Name()))
		}
	}
	return nil
}
