package e2essh

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/tests/lab"
)

// user runs a program of the user's own in the lab's network and gives what it printed, on both streams.
func (s *site) user(limit time.Duration, in string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := s.lab.CommandContext(ctx, args[0], args[1:]...)
	var out bytes.Buffer
	cmd.Env, cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = s.env(), s.home, strings.NewReader(in), &out, &out, time.Second
	err := cmd.Run()
	return out.String(), err
}

// with runs one of the OpenSSH programs, or rsync, with the configuration that sky keeps. They would look for the file of
// the user of the password database, not of HOME.
func (s *site) with(program string, args ...string) *printed {
	s.Helper()
	conf := filepath.Join(s.home, ".ssh", "config")
	line := append([]string{program, "-F", conf}, args...)
	if program == "rsync" {
		line = append([]string{program, "-e", "ssh -F " + conf}, args...)
	}
	began := time.Now()
	out, err := s.user(time.Minute, "", line...)
	if err != nil {
		s.Fatalf("%s: %v\n%s", strings.Join(line, " "), err, out)
	}
	return &printed{s, strings.Join(line, " "), out, time.Since(began)}
}

// needPrograms skips where the user's own programs are missing.
func needPrograms(t *testing.T, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			t.Skipf("there is no %s here", n)
		}
	}
}

// TestShow is a day with three machines: what the commands of a user do from `sky ssh up` to `sky ssh down`. The second host
// has neither rsync nor scp of its own. The server is killed twice on the way.
func TestShow(t *testing.T) {
	needLong(t)
	needPrograms(t, "ssh", "scp", "sftp", "rsync")
	spec := func(name string, hide ...string) lab.HostSpec {
		return lab.HostSpec{Name: name, CPUs: 4, MemoryMB: 8 << 10, Hide: hide}
	}
	l := lab.New(t, lab.Options{Specs: []lab.HostSpec{spec("h1"), spec("h2", "rsync", "scp"), spec("h3")}})
	s := newSite(t, l, "")
	example, err := filepath.Abs("../../examples/multinode.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s.sky("ssh", "up").has("Node pool: lab", "10.77.0.11", "10.77.0.12", "10.77.0.13", "ready").hasNot("failed")
	p := s.sky("launch", "-y", "-c", "gang", "--infra", "ssh/lab", "--num-nodes", "3", "--ports", "8080", example)
	p.has("rank 0 of 3", "rank 1 of 3", "rank 2 of 3", "the head is at 10.77.0.11", "ssh gang")
	t.Logf("launch of three nodes: %v", p.took)

	t.Run("reach", func(t *testing.T) { s.at(t).reaches() })
	t.Run("copy", func(t *testing.T) { s.at(t).copies() })
	t.Run("ports", func(t *testing.T) { s.at(t).forwards() })
	t.Run("jobs", func(t *testing.T) { s.at(t).works() })
	t.Run("stop", func(t *testing.T) { s.at(t).rests() })
	t.Run("down", func(t *testing.T) { s.at(t).leaves() })
}

// at is the site within a part of a test.
func (s *site) at(t *testing.T) *site {
	c := *s
	c.T = t
	t.Cleanup(func() { s.cmd = c.cmd }) // it may have been started anew
	return &c
}

// reaches logs in to each node.
func (s *site) reaches() {
	for rank, host := range []string{"gang", "gang-worker1", "gang-worker2"} {
		s.with("ssh", host, "hostname; echo at home in $HOME").has(s.lab.Host(rank).Name, "/nodes/")
	}
	s.with("ssh", "-tt", "gang-worker2", "test -t 0 && echo a terminal").has("a terminal")
	out, err := s.user(time.Minute, "read x; echo got $x; exit 42\nhello\n", "ssh", "-F", filepath.Join(s.home, ".ssh", "config"), "-T", "gang", "bash -s")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 42 || out != "got hello\n" {
		s.Errorf("a script on the input: %v %q", err, out)
	}
	s.sky("status", "--ip", "gang").is("10.77.0.11\n")
}

// is checks all of what was printed.
func (p *printed) is(want string) {
	p.s.Helper()
	if p.out != want {
		p.s.Errorf("sky %s printed %q, want %q", p.cmd, p.out, want)
	}
}

// copies brings a tree to nodes and back by scp, sftp and rsync.
func (s *site) copies() {
	tree := filepath.Join(s.home, "tree")
	blob := make([]byte, 1<<20)
	rand.Read(blob)
	for name, b := range map[string][]byte{"a file": []byte("one\n"), "sub/blob.bin": blob, "sub/empty": nil} {
		os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o755)
		if err := os.WriteFile(filepath.Join(tree, name), b, 0o640); err != nil {
			s.Fatal(err)
		}
	}
	same := func(a, b string) {
		s.Helper()
		if out, err := exec.Command("diff", "-r", a, b).CombinedOutput(); err != nil {
			s.Errorf("%v: %.500s", err, out)
		}
	}
	for _, host := range []string{"gang", "gang-worker1"} { // the second has none of these programs
		for _, how := range []string{"-s", "-O"} {
			back := s.TempDir()
			s.with("scp", "-q", "-r", how, tree, host+":by-scp"+how)
			s.with("scp", "-q", "-r", how, host+":by-scp"+how, back)
			same(tree, filepath.Join(back, "by-scp"+how))
		}
		back := s.TempDir()
		s.with("rsync", "-a", tree+"/", host+":by-rsync")
		s.with("rsync", "-a", host+":by-rsync/", back)
		same(tree, back)
		if out := s.with("rsync", "-ai", tree+"/", host+":by-rsync").out; out != "" {
			s.Errorf("rsync to %s for the second time: %s", host, out)
		}
	}
	got := filepath.Join(s.TempDir(), "blob")
	batch := fmt.Sprintf("put %q x\nrename x y\nget y %s\n", filepath.Join(tree, "sub/blob.bin"), got)
	if out, err := s.user(time.Minute, batch, "sftp", "-F", filepath.Join(s.home, ".ssh", "config"), "-b", "-", "gang-worker2"); err != nil {
		s.Fatalf("sftp: %v\n%s", err, out)
	}
	if b, err := os.ReadFile(got); err != nil || !bytes.Equal(b, blob) {
		s.Errorf("by sftp came %d bytes, %v", len(b), err)
	}
}

// forwards reaches a port of a node through ssh, and the port that the cluster has open by its address.
func (s *site) forwards() {
	s.sky("status", "--endpoint", "8080", "gang").is("10.77.0.11:8080\n")
	s.sky("status", "--endpoints", "gang").has("8080", "10.77.0.11:8080")
	s.fails("status", "--endpoint", "8081", "gang").has("8081")
	s.sky("exec", "-d", "gang", `exec python3 -c '
import socket
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("", 8080)); s.listen(5)
while True:
    c, _ = s.accept()
    c.sendall(b"from the head"); c.close()
'`)
	greeted := func(addr string) bool {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		c, err := s.lab.Dial(ctx, "tcp", addr)
		if err != nil {
			return false
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		b, _ := io.ReadAll(c)
		return string(b) == "from the head"
	}
	s.until(3*time.Minute, "the endpoint answers", func() bool { return greeted("10.77.0.11:8080") })
	var port int
	if err := s.lab.Do(func() error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			port = l.Addr().(*net.TCPAddr).Port
			err = l.Close()
		}
		return err
	}); err != nil {
		s.Fatal(err)
	}
	// By way of the third node, which reaches the first.
	cmd := s.lab.Command("ssh", "-F", filepath.Join(s.home, ".ssh", "config"), "-N", "-o", "ExitOnForwardFailure=yes", "-L", fmt.Sprintf("%d:10.77.0.11:8080", port), "gang-worker2")
	cmd.Env = s.env()
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	s.until(3*time.Minute, "the forwarded port answers", func() bool { return greeted(fmt.Sprint("127.0.0.1:", port)) })
	s.sky("cancel", "-y", "gang", "-a")
}

// works runs jobs and looks at them, over the server's death.
func (s *site) works() {
	s.sky("exec", "gang", "--num-nodes", "3", "echo again on $SKYPILOT_NODE_RANK").has("again on 0", "again on 1", "again on 2")
	s.sky("exec", "-d", "gang", "-n", "long", "--num-nodes", "3", "for i in 1 2 3 4 5; do echo line $i; done; sleep 1000")
	running := func() bool {
		out, err := s.try(20*time.Second, "queue", "gang")
		return err == nil && strings.Contains(out, "RUNNING")
	}
	s.until(3*time.Minute, "the job runs", running)
	s.sky("queue", "gang").has("long", "SUCCEEDED", "CANCELLED", "RUNNING")
	s.sky("logs", "gang", "1", "--no-follow").has("rank 2 of 3", "the head is at 10.77.0.11")
	job := s.job("long")
	lines := func(args ...string) string {
		out, _ := s.try(time.Minute, append([]string{"logs", "gang", job, "--no-follow"}, args...)...) // 101: it runs
		return out
	}
	s.until(3*time.Minute, "all has been printed", func() bool { return strings.Count(lines(), "line 5") == 3 })
	tail := lines("--tail", "2")
	if n := strings.Count(tail, "line "); n != 6 || strings.Count(tail, "line 4") != 3 {
		s.Errorf("the last two lines of each node: %q", tail)
	}
	s.kill()
	s.start()
	if !running() {
		s.Errorf("after the server's death: %s", s.sky("queue", "gang").out)
	}
	s.with("ssh", "gang-worker1", "hostname").has("h2")
	if n := strings.Count(lines(), "line 5"); n != 3 {
		s.Errorf("after the server's death the log has %d of 3 last lines", n)
	}
	s.sky("cancel", "-y", "gang", job)
	s.sky("queue", "gang").has("CANCELLED").hasNot("RUNNING")
	s.until(3*time.Minute, "no rank is left", func() bool {
		for _, h := range s.lab.Hosts() {
			ps, err := h.Processes()
			if err != nil {
				s.Fatal(err)
			}
			for _, p := range ps {
				if strings.Contains(strings.Join(p.Args, " "), "sleep 1000") {
					return false
				}
			}
		}
		return true
	})
}

// job is the number of a job of the cluster, by its name.
func (s *site) job(name string) string {
	s.Helper()
	for line := range strings.SplitSeq(s.sky("queue", "gang").out, "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[1] == name {
			return f[0]
		}
	}
	s.Fatalf("there is no job %s", name)
	return ""
}

// rests stops the cluster and starts it again; the files are kept, the ssh entries follow.
func (s *site) rests() {
	s.with("ssh", "gang-worker1", "echo kept > mark")
	p := s.sky("stop", "-y", "gang")
	s.Logf("stop: %v", p.took)
	s.sky("status", "gang").has("STOPPED")
	s.empty("after stop")
	s.fails("exec", "gang", "true").has("sky start gang")
	s.kill()
	s.start()
	p = s.sky("start", "-y", "gang")
	s.Logf("start: %v", p.took)
	s.with("ssh", "gang-worker1", "cat mark").is("kept\n")
	s.sky("exec", "gang", "--num-nodes", "3", "echo back on $SKYPILOT_NODE_RANK").has("back on 0", "back on 1", "back on 2")
}

// leaves ends the cluster and takes all that is ours off the hosts.
func (s *site) leaves() {
	s.fails("ssh", "down").has("clusters have nodes on these hosts: gang", "sky down gang")
	s.sky("down", "-y", "gang")
	s.sky("status").hasNot("ssh (lab)")
	conf, err := os.ReadFile(filepath.Join(s.home, "ssh", "config"))
	if err != nil || bytes.Contains(conf, []byte("Host gang")) {
		s.Errorf("after down ssh's configuration is %v\n%s", err, conf)
	}
	s.sky("ssh", "down").has("clean").hasNot("not clean")
	noTrace(s.T, s.lab)
}

// noTrace checks that nothing of ours is left on any host.
func noTrace(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, h := range l.Hosts() {
		changed, err := h.Changes()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range changed {
			if !traces(c) {
				t.Errorf("%s after sky ssh down: %s", h.Name, c)
			}
		}
		if a := agents(t, h); len(a) > 0 {
			t.Errorf("%s after sky ssh down: %v", h.Name, a)
		}
	}
}
