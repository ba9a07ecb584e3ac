package artifact

import (
	"os"

	"golang.org/x/sys/unix"
)

// moveInto renames a file into an open folder, where no file may have the name.
func moveInto(path string, dir *os.File, name string) error {
	return os.NewSyscallError("renameat2", unix.Renameat2(unix.AT_FDCWD, path, int(dir.Fd()), name, unix.RENAME_NOREPLACE))
}
