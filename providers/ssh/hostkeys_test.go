package ssh

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

func hostKey(t *testing.T) ssh.PublicKey {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestPins(t *testing.T) {
	p := &pins{file: filepath.Join(t.TempDir(), "ssh", "known")}
	a, b := hostKey(t), hostKey(t)
	x := target{Name: "box", Addr: "10.0.0.1", Port: 22}
	y := target{Name: "other", Addr: "10.0.0.1", Port: 2222}
	show := func(tg target, k ssh.PublicKey) error {
		cb, _, err := p.check(tg)
		if err != nil {
			t.Fatal(err)
		}
		return cb("", nil, k)
	}
	if err := show(x, a); err != nil {
		t.Errorf("the first key is not taken: %v", err)
	}
	if err := show(x, a); err != nil {
		t.Errorf("the same key again: %v", err)
	}
	if err := show(y, b); err != nil {
		t.Errorf("another port is another host: %v", err)
	}
	var ck *changedKey
	if err := show(x, b); !errors.As(err, &ck) || !strings.Contains(ck.Error(), "box has changed") || !strings.Contains(ck.hint(), `ssh-keygen -f `+p.file+` -R "10.0.0.1"`) {
		t.Errorf("a changed key: %v", err)
	}
	if _, algorithms, _ := p.check(x); !reflect.DeepEqual(algorithms, []string{ssh.KeyAlgoED25519}) {
		t.Errorf("a pinned host is asked for %v", algorithms)
	}
	if _, algorithms, _ := p.check(target{Addr: "10.0.0.9", Port: 22}); algorithms != nil {
		t.Errorf("an unknown host is asked for %v", algorithms)
	}
	if text, _ := os.ReadFile(p.file); strings.Count(string(text), "\n") != 2 {
		t.Errorf("the file:\n%s", text)
	}
	os.WriteFile(p.file, []byte("@bad line\n"), 0o600)
	if _, _, err := p.check(x); err == nil {
		t.Error("a damaged file passes for none")
	}
}
