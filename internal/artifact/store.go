package artifact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skyloom/skyloom/internal/filesync"
)

// ErrFull is in the chain of errors about a full disk; so is syscall.ENOSPC or its like.
var ErrFull = errors.New("the disk is full")

// Options configure a Store.
type Options struct {
	Logger *slog.Logger // default: silence
	// Spool forces nothing to disk: for blobs that can be had again. After a restart all of them are read and checked.
	Spool bool
}

// Store is a folder of blobs and manifests. It is safe for concurrent use.
type Store struct {
	dir string
	log *slog.Logger

	// mu guards pending and asked.
	mu      sync.Mutex
	pending map[string]struct{} // hashes of blobs that are whole but not durable
	asked   map[key]struct{}    // while a collection runs: blobs that someone was told are here

	spool    bool
	small    *segments
	commitMu sync.Mutex // one commit at a time
	gcMu     sync.Mutex // one collection at a time
	bufs     sync.Pool
}

const (
	blobDir     = "blobs"
	manifestDir = "manifests"
	pendingDir  = "pending"
	tmpPrefix   = "tmp-"
)

// Open opens the store in dir, making it (0700) if there is none. Blobs that were whole when the process died are kept.
func Open(dir string, o Options) (*Store, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir, log: o.Logger, spool: o.Spool, pending: map[string]struct{}{}}
	s.bufs.New = func() any { b := make([]byte, recordHeader+smallBlob); return &b }
	for _, d := range []string{blobDir, manifestDir, pendingDir} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("cannot make the folder for files: %w", s.full(err))
		}
	}
	if s.small, err = openSegments(filepath.Join(dir, segmentDir), o.Spool); err != nil {
		return nil, fmt.Errorf("cannot open the folder for files: %w", s.full(err))
	}
	if err := s.adopt(); err != nil {
		s.small.close()
		return nil, err
	}
	return s, nil
}

// Close lets go of the folder. What was not committed is checked, and kept, when it is opened again.
func (s *Store) Close() error {
	s.small.close()
	return nil
}

// adopt checks what a process that died left in pending. A crash of the machine may have cut those files short.
func (s *Store) adopt() error {
	dir := filepath.Join(s.dir, pendingDir)
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	bad := 0
	for _, d := range list {
		p := filepath.Join(dir, d.Name())
		if filesync.IsHash(d.Name()) && hashOf(p) == d.Name() {
			s.pending[d.Name()] = struct{}{}
			continue
		}
		if err := os.Remove(p); err != nil {
			return err
		}
		bad++
	}
	if bad > 0 {
		s.log.Info("removed unfinished uploads", "files", bad)
	}
	return nil
}

func hashOf(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (s *Store) blobPath(hash string) string { return filepath.Join(s.dir, blobDir, hash[:2], hash) }

func (s *Store) pendingPath(hash string) string { return filepath.Join(s.dir, pendingDir, hash) }

func (s *Store) manifestPath(id string) string {
	return filepath.Join(s.dir, manifestDir, id[:2], id)
}

// full gives errors of a full disk their kind and a message that helps.
func (s *Store) full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: cannot keep files in %s; free some space and try again, what arrived so far is kept: %w", ErrFull, s.dir, err)
	}
	return err
}

// Has returns the hashes that the store lacks, in the order given, each once.
func (s *Store) Has(ctx context.Context, hashes []string) (missing []string, err error) {
	seen := make(map[string]struct{}, len(hashes))
	for i, h := range hashes {
		if i%1024 == 0 {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
		}
		if !filesync.IsHash(h) {
			return nil, fmt.Errorf("%w: %.80q is not a blob's hash", filesync.ErrInvalid, h)
		}
		if _, twice := seen[h]; twice {
			continue
		}
		seen[h] = struct{}{}
		if !s.has(h) {
			missing = append(missing, h)
		}
	}
	return missing, nil
}

func (s *Store) has(hash string) bool {
	if s.ask(hash) || s.small.has(hash) {
		return true
	}
	if s.spool {
		return false // nothing ever becomes durable
	}
	_, err := os.Lstat(s.blobPath(hash))
	return err == nil
}

// ask says whether a blob is pending. It comes before any look for the blob, so that a collection can't remove it after.
func (s *Store) ask(hash string) (pending bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked != nil {
		k, _ := keyOf(hash)
		s.asked[k] = struct{}{}
	}
	_, pending = s.pending[hash]
	return pending
}

// Missing returns the blobs of a manifest that the store lacks.
func (s *Store) Missing(ctx context.Context, m *filesync.Manifest) ([]string, error) {
	sizes := m.Sizes()
	var missing, big []string
	for i, h := range m.Hashes() {
		if i%1024 == 0 {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
		}
		if sizes[h] > smallBlob {
			big = append(big, h)
		} else if s.ask(h); !s.small.has(h) { // it can only be in a segment: that saves asking the disk
			missing = append(missing, h)
		}
	}
	more, err := s.Has(ctx, big)
	missing = append(missing, more...)
	slices.Sort(missing)
	return missing, err
}

// Put keeps a blob, reading r to its end, and returns its size. Bytes that don't match the hash are an ErrInvalid and
// leave nothing. The blob is durable after the next Commit.
func (s *Store) Put(hash string, r io.Reader) (size int64, err error) {
	if !filesync.IsHash(hash) {
		return 0, fmt.Errorf("%w: %.80q is not a blob's hash", filesync.ErrInvalid, hash)
	}
	return s.put(hash, r, true)
}

// put writes a blob; verified readers check themselves.
func (s *Store) put(hash string, r io.Reader, check bool) (size int64, err error) {
	pooled := s.bufs.Get().(*[]byte)
	defer s.bufs.Put(pooled)
	buf := (*pooled)[:smallBlob+1]
	n, err := readFull(r, buf)
	switch {
	case err == nil: // more than small
		if s.has(hash) {
			// Read on, so that whoever sends is not cut off, and learns of wrong bytes.
			return s.copyChecked(io.Discard, io.MultiReader(bytes.NewReader(buf), r), hash, make([]byte, 256<<10), check)
		}
		return s.putFile(hash, io.MultiReader(bytes.NewReader(buf), r), check)
	case err != io.EOF:
		return 0, err
	}
	if check {
		if sum := sha256.Sum256(buf[:n]); hex.EncodeToString(sum[:]) != hash {
			return int64(n), wrongBytes(hash)
		}
	}
	s.ask(hash)
	return int64(n), s.full(s.small.add(hash, buf[:n]))
}

// readFull fills buf; the error is io.EOF, and no other, if r ends before.
func readFull(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var k int
		k, err = r.Read(buf[n:])
		n += k
	}
	if n == len(buf) {
		return n, nil
	}
	return n, err
}

func wrongBytes(hash string) error {
	return fmt.Errorf("%w: the bytes sent are not those of blob %s", filesync.ErrInvalid, hash[:12])
}

func (s *Store) putFile(hash string, r io.Reader, check bool) (size int64, err error) {
	f, err := os.CreateTemp(filepath.Join(s.dir, pendingDir), tmpPrefix) // 0600
	if err != nil {
		return 0, s.full(err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
			err = s.full(err)
		}
	}()
	size, err = s.copyChecked(f, r, hash, make([]byte, 256<<10), check)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), s.pendingPath(hash))
	}
	if err == nil {
		s.mu.Lock()
		s.pending[hash] = struct{}{}
		s.mu.Unlock()
	}
	return size, err
}

func (s *Store) copyChecked(w io.Writer, r io.Reader, hash string, buf []byte, check bool) (int64, error) {
	h := sha256.New()
	var n int64
	for {
		k, err := r.Read(buf)
		if k > 0 {
			n += int64(k)
			if check {
				h.Write(buf[:k])
			}
			if _, werr := w.Write(buf[:k]); werr != nil {
				return n, werr
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return n, err
		}
	}
	if check && hex.EncodeToString(h.Sum(nil)) != hash {
		return n, wrongBytes(hash)
	}
	return n, nil
}

// PutChecked keeps a blob whose reader checks its bytes, as those that filesync.ReadPack hands out do.
func (s *Store) PutChecked(hash string, r io.Reader) error {
	_, err := s.put(hash, r, false)
	return err
}

// PutPack keeps the blobs of a stream. Those that arrived before a failure are kept. They are durable after the next
// Commit.
func (s *Store) PutPack(ctx context.Context, r io.Reader, l filesync.PackLimits) (filesync.PackStats, error) {
	return filesync.ReadPack(ctx, r, l, func(hash string, _ int64, r io.Reader) error {
		return s.PutChecked(hash, r)
	})
}

// Open reads a blob: Store is a filesync.BlobSource. The error for one it lacks is fs.ErrNotExist.
func (s *Store) Open(hash string) (io.ReadCloser, int64, error) {
	if !filesync.IsHash(hash) {
		return nil, 0, fmt.Errorf("%w: %.80q is not a blob's hash", filesync.ErrInvalid, hash)
	}
	if r, size, err := s.openSmall(hash); r != nil || err != nil {
		return r, size, err
	}
	// Pending last and durable again: a Commit may move it between two looks.
	var err error
	for _, p := range []string{s.blobPath(hash), s.pendingPath(hash), s.blobPath(hash)} {
		var f *os.File
		if f, err = os.Open(p); err != nil {
			continue
		}
		fi, err := f.Stat()
		if err != nil {
			_ = f.Close()
			return nil, 0, err
		}
		return f, fi.Size(), nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("blob %s: %w", hash[:12], fs.ErrNotExist)
	}
	return nil, 0, err
}

func (s *Store) openSmall(hash string) (io.ReadCloser, int64, error) {
	pooled := s.bufs.Get().(*[]byte)
	data, ok, err := s.small.read(hash, *pooled)
	if !ok || err != nil {
		s.bufs.Put(pooled)
		return nil, 0, err
	}
	r := &smallReader{store: s, buf: pooled}
	r.Reset(data)
	return r, int64(len(data)), nil
}

// smallReader reads a small blob from memory that is used again after Close.
type smallReader struct {
	bytes.Reader
	store *Store
	buf   *[]byte
}

func (r *smallReader) Close() error {
	if r.buf != nil {
		r.Reset(nil)
		r.store.bufs.Put(r.buf)
		r.buf = nil
	}
	return nil
}

// Move gives a big blob of a spool away; see filesync.Mover. What has to be kept for others is never given away.
func (s *Store) Move(hash string, dir *os.File, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.pending[hash]; !s.spool || !ok {
		return fmt.Errorf("blob %.12s: %w", hash, errors.ErrUnsupported)
	}
	if err := moveInto(s.pendingPath(hash), dir, name); err != nil {
		return err
	}
	delete(s.pending, hash)
	return nil
}

// Commit makes everything durable that was put before. After an error nothing is lost and it may be called again.
func (s *Store) Commit() error {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	if err := s.small.commit(); err != nil {
		return s.full(err)
	}
	s.mu.Lock()
	hashes := make([]string, 0, len(s.pending))
	for h := range s.pending {
		hashes = append(hashes, h)
	}
	s.mu.Unlock()
	if len(hashes) == 0 {
		return nil
	}
	files := make([]string, len(hashes))
	for i, h := range hashes {
		files[i] = s.pendingPath(h)
	}
	if err := s.flush(files); err != nil {
		return s.full(err)
	}
	dirs := map[string]struct{}{}
	for _, h := range hashes {
		dir := filepath.Join(s.dir, blobDir, h[:2])
		if _, ok := dirs[dir]; !ok {
			dirs[dir] = struct{}{}
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return s.full(err)
			}
		}
		if err := os.Rename(s.pendingPath(h), s.blobPath(h)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return s.full(err) // absent: Remove took it
		}
	}
	// The names count too.
	list := []string{filepath.Join(s.dir, blobDir)}
	for d := range dirs {
		list = append(list, d)
	}
	if err := s.flush(list); err != nil {
		return s.full(err)
	}
	s.mu.Lock()
	for _, h := range hashes {
		delete(s.pending, h)
	}
	s.mu.Unlock()
	return nil
}

// few is up to how many files are forced to disk one by one: flushing the whole filesystem also waits for what others
// have written.
const few = 16

func (s *Store) flush(paths []string) error {
	if len(paths) <= few {
		return flushEach(paths)
	}
	return flushAll(s.dir, paths)
}

func flushEach(paths []string) error {
	for _, p := range paths {
		f, err := os.Open(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = f.Sync()
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// PutManifest keeps a manifest and says which of its blobs are missing. If none are, all of it is durable.
func (s *Store) PutManifest(ctx context.Context, m *filesync.Manifest) (id string, missing []string, err error) {
	if err := m.Validate(); err != nil {
		return "", nil, err
	}
	id = m.ID()
	if missing, err = s.Missing(ctx, m); err != nil {
		return "", nil, err
	}
	path := s.manifestPath(id)
	if _, err := os.Lstat(path); err == nil {
		now := time.Now()
		if err := os.Chtimes(path, now, now); err != nil { // young again for a collection
			return "", nil, s.full(err)
		}
	} else if err := s.writeManifest(m, path); err != nil {
		return "", nil, s.full(err)
	}
	if len(missing) == 0 {
		err = s.Commit()
	}
	return id, missing, err
}

func (s *Store) writeManifest(m *filesync.Manifest, path string) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Join(s.dir, pendingDir), tmpPrefix)
	if err != nil {
		return err
	}
	err = m.Encode(f)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	return flushEach([]string{filepath.Dir(path), filepath.Join(s.dir, manifestDir)})
}

// ManifestBytes gives a manifest as it came, in wire form. The error for one it lacks is fs.ErrNotExist.
func (s *Store) ManifestBytes(id string) ([]byte, error) {
	if !filesync.IsHash(id) {
		return nil, fmt.Errorf("%w: %.80q is not a manifest's id", filesync.ErrInvalid, id)
	}
	data, err := os.ReadFile(s.manifestPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("manifest %s: %w", id[:12], fs.ErrNotExist)
	}
	return data, err
}

// HasManifest tells whether a manifest is kept; what is no id of one is an ErrInvalid.
func (s *Store) HasManifest(id string) (bool, error) {
	if !filesync.IsHash(id) {
		return false, fmt.Errorf("%w: %.80q is not a manifest's id", filesync.ErrInvalid, id)
	}
	_, err := os.Stat(s.manifestPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Manifest reads a manifest back. The error for one it lacks is fs.ErrNotExist.
func (s *Store) Manifest(id string) (*filesync.Manifest, error) {
	data, err := s.ManifestBytes(id)
	if err != nil {
		return nil, err
	}
	m, err := filesync.Decode(bytes.NewReader(data), filesync.Limits{})
	if err != nil {
		return nil, fmt.Errorf("manifest %s in %s: %w", id[:12], s.dir, err)
	}
	return m, nil
}

// Remove lets go of blobs; those that are not here are skipped. A manifest that names them is incomplete then. Small ones
// may be back after a restart, until they are removed again or collected.
func (s *Store) Remove(hashes ...string) error {
	for _, h := range hashes {
		if !filesync.IsHash(h) {
			return fmt.Errorf("%w: %.80q is not a blob's hash", filesync.ErrInvalid, h)
		}
	}
	small := hashes[:0:0]
	for _, h := range hashes {
		if s.small.has(h) {
			small = append(small, h)
			continue
		}
		s.mu.Lock()
		_, pending := s.pending[h]
		delete(s.pending, h)
		s.mu.Unlock()
		if s.spool && !pending {
			continue // a spool has no others
		}
		for _, p := range []string{s.pendingPath(h), s.blobPath(h)} {
			if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	if len(small) == 0 {
		return nil
	}
	return s.small.remove(small)
}

// isTemp says whether a name is that of an unfinished file.
func isTemp(name string) bool { return strings.HasPrefix(name, tmpPrefix) }
