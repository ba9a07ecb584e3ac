package sshd

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	// handshakeTime is what a client has to log in.
	handshakeTime = 30 * time.Second
	// aliveEvery is how often a silent client is asked whether it lives; after aliveMisses unanswered questions in a row
	// it is taken for gone, so that a closed laptop does not count as a session for ever.
	aliveEvery  = 30 * time.Second
	aliveMisses = 10
)

// Ciphers the server takes, fastest first. A client's own order decides among them.
var ciphers = []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherChaCha20Poly1305, ssh.CipherAES128CTR, ssh.CipherAES256CTR}

// Options of a Server.
type Options struct {
	Dir  string // where the host key is kept, made if need be
	Home string // HOME of sessions, and where they begin
	// Env gives what every session starts from, HOME and PATH included.
	Env func() []string
	// IP is the node's address, told to sessions in SSH_CONNECTION.
	IP string
	// Tool is the program that stands in for rsync and scp where the node has none: Tool rsync ARGS…, Tool scp ARGS….
	// Empty: none does.
	Tool string
	Log  *slog.Logger
	// AliveEvery replaces the time between two questions to a silent client; for tests.
	AliveEvery time.Duration
}

// Server serves SSH connections. Make one with New.
type Server struct {
	o        Options
	signer   ssh.Signer
	user     account
	sessions atomic.Int64

	mu     sync.Mutex
	conns  map[*connection]bool
	closed bool
}

// New makes a server, and the node's host key if there is none yet.
func New(o Options) (*Server, error) {
	signer, err := hostKey(filepath.Join(o.Dir, "host_key"))
	if err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.AliveEvery <= 0 {
		o.AliveEvery = aliveEvery
	}
	return &Server{o: o, signer: signer, user: currentAccount(), conns: map[*connection]bool{}}, nil
}

// HostKey is the public host key as a line of known_hosts has it behind the names: type and base64.
func (s *Server) HostKey() string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.signer.PublicKey())))
}

// User is the name of the user that sessions run as.
func (s *Server) User() string { return s.user.name }

// Sessions counts what runs for clients that are connected: shells, commands and file transfers. A connection that
// only forwards ports counts for nothing.
func (s *Server) Sessions() int { return int(s.sessions.Load()) }

// ParseKey reads a public key in the form of an authorized_keys line.
func ParseKey(line string) (ssh.PublicKey, error) {
	k, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil || len(options) > 0 || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, errors.New("this is not one public key in the form TYPE BASE64 [COMMENT]")
	}
	return k, nil
}

// Serve serves one connection until it ends, and closes it. Only a client that has one of the keys gets in.
func (s *Server) Serve(conn net.Conn, keys []ssh.PublicKey) error {
	defer conn.Close()
	conf := &ssh.ServerConfig{
		ServerVersion: "SSH-2.0-Skyloom",
		MaxAuthTries:  20, // a client may try all the keys of its agent first
		PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			for _, k := range keys {
				if string(k.Marshal()) == string(key.Marshal()) {
					return &ssh.Permissions{}, nil
				}
			}
			return nil, errors.New("this key was not announced for the connection")
		},
	}
	conf.Ciphers = ciphers
	conf.AddHostKey(s.signer)
	late := time.AfterFunc(handshakeTime, func() { conn.Close() })
	sc, chans, reqs, err := ssh.NewServerConn(conn, conf)
	if !late.Stop() || err != nil {
		return fmt.Errorf("a client did not log in: %w", err)
	}
	c := &connection{s: s, ssh: sc, listeners: map[string]net.Listener{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if !s.add(c) {
		return sc.Close()
	}
	defer s.remove(c)
	s.o.Log.Info("ssh: a client has logged in", "as", sc.User())
	go c.requests(reqs)
	go c.keepAlive(s.o.AliveEvery)
	for nc := range chans {
		c.open(nc)
	}
	c.end()
	return nil
}

func (s *Server) add(c *connection) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.conns[c] = true
	return true
}

func (s *Server) remove(c *connection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// Close ends all connections; what sessions started sees a hangup.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.conns {
		c.ssh.Close()
	}
}

// connection is one client.
type connection struct {
	s      *Server
	ssh    *ssh.ServerConn
	ctx    context.Context // ends with the connection
	cancel context.CancelFunc

	mu        sync.Mutex
	listeners map[string]net.Listener // of forwardings back to the client
}

func (c *connection) open(nc ssh.NewChannel) {
	switch nc.ChannelType() {
	case "session":
		go c.session(nc)
	case "direct-tcpip":
		go c.directTCP(nc)
	case "direct-streamlocal@openssh.com":
		go c.directUnix(nc)
	default:
		nc.Reject(ssh.UnknownChannelType, "this node knows no channels of type "+nc.ChannelType())
	}
}

// requests answers what concerns the connection as a whole.
func (c *connection) requests(reqs <-chan *ssh.Request) {
	for r := range reqs {
		var reply []byte
		ok := false
		switch r.Type {
		case "tcpip-forward":
			reply, ok = c.listenTCP(r.Payload)
		case "cancel-tcpip-forward":
			ok = c.cancelTCP(r.Payload)
		case "streamlocal-forward@openssh.com":
			ok = c.listenUnix(r.Payload)
		case "cancel-streamlocal-forward@openssh.com":
			ok = c.cancelUnix(r.Payload)
		}
		if r.WantReply {
			r.Reply(ok, reply) // an unknown request, such as a keepalive, is answered too: with a refusal
		}
	}
}

// keepAlive ends a connection whose client answers no more.
func (c *connection) keepAlive(every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	var pending atomic.Bool
	misses := 0
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-t.C:
		}
		if !pending.CompareAndSwap(false, true) {
			if misses++; misses >= aliveMisses {
				c.s.o.Log.Info("ssh: a client is gone without a word")
				c.ssh.Close()
				return
			}
			continue
		}
		misses = 0
		go func() {
			if _, _, err := c.ssh.SendRequest("keepalive@openssh.com", true, nil); err == nil {
				pending.Store(false)
			}
		}()
	}
}

// end gives back what the connection held.
func (c *connection) end() {
	c.cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.listeners {
		l.Close()
	}
	c.listeners = nil
}

// hostKey reads the host key, or makes it: whole and flushed before it is told to anyone.
func hostKey(path string) (ssh.Signer, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		b, err = newHostKey(path)
	}
	if err != nil {
		return nil, fmt.Errorf("the node's SSH host key: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(b)
	if err != nil {
		return nil, fmt.Errorf("the node's SSH host key %s is damaged: %w; remove the file: the next start makes a new key", path, err)
	}
	return signer, nil
}

func newHostKey(path string) ([]byte, error) {
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(priv, "")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".host_key-*") // 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	b := pem.EncodeToMemory(block)
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	return b, os.Rename(f.Name(), path)
}

// account is who sessions run as.
type account struct{ name, shell string }

// currentAccount is the user of this process, with the login shell the system's user list gives it; a list that cannot
// be read, and shells that only refuse, leave it to SHELL, bash and sh.
func currentAccount() account {
	a := account{name: "root"}
	if u, err := user.Current(); err == nil && u.Username != "" {
		a.name = u.Username
	} else if v := os.Getenv("USER"); v != "" {
		a.name = v
	}
	for _, sh := range []string{shellOf("/etc/passwd", fmt.Sprint(os.Geteuid())), os.Getenv("SHELL"), "/bin/bash", "/usr/bin/bash", "/bin/sh"} {
		if base := filepath.Base(sh); sh == "" || base == "nologin" || base == "false" || !filepath.IsAbs(sh) {
			continue
		}
		if st, err := os.Stat(sh); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			a.shell = sh
			return a
		}
	}
	a.shell = "/bin/sh"
	return a
}

// shellOf reads passwd(5): name:password:uid:gid:text:home:shell.
func shellOf(path, uid string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Split(strings.TrimRight(line, "\n"), ":"); len(f) == 7 && f[2] == uid {
			return f[6]
		}
	}
	return ""
}
