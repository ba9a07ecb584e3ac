//go:build !linux && !darwin

package filesync

import (
	"hash/fnv"
	"io/fs"
	"os"
	"syscall"
)

var errQuota error = syscall.ENOSPC

const openFlags = os.O_RDONLY

// statKey has no inode here: the path stands in for it.
func statKey(path string, fi fs.FileInfo) fileKey {
	h := fnv.New64a()
	h.Write([]byte(path))
	return fileKey{Ino: h.Sum64(), Size: fi.Size(), Mtime: fi.ModTime().UnixNano()}
}

func deviceOf(fs.FileInfo) uint64 { return 0 }
