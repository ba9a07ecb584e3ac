package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// disk is a host's disk: a tmpfs of its own that holds the overlay's upper layer. It is mounted outside of the host.
// Its methods write into the upper layer as the overlay would, and may be used only while the host is down.
type disk struct {
	dir   string // the tmpfs
	lower string // what the host sees where it has written nothing
	mb    int
	first map[string]stamp // what was there at the first boot
}

type stamp struct {
	mode    fs.FileMode
	size    int64
	mtimeNS int64
}

func newDisk(dir, lower string, mb int) (*disk, error) {
	d := &disk{dir: dir, lower: lower, mb: mb}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := unix.Mount("skyloom-lab", dir, "tmpfs", 0, fmt.Sprintf("mode=700,size=%dm", mb)); err != nil {
		return nil, fmt.Errorf("a tmpfs for the host's disk at %s: %w", dir, err)
	}
	for _, sub := range []string{"up", "work", "root"} {
		if err := mkdir(filepath.Join(dir, sub), 0o755, 0, 0); err != nil {
			return nil, errors.Join(err, d.remove())
		}
	}
	return d, nil
}

func (d *disk) remove() error {
	if err := unix.Unmount(d.dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", d.dir, err)
	}
	return os.RemoveAll(d.dir)
}

// fill makes the disk full as it is, or gives it its size back. No memory is used up for it.
func (d *disk) fill(full bool) error {
	size := int64(d.mb) << 20
	if full {
		var st unix.Statfs_t
		if err := unix.Statfs(d.dir, &st); err != nil {
			return err
		}
		size = int64(st.Blocks-st.Bfree) * st.Bsize
	}
	return wrap(unix.Mount("", d.dir, "", unix.MS_REMOUNT, fmt.Sprintf("size=%d", size)), "resize "+d.dir)
}

func (d *disk) up(path string) string  { return filepath.Join(d.dir, "up", path) }
func (d *disk) low(path string) string { return filepath.Join(d.lower, path) }

// real is path with the link at its top followed, as in /bin → usr/bin.
func (d *disk) real(path string) string {
	top, rest, deeper := strings.Cut(strings.TrimPrefix(filepath.Clean(path), "/"), "/")
	if to, err := os.Readlink(d.low(top)); err == nil && deeper {
		return filepath.Join("/", to, rest)
	}
	return path
}

func mkdir(path string, mode fs.FileMode, uid, gid int) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Chown(path, uid, gid); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// parents makes the folders above path in the upper layer, as they are in the lower one.
func (d *disk) parents(path string) error {
	dir := filepath.Dir(path)
	if dir == "/" {
		return nil
	}
	if _, err := os.Lstat(d.up(dir)); err == nil {
		return nil
	}
	if err := d.parents(dir); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(d.low(dir), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return mkdir(d.up(dir), 0o755, 0, 0)
	}
	return mkdir(d.up(dir), unixMode(st.Mode), int(st.Uid), int(st.Gid))
}

func unixMode(m uint32) fs.FileMode {
	out := fs.FileMode(m & 0o777)
	for bit, flag := range map[uint32]fs.FileMode{unix.S_ISVTX: fs.ModeSticky, unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid} {
		if m&bit != 0 {
			out |= flag
		}
	}
	return out
}

// folder makes path an empty folder, whatever the lower layer has there.
func (d *disk) folder(path string, mode fs.FileMode, uid int) error {
	if err := d.parents(path); err != nil {
		return err
	}
	if err := mkdir(d.up(path), mode, uid, uid); err != nil {
		return err
	}
	return wrap(unix.Setxattr(d.up(path), "trusted.overlay.opaque", []byte("y"), 0), "overlay folder "+path)
}

func (d *disk) file(path, content string, mode fs.FileMode, uid, gid int) error {
	path = d.real(path)
	if err := d.parents(path); err != nil {
		return err
	}
	up := d.up(path)
	_ = os.Remove(up)
	if err := os.WriteFile(up, []byte(content), 0o600); err != nil {
		return err
	}
	if err := os.Chown(up, uid, gid); err != nil {
		return err
	}
	return os.Chmod(up, mode)
}

// hide takes path away if the lower layer has it.
func (d *disk) hide(path string) error {
	if _, err := os.Lstat(d.low(path)); err != nil {
		return nil
	}
	if err := d.parents(path); err != nil {
		return err
	}
	err := unix.Mknod(d.up(path), unix.S_IFCHR, 0) // a whiteout
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return wrap(err, "hide "+path)
}

func (d *disk) has(path string) bool {
	_, err := os.Stat(d.low(path))
	return err == nil
}

// read is a file of the lower layer, "" if there is none.
func (d *disk) read(path string) string {
	b, _ := os.ReadFile(d.low(path))
	return string(b)
}

// clearTmp does what a boot does to /tmp.
func (d *disk) clearTmp() error {
	if err := os.RemoveAll(d.up("tmp")); err != nil {
		return err
	}
	return d.folder("/tmp", 0o777|fs.ModeSticky, 0)
}

// ofNoInterest is what changes on any machine that is logged in to.
var ofNoInterest = map[string]bool{"tmp": true, "var/log/wtmp": true, "var/log/btmp": true, "var/log/lastlog": true}

func (d *disk) stamps() (map[string]stamp, error) {
	out := map[string]stamp{}
	root := d.up("")
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone while we looked: the host is alive
		}
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		if ofNoInterest[rel] {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		fi, err := e.Info()
		if err != nil {
			return nil
		}
		st := stamp{mode: fi.Mode()}
		if !e.IsDir() {
			st.size, st.mtimeNS = fi.Size(), fi.ModTime().UnixNano()
		}
		out[rel] = st
		return nil
	})
	return out, err
}

// changes compares the disk with the first boot's: sorted paths that were made or changed, deleted ones with a "-" before.
func (d *disk) changes() ([]string, error) {
	now, err := d.stamps()
	if err != nil {
		return nil, err
	}
	var out []string
	for rel, st := range now {
		was, known := d.first[rel]
		whiteout := st.mode&fs.ModeCharDevice != 0
		switch {
		case known && was == st:
		case whiteout:
			out = append(out, "-/"+rel)
		case st.mode.IsDir():
			// A folder that is only there because something below it was written is no change.
			if _, err := os.Lstat(d.low(rel)); known || err != nil || d.opaqueAbove(rel) {
				if !known {
					out = append(out, "/"+rel)
				}
			}
		default:
			out = append(out, "/"+rel)
		}
	}
	for rel := range d.first {
		if _, still := now[rel]; !still {
			out = append(out, "-/"+rel)
		}
	}
	sort.Slice(out, func(i, j int) bool { return strings.TrimPrefix(out[i], "-") < strings.TrimPrefix(out[j], "-") })
	return out, nil
}

// opaqueAbove tells whether the lower layer does not show through at rel.
func (d *disk) opaqueAbove(rel string) bool {
	for dir := filepath.Dir(rel); dir != "."; dir = filepath.Dir(dir) {
		if n, err := unix.Getxattr(d.up(dir), "trusted.overlay.opaque", nil); err == nil && n > 0 {
			return true
		}
	}
	return false
}
