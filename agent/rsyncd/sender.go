package rsyncd

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// walker builds the list of files to send.
type walker struct {
	s     *session
	list  []*entry
	c     codec
	links map[[2]uint64]int // first entry of each group of hard links, plus one
	dev   uint64            // of the argument, with --one-file-system
	sent  map[string]bool   // implied parents
}

// send is the sender's side of a run.
func (s *session) send() {
	s.filters = readFilters(s.in)
	w := &walker{s: s, links: map[[2]uint64]int{}, sent: map[string]bool{}}
	paths := s.o.args[1:]
	if len(paths) == 0 {
		paths = []string{"."}
	}
	for _, p := range paths {
		w.argument(p)
	}
	s.endList(w.list)
	s.out.flush()
	if len(w.list) == 0 {
		return
	}
	list := append([]*entry(nil), w.list...)
	sortList(list)
	s.answer(list)
	s.statistics(w.list)
	s.goodbye()
}

// argument adds what one argument names. A name that ends in a slash means what is in the folder.
func (w *walker) argument(arg string) {
	s := w.s
	if arg == "" {
		arg = "."
	}
	base := filepath.Base(arg)
	inside := strings.HasSuffix(arg, "/") || base == "." || base == ".." || strings.HasSuffix(arg, "/.")
	path, name := filepath.Clean(arg), base
	if inside {
		name = "."
	}
	if s.o.relative {
		name = w.relative(arg)
		if name != "." && !s.o.noImplied {
			w.parents(path, name)
		}
	}
	st, err := statOf(path, inside || s.o.copyLinks)
	if err == nil && !inside && (s.o.copyDirLinks || s.o.copyUnsafe) {
		st = w.followed(path, name, st)
	}
	if err != nil {
		s.ioError |= ioErrGeneral
		s.complain("link_stat", arg, err)
		return
	}
	e := entryOf(st)
	e.path, e.name = path, name
	if e.dir() && !s.o.recurse && !s.o.dirs {
		s.out.message(msgInfo, []byte("skipping directory "+arg+"\n"))
		return
	}
	w.dev = uint64(st.Dev)
	e.top = e.dir()
	e.content = e.dir() && (s.o.recurse || inside)
	w.add(&e, st)
	if e.content {
		w.folder(path, name)
	}
}

// relative is the name of an argument with --relative: all of it, or what follows /./.
func (w *walker) relative(arg string) string {
	if _, after, ok := strings.Cut(arg, "/./"); ok {
		arg = after
	}
	return cleanName("./" + strings.TrimLeft(arg, "/"))
}

// parents adds the folders above an argument.
func (w *walker) parents(path, name string) {
	parts := strings.Split(name, "/")
	for i := 1; i < len(parts); i++ {
		parent := strings.Join(parts[:i], "/")
		if w.sent[parent] {
			continue
		}
		w.sent[parent] = true
		at := path
		for range len(parts) - i {
			at = filepath.Dir(at)
		}
		if st, err := statOf(at, true); err == nil {
			e := entryOf(st)
			e.path, e.name, e.content = at, parent, false
			w.add(&e, st)
		}
	}
}

// followed replaces a link's own state by that of what it leads to, where the options say so.
func (w *walker) followed(path, name string, st unix.Stat_t) unix.Stat_t {
	o := w.s.o
	if uint32(st.Mode)&unix.S_IFMT != unix.S_IFLNK {
		return st
	}
	to, err := statOf(path, true)
	if err != nil {
		return st
	}
	if o.copyDirLinks && uint32(to.Mode)&unix.S_IFMT == unix.S_IFDIR {
		return to
	}
	if o.copyUnsafe {
		if link, err := os.Readlink(path); err == nil && unsafeLink(name, link) {
			return to
		}
	}
	return st
}

// unsafeLink says that a link leads out of the tree whose root its name counts from.
func unsafeLink(name, link string) bool {
	if link == "" || link[0] == '/' {
		return true
	}
	depth := strings.Count(name, "/")
	for part := range strings.SplitSeq(link, "/") {
		switch part {
		case "..":
			if depth--; depth < 0 {
				return true
			}
		case "", ".":
		default:
			depth++
		}
	}
	return false
}

// folder adds what is in a folder.
func (w *walker) folder(path, name string) {
	s := w.s
	d, err := os.Open(path)
	if err != nil {
		s.ioError |= ioErrGeneral
		s.complain("opendir", path, err)
		return
	}
	files, err := d.Readdirnames(-1)
	d.Close()
	if err != nil {
		s.ioError |= ioErrGeneral
		s.complain("readdir", path, err)
	}
	for _, f := range files {
		at := path + "/" + f
		as := f
		if name != "." {
			as = name + "/" + f
		}
		st, err := statOf(at, s.o.copyLinks)
		if err == unix.ENOENT && !s.o.copyLinks {
			s.ioError |= ioErrVanished
			s.vanished = true
			continue
		}
		if err != nil {
			s.ioError |= ioErrGeneral
			s.complain("readlink_stat", at, err)
			continue
		}
		st = w.followed(at, as, st)
		e := entryOf(st)
		e.path, e.name = at, as
		if s.filters.excludes(as, e.dir(), true) {
			continue
		}
		crossed := s.o.oneFS && e.dir() && uint64(st.Dev) != w.dev
		if e.dir() {
			e.content = s.o.recurse && !crossed
		}
		w.add(&e, st)
		if e.dir() && e.content {
			w.folder(at, as)
		}
	}
}

// add sends an entry.
func (w *walker) add(e *entry, st unix.Stat_t) {
	s := w.s
	if len(e.name) > 4000 {
		s.ioError |= ioErrGeneral
		s.complain("the name is too long", e.path, unix.ENAMETOOLONG)
		return
	}
	if e.symlink() && s.o.links {
		link, err := os.Readlink(e.path)
		if err != nil {
			s.ioError |= ioErrGeneral
			s.complain("readlink", e.path, err)
			return
		}
		e.link = link
	}
	if e.dir() {
		e.size = 4096 // what folders say of their size differs from one file system to the next
	}
	if s.o.hardLinks && !e.dir() && st.Nlink > 1 {
		id := [2]uint64{uint64(st.Dev), uint64(st.Ino)}
		if w.links[id] == 0 {
			w.links[id] = len(w.list) + 1
			e.first = true
		}
		e.group = w.links[id]
	}
	if s.o.checksum && e.regular() && (s.proto < 30 || e.group == 0 || e.first) {
		sum, err := s.fileSum(e.path)
		if err != nil {
			s.complain("open", e.path, err)
		}
		e.sum = sum
	}
	s.writeEntry(&w.c, e, len(w.list))
	w.list = append(w.list, e)
}

// item is what comes with the number of a file.
type item struct {
	ndx   int32
	flags int
	basis byte
	name  string
}

// readItem reads the next item: a file of a list of n, or ndxDone.
func (s *session) readItem(n int) item {
	for {
		it := item{ndx: s.in.ndx()}
		switch {
		case it.ndx == ndxDone:
			return it
		case it.ndx == ndxDelStats:
			var v [5]int32
			for i := range v {
				v[i] = s.in.varint()
			}
			if s.o.sender {
				s.out.ndx(ndxDelStats)
				for _, x := range v {
					s.out.varint(x)
				}
			}
			continue
		}
		it.flags = s.in.short()
		if it.flags&itemBasis != 0 {
			it.basis = s.in.byte()
		}
		if it.flags&itemName != 0 {
			it.name = s.in.vstring()
		}
		if int(it.ndx) == n && it.flags == itemNew {
			continue // a sign of life
		}
		if it.ndx < 0 || int(it.ndx) >= n {
			fail(exitProtocol, "the other side speaks of file %d of %d", it.ndx, n)
		}
		return it
	}
}

func (s *session) writeItem(it item) {
	s.out.ndx(it.ndx)
	s.out.short(it.flags)
	if it.flags&itemBasis != 0 {
		s.out.byte(it.basis)
	}
	if it.flags&itemName != 0 {
		s.out.vstring(it.name)
	}
}

// answer sends the files that are asked for, until the other side has asked for all.
func (s *session) answer(list []*entry) {
	if s.o.removeSource {
		s.in.message = func(code int, body []byte) {
			if code == msgSuccess && len(body) == 4 {
				s.remove(list, int(int32(body[0])|int32(body[1])<<8|int32(body[2])<<16|int32(body[3])<<24))
				return
			}
			s.heard(code, body)
		}
	}
	for phase := 0; ; {
		it := s.readItem(len(list))
		if it.ndx == ndxDone {
			s.out.ndx(ndxDone)
			if phase++; phase > 2 {
				return
			}
			continue
		}
		e := list[it.ndx]
		if it.flags&itemTransfer == 0 {
			s.writeItem(it)
			continue
		}
		if s.o.dryRun {
			s.writeItem(it)
			continue
		}
		s.skipSums()
		s.sendFile(e, it)
	}
}

// skipSums reads the block sums of what the other side has, which are not used.
func (s *session) skipSums() {
	count, block, size, rest := s.in.int(), s.in.int(), s.in.int(), s.in.int()
	if count < 0 || block < 0 || size < 0 || size > 64 || rest < 0 {
		fail(exitProtocol, "the block sums of a file are not understood")
	}
	buf := make([]byte, 4+size)
	for range count {
		s.in.bytes(buf)
	}
}

func (s *session) sendFile(e *entry, it item) {
	f, err := os.Open(e.path)
	var st os.FileInfo
	if err == nil {
		st, err = f.Stat()
	}
	if err != nil {
		if os.IsNotExist(err) {
			s.vanished = true
			s.ioError |= ioErrVanished
			s.out.message(msgInfo, []byte("file has vanished: \""+e.path+"\"\n"))
			s.out.messageInt(msgIOError, ioErrVanished)
		} else {
			s.ioError |= ioErrGeneral
			s.complain("send_files failed to open", e.path, err)
		}
		if s.proto >= 30 {
			s.out.messageInt(msgNoSend, it.ndx)
		}
		if f != nil {
			f.Close()
		}
		return
	}
	defer f.Close()
	s.writeItem(it)
	for range 4 { // no blocks of the other side's are used
		s.out.int(0)
	}
	s.sendContents(f, st.Size())
}

// remove removes a file that has arrived, unless it changed meanwhile.
func (s *session) remove(list []*entry, n int) {
	if n < 0 || n >= len(list) {
		return
	}
	e := list[n]
	st, err := statOf(e.path, false)
	if err != nil {
		return
	}
	if now := entryOf(st); now.mode != e.mode || now.size != e.size || now.mtime != e.mtime || now.nsec != e.nsec {
		s.failed.Store(true)
		s.out.complain("%q changed while it was sent: it stays", e.path)
		return
	}
	if err := os.Remove(e.path); err != nil {
		s.complain("remove", e.path, err)
	}
}

// statistics tells the client how much went which way, as the client sees it.
func (s *session) statistics(list []*entry) {
	total := int64(0)
	for _, e := range list {
		if e.regular() || e.symlink() {
			total += e.size
		}
	}
	for _, v := range []int64{s.in.total, s.out.total, total, 1, 1} { // the last two: milliseconds for the list
		s.out.varlong30(v, 3)
	}
	s.out.flush()
}

// goodbye is the end of a sender's run.
func (s *session) goodbye() {
	it := s.readItem(0)
	if s.proto >= 31 && it.ndx == ndxDone {
		s.out.ndx(ndxDone)
		s.out.flush()
		it = s.readItem(0)
	}
	if it.ndx != ndxDone {
		fail(exitProtocol, "the other side speaks of file %d at the end", it.ndx)
	}
}
