package ssh

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// credentials are the ways to prove who we are to a host, in the order they are tried, and what can't be used, for people.
type credentials struct {
	methods  []ssh.AuthMethod
	tried    []string
	unusable []string
	agent    net.Conn
}

func (c *credentials) close() {
	if c.agent != nil {
		c.agent.Close()
	}
}

// gather finds the keys of a target: files, then the ssh-agent's (those of the files first), then its password.
func gather(t target) *credentials {
	c := &credentials{}
	var files, encrypted []ssh.Signer
	var locked []string
	pub := map[string]bool{}
	for _, path := range t.Identities {
		s, err := readKey(path)
		var missing *ssh.PassphraseMissingError
		switch {
		case errors.As(err, &missing):
			locked = append(locked, path)
			if missing.PublicKey != nil {
				pub[string(missing.PublicKey.Marshal())] = true
			} else if k := readPublic(path + ".pub"); k != nil {
				pub[string(k.Marshal())] = true
			}
		case errors.Is(err, os.ErrNotExist):
			if t.Only {
				c.unusable = append(c.unusable, path+" is not there")
			}
		case err != nil:
			c.unusable = append(c.unusable, fmt.Sprintf("%s can't be read as a key: %v", path, err))
		default:
			files = append(files, s)
			c.tried = append(c.tried, path)
		}
	}
	if t.AgentSock != "" && t.AgentSock != "none" {
		if conn, err := net.Dial("unix", t.AgentSock); err == nil {
			c.agent = conn
			signers, err := agent.NewClient(conn).Signers()
			if err != nil {
				c.unusable = append(c.unusable, "the ssh-agent does not answer: "+err.Error())
			}
			for _, s := range signers {
				if pub[string(s.PublicKey().Marshal())] {
					encrypted = append(encrypted, s)
				} else if !t.Only {
					files = append(files, s)
				}
			}
			if len(signers) > 0 && (!t.Only || len(encrypted) > 0) {
				c.tried = append(c.tried, fmt.Sprintf("the ssh-agent's %d key(s)", len(signers)))
			}
		}
	}
	if len(locked) > 0 && len(encrypted) == 0 {
		for _, p := range locked {
			c.unusable = append(c.unusable, p+" has a passphrase; add it to your ssh-agent (`ssh-add "+p+"`), in the environment that starts the server")
		}
	}
	if keys := append(encrypted, files...); len(keys) > 0 {
		c.methods = append(c.methods, ssh.PublicKeys(keys...))
	}
	if t.Password != "" {
		c.tried = append(c.tried, "the password")
		c.methods = append(c.methods, ssh.Password(t.Password), ssh.KeyboardInteractive(func(_, _ string, questions []string, echos []bool) ([]string, error) {
			out := make([]string, len(questions))
			for i := range questions {
				if !echos[i] {
					out[i] = t.Password
				}
			}
			return out, nil
		}))
	}
	return c
}

// refused explains a login that failed.
func (c *credentials) refused(t target) string {
	s := fmt.Sprintf("it lets user %s in with none of what was tried (%s)", t.User, strings.Join(c.tried, ", "))
	if len(c.tried) == 0 {
		s = "there is no key and no password for user " + t.User
	}
	if len(c.unusable) > 0 {
		s += "; " + strings.Join(c.unusable, "; ")
	}
	return s
}

func readKey(path string) (ssh.Signer, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return ssh.ParsePrivateKey(b)
}

func readPublic(path string) ssh.PublicKey {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	k, _, _, _, err := ssh.ParseAuthorizedKey(b)
	if err != nil {
		return nil
	}
	return k
}
