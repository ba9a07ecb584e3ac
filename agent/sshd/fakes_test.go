package sshd

import (
	"bytes"
	"net"
	"sync"
	"syscall"
)

const nil0 = syscall.Signal(0) // asks whether a process is there

// syncBuffer can be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// freezer is a connection whose client neither reads nor closes once frozen.
type freezer struct {
	net.Conn
	frozen chan struct{}
}

func (f *freezer) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	select {
	case <-f.frozen:
		select {}
	default:
	}
	return n, err
}
