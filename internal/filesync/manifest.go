package filesync

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"sort"
	"strings"
)

// Kind tells what an entry is.
type Kind uint8

// Kinds of entries.
const (
	KindFile Kind = 1
	KindDir  Kind = 2
	KindLink Kind = 3
)

func (k Kind) String() string {
	switch k {
	case KindFile:
		return "file"
	case KindDir:
		return "folder"
	case KindLink:
		return "link"
	}
	return "unknown"
}

// Entry is one file, folder or link of a tree.
type Entry struct {
	Path    string // slash-separated, relative to the root
	Kind    Kind
	Mode    uint32 // permission bits of files and folders
	Size    int64  // bytes; files only
	ModTime int64  // Unix nanoseconds; files only
	Hash    string // SHA-256 in hex; files only
	Link    string // target as it stands in the link; links only
}

// Manifest describes a whole tree: its entries sorted by path, each folder before what it holds. The root itself has no
// entry. The entries of a manifest that this package made must not be changed.
type Manifest struct {
	Entries []Entry

	valid bool // whoever made it has validated it
	count int  // of the entries then
}

// Limits bound what Decode accepts. Zero values stand for those of DefaultLimits.
type Limits struct {
	MaxEntries int
	MaxBytes   int64 // of the canonical form, before compression
}

// DefaultLimits allow trees far bigger than any workdir, and keep a hostile manifest from filling the memory.
var DefaultLimits = Limits{MaxEntries: 4_000_000, MaxBytes: 1 << 30}

const (
	maxPath = 4096 // PATH_MAX of Linux
	maxName = 255  // NAME_MAX of Linux
	maxSize = 1 << 50
)

// ManifestMediaType is the media type of an encoded manifest.
const ManifestMediaType = "application/x-skyloom-manifest"

// ID is the SHA-256, in hex, of the canonical form. Equal ids mean equal trees, modes and times of files included.
func (m *Manifest) ID() string {
	h := sha256.New()
	_ = writeCanonical(h, manifestMagic, m.Entries) // a hash never fails
	return hex.EncodeToString(h.Sum(nil))
}

// Hashes lists the distinct blobs of the tree, sorted.
func (m *Manifest) Hashes() []string {
	out := make([]string, 0, len(m.Entries))
	for i := range m.Entries {
		if e := &m.Entries[i]; e.Kind == KindFile {
			out = append(out, e.Hash)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// InOrder gives blobs of the tree in the order in which its files come, each once: read so, a disk need not seek. Blobs that
// the tree lacks are left out.
func (m *Manifest) InOrder(hashes []string) []string {
	want := make(map[string]struct{}, len(hashes))
	for _, h := range hashes {
		want[h] = struct{}{}
	}
	out := make([]string, 0, len(want))
	for i := 0; i < len(m.Entries) && len(want) > 0; i++ {
		if e := &m.Entries[i]; e.Kind == KindFile {
			if _, ok := want[e.Hash]; ok {
				delete(want, e.Hash)
				out = append(out, e.Hash)
			}
		}
	}
	return out
}

// Sizes maps each blob of the tree to its size in bytes.
func (m *Manifest) Sizes() map[string]int64 {
	out := make(map[string]int64, len(m.Entries))
	for i := range m.Entries {
		if e := &m.Entries[i]; e.Kind == KindFile {
			out[e.Hash] = e.Size
		}
	}
	return out
}

// Totals counts the files and their bytes, equal ones each time.
func (m *Manifest) Totals() (files int, bytes int64) {
	for i := range m.Entries {
		if e := &m.Entries[i]; e.Kind == KindFile {
			files++
			bytes += e.Size
		}
	}
	return files, bytes
}

// Validate checks everything that Apply relies on. Its errors are ErrInvalid.
func (m *Manifest) Validate() error {
	if m.valid && m.count == len(m.Entries) {
		return nil
	}
	c := newChecker(len(m.Entries))
	for i := range m.Entries {
		if err := c.add(&m.Entries[i]); err != nil {
			return err
		}
	}
	return nil
}

// checker holds what one pass over sorted entries must remember.
type checker struct {
	last  string
	any   bool
	dirs  map[string]struct{}
	sizes map[string]int64
}

// newChecker is for about so many entries.
func newChecker(n int) *checker {
	return &checker{dirs: map[string]struct{}{"": {}}, sizes: make(map[string]int64, n)}
}

// validated gives a manifest whose entries were validated.
func validated(entries []Entry) *Manifest {
	return &Manifest{Entries: entries, valid: true, count: len(entries)}
}

func (c *checker) add(e *Entry) error {
	if err := checkPath(e.Path); err != nil {
		return err
	}
	if c.any && e.Path <= c.last {
		return invalidf("path %q is listed twice or out of order", short(e.Path))
	}
	c.any, c.last = true, e.Path
	parent := parentOf(e.Path)
	if _, ok := c.dirs[parent]; !ok {
		return invalidf("path %q leads through %q, which is not a folder of the manifest", short(e.Path), short(parent))
	}
	switch e.Kind {
	case KindFile:
		if !isHash(e.Hash) || e.Size < 0 || e.Size > maxSize || e.Link != "" || e.Mode > 0o777 {
			return invalidf("file %q has a wrong hash, size or mode", short(e.Path))
		}
		if s, ok := c.sizes[e.Hash]; ok && s != e.Size {
			return invalidf("file %q has the hash of another file with another size", short(e.Path))
		}
		c.sizes[e.Hash] = e.Size
	case KindDir:
		if e.Hash != "" || e.Size != 0 || e.ModTime != 0 || e.Link != "" || e.Mode > 0o777 {
			return invalidf("folder %q has attributes of a file", short(e.Path))
		}
		c.dirs[e.Path] = struct{}{}
	case KindLink:
		if e.Hash != "" || e.Size != 0 || e.ModTime != 0 || e.Mode != 0 {
			return invalidf("link %q has attributes of a file", short(e.Path))
		}
		if e.Link == "" || len(e.Link) >= maxPath || strings.IndexByte(e.Link, 0) >= 0 {
			return invalidf("link %q has an impossible target", short(e.Path))
		}
	default:
		return invalidf("path %q is of an unknown kind", short(e.Path))
	}
	return nil
}

func checkPath(p string) error {
	if p == "" || len(p) > maxPath {
		return invalidf("a path is empty or longer than %d bytes", maxPath)
	}
	if strings.IndexByte(p, 0) >= 0 {
		return invalidf("path %q holds a NUL byte", short(p))
	}
	for rest, more := p, true; more; {
		var name string
		name, rest, more = strings.Cut(rest, "/")
		if name == "" || name == "." || name == ".." {
			return invalidf("path %q is not a plain relative path", short(p))
		}
		if len(name) > maxName {
			return invalidf("path %q has a name longer than %d bytes", short(p), maxName)
		}
	}
	return nil
}

// isHash accepts lower-case hex only: upper case would be a second name for the same blob.
func isHash(h string) bool {
	if len(h) != 2*sha256.Size {
		return false
	}
	for i := 0; i < len(h); i++ {
		if c := h[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// IsHash says whether h is the SHA-256 of a blob as this package writes it: 64 lower-case hex digits.
func IsHash(h string) bool { return isHash(h) }

func parentOf(p string) string {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return ""
}

func baseOf(p string) string { return p[strings.LastIndexByte(p, '/')+1:] }

func short(p string) string {
	if len(p) > 120 {
		return p[:100] + "…"
	}
	return p
}

// leadsOutside says whether a link at p (relative to the root) points out of the tree, by its text alone.
func leadsOutside(p, target string) bool {
	if strings.HasPrefix(target, "/") || strings.HasPrefix(target, "\\") || (len(target) > 1 && target[1] == ':') {
		return true
	}
	depth := strings.Count(p, "/")
	for part := range strings.SplitSeq(target, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return true
			}
		default:
			depth++
		}
	}
	return false
}

// sortEntries brings entries into manifest order.
func sortEntries(es []Entry) {
	sort.Slice(es, func(i, j int) bool { return es[i].Path < es[j].Path })
}
