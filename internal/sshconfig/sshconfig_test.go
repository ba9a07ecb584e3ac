package sshconfig

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
)

func proxyOf(name string, c Cluster, rank int) string {
	return "sky ssh-proxy " + Quote(name) + " --node " + strconv.Itoa(rank)
}

func TestKey(t *testing.T) {
	d := At(filepath.Join(t.TempDir(), "a b"))
	keys := make([]string, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			k, err := d.Key()
			if err != nil {
				t.Error(err)
			}
			keys[i] = k
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] {
			t.Fatalf("several keys: %v", keys)
		}
	}
	b, err := os.ReadFile(d.KeyFile())
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.ParsePrivateKey(b)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))); got != keys[0] {
		t.Errorf("the file holds %s, told was %s", got, keys[0])
	}
	if sig, err := signer.Sign(nil, []byte("x")); err != nil || signer.PublicKey().Verify([]byte("x"), sig) != nil {
		t.Errorf("the key does not sign: %v", err)
	}
	st, err := os.Stat(d.KeyFile())
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if pub, err := os.ReadFile(d.KeyFile() + ".pub"); err != nil || string(pub) != keys[0]+" skyloom\n" {
		t.Errorf("%q, %v", pub, err)
	}
	os.WriteFile(d.KeyFile(), []byte("damaged"), 0o600)
	if _, err := d.Key(); err == nil || !strings.Contains(err.Error(), "Remove the file") {
		t.Errorf("a damaged key: %v", err)
	}
}

func TestEntries(t *testing.T) {
	d := At(t.TempDir())
	two := Cluster{Hash: "aaaa", Hosts: []Host{{IP: "127.1.2.3", User: "root", HostKey: "ssh-ed25519 H0"}, {IP: "127.1.2.4", HostKey: "ssh-ed25519 H1"}}}
	if err := d.Update(proxyOf, func(cs Clusters) {
		cs["dev"] = two
		cs["dev-worker1"] = Cluster{Hash: "bbbb", Server: "https://sky", Hosts: []Host{{}}}
	}); err != nil {
		t.Fatal(err)
	}
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	conf := read(d.ConfigFile())
	var hosts []string
	for l := range strings.Lines(conf) {
		if h, ok := strings.CutPrefix(l, "Host "); ok {
			hosts = append(hosts, strings.TrimSpace(h))
		}
	}
	if got := strings.Join(hosts, " "); got != "dev dev-worker1 dev-worker1" {
		t.Errorf("hosts %s", got)
	}
	for _, want := range []string{"HostName 127.1.2.3\n", "User root\n", "HostKeyAlias skyloom-aaaa-1\n", "ProxyCommand sky ssh-proxy dev --node 1\n", "StrictHostKeyChecking yes\n",
		"HostName dev-worker1\n", "IdentityFile " + d.KeyFile() + "\n"} {
		if !strings.Contains(conf, want) {
			t.Errorf("no %q in\n%s", want, conf)
		}
	}
	if got := read(d.KnownHostsFile()); got != "skyloom-aaaa-0 ssh-ed25519 H0\nskyloom-aaaa-1 ssh-ed25519 H1\n" {
		t.Errorf("known hosts:\n%s", got)
	}
	if err := d.Pin(proxyOf, "dev", 1, "ssh-ed25519 NEW"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"nobody", "dev"} { // no such node: nothing happens
		if err := d.Pin(proxyOf, name, 7, "ssh-ed25519 NEW"); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(d.KnownHostsFile()); got != "skyloom-aaaa-0 ssh-ed25519 H0\nskyloom-aaaa-1 ssh-ed25519 NEW\n" {
		t.Errorf("known hosts:\n%s", got)
	}
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			if err := d.Update(proxyOf, func(cs Clusters) { cs["c"+strconv.Itoa(i)] = Cluster{Hash: "cccc", Hosts: []Host{{}}} }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if cs, err := d.Read(); err != nil || len(cs) != 12 {
		t.Errorf("%d entries, %v", len(cs), err)
	}
	if err := d.Update(proxyOf, func(cs Clusters) { clear(cs) }); err != nil {
		t.Fatal(err)
	}
	if read(d.KnownHostsFile()) != "" || strings.Contains(read(d.ConfigFile()), "Host ") {
		t.Error("something is left")
	}
	os.WriteFile(filepath.Join(d.Path, "clusters.json"), []byte("{damaged"), 0o600)
	if cs, err := d.Read(); err != nil || len(cs) != 0 {
		t.Errorf("damaged: %v, %v", cs, err)
	}
}

// TestSSHReads lets the real ssh read what is written.
func TestSSHReads(t *testing.T) {
	bin, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("there is no ssh here")
	}
	home := filepath.Join(t.TempDir(), `100% "of" it`)
	d := At(filepath.Join(home, ".skyloom"))
	if _, err := d.Key(); err != nil {
		t.Fatal(err)
	}
	proxy := func(name string, c Cluster, rank int) string {
		return Quote(home+"/bin/sky's") + " ssh-proxy " + Quote(name)
	}
	if err := d.Update(proxy, func(cs Clusters) {
		cs["dev"] = Cluster{Hash: "aaaa", Hosts: []Host{{IP: "127.1.2.3", User: "ana"}, {}}}
	}); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	out, err := exec.Command(bin, "-G", "-F", d.ConfigFile(), "dev-worker1").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for l := range strings.Lines(string(out)) {
		k, v, _ := strings.Cut(strings.TrimSpace(l), " ")
		got[k] = v
	}
	for k, want := range map[string]string{"hostkeyalias": "skyloom-aaaa-1", "stricthostkeychecking": "true", "hostname": "dev-worker1", "identitiesonly": "yes"} {
		if got[k] != want {
			t.Errorf("%s is %q, want %q", k, got[k], want)
		}
	}
	if !strings.Contains(got["proxycommand"], "ssh-proxy dev") {
		t.Errorf("proxycommand %q", got["proxycommand"])
	}
}

func TestInclude(t *testing.T) {
	home := t.TempDir()
	path := filepath.Join(home, ".ssh", "config")
	a, b := At(filepath.Join(home, "a")), At(filepath.Join(home, "b c"))
	for _, d := range []Dir{a, b} {
		if err := d.Update(proxyOf, func(Clusters) {}); err != nil {
			t.Fatal(err)
		}
	}
	read := func() string {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	include := func(d Dir) {
		t.Helper()
		if err := d.Include(home); err != nil {
			t.Fatal(err)
		}
	}
	include(a)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	one := blockBegin + "\n" + a.includeLine() + "\n" + blockEnd + "\n"
	if got := read(); got != one {
		t.Errorf("%q", got)
	}
	user := "Host *\n\tForwardAgent yes # mine\r\n  IdentityFile ~/.ssh/x"
	os.WriteFile(path, []byte(user), 0o600)
	os.Chmod(path, 0o640)
	include(a)
	include(a)
	if got := read(); got != one+"\n"+user {
		t.Errorf("%q", got)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o640 {
		t.Errorf("the mode changed to %v", st.Mode())
	}
	include(b)
	both := blockBegin + "\n" + b.includeLine() + "\n" + a.includeLine() + "\n" + blockEnd + "\n\n" + user
	if got := read(); got != both {
		t.Errorf("%q", got)
	}
	// A home that is gone leaves the block with the next change.
	os.RemoveAll(a.Path)
	c := At(filepath.Join(home, "c"))
	include(c)
	if got := read(); strings.Contains(got, a.includeLine()) || !strings.Contains(got, b.includeLine()) || !strings.HasSuffix(got, user) {
		t.Errorf("%q", got)
	}
	// A line that the user moved elsewhere is fine where it is.
	moved := "# my own order\n" + c.includeLine() + "\n" + user
	os.WriteFile(path, []byte(moved), 0o600)
	include(c)
	if got := read(); got != moved {
		t.Errorf("%q", got)
	}
	// A symbolic link stays one.
	target := filepath.Join(home, "dotfiles")
	os.Remove(path)
	os.WriteFile(target, []byte(user), 0o644)
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
	include(c)
	if st, err := os.Lstat(path); err != nil || st.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v", err)
	}
	if got, _ := os.ReadFile(target); !strings.HasSuffix(string(got), user) || !strings.Contains(string(got), c.includeLine()) {
		t.Errorf("%q", got)
	}
	// What can't be done is said with the way out.
	blocked := t.TempDir()
	os.WriteFile(filepath.Join(blocked, ".ssh"), nil, 0o600)
	if err := c.Include(blocked); err == nil || !strings.Contains(err.Error(), c.includeLine()) {
		t.Errorf("%v", err)
	}
}
