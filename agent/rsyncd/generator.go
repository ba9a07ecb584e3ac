package rsyncd

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ask is the generator: it makes what needs no contents, and asks for the files that differ.
func (r *receiver) ask() {
	for i, e := range r.list {
		if e.dropped {
			continue
		}
		if err := r.generate(i, e); err != nil {
			r.complain("generator", r.path(e), err)
		}
	}
	r.out.ndx(ndxDone)
	r.out.flush()
}

func (r *receiver) generate(i int, e *entry) error {
	path := r.path(e)
	old, err := look(path)
	if err != nil {
		return err
	}
	if old != nil && r.o.keepDirLinks && e.dir() && old.symlink() {
		if st, err := statOf(path, true); err == nil && uint32(st.Mode)&unix.S_IFMT == unix.S_IFDIR {
			d := entryOf(st)
			old = &d
		}
	}
	if old == nil && r.o.existing || old != nil && r.o.ignoreExisting && !e.dir() {
		return nil
	}
	if old != nil && old.mode&unix.S_IFMT != e.mode&unix.S_IFMT {
		if !e.dir() && !e.regular() && !r.makes(e) {
			return nil
		}
		if err := r.makeWay(path, e, old); err != nil {
			return err
		}
		old = nil
	}
	switch {
	case e.dir():
		return r.folder(i, e, path, old)
	case e.group > 0 && r.o.hardLinks && r.leader(e) != i:
		return nil // a link to a file that comes first
	case e.regular():
		return r.regular(i, e, path, old)
	case !r.makes(e):
		r.out.message(msgInfo, []byte("skipping non-regular file \""+e.name+"\"\n"))
		return nil
	case e.symlink():
		return r.link(i, e, path, old)
	}
	return r.node(i, e, path, old)
}

// makes says that the options want entries of this kind.
func (r *receiver) makes(e *entry) bool {
	switch {
	case e.symlink():
		return r.o.links && !(r.o.safeLinks && unsafeLink(e.name, e.link))
	case e.device():
		return r.o.devices
	}
	return r.o.specials
}

// makeWay removes what is of another kind than the entry that takes its name.
func (r *receiver) makeWay(path string, e, old *entry) error {
	if r.o.dryRun {
		return nil
	}
	if !old.dir() {
		if e.regular() {
			return nil // replaced in one step
		}
		return os.Remove(path)
	}
	if r.o.force || r.o.del {
		return os.RemoveAll(path)
	}
	if err := os.Remove(path); err != nil {
		return errors.New("a folder that is not empty is in the way; --force or --delete removes it")
	}
	return nil
}

// tell sends an item that needs no contents, for the client's own report.
func (r *receiver) tell(i, flags int) {
	if flags != 0 {
		r.writeItem(item{ndx: int32(i), flags: flags})
	}
}

func (r *receiver) folder(i int, e *entry, path string, old *entry) error {
	if old != nil {
		r.tell(i, r.differences(e, old))
	} else {
		r.tell(i, itemNew|itemLocal)
	}
	if r.o.dryRun {
		return nil
	}
	if old == nil {
		err := os.Mkdir(path, 0o777)
		if errors.Is(err, fs.ErrNotExist) && r.o.relative { // with --no-implied-dirs nobody speaks of its parents
			err = os.MkdirAll(path, 0o777)
		}
		if err != nil {
			return unwrap(err)
		}
		if old, err = look(path); err != nil || old == nil {
			return err
		}
		if mode := r.modeFor(e, nil); !r.o.perms && mode != old.mode&0o7777 {
			old.mode = mode
			if err := unix.Chmod(path, mode|0o700); err != nil {
				return err
			}
		}
	}
	if old.mode&0o700 != 0o700 && !r.root { // files are to be made in it
		if err := unix.Chmod(path, old.mode&0o7777|0o700); err != nil {
			return err
		}
	}
	r.late = append(r.late, late{i, old.mode})
	return nil
}

// unchanged says that a file need not be sent.
func (r *receiver) unchanged(e, old *entry, path string) bool {
	switch {
	case old == nil || old.size != e.size:
		return false
	case r.o.checksum:
		sum, err := r.fileSum(path)
		return err == nil && string(sum) == string(e.sum)
	case r.o.sizeOnly:
		return true
	}
	return !r.o.ignoreTimes && r.sameTime(e, old)
}

func (r *receiver) regular(i int, e *entry, path string, old *entry) error {
	if r.o.maxSize > 0 && e.size > r.o.maxSize || r.o.minSize > 0 && e.size < r.o.minSize {
		return nil
	}
	if old != nil && r.o.update && old.mtime > e.mtime {
		return nil
	}
	if r.unchanged(e, old, path) {
		d := r.differences(e, old)
		r.tell(i, d)
		if d != 0 && !r.o.dryRun {
			return r.setAttrs(path, e, old)
		}
		return nil
	}
	flags := itemTransfer
	if old == nil {
		flags |= itemNew
	} else {
		flags |= r.differences(e, old)
		if old.size != e.size {
			flags |= itemSize
		}
		r.mu.Lock()
		r.olds[i] = old
		r.mu.Unlock()
	}
	r.request(i, flags)
	return nil
}

// request asks for a file, all of it: no sums of what is here are sent.
func (r *receiver) request(i, flags int) {
	r.writeItem(item{ndx: int32(i), flags: flags})
	if !r.o.dryRun {
		for range 4 {
			r.out.int(0)
		}
	}
}

func (r *receiver) link(i int, e *entry, path string, old *entry) error {
	if old != nil {
		if now, err := os.Readlink(path); err == nil && now == e.link {
			d := r.differences(e, old)
			r.tell(i, d)
			if d != 0 && !r.o.dryRun {
				return r.setAttrs(path, e, old)
			}
			return nil
		}
	}
	flags := itemLocal
	if old == nil {
		flags |= itemNew
	}
	r.tell(i, flags)
	return r.place(e, path, old, func(tmp string) error { return os.Symlink(e.link, tmp) })
}

func (r *receiver) node(i int, e *entry, path string, old *entry) error {
	if old != nil && (!e.device() || old.major == e.major && old.minor == e.minor) {
		d := r.differences(e, old)
		r.tell(i, d)
		if d != 0 && !r.o.dryRun {
			return r.setAttrs(path, e, old)
		}
		return nil
	}
	r.tell(i, itemLocal|itemNew)
	return r.place(e, path, old, func(tmp string) error {
		return unix.Mknod(tmp, e.mode&unix.S_IFMT|0o600, int(unix.Mkdev(e.major, e.minor)))
	})
}
