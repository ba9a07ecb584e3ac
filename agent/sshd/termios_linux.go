package sshd

import "golang.org/x/sys/unix"

// flagBits is a field of termios(3).
type flagBits = uint32

const (
	getTermios = unix.TCGETS
	setTermios = unix.TCSETS
)
