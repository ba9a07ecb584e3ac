package lab

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

func bootID() string {
	s := randomHex(16)
	return fmt.Sprintf("%s-%s-4%s-a%s-%s", s[:8], s[8:12], s[13:16], s[17:20], s[20:])
}

// newKey makes an Ed25519 key: the private one as OpenSSH keeps it, the public one as a line of authorized_keys.
func newKey(comment string) (private, public string, err error) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", "", err
	}
	block, err := ssh.MarshalPrivateKey(priv, comment)
	if err != nil {
		return "", "", err
	}
	sp, err := ssh.NewPublicKey(pub)
	if err != nil {
		return "", "", err
	}
	return string(pem.EncodeToMemory(block)), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(sp))) + "\n", nil
}

// KnownHosts are the hosts' keys as lines of a known_hosts file.
func (l *Lab) KnownHosts() string {
	var b strings.Builder
	for _, h := range l.Hosts() {
		fmt.Fprintf(&b, "%s %s\n", h.Addr, h.HostKey())
	}
	return b.String()
}

// SSHConfig has an entry per host, by its name, for ssh -F. Host keys are not checked. It works only in the switch's
// network; hosts behind another are reached through it.
func (l *Lab) SSHConfig() string {
	var b strings.Builder
	for _, h := range l.Hosts() {
		fmt.Fprintf(&b, "Host %s\n  HostName %s\n  User %s\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n", h.Name, h.Addr, h.User)
		if !h.Spec.NoKey {
			fmt.Fprintf(&b, "  IdentityFile %s\n  IdentitiesOnly yes\n", l.KeyFile)
		}
		if h.Spec.Behind != "" {
			fmt.Fprintf(&b, "  ProxyJump %s\n", h.Spec.Behind)
		}
	}
	return b.String()
}

// PoolsYAML is an ssh_node_pools.yaml with all hosts as one pool. A host behind another is in it by its name, which
// needs SSHConfig's entry.
func (l *Lab) PoolsYAML(pool string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:\n  hosts:\n", pool)
	for _, h := range l.Hosts() {
		if h.Spec.Behind != "" {
			fmt.Fprintf(&b, "    - %s\n", h.Name)
			continue
		}
		fmt.Fprintf(&b, "    - ip: %s\n      user: %s\n", h.Addr, h.User)
		if !h.Spec.NoKey {
			fmt.Fprintf(&b, "      identity_file: %s\n", l.KeyFile)
		}
		if h.Password != "" {
			fmt.Fprintf(&b, "      password: %q\n", h.Password)
		}
	}
	return b.String()
}
