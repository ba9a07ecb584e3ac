package sshd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// copyBuffer is the size of the buffers between a channel and a socket or pipe, in bytes: one packet of the protocol.
const copyBuffer = 32 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }}

// pump copies until src ends. It never uses the shortcuts of io.Copy, whose buffers are not pooled.
func pump(dst io.Writer, src io.Reader) error {
	p := buffers.Get().(*[]byte)
	defer buffers.Put(p)
	for {
		n, err := src.Read(*p)
		if n > 0 {
			if _, werr := dst.Write((*p)[:n]); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// halfCloser is a stream whose writing side can be closed alone.
type halfCloser interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// join copies both ways until both have ended.
func (c *connection) join(ch ssh.Channel, conn halfCloser) {
	stop := make(chan struct{})
	go func() {
		select {
		case <-c.ctx.Done():
		case <-stop:
		}
		conn.Close()
		ch.Close()
	}()
	var wg sync.WaitGroup
	wg.Add(2)
	go func() {
		defer wg.Done()
		if pump(conn, ch) != nil {
			conn.Close()
		} else {
			conn.CloseWrite()
		}
	}()
	go func() {
		defer wg.Done()
		if pump(ch, conn) != nil {
			ch.Close()
		} else {
			ch.CloseWrite()
		}
	}()
	wg.Wait()
	close(stop)
}

// The payloads of RFC 4254, 7.1 and 7.2, and of PROTOCOL in OpenSSH's source, 2.4.
type (
	directTCP struct {
		Host     string
		Port     uint32
		FromHost string
		FromPort uint32
	}
	tcpForward struct {
		Host string
		Port uint32
	}
	forwardedTCP struct {
		Host     string
		Port     uint32
		FromHost string
		FromPort uint32
	}
	directUnix struct {
		Path     string
		Reserved string
		Zero     uint32
	}
	unixForward   struct{ Path string }
	forwardedUnix struct{ Path, Reserved string }
)

// dialTime bounds how long a connection on behalf of a client is tried.
const dialTime = 30 * time.Second

func (c *connection) dial(nc ssh.NewChannel, network, addr string) {
	d := net.Dialer{Timeout: dialTime}
	conn, err := d.DialContext(c.ctx, network, addr)
	if err != nil {
		nc.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	ch, reqs, err := nc.Accept()
	if err != nil {
		conn.Close()
		return
	}
	go ssh.DiscardRequests(reqs)
	c.join(ch, conn.(halfCloser))
}

func (c *connection) directTCP(nc ssh.NewChannel) {
	var p directTCP
	if err := ssh.Unmarshal(nc.ExtraData(), &p); err != nil {
		nc.Reject(ssh.ConnectionFailed, "the request is not understood")
		return
	}
	c.dial(nc, "tcp", net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port))))
}

func (c *connection) directUnix(nc ssh.NewChannel) {
	var p directUnix
	if err := ssh.Unmarshal(nc.ExtraData(), &p); err != nil {
		nc.Reject(ssh.ConnectionFailed, "the request is not understood")
		return
	}
	c.dial(nc, "unix", p.Path)
}

// bindHost is where a forwarding to the client listens: on this node alone, whatever was asked for, as SSH servers do
// unless told otherwise.
func bindHost(asked string) string {
	if ip := net.ParseIP(asked); ip != nil && ip.IsLoopback() {
		return asked
	}
	return "127.0.0.1"
}

func (c *connection) listenTCP(payload []byte) (reply []byte, ok bool) {
	var p tcpForward
	if ssh.Unmarshal(payload, &p) != nil {
		return nil, false
	}
	l, err := net.Listen("tcp", net.JoinHostPort(bindHost(p.Host), strconv.Itoa(int(p.Port))))
	if err != nil {
		c.s.o.Log.Info("ssh: a port cannot be forwarded", "error", err)
		return nil, false
	}
	port := uint32(l.Addr().(*net.TCPAddr).Port)
	if p.Port == 0 {
		reply = ssh.Marshal(struct{ Port uint32 }{port})
	}
	if !c.keep(tcpKey(p.Host, port), l) {
		return nil, false
	}
	go c.accept(l, "forwarded-tcpip", func(conn net.Conn) []byte {
		f := forwardedTCP{Host: p.Host, Port: port}
		if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
			f.FromHost, f.FromPort = a.IP.String(), uint32(a.Port)
		}
		return ssh.Marshal(f)
	})
	return reply, true
}

func tcpKey(host string, port uint32) string { return fmt.Sprintf("tcp %s %d", host, port) }

func (c *connection) cancelTCP(payload []byte) bool {
	var p tcpForward
	return ssh.Unmarshal(payload, &p) == nil && c.drop(tcpKey(p.Host, p.Port))
}

func (c *connection) listenUnix(payload []byte) bool {
	var p unixForward
	if ssh.Unmarshal(payload, &p) != nil {
		return false
	}
	l, err := net.Listen("unix", p.Path)
	if err != nil {
		c.s.o.Log.Info("ssh: a socket cannot be forwarded", "error", err)
		return false
	}
	if err := os.Chmod(p.Path, 0o600); err != nil {
		l.Close()
		return false
	}
	if !c.keep("unix "+p.Path, l) {
		return false
	}
	go c.accept(l, "forwarded-streamlocal@openssh.com", func(net.Conn) []byte { return ssh.Marshal(forwardedUnix{Path: p.Path}) })
	return true
}

func (c *connection) cancelUnix(payload []byte) bool {
	var p unixForward
	return ssh.Unmarshal(payload, &p) == nil && c.drop("unix "+p.Path)
}

// keep remembers a listener, to be closed with the connection.
func (c *connection) keep(key string, l net.Listener) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.listeners == nil || c.listeners[key] != nil {
		l.Close()
		return false
	}
	c.listeners[key] = l
	return true
}

func (c *connection) drop(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.listeners[key]
	if l == nil {
		return false
	}
	delete(c.listeners, key)
	return l.Close() == nil
}

// accept hands what comes in at the node to the client.
func (c *connection) accept(l net.Listener, kind string, describe func(net.Conn) []byte) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(50 * time.Millisecond) // out of files, most likely
			continue
		}
		go func() {
			ch, reqs, err := c.ssh.OpenChannel(kind, describe(conn))
			if err != nil {
				conn.Close()
				return
			}
			go ssh.DiscardRequests(reqs)
			c.join(ch, conn.(halfCloser))
		}()
	}
}
