//go:build linux

package lab

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

var bg = context.Background()

// login opens an SSH connection from the switch's network, with a password or else the lab's key.
func login(t *testing.T, l *Lab, h *Host, password string) (*ssh.Client, error) {
	t.Helper()
	var auth ssh.AuthMethod
	if password != "" {
		auth = ssh.Password(password)
	} else {
		b, err := os.ReadFile(l.KeyFile)
		if err != nil {
			t.Fatal(err)
		}
		key, err := ssh.ParsePrivateKey(b)
		if err != nil {
			t.Fatal(err)
		}
		auth = ssh.PublicKeys(key)
	}
	want, _, _, _, err := ssh.ParseAuthorizedKey([]byte(h.HostKey()))
	if err != nil {
		t.Fatal(err)
	}
	c, err := h.Dial(bg, h.Port)
	if err != nil {
		return nil, err
	}
	conn, chans, reqs, err := ssh.NewClientConn(c, h.Addr, &ssh.ClientConfig{User: h.User, Auth: []ssh.AuthMethod{auth}, HostKeyCallback: ssh.FixedHostKey(want)})
	if err != nil {
		c.Close()
		return nil, err
	}
	client := ssh.NewClient(conn, chans, reqs)
	t.Cleanup(func() { client.Close() })
	return client, nil
}

func overSSH(t *testing.T, l *Lab, h *Host, password, cmd string) string {
	t.Helper()
	c, err := login(t, l, h, password)
	if err != nil {
		t.Fatalf("ssh to %s: %v\n%s", h.Name, err, h.Console())
	}
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	out, err := s.CombinedOutput(cmd)
	if err != nil {
		t.Fatalf("%s on %s: %v: %s", cmd, h.Name, err, out)
	}
	return strings.TrimSpace(string(out))
}

func run(t *testing.T, h *Host, script string) string {
	t.Helper()
	out, err := h.Run(bg, script)
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return strings.TrimSpace(out)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// reaches tells whether sshd says hello within a moment.
func reaches(h *Host) bool {
	ctx, cancel := context.WithTimeout(bg, 300*time.Millisecond)
	defer cancel()
	c, err := h.Dial(ctx, h.Port)
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	var b [4]byte
	_, err = c.Read(b[:])
	return err == nil && string(b[:]) == "SSH-"
}

// answers waits until sshd says hello: on a loaded machine that takes its time.
func answers(h *Host) bool {
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if reaches(h) {
			return true
		}
	}
	return false
}

func TestHost(t *testing.T) {
	l := New(t, Options{Hosts: 2})
	a, b := l.Host(0), l.Host(1)

	t.Run("ssh with the key", func(t *testing.T) {
		if got := overSSH(t, l, a, "", "hostname; id -un; pwd; echo $SHELL"); got != "h1\nubuntu\n/home/ubuntu\n/bin/bash" {
			t.Errorf("got %q", got)
		}
		if got := overSSH(t, l, a, "", "sudo -n id -un"); got != "root" {
			t.Errorf("sudo gives %q", got)
		}
		c, err := login(t, l, a, "wrong")
		if err == nil {
			c.Close()
			t.Error("a password was taken")
		}
	})
	t.Run("the machine's own ssh", func(t *testing.T) {
		conf := filepath.Join(l.Dir(), "ssh_config")
		must(t, os.WriteFile(conf, []byte(l.SSHConfig()), 0o600))
		out, err := l.Command("ssh", "-F", conf, "h2", "hostname").CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != "h2" {
			t.Errorf("%q, %v", out, err)
		}
	})
	t.Run("nothing of the machine shows", func(t *testing.T) {
		out := run(t, a, "ls -A /root /home /tmp /work /usr/local/bin 2>&1; ps -e -o comm= | sort -u | head -20")
		for _, bad := range []string{".cache", "go-build"} {
			if strings.Contains(out, bad) {
				t.Errorf("%s shows:\n%s", bad, out)
			}
		}
		if p, err := a.Processes(); err != nil || len(p) != 0 {
			t.Errorf("an idle host runs %v, %v", p, err)
		}
		if c, err := a.Changes(); err != nil || len(c) != 0 {
			t.Errorf("an idle host has changed %v, %v", c, err)
		}
	})
	t.Run("exit codes, users, context", func(t *testing.T) {
		_, err := a.Run(bg, "echo so; exit 3")
		if ee := (*ExitError)(nil); !errors.As(err, &ee) || ee.Code != 3 || ee.Output != "so\n" {
			t.Errorf("got %v", err)
		}
		if out, err := a.RunAs(bg, "ubuntu", "id -u; echo $HOME"); err != nil || out != "1000\n/home/ubuntu\n" {
			t.Errorf("%q, %v", out, err)
		}
		ctx, cancel := context.WithTimeout(bg, 50*time.Millisecond)
		defer cancel()
		if _, err := a.Run(ctx, "sleep 1000"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("files and changes", func(t *testing.T) {
		must(t, a.WriteFile("~/sub/x", []byte("hello"), 0o640))
		if got := overSSH(t, l, a, "", "stat -c %U:%a sub/x; cat sub/x"); got != "ubuntu:640\nhello" {
			t.Errorf("got %q", got)
		}
		run(t, a, "rm /etc/skel/.profile; echo x >> /etc/hosts; mkdir -p /opt/ours/deep; touch /tmp/t")
		want := []string{"/etc/hosts", "-/etc/skel/.profile", "/home/ubuntu/sub", "/home/ubuntu/sub/x", "/opt/ours", "/opt/ours/deep"}
		if got, err := a.Changes(); err != nil || !slices.Equal(got, want) {
			t.Errorf("%v, %v", got, err)
		}
	})
	t.Run("cut and join", func(t *testing.T) {
		c, err := login(t, l, b, "")
		must(t, err)
		must(t, b.Cut())
		if reaches(b) {
			t.Error("a host that is cut off answers")
		}
		if out, err := a.Run(bg, "timeout 0.3 bash -c 'exec 3<>/dev/tcp/"+b.Addr+"/22'"); err == nil {
			t.Errorf("it answers another host: %s", out)
		}
		must(t, b.Join())
		if !answers(b) {
			t.Error("a host that was joined again does not answer")
		}
		s, err := c.NewSession() // the connection of before has outlived the cut
		must(t, err)
		if out, err := s.Output("echo still"); err != nil || string(out) != "still\n" {
			t.Errorf("%q, %v", out, err)
		}
	})
	t.Run("slow", func(t *testing.T) {
		ln, err := l.Listen("tcp", "0.0.0.0:0")
		must(t, err)
		defer ln.Close()
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write(make([]byte, 2<<20))
				c.Close()
			}
		}()
		_, port, _ := net.SplitHostPort(ln.Addr().String())
		fetch := func() time.Duration {
			start := time.Now()
			if got := run(t, b, "bash -c 'cat < /dev/tcp/"+l.Gateway()+"/"+port+" | wc -c'"); got != "2097152" {
				t.Errorf("%s bytes", got)
			}
			return time.Since(start)
		}
		must(t, b.Slow(2<<20))
		if d := fetch(); d < 400*time.Millisecond {
			t.Errorf("2 MB at 2 MB/s took only %s", d)
		}
		must(t, b.Slow(0))
		t.Logf("at full speed: %s", fetch())
	})
	t.Run("kill and reboot", func(t *testing.T) {
		boot := run(t, a, "cat /proc/sys/kernel/random/boot_id")
		run(t, a, "echo keep > /var/lib/keep; touch /tmp/gone /run/gone; setsid nohup sleep 4321 >/dev/null 2>&1 &")
		if got := overSSH(t, l, a, "", "setsid nohup sleep 4321 >/dev/null 2>&1 & echo ok"); got != "ok" {
			t.Errorf("got %q", got)
		}
		find := func() (n int) {
			ps, err := a.Processes()
			must(t, err)
			for _, p := range ps {
				if slices.Equal(p.Args, []string{"sleep", "4321"}) {
					n++
				}
			}
			return n
		}
		for deadline := time.Now().Add(2 * time.Minute); find() != 2; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d of 2 processes run", find())
			}
		}
		ns := outerPIDs(t, "sleep\x004321\x00")
		conn, err := a.Dial(bg, 22)
		must(t, err)
		defer conn.Close()
		buf := make([]byte, 256)
		_, err = conn.Read(buf) // sshd's hello
		must(t, err)
		must(t, a.Kill())
		_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := conn.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a peer hears of the power cut: %v", err)
		}
		for _, pid := range ns {
			if unix.Kill(pid, 0) == nil {
				t.Errorf("process %d of the killed host lives", pid)
			}
		}
		if a.Up() || reaches(a) {
			t.Error("a killed host answers")
		}
		if _, err := a.Run(bg, "true"); err == nil {
			t.Error("a killed host runs a script")
		}
		must(t, a.Boot())
		if got := run(t, a, "cat /var/lib/keep; ls /tmp /run/gone 2>&1; cat ~/.ssh/authorized_keys | wc -l"); !strings.HasPrefix(got, "keep\n") || strings.Contains(got, "gone\n/") {
			t.Errorf("after the reboot: %q", got)
		}
		if now := run(t, a, "cat /proc/sys/kernel/random/boot_id"); now == boot || len(now) != 36 {
			t.Errorf("boot_id %q, then %q", boot, now)
		}
		if n := find(); n != 0 {
			t.Errorf("%d processes run after a reboot", n)
		}
		overSSH(t, l, a, "", "true") // with the same host key
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = conn.Write([]byte("hello?\r\n"))
		if _, err := conn.Read(buf); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the booted host knows the old connection: %v", err)
		}
	})
	t.Run("recreate", func(t *testing.T) {
		key := a.HostKey()
		must(t, a.Recreate())
		if a.HostKey() == key || a.Exists("/var/lib/keep") {
			t.Error("the new host is the old one")
		}
		overSSH(t, l, a, "", "true")
	})
	t.Run("terminate", func(t *testing.T) {
		must(t, a.Terminate())
		if err := a.Boot(); err == nil {
			t.Error("a terminated host booted")
		}
		if p, err := a.Processes(); err != nil || len(p) != 0 {
			t.Errorf("%v, %v", p, err)
		}
	})
}

// outerPIDs are this machine's numbers of the processes with that command line.
func outerPIDs(t *testing.T, cmdline string) (out []int) {
	t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if b, _ := os.ReadFile(f); string(b) == cmdline {
			var pid int
			for _, c := range filepath.Base(filepath.Dir(f)) {
				pid = pid*10 + int(c-'0')
			}
			out = append(out, pid)
		}
	}
	if len(out) < 2 {
		t.Errorf("%d processes like %q on the machine", len(out), cmdline)
	}
	return out
}
