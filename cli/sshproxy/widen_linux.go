package sshproxy

import (
	"os"

	"golang.org/x/sys/unix"
)

// widen makes the pipes to ssh hold more, as far as the system lets: fewer switches between programs.
func widen(streams ...any) {
	for _, s := range streams {
		if f, ok := s.(*os.File); ok {
			_, _ = unix.FcntlInt(f.Fd(), unix.F_SETPIPE_SZ, 1<<20)
		}
	}
}
