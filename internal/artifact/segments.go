package artifact

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// segments keeps small blobs one after the other in big files: a tree of 200,000 small files would otherwise cost as many
// files here, which takes the kernel far longer than their bytes. A segment is a run of records, each a hash (32 bytes), a
// size (uint32, little-endian) and the blob. One segment is open for appending; the others are sealed and have an index
// beside them. A segment without index (a crash) is read and checked when the store is opened, and cut where it is not
// whole.
type segments struct {
	dir    string
	mu     sync.RWMutex
	sealed []*segment
	active *segment // nil until the first blob
	recent map[key]entry
	dirty  bool // the active segment, or one sealed since, has bytes that are not on disk
	next   int
	buf    []byte

	spool      bool // nothing is forced to disk, so no index either
	maxSize    int64
	maxRecords int
}

type segment struct {
	f       *os.File
	n       int // its number
	size    int64
	made    time.Time
	entries []entry // sorted by key; of the active one, in order of arrival
}

// key is the first half of a hash, enough to tell blobs apart; records hold all of it.
type key [16]byte

type entry struct {
	key  key
	off  uint32 // of the record
	size uint32 // of the blob
}

const (
	segmentDir   = "segments"
	segmentExt   = ".seg"
	indexExt     = ".idx"
	recordHeader = sha256.Size + 4
	// smallBlob is up to which size blobs go into segments.
	smallBlob = 128 << 10
	// maxSegment and maxRecords bound a segment, on disk and in memory.
	maxSegment = 256 << 20 // bytes
	maxRecords = 200_000
	indexMagic = "skysi1\n\x00"
)

func keyOf(hash string) (k key, sum [sha256.Size]byte) {
	_, _ = hex.Decode(sum[:], []byte(hash)) // callers have checked it
	copy(k[:], sum[:])
	return k, sum
}

func openSegments(dir string, spool bool) (*segments, error) {
	g := &segments{dir: dir, spool: spool, recent: map[key]entry{}, maxSize: maxSegment, maxRecords: maxRecords}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, d := range list {
		var n int
		if strings.HasSuffix(d.Name(), ".tmp") {
			_ = os.Remove(filepath.Join(dir, d.Name()))
		}
		if !strings.HasSuffix(d.Name(), segmentExt) {
			continue
		}
		if _, err := fmt.Sscanf(d.Name(), "%08d"+segmentExt, &n); err != nil {
			continue
		}
		g.next = max(g.next, n+1)
		sg, err := g.load(n)
		if err != nil {
			return nil, err
		}
		if sg != nil {
			g.sealed = append(g.sealed, sg)
		}
	}
	return g, nil
}

func (g *segments) path(n int, ext string) string {
	return filepath.Join(g.dir, fmt.Sprintf("%08d%s", n, ext))
}

// load opens a segment of an earlier process; nil if there is nothing in it.
func (g *segments) load(n int) (*segment, error) {
	f, err := os.OpenFile(g.path(n, segmentExt), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	sg := &segment{f: f, n: n, size: fi.Size(), made: fi.ModTime()}
	if sg.entries = readIndex(g.path(n, indexExt), fi.Size()); sg.entries != nil {
		return sg, nil
	}
	sg.check()
	if len(sg.entries) == 0 {
		return nil, g.drop(sg)
	}
	if err := f.Truncate(sg.size); err != nil {
		return nil, err
	}
	return sg, g.seal(sg)
}

// check reads a segment and stops at the first record that is not whole.
func (sg *segment) check() {
	br := bufio.NewReaderSize(io.NewSectionReader(sg.f, 0, sg.size), 1<<20)
	var head [recordHeader]byte
	off := int64(0)
	h := sha256.New()
	for {
		if _, err := io.ReadFull(br, head[:]); err != nil {
			break
		}
		size := binary.LittleEndian.Uint32(head[sha256.Size:])
		if size > smallBlob {
			break
		}
		h.Reset()
		if n, err := io.CopyN(h, br, int64(size)); err != nil || n != int64(size) {
			break
		}
		if [sha256.Size]byte(h.Sum(nil)) != [sha256.Size]byte(head[:sha256.Size]) {
			break
		}
		sg.entries = append(sg.entries, entry{key(head[:16]), uint32(off), size})
		off += recordHeader + int64(size)
	}
	sg.size = off
}

// seal forces a segment to disk and writes its index.
func (g *segments) seal(sg *segment) error {
	slices.SortFunc(sg.entries, func(a, b entry) int { return cmp.Or(slices.Compare(a.key[:], b.key[:]), cmp.Compare(a.off, b.off)) })
	if g.spool {
		return nil
	}
	if err := sg.f.Sync(); err != nil {
		return err
	}
	body := make([]byte, 0, len(sg.entries)*24+20)
	body = append(body, indexMagic...)
	body = binary.LittleEndian.AppendUint64(body, uint64(sg.size))
	for _, e := range sg.entries {
		body = append(body, e.key[:]...)
		body = binary.LittleEndian.AppendUint32(body, e.off)
		body = binary.LittleEndian.AppendUint32(body, e.size)
	}
	body = binary.LittleEndian.AppendUint32(body, crc32.ChecksumIEEE(body))
	tmp := g.path(sg.n, ".tmp")
	if err := os.WriteFile(tmp, body, 0o600); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	// Not forced to disk: an index that is missing or damaged is made again.
	return os.Rename(tmp, g.path(sg.n, indexExt))
}

func readIndex(path string, size int64) []entry {
	body, err := os.ReadFile(path)
	if err != nil || len(body) < 20 || string(body[:8]) != indexMagic || (len(body)-20)%24 != 0 {
		return nil
	}
	body, crc := body[:len(body)-4], binary.LittleEndian.Uint32(body[len(body)-4:])
	if crc32.ChecksumIEEE(body) != crc || binary.LittleEndian.Uint64(body[8:]) != uint64(size) {
		return nil
	}
	out := make([]entry, 0, (len(body)-16)/24)
	for b := body[16:]; len(b) > 0; b = b[24:] {
		out = append(out, entry{key(b[:16]), binary.LittleEndian.Uint32(b[16:]), binary.LittleEndian.Uint32(b[20:])})
	}
	return out
}

// drop closes and removes a segment.
func (g *segments) drop(sg *segment) error {
	_ = sg.f.Close()
	return errors.Join(os.Remove(sg.f.Name()), ignoreAbsent(os.Remove(g.path(sg.n, indexExt))))
}

func ignoreAbsent(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// find needs the lock.
func (g *segments) find(k key) (*segment, entry, bool) {
	if e, ok := g.recent[k]; ok {
		return g.active, e, true
	}
	for i := len(g.sealed) - 1; i >= 0; i-- {
		sg := g.sealed[i]
		j, ok := slices.BinarySearchFunc(sg.entries, k, func(e entry, k key) int { return slices.Compare(e.key[:], k[:]) })
		if ok {
			return sg, sg.entries[j], true
		}
	}
	return nil, entry{}, false
}

func (g *segments) has(hash string) bool {
	k, _ := keyOf(hash)
	g.mu.RLock()
	defer g.mu.RUnlock()
	_, _, ok := g.find(k)
	return ok
}

// read appends a blob to buf; ok is false if it is not here.
func (g *segments) read(hash string, buf []byte) (data []byte, ok bool, err error) {
	k, sum := keyOf(hash)
	g.mu.RLock()
	defer g.mu.RUnlock()
	sg, e, ok := g.find(k)
	if !ok {
		return nil, false, nil
	}
	rec := slices.Grow(buf[:0], recordHeader+int(e.size))[:recordHeader+int(e.size)]
	if _, err := sg.f.ReadAt(rec, int64(e.off)); err != nil {
		return nil, true, err
	}
	if [sha256.Size]byte(rec[:sha256.Size]) != sum {
		return nil, false, nil
	}
	return rec[recordHeader:], true, nil
}

// add appends a blob whose hash was checked.
func (g *segments) add(hash string, data []byte) error {
	k, sum := keyOf(hash)
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, _, ok := g.find(k); ok {
		return nil
	}
	return g.append(k, sum, data)
}

func (g *segments) append(k key, sum [sha256.Size]byte, data []byte) error {
	if g.active != nil && (g.active.size+recordHeader+int64(len(data)) > g.maxSize || len(g.active.entries) >= g.maxRecords) {
		if err := g.rotate(); err != nil {
			return err
		}
	}
	if g.active == nil {
		f, err := os.OpenFile(g.path(g.next, segmentExt), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		g.active = &segment{f: f, n: g.next, made: time.Now()}
		g.next++
	}
	sg := g.active
	g.buf = append(g.buf[:0], sum[:]...)
	g.buf = binary.LittleEndian.AppendUint32(g.buf, uint32(len(data)))
	g.buf = append(g.buf, data...)
	// A write that fails is written over by the next one.
	if _, err := sg.f.WriteAt(g.buf, sg.size); err != nil {
		return err
	}
	e := entry{k, uint32(sg.size), uint32(len(data))}
	sg.entries = append(sg.entries, e)
	g.recent[k] = e
	sg.size += int64(len(g.buf))
	g.dirty = true
	return nil
}

// rotate seals the active segment. It needs the lock.
func (g *segments) rotate() error {
	if g.active == nil {
		return nil
	}
	sg := g.active
	if fi, err := sg.f.Stat(); err != nil {
		return err
	} else if fi.Size() != sg.size { // a failed write left something; else the file's time has to stay
		if err := sg.f.Truncate(sg.size); err != nil {
			return err
		}
	}
	if err := g.seal(sg); err != nil {
		return err
	}
	g.sealed = append(g.sealed, sg)
	g.active, g.recent = nil, map[key]entry{}
	return nil
}

// commit forces what was added to disk.
func (g *segments) commit() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.dirty {
		return nil
	}
	if g.active != nil {
		if err := g.active.f.Sync(); err != nil {
			return err
		}
	}
	if err := flushEach([]string{g.dir}); err != nil {
		return err
	}
	g.dirty = false
	return nil
}

// remove forgets blobs and drops segments that have nothing left. After a restart blobs of other segments may be back.
func (g *segments) remove(hashes []string) error {
	gone := make(map[key]struct{}, len(hashes))
	for _, h := range hashes {
		k, _ := keyOf(h)
		gone[k] = struct{}{}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	lost := func(e entry) bool { _, ok := gone[e.key]; return ok }
	if g.active != nil {
		g.active.entries = slices.DeleteFunc(g.active.entries, lost)
		for k := range gone {
			delete(g.recent, k)
		}
		if len(g.active.entries) == 0 {
			if err := g.drop(g.active); err != nil {
				return err
			}
			g.active = nil
		}
	}
	keep := g.sealed[:0]
	var errs []error
	for _, sg := range g.sealed {
		if sg.entries = slices.DeleteFunc(sg.entries, lost); len(sg.entries) == 0 {
			errs = append(errs, g.drop(sg))
			continue
		}
		keep = append(keep, sg)
	}
	g.sealed = keep
	return errors.Join(errs...)
}

// collect drops blobs that use says no to, out of segments that were sealed before the cutoff. A segment in which less
// than half is used is written anew; another keeps its room, and forgets what is unused only then.
func (g *segments) collect(cutoff time.Time, use func(key) bool, st *GCStats) error {
	g.mu.Lock()
	if g.active != nil && g.active.made.Before(cutoff) {
		if err := g.rotate(); err != nil {
			g.mu.Unlock()
			return err
		}
	}
	old := slices.Clone(g.sealed)
	if g.active != nil {
		st.Kept += len(g.active.entries)
	}
	g.mu.Unlock()
	for _, sg := range old {
		fi, err := sg.f.Stat()
		if err != nil {
			return err
		}
		if !fi.ModTime().Before(cutoff) {
			st.Kept += len(sg.entries)
			continue
		}
		if err := g.collectOne(sg, use, st); err != nil {
			return err
		}
	}
	return nil
}

func (g *segments) collectOne(sg *segment, use func(key) bool, st *GCStats) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var used []entry
	var bytes int64
	for _, e := range sg.entries {
		if use(e.key) {
			used = append(used, e)
			bytes += recordHeader + int64(e.size)
		}
	}
	st.Kept += len(used)
	if bytes*2 > sg.size {
		st.Kept += len(sg.entries) - len(used)
		return nil
	}
	rec := make([]byte, recordHeader+smallBlob)
	for _, e := range used {
		rec := rec[:recordHeader+int(e.size)]
		if _, err := sg.f.ReadAt(rec, int64(e.off)); err != nil {
			return err
		}
		if err := g.append(e.key, [sha256.Size]byte(rec[:sha256.Size]), rec[recordHeader:]); err != nil {
			return err
		}
	}
	if len(used) > 0 { // on disk in the new place before the old one goes
		if err := errors.Join(g.active.f.Sync(), flushEach([]string{g.dir})); err != nil {
			return err
		}
	}
	st.Blobs += len(sg.entries) - len(used)
	st.Bytes += sg.size - bytes
	g.sealed = slices.DeleteFunc(g.sealed, func(x *segment) bool { return x == sg })
	return g.drop(sg)
}

func (g *segments) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.active != nil {
		_ = g.rotate() // spares the next process the check
	}
	for _, sg := range g.sealed {
		_ = sg.f.Close()
	}
	if g.active != nil {
		_ = g.active.f.Close()
	}
	g.sealed, g.active, g.recent = nil, nil, map[key]entry{}
}
