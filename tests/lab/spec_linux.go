package lab

import (
	"fmt"
	"regexp"
)

// Options say what a lab starts with.
type Options struct {
	Hosts int        // so many hosts like Host, named h1, h2, …
	Host  HostSpec   // what they are like
	Specs []HostSpec // in place of Hosts and Host: one host each; their names default to h1, h2, …
	// Log gets what is worth telling (an installed package, leftovers of a dead lab); the test's log where New gets a test.
	Log func(format string, args ...any)
}

// Sudo is how sudo behaves on a host for its user.
type Sudo string

const (
	SudoFree     Sudo = ""         // without a password
	SudoPassword Sudo = "password" // with the user's password
	SudoNone     Sudo = "none"     // there is no sudo command
	SudoBroken   Sudo = "broken"   // it fails at once with a message
	SudoHangs    Sudo = "hangs"    // it never answers
)

// GPU is a kind of fake GPU: Count of them with MemoryMB MiB each, Name as the driver tells it ("A100-SXM4-80GB").
type GPU struct {
	Name     string
	Count    int
	MemoryMB int
}

// HostSpec is what a host is like. The zero value is a plain one: bash, a user with sudo, keys only.
type HostSpec struct {
	Name  string // host name, at most 32 of [a-z0-9-]
	User  string // the login, "ubuntu" if empty; root accepts the lab's key in any case
	Shell string // User's login shell, /bin/bash if empty

	Password string // if not empty sshd takes passwords and this is User's (with it, root's too where User is root)
	NoKey    bool   // User's key is not authorized: only the password is left
	Sudo     Sudo

	Hide         []string // commands that are missing: the name itself and its versions (python3 also takes away python3.11)
	NoisyRC      bool     // .bashrc prints to stdout and stderr, for a non-interactive shell too
	ReadOnlyHome bool     // User's home is mounted read-only

	DiskMB   int     // MiB of the whole disk, kept in memory; 4096 if 0. Host.FillDisk makes it full
	CPUs     float64 // limit in cores, 0 = none; what the host tells of itself is this, rounded up
	MemoryMB int     // limit in MiB, 0 = none; what the host tells of itself is this
	GPUs     []GPU
	Arch     string // what uname tells as the machine's kind, like "aarch64"; programs still run as on this machine

	Behind    string            // a host's name: only that one reaches this one, on a second network
	NoSFTP    bool              // sshd has no sftp subsystem
	NoForward bool              // sshd refuses TCP forwarding
	SSHD      []string          // further lines of sshd_config, before the lab's own, so that they win
	Files     map[string]string // absolute path to content, there before the first boot, of root, 0644; 0755 below a bin folder
}

var hostName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// filled is the spec with its defaults, or why it makes no host.
func (s HostSpec) filled(n int) (HostSpec, error) {
	if s.Name == "" {
		s.Name = fmt.Sprintf("h%d", n)
	}
	if s.User == "" {
		s.User = "ubuntu"
	}
	if s.Shell == "" {
		s.Shell = "/bin/bash"
	}
	if s.DiskMB == 0 {
		s.DiskMB = 4096
	}
	switch {
	case !hostName.MatchString(s.Name) || !hostName.MatchString(s.User):
		return s, fmt.Errorf("host %q with user %q: names are of a-z, 0-9 and -, at most 32 characters", s.Name, s.User)
	case s.NoKey && s.Password == "":
		return s, fmt.Errorf("host %s: NoKey needs a Password, or nobody can log in", s.Name)
	case s.Sudo == SudoPassword && s.Password == "":
		return s, fmt.Errorf("host %s: SudoPassword needs a Password", s.Name)
	case s.Behind == s.Name:
		return s, fmt.Errorf("host %s cannot be behind itself", s.Name)
	}
	return s, nil
}

func (s HostSpec) home() string {
	if s.User == "root" {
		return "/root"
	}
	return "/home/" + s.User
}
