package sshd

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// node is a server with a client's key.
type node struct {
	t    *testing.T
	srv  *Server
	home string
	key  ssh.Signer
}

func newSigner(t *testing.T) ssh.Signer {
	t.Helper()
	_, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newNode(t *testing.T, change ...func(*Options)) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t, home: filepath.Join(dir, "home"), key: newSigner(t)}
	if err := os.Mkdir(n.home, 0o755); err != nil {
		t.Fatal(err)
	}
	o := Options{Dir: filepath.Join(dir, "ssh"), Home: n.home, IP: "10.0.0.1", Env: func() []string {
		return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + n.home, "MARK=node"}
	}}
	for _, f := range change {
		f(&o)
	}
	var err error
	if n.srv, err = New(o); err != nil {
		t.Fatal(err)
	}
	n.srv.user.shell = "/bin/sh" // whatever this machine's user has
	t.Cleanup(n.srv.Close)
	return n
}

// dial gives both ends of a connection.
func (n *node) dial(with ssh.Signer, allowed ...ssh.Signer) (*ssh.Client, error) {
	n.t.Helper()
	l, err := net.Listen("unix", filepath.Join(n.t.TempDir(), "s"))
	if err != nil {
		n.t.Fatal(err)
	}
	defer l.Close()
	var keys []ssh.PublicKey
	for _, s := range allowed {
		keys = append(keys, s.PublicKey())
	}
	go func() {
		if conn, err := l.Accept(); err == nil {
			n.srv.Serve(conn, keys)
		}
	}()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		n.t.Fatal(err)
	}
	pub, err := ParseKey(n.srv.HostKey())
	if err != nil {
		n.t.Fatal(err)
	}
	c, chans, reqs, err := ssh.NewClientConn(conn, "node", &ssh.ClientConfig{User: "anyone", Auth: []ssh.AuthMethod{ssh.PublicKeys(with)},
		HostKeyCallback: ssh.FixedHostKey(pub), Timeout: 10 * time.Second})
	if err != nil {
		return nil, err
	}
	client := ssh.NewClient(c, chans, reqs)
	n.t.Cleanup(func() { client.Close() })
	return client, nil
}

func (n *node) client() *ssh.Client {
	n.t.Helper()
	c, err := n.dial(n.key, n.key)
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

func newSession(t *testing.T, c *ssh.Client) *ssh.Session {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("in vain: %s", what)
}

func TestCommands(t *testing.T) {
	n := newNode(t)
	c := n.client()
	for _, tt := range []struct {
		name, command, in string
		env               [2]string
		out, err          string
		code              int
		signal            string
	}{
		{name: "output", command: "echo out; echo err >&2", out: "out\n", err: "err\n"},
		{name: "exit code", command: "exit 42", code: 42},
		{name: "unknown program", command: "exec /no/such/program 2>/dev/null", code: 127},
		{name: "stdin to its end", command: "wc -c", in: strings.Repeat("x", 300000), out: "300000\n"},
		{name: "a script on stdin", command: "sh", in: "cd /\npwd\nexit 3\n", out: "/\n", code: 3},
		{name: "home", command: `pwd; cd; pwd; echo $HOME`, out: n.home + "\n" + n.home + "\n" + n.home + "\n"},
		{name: "environment", command: `echo $MARK $GREETING $SSH_CONNECTION`, env: [2]string{"GREETING", "hello"}, out: "node hello 127.0.0.1 0 10.0.0.1 22\n"},
		{name: "killed by a signal", command: "kill -TERM $$", signal: "TERM"},
		{name: "binary", command: "cat", in: "\x00\xff\r\n\x04", out: "\x00\xff\r\n\x04"},
		{name: "nothing left open", command: "sleep 300 >/dev/null 2>&1 </dev/null & echo $! > pid; echo done", out: "done\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSession(t, c)
			var out, errs bytes.Buffer
			s.Stdin, s.Stdout, s.Stderr = strings.NewReader(tt.in), &out, &errs
			if tt.env[0] != "" {
				if err := s.Setenv(tt.env[0], tt.env[1]); err != nil {
					t.Fatal(err)
				}
			}
			err := s.Run(tt.command)
			code, sig := 0, ""
			var exit *ssh.ExitError
			if errors.As(err, &exit) {
				code, sig = exit.ExitStatus(), exit.Signal()
			} else if err != nil {
				t.Fatal(err)
			}
			if tt.signal != "" {
				if sig != tt.signal {
					t.Errorf("signal %q, want %q", sig, tt.signal)
				}
			} else if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if got := out.String(); got != tt.out {
				t.Errorf("stdout %.200q, want %.200q", got, tt.out)
			}
			if errs.String() != tt.err {
				t.Errorf("stderr %q, want %q", errs.String(), tt.err)
			}
		})
	}
	// What was left in the background outlives the client.
	b, err := os.ReadFile(filepath.Join(n.home, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	var pid int
	fmt.Sscan(string(b), &pid)
	proc, _ := os.FindProcess(pid)
	defer proc.Kill()
	eventually(t, "no session is left", func() bool { return n.srv.Sessions() == 0 })
	if err := proc.Signal(nil0); err != nil {
		t.Errorf("the background process is gone: %v", err)
	}
}

func TestEnvironmentThatStays(t *testing.T) {
	n := newNode(t)
	s := newSession(t, n.client())
	for _, k := range []string{"HOME", "PATH", "SKYLOOM_NODE", "LD_PRELOAD", "A=B"} {
		if err := s.Setenv(k, "/evil"); err == nil {
			t.Errorf("%s was taken", k)
		}
	}
}

func TestTerminal(t *testing.T) {
	n := newNode(t)
	c := n.client()
	s := newSession(t, c)
	if err := s.RequestPty("xterm-test", 40, 132, ssh.TerminalModes{ssh.ECHO: 0, ssh.TTY_OP_ISPEED: 14400}); err != nil {
		t.Fatal(err)
	}
	in, _ := s.StdinPipe()
	var out syncBuffer
	s.Stdout = &out
	if err := s.Shell(); err != nil {
		t.Fatal(err)
	}
	expect := func(send, want string) {
		t.Helper()
		io.WriteString(in, send)
		eventually(t, want, func() bool { return strings.Contains(out.String(), want) })
	}
	expect("echo size-$(stty size)-$TERM-$0\n", "size-40 132-xterm-test--sh")
	if strings.Contains(out.String(), "stty") {
		t.Errorf("ECHO is on: %q", out.String())
	}
	if n.srv.Sessions() != 1 {
		t.Errorf("%d sessions", n.srv.Sessions())
	}
	if err := s.WindowChange(50, 90); err != nil {
		t.Fatal(err)
	}
	expect("echo now-$(stty size)\n", "now-50 90")
	expect("test -t 0 && test \"$SSH_TTY\" = \"$(tty)\" && echo is-a-tty\n", "is-a-tty")
	expect("sh -c 'echo be''gun; exec sleep 300'\n", "begun")
	expect("\x03echo int-$?\n", "int-130") // ^C
	expect("exec sh -c 'echo last words; exit 7'\n", "last words")
	var exit *ssh.ExitError
	if err := s.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 7 {
		t.Errorf("the shell ended with %v", err)
	}
}

func TestHangup(t *testing.T) {
	n := newNode(t)
	c := n.client()
	s := newSession(t, c)
	if err := s.RequestPty("xterm", 24, 80, nil); err != nil {
		t.Fatal(err)
	}
	mark := filepath.Join(n.home, "hup")
	if err := s.Start("trap 'echo hup > " + mark + "; exit' HUP; touch ready; while :; do sleep 0.01; done"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it runs", func() bool { _, err := os.Stat(filepath.Join(n.home, "ready")); return err == nil })
	c.Close()
	eventually(t, "it got SIGHUP", func() bool { _, err := os.Stat(mark); return err == nil })
	eventually(t, "no session is left", func() bool { return n.srv.Sessions() == 0 })
}

func TestSignal(t *testing.T) {
	n := newNode(t)
	s := newSession(t, n.client())
	var out syncBuffer
	s.Stdout = &out
	if err := s.Start("trap 'echo usr1; exit 9' USR1; echo ready; while :; do sleep 0.01; done"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ready", func() bool { return strings.Contains(out.String(), "ready") })
	if err := s.Signal(ssh.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	var exit *ssh.ExitError
	if err := s.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 9 || !strings.Contains(out.String(), "usr1") {
		t.Errorf("%v, %q", err, out.String())
	}
}

// TestBrokenPipe checks that a command learns that nobody reads any more.
func TestBrokenPipe(t *testing.T) {
	n := newNode(t)
	c := n.client()
	s := newSession(t, c)
	out, _ := s.StdoutPipe()
	if err := s.Start("trap '' HUP; yes; touch over"); err != nil {
		t.Fatal(err)
	}
	io.ReadFull(out, make([]byte, 1<<20))
	c.Close()
	eventually(t, "yes ended", func() bool { _, err := os.Stat(filepath.Join(n.home, "over")); return err == nil })
}

func TestWhoMayLogIn(t *testing.T) {
	n := newNode(t)
	other := newSigner(t)
	if _, err := n.dial(n.key); err == nil {
		t.Error("without any key announced")
	}
	if _, err := n.dial(n.key, other); err == nil {
		t.Error("with another key than announced")
	}
	if _, err := n.dial(n.key, other, n.key); err != nil {
		t.Errorf("with one of the keys: %v", err)
	}
	for _, bad := range []string{"", "ssh-ed25519", "ssh-ed25519 AAAA", "from=\"1.2.3.4\" " + n.srv.HostKey(), n.srv.HostKey() + "\n" + n.srv.HostKey()} {
		if _, err := ParseKey(bad); err == nil {
			t.Errorf("%q is taken for a key", bad)
		}
	}
}

func TestHostKey(t *testing.T) {
	n := newNode(t)
	again, err := New(n.srv.o)
	if err != nil || again.HostKey() != n.srv.HostKey() {
		t.Errorf("the key changed: %v", err)
	}
	path := filepath.Join(n.srv.o.Dir, "host_key")
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	os.WriteFile(path, []byte("damaged"), 0o600)
	if _, err := New(n.srv.o); err == nil || !strings.Contains(err.Error(), "remove the file") {
		t.Errorf("a damaged key: %v", err)
	}
}

func TestSFTP(t *testing.T) {
	n := newNode(t)
	c, err := sftp.NewClient(n.client())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a transfer is a session", func() bool { return n.srv.Sessions() == 1 })
	if wd, err := c.Getwd(); wd != n.home {
		t.Errorf("it begins in %q (%v)", wd, err)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	f, err := c.Create("dir file")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadFrom(bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Close(), c.Chmod("dir file", 0o640), c.Symlink("dir file", "link")); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(n.home, "link"))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if st, err := c.Stat("/"); err != nil || !st.IsDir() {
		t.Errorf("/: %v", err)
	}
	c.Close()
	eventually(t, "no session is left", func() bool { return n.srv.Sessions() == 0 })
}

func TestForwarding(t *testing.T) {
	n := newNode(t)
	c := n.client()
	echo := func(l net.Listener) {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				b, _ := io.ReadAll(conn) // until the other side has closed its writing end
				conn.Write(append([]byte("echo "), b...))
				conn.Close()
			}()
		}
	}
	ask := func(conn net.Conn, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "hello")
		conn.(interface{ CloseWrite() error }).CloseWrite()
		if b, err := io.ReadAll(conn); string(b) != "echo hello" {
			t.Errorf("%q, %v", b, err)
		}
	}
	there, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	go echo(there)
	ask(c.Dial("tcp", there.Addr().String()))

	sock := filepath.Join(n.home, "s")
	unix, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	go echo(unix)
	ask(c.Dial("unix", sock))

	if _, err := c.Dial("tcp", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a closed port: %v", err)
	}

	back, err := c.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go echo(back)
	ask(net.Dial("tcp", back.Addr().String()))

	rsock := filepath.Join(n.home, "r")
	rback, err := c.ListenUnix(rsock)
	if err != nil {
		t.Fatal(err)
	}
	go echo(rback)
	ask(net.Dial("unix", rsock))

	if err := back.Close(); err != nil {
		t.Errorf("cancel: %v", err)
	}
	if _, err := net.Dial("tcp", back.Addr().String()); err == nil {
		t.Error("a cancelled forwarding listens on")
	}
	if n.srv.Sessions() != 0 {
		t.Error("forwarding counts as a session")
	}
	c.Close()
	eventually(t, "the socket is closed", func() bool { _, err := net.Dial("unix", rsock); return err != nil })
}

func TestSilentClient(t *testing.T) {
	n := newNode(t, func(o *Options) { o.AliveEvery = 300 * time.Millisecond })
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan error, 1)
	go func() {
		conn, _ := l.Accept()
		ended <- n.srv.Serve(conn, []ssh.PublicKey{n.key.PublicKey()})
	}()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	frozen := &freezer{Conn: conn, frozen: make(chan struct{})}
	_, _, _, err = ssh.NewClientConn(frozen, "node", &ssh.ClientConfig{User: "x", Auth: []ssh.AuthMethod{ssh.PublicKeys(n.key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err != nil {
		t.Fatal(err)
	}
	close(frozen.frozen)
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("a client that is gone keeps its connection")
	}
}

func TestTools(t *testing.T) {
	dir := t.TempDir()
	tool := filepath.Join(dir, "it's a tool")
	if err := os.WriteFile(tool, []byte("#!/bin/sh\necho \"$0\" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, func(o *Options) {
		o.Tool = tool
		o.Env = func() []string { return []string{"PATH=" + dir, "HOME=" + dir} }
	})
	if err := os.WriteFile(filepath.Join(dir, "sh"), []byte("#!/bin/sh\necho noise\nexec /bin/sh \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.srv.user.shell = filepath.Join(dir, "sh") // a shell with something to say
	c := n.client()
	for command, want := range map[string]string{
		"rsync --server -e.LsfxC . 'a b'": tool + " rsync --server -e.LsfxC . a b\n",
		"scp -r -p -t dst":                tool + " scp -r -p -t dst\n",
		"echo rsync --server":             "noise\nrsync --server\n",
	} {
		out, err := newSession(t, c).Output(command)
		if err != nil || string(out) != want {
			t.Errorf("%s: %q, %v", command, out, err)
		}
	}
	os.WriteFile(filepath.Join(dir, "rsync"), []byte("#!/bin/sh\necho own \"$@\"\n"), 0o755)
	if out, err := newSession(t, c).Output("rsync --server x"); string(out) != "own --server x\n" {
		t.Errorf("the node's own rsync: %q, %v", out, err)
	}
}
