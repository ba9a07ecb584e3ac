package filesync

import (
	"bufio"
	"io"
	"os"
	"sort"
	"sync"
)

// Index remembers, for one destination folder, the files that earlier syncs put or found there, so that they need not be
// read to know their content, and so that a sync knows its own files from those of jobs. It lives outside the folder.
type Index struct {
	path string
	mu   sync.Mutex
	m    map[string]indexed
	// dirty: an apply began and may have left temporary files.
	dirty bool
	// ahead: what is on disk lacks something.
	ahead bool
}

type indexed struct {
	size, mtime int64
	hash        string
	link        string // of a link, its target; it has nothing else
}

const (
	indexMagic = "skyix1"
	// dirtyExt is of an empty file beside an index that says the same as "dirty" in its first line.
	dirtyExt = ".dirty"
)

// OpenIndex reads an index. One that is missing or damaged is empty: files of the right size are then read once.
func OpenIndex(path string) *Index {
	x := &Index{path: path, m: map[string]indexed{}}
	if _, err := os.Lstat(path + dirtyExt); err == nil {
		x.dirty = true
	}
	f, err := os.Open(path)
	if err != nil {
		return x
	}
	defer f.Close()
	br := bufio.NewReader(f)
	head, err := br.ReadString('\n')
	if err != nil || (head != indexMagic+" clean\n" && head != indexMagic+" dirty\n") {
		x.dirty = true
		return x
	}
	x.dirty = x.dirty || head == indexMagic+" dirty\n"
	entries, err := decodeEntries(br, manifestMagic, Limits{}, func(e *Entry) error { return checkPath(e.Path) })
	if err != nil {
		x.dirty = true
		return x
	}
	for i := range entries {
		e := &entries[i]
		x.m[e.Path] = indexed{e.Size, e.ModTime, e.Hash, e.Link}
	}
	return x
}

// save writes the index. A caller that can't is only slower the next time.
func (x *Index) save(dirty bool) error {
	if x == nil {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.dirty = dirty
	if x.path == "" {
		return nil
	}
	if dirty && !x.ahead { // all but the mark is on disk
		if os.WriteFile(x.path+dirtyExt, nil, 0o600) == nil {
			return nil
		}
	}
	entries := make([]Entry, 0, len(x.m))
	for p, v := range x.m {
		e := Entry{Path: p, Kind: KindFile, Size: v.size, ModTime: v.mtime, Hash: v.hash}
		if v.link != "" {
			e = Entry{Path: p, Kind: KindLink, Link: v.link}
		}
		entries = append(entries, e)
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].Path < entries[j].Path })
	state := " clean\n"
	if dirty {
		state = " dirty\n"
	}
	err := replaceFile(x.path, func(w io.Writer) error {
		if _, err := io.WriteString(w, indexMagic+state); err != nil {
			return err
		}
		return encodeEntries(w, manifestMagic, entries)
	})
	if err == nil {
		x.ahead = false
		if !dirty {
			_ = os.Remove(x.path + dirtyExt) // if it stays, the next apply looks for temporary files in vain
		}
	}
	return err
}

// changed says whether the index knows more, or less, than its file.
func (x *Index) changed() bool {
	if x == nil {
		return false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.ahead || x.dirty
}

func (x *Index) get(path string, size, mtime int64) (hash string, ok bool) {
	if x == nil {
		return "", false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	v, ok := x.m[path]
	if !ok || v.link != "" || v.size != size || v.mtime != mtime {
		return "", false
	}
	return v.hash, true
}

// link is the target of a link that an earlier sync put there.
func (x *Index) link(path string) string {
	if x == nil {
		return ""
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.m[path].link
}

func (x *Index) put(path string, size, mtime int64, hash string) {
	x.set(path, indexed{size: size, mtime: mtime, hash: hash})
}

func (x *Index) putLink(path, target string) { x.set(path, indexed{link: target}) }

func (x *Index) set(path string, v indexed) {
	if x == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.m[path] != v {
		x.m[path], x.ahead = v, true
	}
}

// paths lists what the index knows, in order.
func (x *Index) paths() []string {
	if x == nil {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	out := make([]string, 0, len(x.m))
	for p := range x.m {
		out = append(out, p)
	}
	sort.Strings(out)
	return out
}

// keepOnly drops what the manifest doesn't name.
func (x *Index) keepOnly(m *Manifest) {
	if x == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	next := make(map[string]indexed, len(m.Entries))
	for i := range m.Entries {
		if v, ok := x.m[m.Entries[i].Path]; ok {
			next[m.Entries[i].Path] = v
		}
	}
	x.ahead = x.ahead || len(next) != len(x.m)
	x.m = next
}
