//go:build unix

package rig

import (
	"net"
	"net/netip"
	"syscall"
	"testing"
)

// Reserve gives an address of this machine that nobody else gets until the test ends. Nothing listens there: calls are refused,
// while a server of the test may listen, end and listen again as often as it likes. A port that was only free a moment ago may
// meanwhile be another program's, or that of its call.
func Reserve(t testing.TB) string {
	t.Helper()
	addr, release, err := ReserveAddr()
	if err != nil {
		t.Fatalf("reserve a port: %v", err)
	}
	t.Cleanup(release)
	return addr
}

// ReserveAddr is Reserve for those who release the address themselves. It binds a socket and lets it be: whoever binds to a port with SO_REUSEADDR, as package net does, may share it with others
// who did so and do not listen; and a port that is bound is given to no call and to nobody who asks for any.
func ReserveAddr() (addr string, release func(), err error) {
	syscall.ForkLock.RLock()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return "", nil, err
	}
	release = func() { _ = syscall.Close(fd) }
	err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	var at syscall.Sockaddr
	if err == nil {
		at, err = syscall.Getsockname(fd)
	}
	if err != nil {
		release()
		return "", nil, err
	}
	in := at.(*syscall.SockaddrInet4)
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))).String(), release, nil
}
