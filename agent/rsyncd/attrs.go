package rsyncd

import (
	"crypto/md5"
	"errors"
	"hash"
	"io"
	"os"
	"os/user"
	"strconv"
	"sync"

	"golang.org/x/crypto/md4"
	"golang.org/x/sys/unix"
)

// statOf looks at a file, or at what it links to.
func statOf(path string, follow bool) (unix.Stat_t, error) {
	var st unix.Stat_t
	for {
		var err error
		if follow {
			err = unix.Stat(path, &st)
		} else {
			err = unix.Lstat(path, &st)
		}
		if err != unix.EINTR {
			return st, err
		}
	}
}

// entryOf describes a file.
func entryOf(st unix.Stat_t) entry {
	e := entry{mode: uint32(st.Mode), size: st.Size, mtime: int64(st.Mtim.Sec), nsec: int32(st.Mtim.Nsec), uid: st.Uid, gid: st.Gid}
	if e.device() {
		e.major, e.minor = unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))
		e.size = 0
	}
	if e.dir() {
		e.content = true
	}
	return e
}

// idMap gives the names of the other side's users or groups.
type idMap map[uint32]string

// names caches lookups in the system's lists.
var names struct {
	mu            sync.Mutex
	users, groups map[uint32]string
}

func cachedName(cache *map[uint32]string, id uint32, look func(string) (string, error)) string {
	names.mu.Lock()
	defer names.mu.Unlock()
	if *cache == nil {
		*cache = map[uint32]string{}
	}
	n, ok := (*cache)[id]
	if !ok {
		n, _ = look(strconv.FormatUint(uint64(id), 10))
		(*cache)[id] = n
	}
	return n
}

func userName(id uint32) string {
	return cachedName(&names.users, id, func(s string) (string, error) {
		u, err := user.LookupId(s)
		if err != nil {
			return "", err
		}
		return u.Username, nil
	})
}

func groupName(id uint32) string {
	return cachedName(&names.groups, id, func(s string) (string, error) {
		g, err := user.LookupGroupId(s)
		if err != nil {
			return "", err
		}
		return g.Name, nil
	})
}

// localID is the id here of a user or group there: that of the same name, or the same number.
func (m idMap) localID(id uint32, cache map[uint32]uint32, look func(name string) (string, error)) uint32 {
	names.mu.Lock()
	defer names.mu.Unlock()
	if l, ok := cache[id]; ok {
		return l
	}
	l := id
	if name := m[id]; name != "" {
		if s, err := look(name); err == nil {
			if n, err := strconv.ParseUint(s, 10, 32); err == nil {
				l = uint32(n)
			}
		}
	}
	cache[id] = l
	return l
}

func lookUser(name string) (string, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return "", err
	}
	return u.Uid, nil
}

func lookGroup(name string) (string, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return "", err
	}
	return g.Gid, nil
}

// newSum is the checksum of contents. Before protocol 30 it is MD4, which a transfer begins with its seed.
func (s *session) newSum(transfer bool) hash.Hash {
	if s.proto >= 30 {
		return md5.New()
	}
	h := md4.New()
	if transfer {
		h.Write([]byte{byte(s.seed), byte(s.seed >> 8), byte(s.seed >> 16), byte(s.seed >> 24)})
	}
	return h
}

// fileSum is the checksum of a whole file, for --checksum.
func (s *session) fileSum(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := s.newSum(false)
	if _, err := io.Copy(h, f); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

// umask is what the process takes off the modes of new files.
var umask = sync.OnceValue(func() uint32 {
	m := unix.Umask(0o022)
	unix.Umask(m)
	return uint32(m)
})

// modeFor is the mode that a file shall have: the other side's, or that of a file which stays itself.
func (s *session) modeFor(e *entry, old *entry) uint32 {
	switch {
	case s.o.perms:
		return e.mode & 0o7777
	case old == nil:
		return e.mode & 0o777 &^ umask()
	case s.o.executability && e.regular():
		m := old.mode & 0o7777
		if e.mode&0o111 == 0 {
			return m &^ 0o111
		}
		if m&0o111 == 0 {
			m |= m & 0o444 >> 2
		}
		return m
	}
	return old.mode & 0o7777
}

// differences are what of the attributes differs, as flags of an item.
func (s *session) differences(e, old *entry) int {
	flags := 0
	if s.o.times && !(e.dir() && s.o.omitDirTimes) && !(e.symlink() && s.o.omitLinkTimes) && !s.sameTime(e, old) {
		flags |= itemTime
	}
	if !e.symlink() && s.modeFor(e, old) != old.mode&0o7777 {
		flags |= itemPerms
	}
	if s.o.owner && s.root && s.localUser(e) != old.uid {
		flags |= itemOwner
	}
	if s.o.group && s.mayGroup(s.localGroup(e)) && s.localGroup(e) != old.gid {
		flags |= itemGroup
	}
	return flags
}

func (s *session) sameTime(e, old *entry) bool {
	d := e.mtime - old.mtime
	return d <= s.o.modifyWindow && -d <= s.o.modifyWindow
}

func (s *session) localUser(e *entry) uint32 { return s.users.localID(e.uid, s.localUsers, lookUser) }
func (s *session) localGroup(e *entry) uint32 {
	return s.groups.localID(e.gid, s.localGroups, lookGroup)
}

// mayGroup says that this user can give files to a group.
func (s *session) mayGroup(gid uint32) bool {
	if s.root {
		return true
	}
	for _, g := range s.member {
		if uint32(g) == gid {
			return true
		}
	}
	return false
}

// setAttrs gives a path the attributes of an entry. old is what was under its name before, nil if nothing was.
func (s *session) setAttrs(path string, e, old *entry) error {
	var errs []error
	now, err := statOf(path, false)
	if err != nil {
		return err
	}
	uid, gid := -1, -1
	if s.o.owner && s.root && s.localUser(e) != now.Uid {
		uid = int(s.localUser(e))
	}
	if s.o.group && s.localGroup(e) != now.Gid && s.mayGroup(s.localGroup(e)) {
		gid = int(s.localGroup(e))
	}
	if uid >= 0 || gid >= 0 {
		errs = append(errs, os.Lchown(path, uid, gid))
	}
	if mode := s.modeFor(e, old); !e.symlink() && (mode != uint32(now.Mode)&0o7777 || uid >= 0 || gid >= 0) {
		errs = append(errs, unix.Chmod(path, mode))
	}
	if s.o.times && !(e.dir() && s.o.omitDirTimes) && !(e.symlink() && s.o.omitLinkTimes) {
		errs = append(errs, setTime(path, e))
	}
	return errors.Join(errs...)
}

func setTime(path string, e *entry) error {
	m := unix.NsecToTimespec(e.mtime*1e9 + int64(e.nsec))
	if e.mtime < 0 || e.mtime > 1<<33 { // beyond what nanoseconds hold
		m = unix.Timespec{Sec: e.mtime}
	}
	err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{m, m}, unix.AT_SYMLINK_NOFOLLOW)
	if e.symlink() && (err == unix.ENOSYS || err == unix.EOPNOTSUPP) {
		return nil
	}
	return err
}
