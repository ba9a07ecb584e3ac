package rsyncd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Protocols that are spoken.
const (
	newestProto = 31
	oldestProto = 29
)

// What the ends agree upon from protocol 30 on.
const (
	compatSymlinkTimes = 1 << 1
	compatSafeList     = 1 << 3
)

// Flags of an item: what differs, and what happens.
const (
	itemSize     = 1 << 2
	itemTime     = 1 << 3
	itemPerms    = 1 << 4
	itemOwner    = 1 << 5
	itemGroup    = 1 << 6
	itemBasis    = 1 << 11
	itemName     = 1 << 12
	itemNew      = 1 << 13
	itemLocal    = 1 << 14
	itemTransfer = 1 << 15
)

// session is one run.
type session struct {
	o        *options
	in       *input
	out      *output
	proto    int
	seed     int32
	filters  filters
	ioError  int
	failed   atomic.Bool // something was told to the person
	vanished bool

	users, groups           idMap
	localUsers, localGroups map[uint32]uint32
	root                    bool
	member                  []int
}

// Run is `rsync args…` with --server among the arguments: it speaks on in and out, and returns the exit code. What
// cannot be said by the protocol goes to errs.
func Run(args []string, in io.Reader, out, errs io.Writer) int {
	s := &session{o: &options{}, users: idMap{}, groups: idMap{}, localUsers: map[uint32]uint32{}, localGroups: map[uint32]uint32{}, root: os.Geteuid() == 0}
	s.member, _ = os.Getgroups()
	s.member = append(s.member, os.Getegid())
	t := catch(func() { s.run(args, in, out) })
	if t == nil {
		switch {
		case s.ioError&ioErrDelLimit != 0:
			return exitDelLimit
		case s.failed.Load() || s.ioError&ioErrGeneral != 0:
			return exitPartial
		case s.vanished:
			return exitVanished
		}
		return 0
	}
	text := fmt.Sprintf("rsync: %v\n", t.err)
	if s.out == nil || !s.out.mux {
		io.WriteString(errs, text)
		return t.code
	}
	catch(func() { // the connection may be gone
		s.out.message(msgError, []byte(text[:min(len(text), 4000)]))
		if s.proto >= 31 {
			s.out.messageInt(msgErrorExit, int32(t.code))
		}
	})
	return t.code
}

func (s *session) run(args []string, in io.Reader, out io.Writer) {
	server := false
	for _, a := range args {
		server = server || a == "--server"
	}
	if !server {
		fail(exitSyntax, "the rsync built into the agent of this node only answers other machines; install rsync on the node to use it from here")
	}
	s.o.parse(args)
	s.in, s.out = newInput(in), newOutput(out)
	if s.o.secluded {
		s.readArgs()
	}
	if len(s.o.args) == 0 {
		fail(exitSyntax, "no paths were given")
	}
	s.agree()
	s.in.idle = s.out.flush
	s.in.message = s.heard
	if s.o.sender {
		s.send()
	} else {
		s.receive()
	}
	s.out.flush()
}

// readArgs reads the arguments that were kept from the shell: each ends with a zero byte, the last is empty.
func (s *session) readArgs() {
	r := bufio.NewReader(byteReader{s.in})
	var args []string
	for {
		a, err := r.ReadString(0)
		if err != nil {
			fail(exitStream, "the arguments were cut: %w", err)
		}
		if a = strings.TrimSuffix(a, "\x00"); a == "" {
			break
		}
		args = append(args, a)
	}
	if len(args) > 0 && args[0] == "rsync" {
		args = args[1:]
	}
	sender := s.o.sender
	s.o = &options{}
	s.o.parse(args)
	s.o.sender = s.o.sender || sender
	if !s.o.sender {
		return
	}
	var paths []string // no shell has seen them
	for _, a := range s.o.args {
		if found, err := filepath.Glob(a); err == nil && len(found) > 0 {
			paths = append(paths, found...)
		} else {
			paths = append(paths, a)
		}
	}
	s.o.args = paths
}

// byteReader reads no further than it is asked: what follows the arguments is the protocol's.
type byteReader struct{ in *input }

func (b byteReader) Read(p []byte) (int, error) {
	p[0] = b.in.byte()
	return 1, nil
}

// agree is the opening of the protocol.
func (s *session) agree() {
	s.out.int(newestProto)
	s.out.flush()
	theirs := int(s.in.int())
	if theirs < oldestProto || theirs > 100 {
		fail(exitProtocol, "the other rsync speaks protocol %d; the one built into the node's agent needs %d or newer", theirs, oldestProto)
	}
	s.proto = min(newestProto, theirs)
	s.in.proto, s.out.proto = s.proto, s.proto
	if s.proto >= 30 {
		compat := int32(0)
		if strings.Contains(s.o.info, "L") {
			compat |= compatSymlinkTimes
		}
		if strings.Contains(s.o.info, "f") {
			compat |= compatSafeList
		}
		s.out.varint(compat)
	}
	if s.seed = s.o.seed; s.seed == 0 {
		s.seed = int32(time.Now().Unix()) ^ int32(os.Getpid()<<6)
	}
	s.out.int(s.seed)
	s.out.flush()
	s.out.mux = true
	s.in.mux = s.proto >= 30
}

// heard takes what the other side says besides data.
func (s *session) heard(code int, body []byte) {
	switch code {
	case msgIOError:
		if len(body) == 4 {
			s.ioError |= int(body[0])
		}
	case msgErrorExit:
		fail(exitPartial, "the other side gave up")
	}
}

// complain tells the person of a failure; the run goes on and ends with exit code 23.
func (s *session) complain(what, path string, err error) {
	s.failed.Store(true)
	var errno unix.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	s.out.complain("%s %q: %v", what, path, err)
}
