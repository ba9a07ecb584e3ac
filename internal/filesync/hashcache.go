package filesync

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// fileKey names one state of one file: any write changes the size, a time, or the inode.
type fileKey struct {
	Dev, Ino           uint64
	Size, Mtime, Ctime int64
}

// HashCache remembers the hashes of files, so that an unchanged tree is not read again. It forgets what the last scan
// did not meet; keep one per root (see CacheFile).
type HashCache struct {
	path string
	mu   sync.Mutex
	old  map[fileKey][sha256.Size]byte
	now  map[fileKey][sha256.Size]byte
	// dirty: something was hashed anew, or entries fell away.
	dirty bool
}

const (
	cacheMagic  = "skyhc1\n"
	cacheRecord = 5*8 + sha256.Size
)

// CacheFile is where the cache of root belongs below dir.
func CacheFile(dir, root string) string {
	if abs, err := filepath.Abs(root); err == nil {
		root = abs
	}
	sum := sha256.Sum256([]byte(root))
	return filepath.Join(dir, hex.EncodeToString(sum[:8])+".hashes")
}

func newHashCache(path string) *HashCache {
	return &HashCache{path: path, old: map[fileKey][sha256.Size]byte{}, now: map[fileKey][sha256.Size]byte{}}
}

// OpenHashCache reads a cache. One that is missing or damaged is empty: it only costs time.
func OpenHashCache(path string) *HashCache {
	c := newHashCache(path)
	data, err := os.ReadFile(path)
	if err != nil || len(data) < len(cacheMagic)+4 || string(data[:len(cacheMagic)]) != cacheMagic {
		return c
	}
	body, sum := data[len(cacheMagic):len(data)-4], data[len(data)-4:]
	if len(body)%cacheRecord != 0 || crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(sum) {
		return c
	}
	for ; len(body) > 0; body = body[cacheRecord:] {
		var v [5]uint64
		for i := range v {
			v[i] = binary.LittleEndian.Uint64(body[i*8:])
		}
		k := fileKey{Dev: v[0], Ino: v[1], Size: int64(v[2]), Mtime: int64(v[3]), Ctime: int64(v[4])}
		c.old[k] = [sha256.Size]byte(body[40:cacheRecord])
	}
	return c
}

func (c *HashCache) get(k fileKey) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum, ok := c.now[k]
	if !ok {
		if sum, ok = c.old[k]; ok {
			c.now[k] = sum
		}
	}
	if !ok {
		return "", false
	}
	return hex.EncodeToString(sum[:]), true
}

// put remembers a hash unless the file is so young that a later write could leave its times as they are: kernels stamp
// with the granularity of a tick, some filesystems with that of two seconds.
func (c *HashCache) put(k fileKey, sum [sha256.Size]byte, now time.Time) {
	young := 50 * time.Millisecond
	if k.Mtime%int64(time.Second) == 0 && k.Ctime%int64(time.Second) == 0 {
		young = 2 * time.Second
	}
	if age := now.UnixNano() - max(k.Mtime, k.Ctime); age < int64(young) {
		return
	}
	c.mu.Lock()
	c.now[k] = sum
	c.dirty = true
	c.mu.Unlock()
}

// Save writes the cache if it changed, atomically. Call it after Scan.
func (c *HashCache) Save() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.path == "" || (!c.dirty && len(c.now) == len(c.old)) {
		return nil
	}
	err := replaceFile(c.path, func(w io.Writer) error {
		body := bytes.NewBuffer(make([]byte, 0, len(c.now)*cacheRecord+4))
		var rec []byte
		for k, sum := range c.now {
			rec = rec[:0]
			for _, v := range []uint64{k.Dev, k.Ino, uint64(k.Size), uint64(k.Mtime), uint64(k.Ctime)} {
				rec = binary.LittleEndian.AppendUint64(rec, v)
			}
			body.Write(append(rec, sum[:]...))
		}
		crc := crc32.ChecksumIEEE(body.Bytes())
		if _, err := io.WriteString(w, cacheMagic); err != nil {
			return err
		}
		_, err := w.Write(binary.LittleEndian.AppendUint32(body.Bytes(), crc))
		return err
	})
	if err == nil {
		c.old, c.now, c.dirty = c.now, map[fileKey][sha256.Size]byte{}, false
	}
	return err
}

// replaceFile writes path through a temporary file beside it; readers see the old or the new content, never a part. The
// content is not forced to disk: the files written so can be made again, and carry a checksum.
func replaceFile(path string, write func(io.Writer) error) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return writeErr("write", path, err)
	}
	f, err := os.CreateTemp(dir, ".tmp-*")
	if err != nil {
		return writeErr("write", path, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
			err = writeErr("write", path, err)
		}
	}()
	bw := bufio.NewWriterSize(f, 64<<10)
	if err = write(bw); err == nil {
		err = bw.Flush()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}
