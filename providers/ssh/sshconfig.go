package ssh

import (
	"bufio"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// target is where a host is, and as whom it is entered.
type target struct {
	Name       string // as written in the pools file
	Addr       string
	Port       int
	User       string
	Identities []string // files
	Only       bool     // no other keys than these
	AgentSock  string   // of the user's ssh-agent; "" or "none": none
	Jumps      []jump
	Password   string
}

// key tells one connection from another.
func (t target) key() string {
	k := t.User + "@" + t.Addr + ":" + strconv.Itoa(t.Port)
	for _, j := range t.Jumps {
		k += " via " + j.user + "@" + j.name + ":" + strconv.Itoa(j.port)
	}
	return k
}

// sshConfig is what of ssh_config(5) counts here, in the order of the files.
type sshConfig struct{ blocks []block }

type block struct {
	patterns []string // of Host; nil: it holds for every host
	never    bool     // a Match whose criteria are not evaluated
	settings []setting
}

type setting struct{ key, value string }

// includeDepth bounds nested Include lines, as ssh does.
const includeDepth = 16

// loadSSHConfig reads the user's configuration, then the machine's. Files that are not there count as empty.
func loadSSHConfig(home string) *sshConfig {
	c := &sshConfig{}
	c.read(filepath.Join(home, ".ssh", "config"), filepath.Join(home, ".ssh"), home, 0)
	c.blocks = append(c.blocks, block{})
	c.read("/etc/ssh/ssh_config", "/etc/ssh", home, 0)
	return c
}

func (c *sshConfig) read(file, dir, home string, depth int) {
	f, err := os.Open(file)
	if err != nil || depth > includeDepth {
		return
	}
	defer f.Close()
	if depth == 0 || len(c.blocks) == 0 {
		c.blocks = append(c.blocks, block{})
	}
	for s := bufio.NewScanner(f); s.Scan(); {
		key, args := splitLine(s.Text())
		switch key {
		case "":
		case "host":
			c.blocks = append(c.blocks, block{patterns: args})
		case "match":
			b := block{never: true}
			if len(args) == 1 && strings.EqualFold(args[0], "all") {
				b = block{}
			} else if len(args) == 2 && (strings.EqualFold(args[0], "host") || strings.EqualFold(args[0], "originalhost")) {
				b = block{patterns: strings.Split(args[1], ",")}
			}
			c.blocks = append(c.blocks, b)
		case "include":
			outer := c.blocks[len(c.blocks)-1]
			for _, a := range args {
				a = expandHome(a, home)
				if !filepath.IsAbs(a) {
					a = filepath.Join(dir, a)
				}
				found, _ := filepath.Glob(a)
				for _, inc := range found {
					c.blocks = append(c.blocks, block{patterns: outer.patterns, never: outer.never})
					c.read(inc, dir, home, depth+1)
				}
			}
			c.blocks = append(c.blocks, block{patterns: outer.patterns, never: outer.never})
		default:
			if len(args) > 0 {
				b := &c.blocks[len(c.blocks)-1]
				b.settings = append(b.settings, setting{key, strings.Join(args, " ")})
			}
		}
	}
}

// splitLine gives a line's keyword in lower case and its arguments; quotes hold arguments together.
func splitLine(line string) (key string, args []string) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return "", nil
	}
	i := strings.IndexAny(line, " \t=")
	if i < 0 {
		return strings.ToLower(line), nil
	}
	key, rest := strings.ToLower(line[:i]), strings.TrimLeft(line[i:], " \t=")
	var cur strings.Builder
	quoted, open := false, false
	for _, r := range rest {
		switch {
		case r == '"':
			quoted, open = !quoted, true
		case !quoted && (r == ' ' || r == '\t'):
			if open {
				args = append(args, cur.String())
				cur.Reset()
				open = false
			}
		case !quoted && !open && r == '#':
			return key, args
		default:
			cur.WriteRune(r)
			open = true
		}
	}
	if open {
		args = append(args, cur.String())
	}
	return key, args
}

func (b block) matches(host string) bool {
	if b.never {
		return false
	}
	if b.patterns == nil {
		return true
	}
	yes := false
	for _, p := range b.patterns {
		negated := strings.HasPrefix(p, "!")
		if ok, _ := path.Match(strings.TrimPrefix(p, "!"), host); ok {
			if negated {
				return false
			}
			yes = true
		}
	}
	return yes
}

// get gives the first value of a keyword for a host, as ssh takes it.
func (c *sshConfig) get(host, key string) string {
	if v := c.all(host, key); len(v) > 0 {
		return v[0]
	}
	return ""
}

func (c *sshConfig) all(host, key string) (out []string) {
	for _, b := range c.blocks {
		if !b.matches(host) {
			continue
		}
		for _, s := range b.settings {
			if s.key == key {
				out = append(out, s.value)
			}
		}
	}
	return out
}

// defaultIdentities are tried where nothing names a key, as ssh does.
var defaultIdentities = []string{"id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk"}

// resolve says where a host is and as whom it is entered. What the pools file says comes first.
func (c *sshConfig) resolve(h Host, home string) (target, error) {
	t := target{Name: h.Name, Addr: h.Name, Port: h.Port, User: h.User, Password: h.Password, AgentSock: os.Getenv("SSH_AUTH_SOCK")}
	if v := c.get(h.Name, "hostname"); v != "" {
		t.Addr = strings.ReplaceAll(strings.ReplaceAll(v, "%h", h.Name), "%%", "%")
	}
	t.Addr = strings.Trim(t.Addr, "[]")
	if t.User == "" {
		t.User = c.get(h.Name, "user")
	}
	if t.User == "" {
		if u, err := user.Current(); err == nil {
			t.User = u.Username
		}
	}
	if t.Port == 0 {
		t.Port, _ = strconv.Atoi(c.get(h.Name, "port"))
	}
	if t.Port == 0 {
		t.Port = 22
	}
	files := c.all(h.Name, "identityfile")
	if h.IdentityFile != "" {
		files, t.Only = []string{h.IdentityFile}, true
	} else {
		t.Only = strings.EqualFold(c.get(h.Name, "identitiesonly"), "yes")
	}
	if len(files) == 0 && h.Password == "" {
		for _, n := range defaultIdentities {
			files = append(files, "~/.ssh/"+n)
		}
	}
	for _, f := range files {
		f = strings.NewReplacer("%d", home, "%h", t.Addr, "%r", t.User, "%u", os.Getenv("USER"), "%%", "%").Replace(f)
		t.Identities = append(t.Identities, expandHome(f, home))
	}
	if v := c.get(h.Name, "identityagent"); v != "" {
		switch {
		case v == "SSH_AUTH_SOCK":
		case strings.HasPrefix(v, "$"):
			t.AgentSock = os.Getenv(strings.Trim(v[1:], "{}"))
		default:
			t.AgentSock = expandHome(v, home)
		}
	}
	via := h.ProxyJump
	if via == "" {
		via = c.get(h.Name, "proxyjump")
	}
	jumps, err := parseJumps(via)
	if err != nil {
		return t, err
	}
	t.Jumps = jumps
	return t, nil
}

// hop is a jump host as a target of its own. Its own jumps, if its configuration names any, are left out: the way is
// written out in full where it is used.
func (c *sshConfig) hop(j jump, home string, last target) (target, error) {
	t, err := c.resolve(Host{Name: j.name, User: j.user, Port: j.port}, home)
	if j.user == "" && c.get(j.name, "user") == "" {
		t.User = last.User
	}
	if len(c.all(j.name, "identityfile")) == 0 {
		// The key that opens the host often opens the way to it.
		t.Identities = append(append([]string(nil), last.Identities...), t.Identities...)
		t.Password = last.Password
	}
	t.Jumps = nil
	return t, err
}

func expandHome(p, home string) string {
	if p == "~" {
		return home
	}
	if rest, ok := strings.CutPrefix(p, "~/"); ok {
		return filepath.Join(home, rest)
	}
	return p
}
