package ssh

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/skyloom/skyloom/providers"
)

// pins is the file of host keys, in the form of known_hosts. A key is written down when its host is first met.
type pins struct {
	file string
	mu   sync.Mutex
}

// changedKey says that a host shows another key than it once did.
type changedKey struct {
	host, addr, file, got string
	line                  int
}

func (e *changedKey) Error() string {
	return fmt.Sprintf("the key of host %s has changed: it shows %s, another one stands in line %d of %s", e.host, e.got, e.line, e.file)
}

func (e *changedKey) hint() string {
	return fmt.Sprintf("if the machine was installed anew, forget the old key by `ssh-keygen -f %s -R %q`; if not, somebody may be in between: find out first", e.file, e.addr)
}

func (p *pins) load() (ssh.HostKeyCallback, error) {
	if _, err := os.Stat(p.file); errors.Is(err, os.ErrNotExist) {
		return func(string, net.Addr, ssh.PublicKey) error { return &knownhosts.KeyError{} }, nil
	}
	cb, err := knownhosts.New(p.file)
	if err != nil {
		return nil, fmt.Errorf("the file of host keys can't be read: %w; correct it or remove it", err)
	}
	return cb, nil
}

// check gives the callback for a host, and the algorithms to ask it for: those of the keys that are pinned, lest another
// kind of key of the same host be taken for a change.
func (p *pins) check(t target) (ssh.HostKeyCallback, []string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	cb, err := p.load()
	if err != nil {
		return nil, nil, err
	}
	addr := net.JoinHostPort(t.Addr, strconv.Itoa(t.Port))
	var algorithms []string
	var ke *knownhosts.KeyError
	if errors.As(cb(addr, noAddr{}, noKey{}), &ke) {
		for _, k := range ke.Want {
			for _, a := range algorithmsOf(k.Key.Type()) {
				if !slices.Contains(algorithms, a) {
					algorithms = append(algorithms, a)
				}
			}
		}
	}
	return func(_ string, _ net.Addr, key ssh.PublicKey) error { return p.verify(t, addr, key) }, algorithms, nil
}

func (p *pins) verify(t target, addr string, key ssh.PublicKey) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	cb, err := p.load()
	if err != nil {
		return err
	}
	err = cb(addr, noAddr{}, key)
	var ke *knownhosts.KeyError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &ke):
		return err
	case len(ke.Want) > 0:
		return &changedKey{host: t.Name, addr: knownhosts.Normalize(addr), file: p.file, line: ke.Want[0].Line, got: key.Type() + " " + ssh.FingerprintSHA256(key)}
	}
	if err := os.MkdirAll(filepath.Dir(p.file), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(p.file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("the host's key can't be written down: %w", err)
	}
	_, err = f.WriteString(knownhosts.Line([]string{addr}, key) + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("the host's key can't be written down: %w", err)
	}
	return nil
}

// algorithmsOf are the signatures that a type of key can make.
func algorithmsOf(keyType string) []string {
	if keyType == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return []string{keyType}
}

// noAddr keeps the address of the connection out of the check: behind a jump it is the jump's.
type noAddr struct{}

func (noAddr) Network() string { return "tcp" }
func (noAddr) String() string  { return "0.0.0.0:0" }

// noKey is a key that no host has; asking for it lists those that are pinned.
type noKey struct{}

func (noKey) Type() string                        { return "none" }
func (noKey) Marshal() []byte                     { return []byte("none") }
func (noKey) Verify([]byte, *ssh.Signature) error { return errors.New("no key") }

// hintOf finds what a user can do about an error.
func hintOf(err error) string {
	var ck *changedKey
	var pe *providers.Error
	switch {
	case errors.As(err, &ck):
		return ck.hint()
	case errors.As(err, &pe):
		return pe.Hint
	}
	return ""
}

func oneLine(s string) string {
	return strings.Join(strings.Fields(s), " ")
}
