package sshd

import "golang.org/x/sys/unix"

// flagBits is a field of termios(3).
type flagBits = uint64

const (
	getTermios = unix.TIOCGETA
	setTermios = unix.TIOCSETA
)
