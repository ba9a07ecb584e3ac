package rsyncd

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// receiver is the receiving side of a run: generator and receiver.
type receiver struct {
	*session
	list []*entry
	dest string // folder that names count from
	as   string // path of the only file, where the destination names it; else ""

	mu   sync.Mutex
	olds map[int]*entry // what was there under the names of files asked for
	redo []int          // files whose checksums were wrong, to be asked for again
	late []late         // folders whose attributes are set at the end

	leaders map[int]int // of groups of hard links
}

// late is a folder by its number, with the mode that it had.
type late struct {
	ndx  int
	mode uint32
}

// receive is the receiver's side of a run.
func (s *session) receive() {
	if s.o.del || s.o.pruneEmpty {
		s.filters = readFilters(s.in)
	}
	r := &receiver{session: s, list: s.readList(), olds: map[int]*entry{}}
	if len(s.o.args) < 2 {
		fail(exitSyntax, "no destination was given")
	}
	if len(s.o.args) > 2 {
		fail(exitSyntax, "several destinations were given")
	}
	r.destination(s.o.args[1])
	if s.o.del && !s.o.delAfter {
		r.deleteExtra()
	}
	asked := make(chan *trouble, 1)
	go func() { asked <- catch(r.ask) }()
	received := catch(r.take)
	if received != nil {
		// What is asked for may hang in a connection that nobody reads any more: the process ends without it.
		panic(*received)
	}
	if t := <-asked; t != nil {
		panic(*t)
	}
	r.finish()
	s.farewell()
}

// farewell is the end of a receiver's run.
func (s *session) farewell() {
	if s.proto >= 31 {
		s.out.ndx(ndxDone)
		s.out.flush()
		if it := s.readItem(0); it.ndx != ndxDone {
			fail(exitProtocol, "the other side speaks of file %d at the end", it.ndx)
		}
	}
	s.out.ndx(ndxDone)
	s.out.flush()
}

// destination finds where names count from: a folder that is there or is made, or the file that the only entry becomes.
func (r *receiver) destination(arg string) {
	if arg == "" {
		arg = "."
	}
	path := filepath.Clean(arg)
	slash := strings.HasSuffix(arg, "/") || strings.HasSuffix(arg, "/.")
	st, err := statOf(path, true)
	e := entryOf(st)
	many := len(r.list) > 1
	switch {
	case err == nil && e.dir():
		r.dest = path
		return
	case err == nil && (many || slash):
		fail(exitFile, "the destination %s must be a folder: it is to hold several files, or was written with a slash", arg)
	case err == nil && len(r.list) == 1 && r.list[0].dir():
		fail(exitFile, "the file %s can't be replaced by a folder", arg)
	case err == nil:
		r.dest, r.as = filepath.Dir(path), path
		return
	case err != unix.ENOENT:
		fail(exitFile, "the destination %s can't be looked at: %w", arg, err)
	}
	parent := filepath.Dir(path)
	if r.o.mkpath && !r.o.dryRun {
		if err := os.MkdirAll(parent, 0o777); err != nil {
			fail(exitFileIO, "the folder %s can't be made: %w", parent, err)
		}
	}
	if many || slash || len(r.list) == 0 {
		if !r.o.dryRun && len(r.list) > 0 {
			if err := os.Mkdir(path, 0o777); err != nil {
				fail(exitFile, "mkdir %s: %w", arg, unwrap(err))
			}
		}
		r.dest = path
		return
	}
	if _, err := statOf(parent, true); err != nil && !r.o.dryRun {
		fail(exitFile, "change_dir %s: %w", parent, err)
	}
	r.dest, r.as = parent, path
}

// unwrap leaves of an error of package os what the system said.
func unwrap(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// path is where an entry belongs.
func (r *receiver) path(e *entry) string {
	if r.as != "" {
		return r.as
	}
	return filepath.Join(r.dest, filepath.FromSlash(e.name))
}

// look finds what is under a name now, nil if nothing.
func look(path string) (*entry, error) {
	st, err := statOf(path, false)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	e := entryOf(st)
	return &e, nil
}

// place makes something under a name of its own and moves it to its place.
func (r *receiver) place(e *entry, path string, old *entry, create func(tmp string) error) error {
	if r.o.dryRun {
		return nil
	}
	tmp := tempName(path)
	err := create(tmp)
	if errors.Is(err, fs.ErrNotExist) && r.o.relative {
		if err = os.MkdirAll(filepath.Dir(path), 0o777); err == nil {
			err = create(tmp)
		}
	}
	if err == nil {
		err = r.setAttrs(tmp, e, old)
	}
	if err == nil {
		r.keepBackup(path, old)
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return unwrap(err)
	}
	return nil
}

// keepBackup moves what is about to be replaced aside, with --backup.
func (r *receiver) keepBackup(path string, old *entry) {
	if r.o.backup && old != nil {
		if err := os.Rename(path, path+r.o.backupSuffix); err != nil {
			r.complain("backup", path, err)
		}
	}
}

// tempName is a name beside path that nothing has.
func tempName(path string) string {
	var b [4]byte
	rand.Read(b[:])
	base := filepath.Base(path)
	return filepath.Join(filepath.Dir(path), "."+base[:min(len(base), 240)]+"."+hex.EncodeToString(b[:]))
}

// leader is the first of a group of hard links in the order of the list: the one whose contents are asked for.
func (r *receiver) leader(e *entry) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leaders == nil {
		r.leaders = map[int]int{}
		for i, o := range r.list {
			if _, ok := r.leaders[o.group]; !ok && o.group > 0 && !o.dropped {
				r.leaders[o.group] = i
			}
		}
	}
	return r.leaders[e.group]
}

// take is the receiver: it writes the files as they come, and leads through the phases of a run.
func (r *receiver) take() {
	for phase := 0; ; {
		it := r.readItem(len(r.list))
		if it.ndx == ndxDone {
			if phase++; phase > 2 {
				return
			}
			for _, i := range r.redo {
				r.request(i, itemTransfer)
			}
			r.redo = nil
			r.out.ndx(ndxDone)
			r.out.flush()
			continue
		}
		if it.flags&itemTransfer == 0 || r.o.dryRun {
			continue
		}
		for range 4 { // what is said of blocks: there are none
			r.in.int()
		}
		i := int(it.ndx)
		r.mu.Lock()
		old := r.olds[i]
		delete(r.olds, i)
		r.mu.Unlock()
		e := r.list[i]
		if !e.regular() || e.dropped {
			fail(exitProtocol, "contents of %q, which was not asked for", e.name)
		}
		r.write(i, e, old, phase > 0)
	}
}

// write receives one file.
func (r *receiver) write(i int, e, old *entry, again bool) {
	path := r.path(e)
	to, name, err := r.create(path)
	var good bool
	got := catch(func() {
		var werr error
		good, werr = r.receiveContents(orNothing(to))
		err = errors.Join(err, werr)
	})
	if to != nil {
		if r.o.inplace && got == nil && err == nil {
			if pos, serr := to.Seek(0, 1); serr == nil {
				err = to.Truncate(pos)
			}
		}
		err = errors.Join(err, to.Close())
	}
	if got != nil { // cut in the middle
		if name != path && name != "" {
			if r.o.partial && err == nil {
				os.Rename(name, path)
			} else {
				os.Remove(name)
			}
		}
		panic(*got)
	}
	switch {
	case err != nil:
	case !good && !again:
		r.redo = append(r.redo, i)
	case !good:
		err = errors.New("the contents arrived damaged, twice")
	default:
		if err = r.setAttrs(name, e, old); err == nil && name != path {
			r.keepBackup(path, old)
			err = os.Rename(name, path)
		}
	}
	if err != nil {
		r.complain("write", path, err)
	} else if good && r.o.removeSource {
		r.out.messageInt(msgSuccess, int32(i))
	}
	if (err != nil || !good) && name != path && name != "" {
		os.Remove(name)
	}
}

// create opens what a file's contents are written to.
func (r *receiver) create(path string) (*os.File, string, error) {
	if r.o.inplace {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
		return f, path, err
	}
	for try := 0; ; try++ {
		name := tempName(path)
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		switch {
		case err == nil:
			return f, name, nil
		case errors.Is(err, fs.ErrNotExist) && r.o.relative && try == 0:
			os.MkdirAll(filepath.Dir(path), 0o777)
		case !errors.Is(err, fs.ErrExist) || try > 10:
			return nil, "", err
		}
	}
}

// nothing takes the contents of a file that cannot be written.
type nothing struct{}

func (nothing) Write(p []byte) (int, error) { return len(p), nil }

func orNothing(f *os.File) interface {
	Write(p []byte) (int, error)
} {
	if f == nil {
		return nothing{}
	}
	return f
}

// finish does what comes after all files: hard links, late deletions, the attributes of folders from below.
func (r *receiver) finish() {
	if r.o.dryRun {
		return
	}
	if r.o.hardLinks {
		r.hardLinks()
	}
	if r.o.del && r.o.delAfter {
		r.deleteExtra()
	}
	for n := len(r.late) - 1; n >= 0; n-- {
		e := r.list[r.late[n].ndx]
		path := r.path(e)
		old, err := look(path)
		if err != nil || old == nil || !old.dir() {
			continue
		}
		old.mode = r.late[n].mode
		if err := r.setAttrs(path, e, old); err != nil {
			r.complain("attributes of", path, err)
		}
	}
}

// hardLinks makes the other members of each group links to its first.
func (r *receiver) hardLinks() {
	for i, e := range r.list {
		if e.group == 0 || e.dropped || e.dir() {
			continue
		}
		lead := r.leader(e)
		if lead == i {
			continue
		}
		from, to := r.path(r.list[lead]), r.path(e)
		a, err := statOf(from, false)
		if err != nil {
			continue // it was told why
		}
		if b, err := statOf(to, false); err == nil && a.Dev == b.Dev && a.Ino == b.Ino {
			continue
		}
		tmp := tempName(to)
		err = os.Link(from, tmp)
		if err == nil {
			err = os.Rename(tmp, to)
		}
		if err != nil {
			os.Remove(tmp)
			r.complain("link", to, err)
		}
	}
}
