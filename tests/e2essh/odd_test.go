package e2essh

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/tests/lab"
)

// works are hosts that lack or do something, and take nodes all the same.
var works = []lab.HostSpec{
	{Name: "bare", Hide: []string{"python3", "rsync", "curl", "wget", "sudo", "tar", "gzip"}},
	{Name: "dash", Shell: "/bin/dash"},
	{Name: "noisy", NoisyRC: true},
	{Name: "rohome", ReadOnlyHome: true},
	{Name: "nosudo", Sudo: lab.SudoNone},
	{Name: "brokensudo", Sudo: lab.SudoBroken},
	{Name: "hangingsudo", Sudo: lab.SudoHangs},
	{Name: "pwsudo", Sudo: lab.SudoPassword, Password: "geheim 'x'"},
	{Name: "password", Password: `pass "word`, NoKey: true},
	{Name: "root", User: "root"},
	{Name: "noforward", NoForward: true, NoSFTP: true, SSHD: []string{"AllowStreamLocalForwarding no", "MaxSessions 2"}},
	{Name: "jump"},
	{Name: "inner", Behind: "jump"},
}

// TestOddHosts launches on each host by itself.
func TestOddHosts(t *testing.T) {
	needLong(t)
	l := lab.New(t, lab.Options{Specs: works})
	// A pool per host, so that a launch has no choice.
	var pools strings.Builder
	for _, h := range l.Hosts() {
		fmt.Fprintf(&pools, "%s:\n  hosts:\n", h.Name)
		if h.Spec.Behind != "" {
			fmt.Fprintf(&pools, "    - %s\n", h.Name)
			continue
		}
		fmt.Fprintf(&pools, "    - ip: %s\n      user: %s\n", h.Addr, h.User)
		if !h.Spec.NoKey {
			fmt.Fprintf(&pools, "      identity_file: %s\n", l.KeyFile)
		}
		if h.Password != "" {
			fmt.Fprintf(&pools, "      password: %q\n", h.Password)
		}
	}
	s := newSite(t, l, pools.String())
	s.write(".ssh/config", l.SSHConfig())
	p := s.sky("ssh", "up").hasNot("failed")
	t.Logf("sky ssh up: %v\n%s", p.took, p.out)
	t.Run("hosts", func(t *testing.T) {
		for _, h := range l.Hosts() {
			t.Run(h.Name, func(t *testing.T) {
				t.Parallel()
				c := "c-" + h.Name
				run := "id -un; echo rank $SKYPILOT_NODE_RANK in $PWD; echo fine on $(hostname)"
				began := time.Now()
				s.sky("launch", "-y", "-c", c, "--infra", "ssh/"+h.Name, "--cpus", "1", "--memory", "1", run).has("fine on", "rank 0")
				t.Logf("launch: %v", time.Since(began))
				s.sky("exec", c, "echo twice").has("twice")
				s.sky("stop", "-y", c)
				s.sky("start", "-y", c)
				s.sky("exec", c, "echo thrice").has("thrice")
				s.sky("down", "-y", c)
				if a := agents(t, h); len(a) > 0 {
					t.Errorf("left: %v", a)
				}
				if n := claimed(t, h); len(n) > 0 {
					t.Errorf("claims left: %v", n)
				}
			})
		}
	})
	s.sky("ssh", "up", "--infra", "rohome").has("nodes are kept in /var/tmp/skyloom-")
	s.sky("ssh", "up", "--infra", "hangingsudo").has("sudo does not answer")
	s.sky("ssh", "up", "--infra", "brokensudo").has("sudo fails")
	s.sky("ssh", "up", "--infra", "bare").has("there is no sudo")
	s.sky("ssh", "up", "--infra", "pwsudo").hasNot("sudo ", "process trees")
	s.sky("ssh", "down").hasNot("not clean")
}

// TestBadHosts are hosts that can't take a node: each is named with its reason, and the good one is taken.
func TestBadHosts(t *testing.T) {
	needLong(t)
	l := lab.New(t, lab.Options{Specs: []lab.HostSpec{
		{Name: "down"}, {Name: "full", CPUs: 4, MemoryMB: 8 << 10}, {Name: "arm", Arch: "aarch64"}, {Name: "strange", Arch: "sparc64"}, {Name: "nospace", DiskMB: 64, CPUs: 4, MemoryMB: 8 << 10},
		{Name: "badshell", Files: map[string]string{"/home/ubuntu/.bashrc": "echo I am a friendly host; exit 3\n"}},
		{Name: "hangs", Files: map[string]string{"/home/ubuntu/.bashrc": "sleep 1000\n"}},
		{Name: "nologin", Shell: "/usr/sbin/nologin"}, {Name: "wrongkey"}, {Name: "nokey", NoKey: true, Password: "x"},
		{Name: "small", CPUs: 1, MemoryMB: 1024}, {Name: "good", CPUs: 4, MemoryMB: 8 << 10},
	}})
	var pools strings.Builder
	fmt.Fprintf(&pools, "lab:\n  user: ubuntu\n  identity_file: %s\n  hosts:\n", l.KeyFile)
	for _, h := range l.Hosts() {
		fmt.Fprintf(&pools, "    - %s\n", h.Name)
	}
	pools.WriteString("    - no-such-name\n")
	s := newSite(t, l, pools.String())
	s.write(".ssh/config", names(l))
	p := s.sky("ssh", "up").has("ready")
	t.Logf("sky ssh up: %v\n%s", p.took, p.out)
	if err := l.ByName("wrongkey").Recreate(); err != nil {
		t.Fatal(err)
	}
	if err := l.ByName("nospace").FillDisk(); err != nil {
		t.Fatal(err)
	}
	if err := l.ByName("down").Kill(); err != nil {
		t.Fatal(err)
	}
	s.sky("launch", "-y", "-d", "-c", "hog", "--infra", "ssh/lab", "--cpus", "4", "--memory", "8", "sleep 1000")
	p = s.sky("ssh", "up")
	t.Logf("sky ssh up: %v\n%s", p.took, p.out)
	p.has("down or cut off", "wrong architecture: it calls itself aarch64", "wrong architecture: it is a sparc64", "no space left", "I am a friendly host", "did not run a simple script in time",
		"the key of host wrongkey has changed", "ssh-keygen -f", "lets user ubuntu in with none", "its name no-such-name is not known")
	// No more than two hosts can take such a node, and each other is named.
	p = s.fails("launch", "-y", "-c", "big", "--infra", "ssh/lab", "--num-nodes", "4", "--cpus", "3", "--memory", "2", "true")
	t.Logf("refused after %v:\n%s", p.took, p.out)
	p.has("down: ", "arm: ", "strange: ", "nospace: ", "badshell: ", "hangs: ", "nologin: ", "wrongkey: ", "nokey: ", "small: ", "held by hog", "good: it could take one")
	p = s.sky("launch", "-y", "-c", "fits", "--infra", "ssh/lab", "--cpus", "3", "--memory", "2", "echo here I am").has("here I am")
	t.Logf("launch beside bad hosts: %v", p.took)
}

// names is an SSH configuration that gives hosts their names.
func names(l *lab.Lab) string {
	var b strings.Builder
	for _, h := range l.Hosts() {
		fmt.Fprintf(&b, "Host %s\n  HostName %s\n", h.Name, h.Addr)
	}
	return b.String()
}
