package ssh

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/skyloom/skyloom/agent/sharedhost"
)

// stream is a connection to a socket on a host.
type stream struct {
	io.Reader
	io.Writer
	once  sync.Once
	close func() error
}

func (s *stream) Close() (err error) {
	s.once.Do(func() { err = s.close() })
	return err
}

type place string

func (place) Network() string  { return "unix" }
func (p place) String() string { return string(p) }

func (s *stream) LocalAddr() net.Addr              { return place("@") }
func (s *stream) RemoteAddr() net.Addr             { return place("@") }
func (s *stream) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (s *stream) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (s *stream) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// localMsg is what opens a channel to a socket, see PROTOCOL of OpenSSH, section 2.4.
type localMsg struct {
	Path      string
	Reserved0 string
	Reserved1 uint32
}

// dialSocket connects to a socket on the host: by sshd itself, or where it can't or may not, by the agent's program.
func (l *link) dialSocket(ctx context.Context, program, socket string) (net.Conn, error) {
	l.mu.Lock()
	skip := time.Now().Before(l.bridgedUntil)
	l.mu.Unlock()
	var direct error
	if !skip {
		c, err := l.connect(ctx)
		if err != nil {
			return nil, err
		}
		conn, err := l.forward(ctx, c, socket)
		if err == nil {
			l.mu.Lock()
			l.refusals = 0
			l.mu.Unlock()
			return conn, nil
		}
		var oce *ssh.OpenChannelError
		if !errors.As(err, &oce) {
			if ctx.Err() == nil {
				l.drop(c)
			}
			return nil, err
		}
		direct = err
	}
	conn, err := l.bridge(ctx, program, socket)
	if err != nil {
		if direct != nil {
			return nil, fmt.Errorf("%w (and directly: %w)", err, direct)
		}
		return nil, err
	}
	if direct != nil {
		l.mu.Lock()
		// Once may be a socket that was just made anew; twice is an sshd that forwards none.
		if l.refusals++; l.refusals > 1 {
			l.bridgedUntil = time.Now().Add(5 * time.Minute)
		}
		l.mu.Unlock()
	}
	return conn, nil
}

func (l *link) forward(ctx context.Context, c *ssh.Client, socket string) (net.Conn, error) {
	type opened struct {
		ch  ssh.Channel
		err error
	}
	done := make(chan opened, 1)
	go func() {
		ch, reqs, err := c.OpenChannel("direct-streamlocal@openssh.com", ssh.Marshal(&localMsg{Path: socket}))
		if err == nil {
			go ssh.DiscardRequests(reqs)
			go io.Copy(io.Discard, ch.Stderr())
		}
		done <- opened{ch, err}
	}()
	select {
	case o := <-done:
		if o.err != nil {
			return nil, o.err
		}
		l.use(1)
		return &stream{Reader: o.ch, Writer: o.ch, close: func() error { l.use(-1); return o.ch.Close() }}, nil
	case <-ctx.Done():
		go func() {
			if o := <-done; o.ch != nil {
				o.ch.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// spareLink is a connection beside the one for calls, with room for a command that lasts.
func (l *link) spareLink() *link {
	l.mu.Lock()
	defer l.mu.Unlock()
	room := maxSessions
	for _, s := range l.spare {
		s.mu.Lock()
		open := s.open
		if s.room > 0 {
			room = min(room, s.room)
		}
		s.mu.Unlock()
		if open < room {
			return s
		}
	}
	s := newLink(l.net)
	s.target, s.hops = l.target, l.hops
	if room < maxSessions {
		s.room = room
	}
	l.spare = append(l.spare, s)
	return s
}

// bridge has the program on the host join a session to a socket.
func (l *link) bridge(ctx context.Context, program, socket string) (net.Conn, error) {
	var s *ssh.Session
	var free func()
	for try := 0; ; try++ {
		var err error
		if s, free, err = l.spareLink().session(ctx, true); err == nil {
			break
		}
		if !errors.Is(err, errFull) || try == 20 {
			return nil, err
		}
	}
	end := func() error { defer free(); return s.Close() }
	in, err := s.StdinPipe()
	if err != nil {
		return nil, errors.Join(err, end())
	}
	out, err := s.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, end())
	}
	n := nonce()
	if err := s.Start(quote(program) + " host " + sharedhost.VerbDial + " " + n + " " + quote(socket)); err != nil {
		return nil, errors.Join(err, end())
	}
	r := bufio.NewReaderSize(out, 32<<10)
	began := make(chan error, 1)
	go func() {
		for seen := 0; seen < 1<<20; {
			line, err := r.ReadString('\n')
			if err != nil {
				began <- errors.New("the host's program does not connect to the agent")
				return
			}
			seen += len(line)
			if strings.TrimRight(line, "\r\n") == sharedhost.Begin(n) {
				began <- nil
				return
			}
		}
		began <- errors.New("the host's shell prints without end")
	}()
	select {
	case err := <-began:
		if err != nil {
			end()
			return nil, err
		}
	case <-ctx.Done():
		end()
		return nil, ctx.Err()
	}
	return &stream{Reader: r, Writer: in, close: end}, nil
}
