package filesync

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Result counts what Apply did.
type Result struct {
	Written, Unchanged, Removed int   // files and links; Removed counts folders too
	Bytes                       int64 // written
	// Warnings name what was left as it was, such as links that point outside.
	Warnings []string
}

// tempPrefix marks files that an apply has not finished; the next apply clears what a crash left.
const tempPrefix = ".sky-sync-"

// Apply brings the target to the manifest's state, taking from src the blobs that Plan named. It may be repeated after
// any failure and goes on from there. In folders that were there before files appear whole, with mode and time set; those
// in use keep their old inode. A folder that stands where a file has to be is removed only with Mirror or if all in it came from earlier syncs.
func Apply(ctx context.Context, m *Manifest, t Target, src BlobSource) (Result, error) {
	if err := m.Validate(); err != nil {
		return Result{}, err
	}
	dir, m, err := t.place(m)
	if err != nil {
		return Result{}, err
	}
	if fi, err := os.Stat(dir); err == nil && !fi.IsDir() {
		return Result{}, &PathError{Op: "write", Path: dir, Err: errors.New("a file stands there"), Hint: "remove it, or choose another destination"}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Result{}, writeErr("make folder", dir, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Result{}, writeErr("open", dir, err)
	}
	defer root.Close()
	a := &applier{root: root, dir: dir, m: m, t: t, src: src, made: map[string]bool{}}
	if fi, err := root.Stat("."); err == nil {
		a.device = deviceOf(fi)
	}
	err = a.run(ctx)
	return a.result(), err
}

type applier struct {
	root   *os.Root
	dir    string
	device uint64
	m      *Manifest
	t      Target
	src    BlobSource

	made      map[string]bool // folders made by this run: they hold nothing else
	modes     []int           // folders whose mode is set at the end
	written   atomic.Int64
	unchanged atomic.Int64
	bytes     atomic.Int64
	removed   int

	beginOnce sync.Once
	beginErr  error
	usesOnce  sync.Once
	uses      map[string]int // of big blobs

	mu       sync.Mutex
	warnings []string
}

func (a *applier) warn(format string, args ...any) {
	a.mu.Lock()
	a.warnings = append(a.warnings, fmt.Sprintf(format, args...))
	a.mu.Unlock()
}

// readDir lists a folder below root. (Root.FS would refuse names that are not UTF-8.)
func readDir(root *os.Root, p string) ([]fs.DirEntry, error) {
	f, err := root.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.ReadDir(-1)
}

func (a *applier) result() Result {
	r := Result{Written: int(a.written.Load()), Unchanged: int(a.unchanged.Load()), Removed: a.removed, Bytes: a.bytes.Load(), Warnings: a.warnings}
	if p := a.t.Planned; p != nil && p.fresh != nil { // what a Placer wrote is this sync's work too
		n := int(p.fresh.files.Load())
		r.Written, r.Unchanged, r.Bytes = r.Written+n, r.Unchanged-n, r.Bytes+p.fresh.bytes.Load()
	}
	outside := 0
	for i := range a.m.Entries {
		e := &a.m.Entries[i]
		if e.Kind != KindLink || !leadsOutside(e.Path, e.Link) {
			continue
		}
		if outside++; outside <= 10 {
			r.Warnings = append(r.Warnings, fmt.Sprintf("the link %s points outside of what was synced (%s)", e.Path, e.Link))
		}
	}
	if outside > 10 {
		r.Warnings = append(r.Warnings, fmt.Sprintf("… and %d more such links", outside-10))
	}
	return r
}

func (a *applier) run(ctx context.Context) error {
	wasDirty := a.t.Index != nil && a.t.Index.dirty
	if err := a.folders(ctx); err != nil {
		return err
	}
	if wasDirty {
		a.clearTemps()
	}
	err := forChunks(ctx, a.root, a.m, func(c *chunk, h *hasher) error {
		for _, i := range c.entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			if p := a.t.Planned; p != nil && len(p.settled) == len(a.m.Entries) && p.settled[i] {
				a.unchanged.Add(1)
				continue
			}
			if err := a.entry(ctx, c, &a.m.Entries[i], h); err != nil {
				return err
			}
		}
		return nil
	}, nil)
	if err != nil {
		_ = a.t.Index.save(true) // what was done so far need not be read again
		return err
	}
	if a.t.Mirror && !a.t.File {
		if err := a.mirror(ctx); err != nil {
			return err
		}
		a.t.Index.keepOnly(a.m)
	}
	if a.t.Prune && !a.t.Mirror && !a.t.File {
		if err := a.prune(ctx); err != nil {
			return err
		}
		a.t.Index.keepOnly(a.m)
	}
	for i := len(a.modes) - 1; i >= 0; i-- {
		e := &a.m.Entries[a.modes[i]]
		if err := a.root.Chmod(e.Path, fs.FileMode(e.Mode)); errors.Is(err, syscall.EPERM) {
			a.warn("the mode of %s stays as it is: the folder belongs to someone else", e.Path)
		} else if err != nil {
			return writeErr("set the mode of", a.full(e.Path), err)
		}
	}
	if wasDirty || a.t.Index.changed() {
		return a.t.Index.save(false)
	}
	return nil
}

// begin notes in the index that files are being written, once.
func (a *applier) begin() error {
	a.beginOnce.Do(func() { a.beginErr = a.t.Index.save(true) })
	return a.beginErr
}

func (a *applier) full(p string) string { return filepath.Join(a.dir, filepath.FromSlash(p)) }

// folders makes all folders, so that every parent of a file is a real one; a link or file in the way is removed.
func (a *applier) folders(ctx context.Context) error {
	for i := range a.m.Entries {
		e := &a.m.Entries[i]
		if e.Kind != KindDir {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if !a.made[parentOf(e.Path)] {
			fi, err := a.root.Lstat(e.Path)
			switch {
			case err == nil && fi.IsDir():
				if err := a.oldFolder(i, fi); err != nil {
					return err
				}
				continue
			case err == nil:
				if err := a.root.Remove(e.Path); err != nil {
					return writeErr("replace", a.full(e.Path), err)
				}
			case !errors.Is(err, fs.ErrNotExist):
				return writeErr("make folder", a.full(e.Path), err)
			}
		}
		if err := a.root.Mkdir(e.Path, 0o700); err != nil {
			return writeErr("make folder", a.full(e.Path), err)
		}
		a.made[e.Path] = true
		if e.Mode != 0o700 {
			a.modes = append(a.modes, i)
		}
	}
	return nil
}

// oldFolder makes sure that an existing folder can be written to; its mode is set at the end.
func (a *applier) oldFolder(i int, fi fs.FileInfo) error {
	e := &a.m.Entries[i]
	now := permOf(fi)
	if now != e.Mode {
		a.modes = append(a.modes, i)
	}
	if now&0o700 != 0o700 {
		if now == e.Mode {
			a.modes = append(a.modes, i)
		}
		if err := a.root.Chmod(e.Path, fs.FileMode(now|0o700)); err != nil && !errors.Is(err, syscall.EPERM) {
			return writeErr("write to", a.full(e.Path), err)
		}
	}
	return nil
}

// entry brings one file or link into place.
func (a *applier) entry(ctx context.Context, c *chunk, e *Entry, h *hasher) error {
	name := baseOf(e.Path)
	var fi fs.FileInfo
	if !a.made[c.dir] {
		var err error
		if fi, err = c.root.Lstat(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return writeErr("write", c.full(e), err)
		}
	}
	if fi != nil {
		same, err := a.same(ctx, c, e, fi, h)
		if err != nil {
			return err
		}
		if same {
			a.unchanged.Add(1)
			return nil
		}
		if fi.IsDir() {
			if err := a.makeWay(ctx, e.Path); err != nil {
				return err
			}
		}
	}
	if err := a.begin(); err != nil {
		return err
	}
	// In a folder that this run made nobody waits for the file; elsewhere it must appear whole.
	temp := name
	if !a.made[c.dir] {
		temp = tempPrefix + rand.Text()
	}
	err := a.build(ctx, c, e, temp, h)
	if err == nil && temp != name {
		err = c.root.Rename(temp, name)
	}
	if err != nil {
		_ = c.root.Remove(temp)
		var pe *PathError
		if errors.As(err, &pe) || ctx.Err() != nil {
			return err
		}
		return writeErr("write", c.full(e), err)
	}
	a.written.Add(1)
	if e.Kind == KindFile {
		a.bytes.Add(e.Size)
		a.t.Index.put(e.Path, e.Size, e.ModTime, e.Hash)
	} else {
		a.t.Index.putLink(e.Path, e.Link)
	}
	return nil
}

// same says whether the entry is there already, after setting its mode and time.
func (a *applier) same(ctx context.Context, c *chunk, e *Entry, fi fs.FileInfo, h *hasher) (bool, error) {
	name := baseOf(e.Path)
	if e.Kind == KindLink {
		if fi.Mode()&fs.ModeSymlink == 0 {
			return false, nil
		}
		to, err := c.root.Readlink(name)
		if err != nil || filepath.ToSlash(to) != e.Link {
			return false, nil
		}
		a.t.Index.putLink(e.Path, e.Link)
		return true, nil
	}
	same, err := c.holds(ctx, e, fi, a.t.Index, h)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ELOOP) {
		return false, nil
	}
	if err != nil || !same {
		return false, err
	}
	if permOf(fi) != e.Mode {
		err = c.root.Chmod(name, fs.FileMode(e.Mode))
	}
	if when := time.Unix(0, e.ModTime); err == nil && !fi.ModTime().Equal(when) {
		err = c.root.Chtimes(name, when, when)
	}
	if errors.Is(err, syscall.EPERM) {
		a.warn("the mode and time of %s stay as they are: the file belongs to someone else", e.Path)
		return true, nil
	}
	if err != nil {
		return false, writeErr("set the mode and time of", c.full(e), err)
	}
	a.t.Index.put(e.Path, e.Size, e.ModTime, e.Hash)
	return true, nil
}

// build makes the finished file or link under a temporary name.
func (a *applier) build(ctx context.Context, c *chunk, e *Entry, temp string, h *hasher) error {
	if e.Kind == KindLink {
		return c.root.Symlink(filepath.FromSlash(e.Link), temp)
	}
	if m, ok := a.src.(Mover); ok && a.t.Trusted && e.Size >= MoveFrom && a.usedOnce(e.Hash) {
		if err := c.take(m, e, temp); err == nil {
			return nil
		}
		_ = c.root.Remove(temp)
	}
	r, size, err := a.src.Open(e.Hash)
	if err != nil {
		return &PathError{Op: "write", Path: c.full(e), Err: fmt.Errorf("its content is not here: %w", err), Hint: "sync again"}
	}
	defer r.Close()
	if size != e.Size {
		return &PathError{Op: "write", Path: c.full(e), Err: invalidf("its content has another size"), Hint: "sync again"}
	}
	f, err := c.create(temp, e.Mode)
	if err != nil {
		return err
	}
	if err := copyChecked(ctx, f, r, e, h, a.t.Trusted); err != nil {
		f.abort()
		return err
	}
	return f.finish(time.Unix(0, e.ModTime))
}

// MoveFrom is the size, in bytes, from which a blob is rather moved than copied, if its source can do that.
const MoveFrom = 128 << 10

// usedOnce says whether only one entry has this content.
func (a *applier) usedOnce(hash string) bool {
	a.usesOnce.Do(func() {
		a.uses = map[string]int{}
		for i := range a.m.Entries {
			if e := &a.m.Entries[i]; e.Kind == KindFile && e.Size >= MoveFrom {
				a.uses[e.Hash]++
			}
		}
	})
	return a.uses[hash] == 1
}

func copyChecked(ctx context.Context, w io.Writer, r io.Reader, e *Entry, h *hasher, trusted bool) error {
	h.h.Reset()
	var n int64
	for {
		k, err := r.Read(h.buf)
		if k > 0 {
			if !trusted {
				h.h.Write(h.buf[:k])
			}
			n += int64(k)
			if _, werr := w.Write(h.buf[:k]); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
	var got [sha256.Size]byte
	want, _ := hex.DecodeString(e.Hash)
	if h.h.Sum(got[:0]); n != e.Size || !trusted && !bytes.Equal(got[:], want) {
		return invalidf("the content kept for %q is damaged; sync again", short(e.Path))
	}
	return nil
}

// makeWay removes a folder that stands where a file or link has to be.
func (a *applier) makeWay(ctx context.Context, p string) error {
	if !a.t.Mirror {
		foreign, err := a.foreign(p)
		if err != nil {
			return writeErr("replace", a.full(p), err)
		}
		if foreign != "" {
			return &PathError{Op: "replace", Path: a.full(p), Err: fmt.Errorf("it is a folder here, and %s in it was not synced", foreign),
				Hint: "move it away, or sync with mirror to delete it"}
		}
	}
	_, err := a.removeAll(ctx, p)
	if errors.Is(err, errKept) {
		return writeErr("replace", a.full(p), err)
	}
	return err
}

// foreign names something in a folder that no earlier sync put there.
func (a *applier) foreign(dir string) (string, error) {
	list, err := readDir(a.root, dir)
	if err != nil {
		return "", err
	}
	for _, d := range list {
		p := dir + "/" + d.Name()
		if d.IsDir() {
			if f, err := a.foreign(p); f != "" || err != nil {
				return f, err
			}
			continue
		}
		fi, err := a.root.Lstat(p)
		if err != nil {
			return "", err
		}
		if !a.ours(p, fi) {
			return p, nil
		}
	}
	return "", nil
}

// ours says whether a file or link is as an earlier sync left it.
func (a *applier) ours(p string, fi fs.FileInfo) bool {
	switch {
	case fi.Mode().IsRegular():
		_, ok := a.t.Index.get(p, fi.Size(), fi.ModTime().UnixNano())
		return ok
	case fi.Mode()&fs.ModeSymlink != 0:
		to, err := a.root.Readlink(p)
		return err == nil && to != "" && filepath.ToSlash(to) == a.t.Index.link(p)
	}
	return false
}

// mirror removes what the manifest doesn't name.
func (a *applier) mirror(ctx context.Context) error {
	kinds := make(map[string]Kind, len(a.m.Entries))
	for i := range a.m.Entries {
		kinds[a.m.Entries[i].Path] = a.m.Entries[i].Kind
	}
	dirs := []string{"."}
	for len(dirs) > 0 {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		list, err := readDir(a.root, dir)
		if err != nil {
			return writeErr("list", a.full(dir), err)
		}
		for _, d := range list {
			p := strings.TrimPrefix(dir+"/"+d.Name(), "./")
			switch kinds[p] {
			case KindDir:
				dirs = append(dirs, p)
			case 0:
				n, err := a.removeAll(ctx, p)
				a.removed += n
				if err != nil && !errors.Is(err, errKept) {
					return err
				}
			}
		}
	}
	return nil
}

// prune removes what earlier syncs brought and the manifest lacks, and the folders that this leaves empty.
func (a *applier) prune(ctx context.Context) error {
	named := make(map[string]bool, len(a.m.Entries))
	for i := range a.m.Entries {
		named[a.m.Entries[i].Path] = true
	}
	for _, p := range a.t.Index.paths() {
		if named[p] {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if fi, err := a.root.Lstat(p); err != nil || !a.ours(p, fi) {
			continue
		}
		if err := a.root.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return writeErr("remove", a.full(p), err)
		}
		a.removed++
		for dir := parentOf(p); dir != "" && !named[dir]; dir = parentOf(dir) {
			if a.root.Remove(dir) != nil { // there is more in it
				break
			}
			a.removed++
		}
	}
	return nil
}

// errKept says that something in the way may not be removed.
var errKept = errors.New("another filesystem is mounted in it")

// removeAll removes a tree without following a link and without entering another filesystem: a bucket that is mounted
// in the folder must not be emptied. It counts what it removed.
func (a *applier) removeAll(ctx context.Context, p string) (n int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	fi, err := a.root.Lstat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, writeErr("remove", a.full(p), err)
	}
	kept := false
	if fi.IsDir() {
		if deviceOf(fi) != a.device {
			a.warn("%s is left as it is: another filesystem is mounted there", p)
			return 0, errKept
		}
		if permOf(fi)&0o700 != 0o700 {
			_ = a.root.Chmod(p, fs.FileMode(permOf(fi)|0o700))
		}
		list, err := readDir(a.root, p)
		if err != nil {
			return 0, writeErr("remove", a.full(p), err)
		}
		for _, d := range list {
			k, err := a.removeAll(ctx, p+"/"+d.Name())
			n += k
			if errors.Is(err, errKept) {
				kept = true
			} else if err != nil {
				return n, err
			}
		}
	}
	if kept {
		return n, errKept
	}
	if err := a.root.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return n, writeErr("remove", a.full(p), err)
	}
	return n + 1, nil
}

// clearTemps removes what an apply that was killed left in the manifest's folders.
func (a *applier) clearTemps() {
	dirs := []string{"."}
	for i := range a.m.Entries {
		if a.m.Entries[i].Kind == KindDir {
			dirs = append(dirs, a.m.Entries[i].Path)
		}
	}
	for _, dir := range dirs {
		list, err := readDir(a.root, dir)
		if err != nil {
			continue
		}
		for _, d := range list {
			if strings.HasPrefix(d.Name(), tempPrefix) && !d.IsDir() {
				_ = a.root.Remove(dir + "/" + d.Name())
			}
		}
	}
}
