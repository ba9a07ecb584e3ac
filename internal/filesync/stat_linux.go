package filesync

import (
	"io/fs"
	"os"
	"syscall"
)

var errQuota error = syscall.EDQUOT

// openRead opens without following a final link and without blocking on a pipe that took the file's place.
const openFlags = os.O_RDONLY | syscall.O_NOFOLLOW | syscall.O_NONBLOCK

func statKey(_ string, fi fs.FileInfo) fileKey {
	k := fileKey{Size: fi.Size(), Mtime: fi.ModTime().UnixNano()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		k.Dev, k.Ino, k.Ctime = uint64(st.Dev), st.Ino, st.Ctim.Nano()
	}
	return k
}

func deviceOf(fi fs.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Dev)
	}
	return 0
}
