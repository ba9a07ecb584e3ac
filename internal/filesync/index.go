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
}

const indexMagic = "skyix1"

// OpenIndex reads an index. One that is missing or damaged is empty: files of the right size are then read once.
func OpenIndex(path string) *Index {
	x := &Index{path: path, m: map[string]indexed{}}
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
	x.dirty = head == indexMagic+" dirty\n"
	entries, err := decodeEntries(br, Limits{}, func(e *Entry) error { return checkPath(e.Path) })
	if err != nil {
		x.dirty = true
		return x
	}
	for i := range entries {
		e := &entries[i]
		x.m[e.Path] = indexed{e.Size, e.ModTime, e.Hash}
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
	entries := make([]Entry, 0, len(x.m))
	for p, v := range x.m {
		entries = append(entries, Entry{Path: p, Kind: KindFile, Size: v.size, ModTime: v.mtime, Hash: v.hash})
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
		return encodeEntries(w, entries)
	})
	if err == nil {
		x.ahead = false
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
	if !ok || v.size != size || v.mtime != mtime {
		return "", false
	}
	return v.hash, true
}

func (x *Index) put(path string, size, mtime int64, hash string) {
	if x == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if v := (indexed{size, mtime, hash}); x.m[path] != v {
		x.m[path], x.ahead = v, true
	}
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
