package ssh

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// rsync runs the real rsync over the real ssh.
func (p *place) rsync(t *testing.T, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("rsync"); err != nil {
		t.Skip("there is no rsync here: apt-get install rsync")
	}
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.try(time.Minute, "", append([]string{"rsync", "-e", ssh + " -F " + p.config()}, args...)...)
	if err != nil {
		t.Fatalf("rsync %v: %v\n%s", args, err, out)
	}
	return out
}

// TestRsync copies a thousand files to a node that has no rsync, and back.
func TestRsync(t *testing.T) {
	p := open(t)
	home := p.nodeHome(t, "dev")
	src := filepath.Join(t.TempDir(), "src")
	rnd := rand.NewChaCha8([32]byte{7})
	for i := range 1000 {
		b := make([]byte, i*7%5000)
		rnd.Read(b)
		f := filepath.Join(src, fmt.Sprintf("d%d", i%20), fmt.Sprintf("file %d.bin", i))
		os.MkdirAll(filepath.Dir(f), 0o755)
		if err := os.WriteFile(f, b, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	os.Symlink("d0/file 0.bin", filepath.Join(src, "link"))
	if out := p.must(t, "dev", "command -v rsync || echo none"); out != "none\n" {
		t.Fatalf("the node has an rsync: %s", out)
	}
	p.rsync(t, "-az", src, "dev:up/")
	diff(t, src, filepath.Join(home, "up/src"))
	back := t.TempDir()
	p.rsync(t, "-a", "dev:up/src/", back)
	diff(t, src, back)
	if out := p.rsync(t, "-ai", "--delete", src+"/", "dev:up/src"); out != "" {
		t.Errorf("the second time: %s", out)
	}
	os.RemoveAll(filepath.Join(src, "d3"))
	os.WriteFile(filepath.Join(src, "d4", "new"), []byte("new"), 0o644)
	if out := p.rsync(t, "-ai", "--delete", src+"/", "dev:up/src"); !strings.Contains(out, "*deleting   d3/") || !strings.Contains(out, "d4/new") || strings.Contains(out, "file 4.bin") {
		t.Errorf("%s", out)
	}
	diff(t, src, filepath.Join(home, "up/src"))
	// A shell that prints something would break the protocol.
	p.must(t, "dev", "echo 'echo noise' > .bashrc")
	p.rsync(t, "-a", "dev:up/src/d4/new", back)
	if b, err := os.ReadFile(filepath.Join(back, "new")); err != nil || string(b) != "new" {
		t.Errorf("%q, %v", b, err)
	}
	p.must(t, "dev", "rm .bashrc")
}

func diff(t *testing.T, a, b string) {
	t.Helper()
	if out, err := exec.Command("diff", "-r", "--no-dereference", a, b).CombinedOutput(); err != nil {
		t.Errorf("%v\n%.1000s", err, out)
	}
}

// TestThroughput compares the tunnel with a plain sshd on this machine, in the same run. It only tells: figures of a
// busy machine prove nothing.
func TestThroughput(t *testing.T) {
	p := open(t)
	plain := plainSSH(t)
	const size = 64 << 20
	rate := func(in bool, host ...string) float64 {
		args := append(append([]string{"ssh"}, host...), fmt.Sprintf("head -c %d /dev/zero", size))
		if in {
			args = append(append([]string{"ssh"}, host...), "cat > /dev/null")
		}
		ctx, cancel := contextFor(time.Minute)
		defer cancel()
		cmd := p.command(ctx, args...)
		if in {
			cmd.Stdin = &zeros{left: size}
		}
		n := &counter{}
		cmd.Stdout = n
		var errs bytes.Buffer
		cmd.Stderr = &errs
		start := time.Now()
		if err := cmd.Run(); err != nil || !in && n.n != size {
			t.Fatalf("%v: %v, %d bytes\n%s", args, err, n.n, errs.String())
		}
		return size / time.Since(start).Seconds() / 1e6
	}
	sky := []string{"-F", p.config(), "dev"}
	for _, in := range []bool{false, true} {
		name := map[bool]string{false: "from the node", true: "to the node"}[in]
		var a, b float64
		for range 2 { // in turn, the better of two
			a, b = max(a, rate(in, plain...)), max(b, rate(in, sky...))
		}
		t.Logf("%s: plain ssh %.0f MB/s, through the tunnel %.0f MB/s: %.2f of it", name, a, b, b/a)
	}
}
