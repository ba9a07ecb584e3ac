package ssh

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/tests/rig"
)

func TestCommands(t *testing.T) {
	p := open(t)
	head, worker := p.nodeHome(t, "dev"), p.nodeHome(t, "dev-worker1")
	if head == worker || !strings.HasSuffix(head, "node0/home") || !strings.HasSuffix(worker, "node1/home") {
		t.Errorf("homes %s and %s", head, worker)
	}
	for _, tt := range []struct {
		name, in string
		args     []string
		out      string
		code     int
	}{
		{"exit code", "", []string{"dev", "exit 42"}, "", 42},
		{"both streams", "", []string{"dev", "echo out; echo err >&2"}, "out\nerr\n", 0},
		{"words", "", []string{"dev", "printf", "%s-", "'a b'", "c"}, "a b-c-", 0},
		{"script on stdin", "cd /\nfor i in 1 2 3; do echo $i; done\nexit 7\n", []string{"-T", "dev", "bash", "-s"}, "1\n2\n3\n", 7},
		{"login shell", "echo $0\nexit\n", []string{"-T", "dev"}, "-bash\n", 0},
		{"terminal", "", []string{"-tt", "dev", "test -t 0 && test -t 1 && echo tty"}, "tty\r\n", 0},
		{"environment", "", []string{"-o", "SetEnv=GREETING=hello", "dev", "echo $GREETING"}, "hello\n", 0},
		{"killed", "", []string{"dev", "kill -9 $$"}, "", 255},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := p.ssh(tt.in, tt.args...)
			out = strings.ReplaceAll(out, "Connection to dev closed.\r\n", "")
			if tt.name == "terminal" {
				out = strings.ReplaceAll(out, "Connection to 127", "")
				if i := strings.Index(out, "tty\r\n"); i >= 0 {
					out = out[i : i+5]
				}
			}
			if out != tt.out || code(err) != tt.code {
				t.Errorf("%d %q, want %d %q", code(err), out, tt.code, tt.out)
			}
		})
	}
}

// TestEditor does what editors do that work over SSH: a long script by stdin installs and starts a server that outlives
// the connection; then its port is reached through a dynamic forwarding.
func TestEditor(t *testing.T) {
	p := open(t)
	script := "# " + strings.Repeat("x", 100_000) + "\n" + `
set -e
mkdir -p ~/.editor/bin
cat > ~/.editor/bin/server <<'END'
import socket, sys
s = socket.socket()
s.bind(("127.0.0.1", 0)); s.listen(5)
open(sys.argv[1], "w").write(str(s.getsockname()[1]) + "\n")
while True:
    c, _ = s.accept()
    c.sendall(b"hello " + c.recv(100)); c.close()
END
command -v python3 >/dev/null || { echo no-python; exit 0; }
rm -f ~/.editor/port
nohup python3 ~/.editor/bin/server ~/.editor/port > ~/.editor/log 2>&1 < /dev/null &
echo "pid==$!"
while [ ! -s ~/.editor/port ]; do sleep 0.02; done
echo "port==$(cat ~/.editor/port)"
`
	out, err := p.ssh(script, "-T", "-o", "ClearAllForwardings=yes", "dev", "bash")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(out, "no-python") {
		t.Skip("the server of this test needs python3")
	}
	var pid, port int
	if _, err := fmt.Sscanf(out, "pid==%d\nport==%d", &pid, &port); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	defer p.ssh("", "dev", fmt.Sprintf("kill %d", pid))
	if got := p.must(t, "dev", fmt.Sprintf("kill -0 %d && echo alive", pid)); got != "alive\n" {
		t.Errorf("%q", got)
	}
	dyn, local := freePort(t), freePort(t)
	p.background(t, "ssh", "-F", p.config(), "-N", "-o", "ExitOnForwardFailure=yes", "-D", fmt.Sprint(dyn), "-L", fmt.Sprintf("%d:127.0.0.1:%d", local, port), "dev")
	for name, dial := range map[string]func() (net.Conn, error){
		"-D": func() (net.Conn, error) { return socks(dyn, port) },
		"-L": func() (net.Conn, error) { return net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", local)) },
	} {
		var got []byte
		eventually(t, name, func() bool {
			conn, err := dial()
			if err != nil {
				return false
			}
			defer conn.Close()
			io.WriteString(conn, name)
			got, _ = io.ReadAll(conn)
			return len(got) > 0
		})
		if string(got) != "hello "+name {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// socks connects through a SOCKS5 proxy (RFC 1928) on this machine.
func socks(proxy, port int) (net.Conn, error) {
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", proxy))
	if err != nil {
		return nil, err
	}
	req := append([]byte{5, 1, 0}, 5, 1, 0, 1, 127, 0, 0, 1)
	req = binary.BigEndian.AppendUint16(req, uint16(port))
	reply := make([]byte, 12)
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err = c.Write(req[:3]); err == nil {
		if _, err = io.ReadFull(c, reply[:2]); err == nil {
			if _, err = c.Write(req[3:]); err == nil {
				_, err = io.ReadFull(c, reply[2:])
			}
		}
	}
	if err == nil && reply[3] != 0 {
		err = fmt.Errorf("the proxy answered %d", reply[3])
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func freePort(t *testing.T) int {
	t.Helper()
	return int(netip.MustParseAddrPort(rig.Reserve(t)).Port())
}

func TestRemoteForwarding(t *testing.T) {
	p := open(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "from the laptop\n")
			conn.Close()
		}
	}()
	out := p.must(t, "-R", fmt.Sprintf("0:%s", l.Addr()), "dev", "true")
	if !strings.Contains(out, "Allocated port") {
		t.Errorf("no port: %q", out)
	}
	port := freePort(t)
	out = p.must(t, "-o", "ExitOnForwardFailure=yes", "-R", fmt.Sprintf("%d:%s", port, l.Addr()), "dev", fmt.Sprintf("bash -c 'cat < /dev/tcp/127.0.0.1/%d'", port))
	if out != "from the laptop\n" {
		t.Errorf("%q", out)
	}
}

func TestCopying(t *testing.T) {
	p := open(t)
	home := p.nodeHome(t, "dev-worker1")
	data := bytes.Repeat([]byte("\x00\xff binary \r\n"), 100_000)
	tree := filepath.Join(t.TempDir(), "a tree")
	os.MkdirAll(filepath.Join(tree, "sub"), 0o755)
	for _, f := range []string{"one", "sub/two", "sub/with blank"} {
		if err := os.WriteFile(filepath.Join(tree, f), data, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	same := func(dir string) {
		t.Helper()
		for _, f := range []string{"one", "sub/two", "sub/with blank"} {
			got, err := os.ReadFile(filepath.Join(dir, f))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: %d bytes, %v", f, len(got), err)
			}
		}
	}
	for _, how := range []string{"-s", "-O"} {
		t.Run("scp "+how, func(t *testing.T) {
			back := t.TempDir()
			dst := "copied" + how
			for _, args := range [][]string{{"-r", "-p", tree, "dev-worker1:" + dst}, {"-r", "dev-worker1:" + dst, back}} {
				if out, err := p.try(time.Minute, "", append([]string{"scp", how, "-q", "-F", p.config()}, args...)...); err != nil {
					t.Fatalf("scp %v: %v\n%s", args, err, out)
				}
			}
			same(filepath.Join(home, dst))
			same(filepath.Join(back, dst))
			if st, err := os.Stat(filepath.Join(home, dst, "one")); err != nil || st.Mode().Perm() != 0o640 {
				t.Errorf("mode %v, %v", st.Mode(), err)
			}
		})
	}
	batch := fmt.Sprintf("put \"%s\" by-sftp\nrename by-sftp by-sftp2\nmkdir d\nln -s by-sftp2 l\nls -l\npwd\nget l %s\n", filepath.Join(tree, "one"), filepath.Join(t.TempDir(), "x"))
	out, err := p.try(time.Minute, batch, "sftp", "-F", p.config(), "-b", "-", "dev-worker1")
	if err != nil || !strings.Contains(out, "Remote working directory: "+home) {
		t.Errorf("sftp: %v\n%s", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(home, "by-sftp2")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("by sftp: %d bytes, %v", len(got), err)
	}
}

// TestEntries follows the entries through a cluster's life, which is that of another one: the rest of the tests go on.
func TestEntries(t *testing.T) {
	p := open(t)
	sky := func(args ...string) {
		t.Helper()
		if out, err := p.try(time.Minute, "", append([]string{"sky"}, args...)...); err != nil {
			t.Fatalf("sky %v: %v\n%s", args, err, out)
		}
	}
	conf := func() string {
		b, err := os.ReadFile(filepath.Join(p.home, ".skyloom", "ssh", "config"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	has := func() bool { return strings.Contains(conf(), "Host life\n") }
	sky("launch", "-y", "-c", "life", "--infra", "local", "--cpus", "1")
	if !has() || p.must(t, "life", "echo up > mark; echo up") != "up\n" {
		t.Fatalf("after launch:\n%s", conf())
	}
	sky("stop", "-y", "life")
	if has() {
		t.Error("an entry after stop")
	}
	if out, err := p.try(30*time.Second, "", "sky", "ssh-proxy", "life"); err == nil || !strings.Contains(out, "sky start life") {
		t.Errorf("the proxy of a stopped cluster: %v\n%s", err, out)
	}
	sky("start", "-y", "life")
	if !has() || p.must(t, "life", "cat mark") != "up\n" {
		t.Errorf("after start:\n%s", conf())
	}
	// A new laptop: nothing but the server's token and the listing.
	os.RemoveAll(filepath.Join(p.home, ".ssh"))
	os.RemoveAll(filepath.Join(p.home, ".skyloom", "ssh"))
	sky("status")
	if !has() || p.must(t, "life", "cat mark") != "up\n" || p.must(t, "dev-worker1", "echo $0 | sed s/.*bash/bash/") != "bash\n" {
		t.Errorf("after status:\n%s", conf())
	}
	// The server is gone and comes back by itself; the key of the node is still the one that was pinned.
	sky("api", "stop")
	if got := p.must(t, "life", "cat mark"); !strings.HasSuffix(got, "up\n") {
		t.Errorf("without a server: %q", got)
	}
	sky("down", "-y", "life")
	if has() {
		t.Error("an entry after down")
	}
	if out, err := p.try(30*time.Second, "", "sky", "ssh-proxy", "life"); err == nil || !strings.Contains(out, "life") {
		t.Errorf("the proxy of no cluster: %v\n%s", err, out)
	}
}
