package ckpt

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/internal/bucket"
	"github.com/skyloom/skyloom/internal/filesync"
)

const (
	blobsDir  = "blobs/"
	savedDir  = "checkpoints/"
	savedType = "application/json"
)

// Folder is where the checkpoints of one task are.
type Folder struct {
	b      *bucket.Bucket
	prefix string // of its objects' keys, with a slash at the end

	// Lasts is how long a URL is good for, PartSize from which size on a file comes in parts, and how large they are, in bytes.
	// BatchURLs and BatchBytes bound what is handed out at once: URLs must not grow old before it is their turn.
	Lasts      time.Duration
	PartSize   int64
	BatchURLs  int
	BatchBytes int64
}

// Open gives the folder of a task's checkpoints below an address.
func Open(ctx context.Context, r *bucket.Registry, to, installation string, job int64, task int) (*Folder, error) {
	a, err := bucket.Parse(to)
	if err != nil {
		return nil, err
	}
	b, err := r.Open(ctx, a)
	if err != nil {
		return nil, err
	}
	return newFolder(b, a.Join(installation, fmt.Sprint("job-", job), fmt.Sprint("task-", task)).Key+"/"), nil
}

// OpenSaved gives the folder that a checkpoint's address lies in, and its key.
func OpenSaved(ctx context.Context, r *bucket.Registry, where string) (*Folder, string, error) {
	a, err := bucket.Parse(where)
	if err != nil {
		return nil, "", err
	}
	b, err := r.Open(ctx, a)
	if err != nil {
		return nil, "", err
	}
	return newFolder(b, path.Dir(path.Dir(a.Key))+"/"), a.Key, nil
}

func newFolder(b *bucket.Bucket, prefix string) *Folder {
	return &Folder{b: b, prefix: prefix, Lasts: time.Hour, PartSize: 64 << 20, BatchURLs: 500, BatchBytes: 1 << 30}
}

// Address names the folder.
func (f *Folder) Address() string {
	return f.b.Address().Join(strings.TrimSuffix(f.prefix, "/")).String()
}

func (f *Folder) where(key string) string { return f.b.Address().Join(key).String() }

// Listing is what a folder holds.
type Listing struct {
	blobs map[string]int64 // sizes by hash
	saved []string         // keys
}

// List looks at all of a folder.
func (f *Folder) List(ctx context.Context) (*Listing, error) {
	l := &Listing{blobs: map[string]int64{}}
	err := f.b.List(ctx, f.prefix, func(o bucket.Object) {
		name := strings.TrimPrefix(o.Key, f.prefix)
		hash, isBlob := strings.CutPrefix(name, blobsDir)
		switch {
		case isBlob && filesync.IsHash(hash):
			l.blobs[hash] = o.Size
		case strings.HasPrefix(name, savedDir):
			l.saved = append(l.saved, o.Key)
		}
	})
	return l, err
}

// Has says whether the folder holds a checkpoint's JSON, by its address.
func (l *Listing) Has(f *Folder, where string) bool {
	for _, key := range l.saved {
		if f.where(key) == where {
			return true
		}
	}
	return false
}

// Missing names the blobs of a manifest that the folder lacks, in the order of its files.
func (l *Listing) Missing(m *filesync.Manifest) []string {
	var out []string
	for h, size := range m.Sizes() {
		if have, ok := l.blobs[h]; !ok || have != size {
			out = append(out, h)
		}
	}
	return m.InOrder(out)
}

// Send has a node put blobs into the folder. put carries URLs to it; it may be called several times, and again with new URLs when
// they have expired.
func (f *Folder) Send(ctx context.Context, m *filesync.Manifest, hashes []string, put func(context.Context, []agentapi.BlobPut) error) (err error) {
	var parts multi
	defer func() {
		if err != nil { // what has arrived of a file that comes in parts costs until it is dropped
			cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			if parts.upload != "" {
				_ = f.b.AbortParts(cctx, parts.key, parts.upload)
			}
		}
	}()
	sizes := m.Sizes()
	var batch []piece
	var bytes int64
	send := func() error {
		err := f.put(ctx, batch, put)
		batch, bytes = nil, 0
		return err
	}
	for _, h := range hashes {
		size := sizes[h]
		if size <= f.PartSize {
			batch, bytes = append(batch, piece{hash: h, size: size}), bytes+size
			if len(batch) >= f.BatchURLs || bytes >= f.BatchBytes {
				if err := send(); err != nil {
					return err
				}
			}
			continue
		}
		if parts, err = f.start(ctx, h, size); err != nil {
			return err
		}
		for n := 1; n <= parts.count; n++ {
			at := int64(n-1) * parts.size
			p := piece{hash: h, offset: at, size: min(parts.size, size-at), upload: parts.upload, n: n}
			batch, bytes = append(batch, p), bytes+p.size
			if len(batch) >= f.BatchURLs || bytes >= f.BatchBytes || n == parts.count {
				if err := send(); err != nil {
					return err
				}
			}
		}
		if err := f.b.FinishParts(ctx, parts.key, parts.upload, parts.count, size); err != nil {
			return err
		}
		parts = multi{}
	}
	if len(batch) == 0 {
		return nil
	}
	return send()
}

// multi is a file on its way in parts.
type multi struct {
	key, upload string
	count       int
	size        int64 // of a part
}

func (f *Folder) start(ctx context.Context, hash string, size int64) (multi, error) {
	p := multi{key: f.prefix + blobsDir + hash, size: f.PartSize}
	if least := (size + bucket.MaxParts - 1) / bucket.MaxParts; least > p.size {
		p.size = (least + 1<<20 - 1) >> 20 << 20
	}
	p.count = int((size + p.size - 1) / p.size)
	var err error
	p.upload, err = f.b.StartParts(ctx, p.key)
	return p, err
}

// piece is a file, or a part of one.
type piece struct {
	hash         string
	offset, size int64
	upload       string // "": it is the whole file
	n            int
}

// urlTries is how often a batch gets new URLs because the old ones have expired.
const urlTries = 3

// put hands a batch out.
func (f *Folder) put(ctx context.Context, batch []piece, put func(context.Context, []agentapi.BlobPut) error) error {
	for try := 1; ; try++ {
		signed := time.Now()
		out := make([]agentapi.BlobPut, len(batch))
		for i, p := range batch {
			key := f.prefix + blobsDir + p.hash
			var err error
			out[i] = agentapi.BlobPut{Hash: p.hash, Offset: p.offset, Size: p.size, Part: p.upload != ""}
			if p.upload == "" {
				out[i].URL, err = f.b.SignPut(ctx, key, f.Lasts)
			} else {
				out[i].URL, err = f.b.SignPart(ctx, key, p.upload, p.n, f.Lasts)
			}
			if err != nil {
				return err
			}
		}
		err := put(ctx, out)
		if err == nil || try == urlTries || !f.expired(err, signed) {
			return err
		}
	}
}

// expired says that a refusal may be due to the age of the URLs, or of the credentials that signed them.
func (f *Folder) expired(err error, signed time.Time) bool {
	return agentapi.IsKind(err, agentapi.KindBucket) && (time.Since(signed) >= f.Lasts || strings.Contains(err.Error(), "xpired"))
}

// Commit writes a checkpoint's JSON after it has seen that everything is there, and gives its address: where, or a new one if that is
// empty. ms are the manifests by rank.
func (f *Folder) Commit(ctx context.Context, s Saved, ms []*filesync.Manifest, where string) (string, error) {
	l, err := f.List(ctx)
	if err != nil {
		return "", err
	}
	s.Format, s.SavedAt, s.Nodes = format, s.SavedAt.UTC(), nil
	mark := sha256.New()
	fmt.Fprintf(mark, "%d %d\n", s.Attempt, s.SavedAt.UnixMicro())
	for rank, m := range ms {
		if missing := l.Missing(m); len(missing) > 0 {
			return "", &bucket.Error{Kind: bucket.KindBusy, Address: f.Address(), Text: fmt.Sprintf("%d files of node %d did not arrive, though the store said so", len(missing), rank)}
		}
		s.Nodes = append(s.Nodes, node(rank, m))
		fmt.Fprintln(mark, s.Nodes[rank].Manifest)
	}
	data, err := s.encode()
	if err != nil {
		return "", err
	}
	if where != "" {
		a, err := bucket.Parse(where)
		if err == nil && !strings.HasPrefix(a.Key, f.prefix+savedDir) {
			err = &bucket.Error{Kind: bucket.KindInvalid, Address: where, Text: "it is not in " + f.Address()}
		}
		if err != nil {
			return "", err
		}
		return where, f.b.Put(ctx, a.Key, savedType, data)
	}
	key := f.prefix + savedDir + s.SavedAt.Format("20060102T150405Z") + "-" + hex.EncodeToString(mark.Sum(nil)[:4]) + ".json"
	return f.where(key), f.b.Put(ctx, key, savedType, data)
}

// Forget removes a checkpoint's JSON that did not become known.
func (f *Folder) Forget(ctx context.Context, where string) error {
	a, err := bucket.Parse(where)
	if err != nil || !strings.HasPrefix(a.Key, f.prefix+savedDir) {
		return err
	}
	return f.b.Delete(ctx, a.Key)
}

// Read gets a checkpoint's JSON.
func (f *Folder) Read(ctx context.Context, key string) (*Saved, error) {
	data, err := f.b.Get(ctx, key, maxSaved)
	if err != nil {
		return nil, err
	}
	s, err := decode(data)
	if err != nil {
		return nil, &bucket.Error{Kind: bucket.KindInvalid, Address: f.where(key), Text: err.Error(), Err: err}
	}
	return s, nil
}

// Fetch has a node get blobs of the folder. get carries URLs to it, as put of Send does.
func (f *Folder) Fetch(ctx context.Context, hashes []string, sizes map[string]int64, get func(context.Context, []agentapi.BlobGet) error) error {
	for len(hashes) > 0 {
		n, bytes := 0, int64(0)
		for n < len(hashes) && n < f.BatchURLs && (n == 0 || bytes < f.BatchBytes) {
			bytes += sizes[hashes[n]]
			n++
		}
		for try := 1; ; try++ {
			signed := time.Now()
			out := make([]agentapi.BlobGet, n)
			for i, h := range hashes[:n] {
				url, err := f.b.SignGet(ctx, f.prefix+blobsDir+h, f.Lasts)
				if err != nil {
					return err
				}
				out[i] = agentapi.BlobGet{Hash: h, Size: sizes[h], URL: url}
			}
			err := get(ctx, out)
			if err == nil {
				break
			}
			if try == urlTries || !f.expired(err, signed) {
				return err
			}
		}
		hashes = hashes[n:]
	}
	return nil
}

// Prune deletes what none of the checkpoints that are kept needs; wheres are their addresses, of this folder or others. What was
// begun and not finished goes too. If one of them can't be read nothing is deleted.
func (f *Folder) Prune(ctx context.Context, wheres []string) (deleted int, err error) {
	keep, need := map[string]bool{}, map[string]bool{}
	for _, where := range wheres {
		a, err := bucket.Parse(where)
		if err != nil {
			return 0, err
		}
		if a.Scheme != f.b.Address().Scheme || a.Bucket != f.b.Address().Bucket || !strings.HasPrefix(a.Key, f.prefix) {
			continue
		}
		keep[a.Key] = true
		s, err := f.Read(ctx, a.Key)
		if err != nil {
			return 0, err
		}
		for _, n := range s.Nodes {
			for i := range n.Entries {
				need[n.Entries[i].Blob] = true
			}
		}
	}
	l, err := f.List(ctx)
	if err != nil {
		return 0, err
	}
	// First what names, then what is named: whoever reads finds a checkpoint whole, or not at all.
	var names, blobs []string
	for _, key := range l.saved {
		if !keep[key] {
			names = append(names, key)
		}
	}
	for h := range l.blobs {
		if !need[h] {
			blobs = append(blobs, f.prefix+blobsDir+h)
		}
	}
	if err := f.b.Delete(ctx, names...); err != nil {
		return 0, err
	}
	if err := f.b.Delete(ctx, blobs...); err != nil {
		return len(names), err
	}
	return len(names) + len(blobs), f.b.AbortAllParts(ctx, f.prefix)
}
