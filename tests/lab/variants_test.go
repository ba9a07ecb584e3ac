//go:build linux

package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestVariants(t *testing.T) {
	specs := []HostSpec{
		{Name: "bare", Hide: []string{"python3", "rsync", "curl"}, Sudo: SudoNone},
		{Name: "odd", Shell: "/bin/dash", Password: "s3cret pass", NoKey: true, Sudo: SudoPassword},
		{Name: "noisy", NoisyRC: true, ReadOnlyHome: true, Sudo: SudoBroken},
		{Name: "gpu", GPUs: []GPU{{"A100-SXM4-80GB", 2, 81920}, {"T4", 1, 15360}}, CPUs: 8, Arch: "aarch64", Files: map[string]string{"/bin/ours": "#!/bin/sh\necho ours\n"}},
		{Name: "small", MemoryMB: 96, CPUs: 0.5, DiskMB: 8, User: "root", NoSFTP: true},
		{Name: "jump"},
		{Name: "inner", Behind: "jump"},
	}
	if !CanLimit() {
		for i := range specs {
			specs[i].CPUs, specs[i].MemoryMB = 0, 0
		}
	}
	l := New(t, Options{Specs: specs})
	host := func(name string) *Host { return l.ByName(name) }

	t.Run("bare", func(t *testing.T) {
		h := host("bare")
		if got := overSSH(t, l, h, "", "for c in python3 python3.11 rsync curl sudo; do command -v $c && echo $c; done; command -v tar"); got != "/usr/bin/tar" && got != "/bin/tar" {
			t.Errorf("it has %q", got)
		}
	})
	t.Run("dash, password, sudo with a password", func(t *testing.T) {
		h := host("odd")
		if got := overSSH(t, l, h, h.Password, "echo $0; sudo -n true 2>/dev/null || echo refused; echo 's3cret pass' | sudo -S -p '' id -un"); !strings.HasSuffix(got, "dash\nrefused\nroot") {
			t.Errorf("got %q", got)
		}
		for _, wrong := range []string{"", "wrong"} {
			if c, err := login(t, l, h, wrong); err == nil {
				c.Close()
				t.Errorf("logged in with %q", wrong)
			}
		}
	})
	t.Run("noisy, read-only home, broken sudo", func(t *testing.T) {
		got := overSSH(t, l, host("noisy"), "", "touch x; mkdir ~/.sky; sudo -n true; echo end")
		for _, want := range []string{"Welcome to the cluster", "conda", "x': Read-only file system", "setuid bit", "end"} {
			if !strings.Contains(got, want) {
				t.Errorf("no %q in %q", want, got)
			}
		}
	})
	t.Run("gpus, architecture, size", func(t *testing.T) {
		if !CanLimit() {
			t.Skip("this machine cannot hold limits")
		}
		h := host("gpu")
		want := "0, NVIDIA A100-SXM4-80GB, 81920\n1, NVIDIA A100-SXM4-80GB, 81920\n2, NVIDIA T4, 15360\n" +
			"GPU 2: NVIDIA T4 (UUID: GPU-00000002-0000-4000-8000-000000000000)\nindex, memory.total [MiB]\n1, 81920 MiB\n3 2\n/dev/nvidia2\n" +
			"aarch64 Linux\n8 8\nours"
		if got := overSSH(t, l, h, "", "nvidia-smi --query-gpu=index,name,memory.total --format=csv,noheader,nounits; nvidia-smi -L | tail -1; nvidia-smi -i 1 --query-gpu=index,memory.total --format=csv; "+
			"echo $(cuda-device-count) $(CUDA_VISIBLE_DEVICES=0,2 cuda-device-count); ls /dev/nvidia2; echo $(uname -m) $(uname -s); echo $(nproc) $(grep -c ^processor /proc/cpuinfo); ours"); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
	t.Run("limits of memory and disk", func(t *testing.T) {
		if !CanLimit() {
			t.Skip("this machine cannot hold limits")
		}
		h := host("small")
		if got := overSSH(t, l, h, "", "id -u; grep MemTotal /proc/meminfo | tr -s ' '; df -m / | tail -1 | tr -s ' ' | cut -d' ' -f2"); got != "0\nMemTotal: 98304 kB\n8" {
			t.Errorf("got %q", got)
		}
		if out, err := h.Run(bg, "head -c 9000000 /dev/zero > /root/big"); err == nil || !strings.Contains(out, "No space left") {
			t.Errorf("the disk takes what it has no room for: %q, %v", out, err)
		}
		run(t, h, "rm /root/big")
		must(t, h.FillDisk())
		if out, err := h.Run(bg, "head -c 100 /dev/zero > /root/little"); err == nil || !strings.Contains(out, "No space left") {
			t.Errorf("the full disk takes more: %q, %v", out, err)
		}
		must(t, h.FreeDisk())
		run(t, h, "echo 123 > /root/little")
		out, err := h.Run(bg, "head -c 200m /dev/zero | tail -c 200m > /dev/null; echo rc $?")
		if err != nil || strings.Contains(out, "rc 0") {
			t.Errorf("200 MB fit in 96: %q, %v", out, err)
		}
		if u, err := h.Usage(); err != nil || u.CPU <= 0 || u.MemoryMB <= 0 || u.Procs < 2 {
			t.Errorf("usage %+v, %v", u, err)
		}
	})
	t.Run("cgroups of its own", func(t *testing.T) {
		h := host("jump")
		for _, hi := range hierarchies() {
			dir, _ := hi.inHost(hybrid())
			run(t, h, "set -e; mkdir "+dir+"/mine; sleep 1000 & echo $! > "+dir+"/mine/cgroup.procs; grep -q . "+dir+"/mine/cgroup.procs; kill %1 2>/dev/null || kill $!")
		}
		if got := run(t, h, "cat /proc/self/cgroup"); strings.Contains(got, cgroupName) {
			t.Errorf("the lab's own cgroups show: %s", got)
		}
	})
	t.Run("behind a jump host", func(t *testing.T) {
		h := host("inner")
		if c, err := l.Dial(bg, "tcp", h.Addr+":22"); err == nil {
			c.Close()
			t.Error("it is reached directly")
		}
		c, err := login(t, l, host("jump"), "")
		must(t, err)
		conn, err := c.Dial("tcp", h.Addr+":22")
		must(t, err)
		var b [4]byte
		if _, err := conn.Read(b[:]); err != nil || string(b[:]) != "SSH-" {
			t.Errorf("%q, %v", b, err)
		}
		overSSH(t, l, h, "", "true")                                 // from itself
		later, err := l.Add(HostSpec{Name: "later", Behind: "bare"}) // which becomes a jump host while it is up
		must(t, err)
		conf := filepath.Join(l.Dir(), "ssh_config")
		must(t, os.WriteFile(conf, []byte(l.SSHConfig()), 0o600))
		if out, err := l.Command("ssh", "-F", conf, later.Name, "hostname").CombinedOutput(); err != nil || string(out) != "later\n" {
			t.Errorf("%q, %v", out, err)
		}
	})
	t.Run("nowhere else to go", func(t *testing.T) {
		if out, err := host("jump").Run(bg, "timeout 5 bash -c 'exec 3<>/dev/tcp/192.0.2.1/80'"); err == nil || !strings.Contains(out, "unreachable") && !strings.Contains(out, "No route") {
			t.Errorf("%q, %v", out, err)
		}
	})
	t.Run("texts", func(t *testing.T) {
		if s := l.KnownHosts(); strings.Count(s, "ssh-ed25519 ") != len(l.Hosts()) {
			t.Error(s)
		}
		if s := l.PoolsYAML("lab"); !strings.Contains(s, "password: \"s3cret pass\"") || !strings.Contains(s, "- ip: 10.77.0.11\n") {
			t.Error(s)
		}
		if s := l.SSHConfig(); !strings.Contains(s, "ProxyJump jump") {
			t.Error(s)
		}
	})
}

func TestSpecs(t *testing.T) {
	for name, s := range map[string]HostSpec{
		"name":     {Name: "Not/good"},
		"no way":   {NoKey: true},
		"sudo":     {Sudo: SudoPassword},
		"own jump": {Name: "a", Behind: "a"},
	} {
		if _, err := s.filled(1); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if s, err := (HostSpec{}).filled(7); err != nil || s.Name != "h7" || s.home() != "/home/ubuntu" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestSHA512Crypt(t *testing.T) {
	// As openssl passwd -6 has it.
	const want = "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1"
	if got := sha512crypt("Hello world!", "saltstring"); got != want {
		t.Errorf("got %s", got)
	}
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		return
	}
	for _, pw := range []string{"a", strings.Repeat("long", 40), "ünïcode"} {
		out, err := exec.Command(openssl, "passwd", "-6", "-salt", "0123456789abcdef", pw).Output()
		if err == nil && strings.TrimSpace(string(out)) != sha512crypt(pw, "0123456789abcdef") {
			t.Errorf("%q: got %s, openssl says %s", pw, sha512crypt(pw, "0123456789abcdef"), out)
		}
	}
}
