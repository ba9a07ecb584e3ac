package rsyncd

import (
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Flags of an entry on the wire.
const (
	xTopDir        = 1 << 0
	xSameMode      = 1 << 1
	xExtended      = 1 << 2
	xSameUID       = 1 << 3
	xSameGID       = 1 << 4
	xSameName      = 1 << 5
	xLongName      = 1 << 6
	xSameTime      = 1 << 7
	xSameRdevMajor = 1 << 8 // devices
	xNoContent     = 1 << 8 // folders, from protocol 30
	xHardLinked    = 1 << 9
	xSameDev       = 1 << 10 // before protocol 30
	xUserName      = 1 << 10 // from protocol 30
	xMinor8        = 1 << 11 // before protocol 30
	xGroupName     = 1 << 11 // from protocol 30
	xHardFirst     = 1 << 12 // from protocol 30, with xHardLinked
	xErrorEnd      = 1 << 12 // with xExtended alone
	xNsec          = 1 << 13
)

// sumSize of a file's checksum, in bytes, in every protocol spoken here.
const sumSize = 16

// entry is one line of a list of files.
type entry struct {
	name         string // from the root of the transfer, slashes between; "." is the root
	path         string // where it is here; senders only
	mode         uint32 // as of stat(2)
	size         int64
	mtime        int64
	nsec         int32
	uid, gid     uint32
	major, minor uint32
	link         string
	sum          []byte
	top, content bool // folders: named by the user; what is in it belongs to the transfer
	group        int  // of hard links: number of the first in the order sent, plus one; 0: none
	first        bool
	dropped      bool // a second of the same name
}

func (e *entry) dir() bool     { return e.mode&unix.S_IFMT == unix.S_IFDIR }
func (e *entry) regular() bool { return e.mode&unix.S_IFMT == unix.S_IFREG }
func (e *entry) symlink() bool { return e.mode&unix.S_IFMT == unix.S_IFLNK }
func (e *entry) device() bool {
	return e.mode&unix.S_IFMT == unix.S_IFCHR || e.mode&unix.S_IFMT == unix.S_IFBLK
}
func (e *entry) special() bool {
	return e.mode&unix.S_IFMT == unix.S_IFIFO || e.mode&unix.S_IFMT == unix.S_IFSOCK
}

// hasRdev says that the numbers of a device travel with the entry; those of specials did until protocol 30.
func (s *session) hasRdev(e *entry) bool {
	return s.o.devices && e.device() || s.o.specials && e.special() && s.proto < 31
}

// codec is what one end remembers from entry to entry.
type codec struct {
	name         string
	mode         uint32
	mtime        int64
	uid, gid     uint32
	major        uint32
	dev          int64
	groups       map[[2]int64]int // hard links before protocol 30
	minorAlready bool
}

// readList reads a list of files, in order, and what follows it.
func (s *session) readList() []*entry {
	var list []*entry
	c := codec{groups: map[[2]int64]int{}}
	for {
		flags := int(s.in.byte())
		if flags == 0 {
			break
		}
		if flags&xExtended != 0 {
			flags |= int(s.in.byte()) << 8
		}
		if flags == xExtended|xErrorEnd {
			s.ioError |= int(s.in.varint())
			break
		}
		list = append(list, s.readEntry(&c, flags, list))
	}
	s.readIDs()
	if s.proto < 30 {
		s.ioError |= int(s.in.int())
	}
	sortList(list)
	return list
}

func (s *session) readEntry(c *codec, flags int, list []*entry) *entry {
	in, o := s.in, s.o
	e := &entry{}
	shared, n := 0, 0
	if flags&xSameName != 0 {
		shared = int(in.byte())
	}
	if flags&xLongName != 0 {
		n = int(in.varint30())
	} else {
		n = int(in.byte())
	}
	if shared > len(c.name) {
		fail(exitStream, "an entry of the file list shares %d bytes with a name of %d", shared, len(c.name))
	}
	c.name = c.name[:shared] + in.text(n)
	e.name = cleanName(c.name)
	if s.proto >= 30 && flags&xHardLinked != 0 && flags&xHardFirst == 0 {
		first := int(in.varint())
		if first < 0 || first >= len(list) {
			fail(exitStream, "an entry of the file list is a link to entry %d of %d", first, len(list))
		}
		name := e.name
		*e = *list[first]
		e.name, e.group, e.first = name, first+1, false
		c.mode, c.mtime, c.uid, c.gid = e.mode, e.mtime, e.uid, e.gid
		return e
	}
	e.size = in.varlong30(3)
	if flags&xSameTime == 0 {
		if s.proto >= 30 {
			c.mtime = in.varlong(4)
		} else {
			c.mtime = int64(uint32(in.int()))
		}
	}
	e.mtime = c.mtime
	if flags&xNsec != 0 {
		e.nsec = in.varint()
	}
	if flags&xSameMode == 0 {
		c.mode = uint32(in.int())
	}
	e.mode = c.mode
	if o.owner && flags&xSameUID == 0 {
		c.uid = s.readID(flags&xUserName != 0, s.users)
	}
	if o.group && flags&xSameGID == 0 {
		c.gid = s.readID(flags&xGroupName != 0, s.groups)
	}
	e.uid, e.gid = c.uid, c.gid
	if s.hasRdev(e) {
		if flags&xSameRdevMajor == 0 {
			c.major = uint32(in.varint30())
		}
		e.major = c.major
		switch {
		case s.proto >= 30:
			e.minor = uint32(in.varint())
		case flags&xMinor8 != 0:
			e.minor = uint32(in.byte())
		default:
			e.minor = uint32(in.int())
		}
		e.size = 0
	}
	if o.links && e.symlink() {
		e.link = in.text(int(in.varint30()))
	}
	if flags&xHardLinked != 0 && !e.dir() {
		if s.proto < 30 {
			if flags&xSameDev == 0 {
				c.dev = in.varlong30(8)
			}
			id := [2]int64{c.dev, in.varlong30(8)}
			if c.groups[id] == 0 {
				c.groups[id] = len(list) + 1
				e.first = true
			}
			e.group = c.groups[id]
		} else {
			e.group, e.first = len(list)+1, true
		}
	}
	if o.checksum && e.regular() {
		e.sum = make([]byte, sumSize)
		in.bytes(e.sum)
	}
	if e.dir() {
		e.top = flags&xTopDir != 0
		e.content = s.proto < 30 || flags&xNoContent == 0
	}
	return e
}

// cleanName makes a name of the other side one below the root of the transfer, or refuses it.
func cleanName(name string) string {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if name == "" || clean == ".." || strings.HasPrefix(clean, "../") || strings.Contains(name, "\x00") {
		fail(exitSupport, "the file list holds the name %q, which leads out of the transfer", name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			fail(exitSupport, "the file list holds the name %q, which leads out of the transfer", name)
		}
	}
	return clean
}

func (s *session) readID(named bool, ids idMap) uint32 {
	if s.proto < 30 {
		return uint32(s.in.int())
	}
	id := uint32(s.in.varint())
	if named {
		ids[id] = s.in.text(int(s.in.byte()))
	}
	return id
}

// readIDs reads the names of users and groups behind a list.
func (s *session) readIDs() {
	if s.o.numericIDs {
		return
	}
	for _, l := range []struct {
		on  bool
		ids idMap
	}{{s.o.owner, s.users}, {s.o.group, s.groups}} {
		for l.on {
			id := uint32(s.in.varint30())
			if id == 0 {
				break
			}
			l.ids[id] = s.in.text(int(s.in.byte()))
		}
	}
}

// writeEntry sends one entry; n is how many were sent before.
func (s *session) writeEntry(c *codec, e *entry, n int) {
	out, o := s.out, s.o
	flags := 0
	if e.dir() {
		if e.top {
			flags |= xTopDir
		}
		if !e.content && s.proto >= 30 {
			flags |= xNoContent
		}
	}
	same := func(yes bool, flag int) {
		if yes {
			flags |= flag
		}
	}
	again := n > 0
	same(again && e.mode == c.mode, xSameMode)
	same(again && e.mtime == c.mtime, xSameTime)
	same(!o.owner || again && e.uid == c.uid, xSameUID)
	same(!o.group || again && e.gid == c.gid, xSameGID)
	same(s.proto >= 31 && e.nsec != 0, xNsec)
	shared := 0
	for shared < min(len(e.name), len(c.name), 255) && e.name[shared] == c.name[shared] {
		shared++
	}
	rest := e.name[shared:]
	same(shared > 0, xSameName)
	same(len(rest) > 255, xLongName)
	linked := -1
	if e.group > 0 {
		flags |= xHardLinked
		if s.proto >= 30 {
			same(e.first, xHardFirst)
			if !e.first {
				linked = e.group - 1
			}
		}
	}
	c.name, c.mode, c.mtime, c.uid, c.gid = e.name, e.mode, e.mtime, e.uid, e.gid

	if flags == 0 && !e.dir() {
		flags |= xTopDir // of no meaning here, but not zero, which ends the list
	}
	if flags > 0xFF || flags == 0 {
		out.short(flags | xExtended)
	} else {
		out.byte(byte(flags))
	}
	if flags&xSameName != 0 {
		out.byte(byte(shared))
	}
	if flags&xLongName != 0 {
		out.varint30(int32(len(rest)))
	} else {
		out.byte(byte(len(rest)))
	}
	out.bytes([]byte(rest))
	if linked >= 0 {
		out.varint(int32(linked))
		return
	}
	out.varlong30(e.size, 3)
	if flags&xSameTime == 0 {
		if s.proto >= 30 {
			out.varlong(e.mtime, 4)
		} else {
			out.int(int32(e.mtime))
		}
	}
	if flags&xNsec != 0 {
		out.varint(e.nsec)
	}
	if flags&xSameMode == 0 {
		out.int(int32(e.mode))
	}
	for _, id := range []struct {
		skip bool
		id   uint32
	}{{flags&xSameUID != 0, e.uid}, {flags&xSameGID != 0, e.gid}} {
		switch {
		case id.skip:
		case s.proto < 30:
			out.int(int32(id.id))
		default:
			out.varint(int32(id.id))
		}
	}
	if s.hasRdev(e) {
		out.varint30(int32(e.major))
		if s.proto >= 30 {
			out.varint(int32(e.minor))
		} else {
			out.int(int32(e.minor))
		}
	}
	if o.links && e.symlink() {
		out.varint30(int32(len(e.link)))
		out.bytes([]byte(e.link))
	}
	if e.group > 0 && s.proto < 30 {
		// They want device and inode; a group's number does as well. The device is never 0 on the wire.
		out.varlong30(1, 8)
		out.varlong30(int64(e.group), 8)
	}
	if o.checksum && e.regular() {
		sum := make([]byte, sumSize)
		copy(sum, e.sum)
		out.bytes(sum)
	}
}

// endList sends what follows the entries.
func (s *session) endList(list []*entry) {
	out := s.out
	if s.ioError != 0 && s.proto >= 31 && !s.o.ignoreErrors {
		out.short(xExtended | xErrorEnd)
		out.varint(int32(s.ioError))
	} else {
		out.byte(0)
	}
	if !s.o.numericIDs {
		s.writeIDs(s.o.owner, list, func(e *entry) uint32 { return e.uid }, userName)
		s.writeIDs(s.o.group, list, func(e *entry) uint32 { return e.gid }, groupName)
	}
	if s.proto < 30 {
		out.int(int32(s.ioError))
	} else if s.proto == 30 && s.ioError != 0 && !s.o.ignoreErrors {
		out.messageInt(msgIOError, int32(s.ioError))
	}
}

func (s *session) writeIDs(on bool, list []*entry, id func(*entry) uint32, name func(uint32) string) {
	if !on {
		return
	}
	seen := map[uint32]bool{0: true}
	for _, e := range list {
		if i := id(e); !seen[i] {
			seen[i] = true
			if n := name(i); n != "" && len(n) < 256 {
				s.out.varint30(int32(i))
				s.out.byte(byte(len(n)))
				s.out.bytes([]byte(n))
			}
		}
	}
	s.out.varint30(0)
}

// sortList brings a list into the order by which both ends number it: within a folder first what is no folder, then
// the folders with all that is in them, each by bytes, a folder's name with its slash. Of equal names the first stays.
func sortList(list []*entry) {
	slices.SortStableFunc(list, compare)
	last := 0
	for i := 1; i < len(list); i++ {
		if list[i].name != list[last].name {
			last = i
			continue
		}
		if list[i].dir() && !list[last].dir() {
			list[last].dropped = true
			last = i
		} else {
			list[last].top = list[last].top || list[i].top
			list[last].content = list[last].content || list[i].content
			list[i].dropped = true
		}
	}
}

func compare(a, b *entry) int {
	an, bn := a.name, b.name
	if an == "." {
		an = ""
	}
	if bn == "." {
		bn = ""
	}
	for {
		switch {
		case an == "" && bn == "":
			return 0
		case an == "":
			return -1
		case bn == "":
			return 1
		}
		ap, arest, adeep := cutPart(an, a.dir())
		bp, brest, bdeep := cutPart(bn, b.dir())
		if adeep != bdeep {
			if adeep {
				return 1
			}
			return -1
		}
		if adeep {
			if ap == bp {
				an, bn = arest, brest
				continue
			}
			ap, bp = ap+"/", bp+"/"
		}
		return strings.Compare(ap, bp)
	}
}

// cutPart takes the first part of a name; deep says that it is a folder.
func cutPart(name string, dir bool) (part, rest string, deep bool) {
	part, rest, deep = strings.Cut(name, "/")
	return part, rest, deep || dir
}
