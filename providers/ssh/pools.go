package ssh

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/task/yamldoc"
)

// PoolsFile is the name of the file of node pools, in SKY_HOME or in ~/.sky.
const PoolsFile = "ssh_node_pools.yaml"

// Pool is a named set of hosts.
type Pool struct {
	Name  string
	Hosts []Host
}

// Host is one machine of a pool, as the file tells; what it leaves open comes from the user's SSH configuration.
type Host struct {
	Pool         string `json:"pool"`
	Name         string `json:"name"` // an address or a name of the SSH configuration
	User         string `json:"user,omitempty"`
	Port         int    `json:"port,omitempty"`
	IdentityFile string `json:"identity_file,omitempty"`
	ProxyJump    string `json:"proxy_jump,omitempty"`
	Password     string `json:"-"`
}

// String names the host for people.
func (h Host) String() string { return h.Name }

// Pools is the content of a pools file.
type Pools struct {
	File  string // "" if there is none
	Pools []Pool
}

// Pool finds a pool by name.
func (p Pools) Pool(name string) (Pool, bool) {
	for _, x := range p.Pools {
		if x.Name == name {
			return x, true
		}
	}
	return Pool{}, false
}

// Names lists the pools in the order of the file.
func (p Pools) Names() (out []string) {
	for _, x := range p.Pools {
		out = append(out, x.Name)
	}
	return out
}

var (
	poolKeys = []string{"hosts", "user", "identity_file", "password", "port", "proxy_jump"}
	hostKeys = []string{"ip", "user", "identity_file", "password", "port", "proxy_jump"}
	poolName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	hostName = regexp.MustCompile(`^[A-Za-z0-9_:\[][A-Za-z0-9._:%\[\]-]{0,252}$`)
)

// ParsePools reads a pools file. Its error is a yamldoc.ErrorList with the place of every mistake.
func ParsePools(name string, data []byte) ([]Pool, error) {
	docs, err := yamldoc.Load(name, data)
	if err != nil {
		return nil, err
	}
	r := &reader{file: name}
	if len(docs) > 1 {
		r.bad(docs[1], "", "a pools file is one document; remove the --- lines")
	}
	var out []Pool
	if len(docs) > 0 {
		if docs[0].Kind != yaml.MappingNode {
			r.bad(docs[0], "", "a pools file is an object: a name for each pool, with its hosts")
		} else {
			for i := 0; i+1 < len(docs[0].Content); i += 2 {
				out = append(out, r.pool(docs[0].Content[i], docs[0].Content[i+1]))
			}
		}
	}
	return out, r.errs.Err()
}

type reader struct {
	file string
	errs yamldoc.ErrorList
}

func (r *reader) bad(n *yaml.Node, field, format string, args ...any) {
	r.errs = append(r.errs, &yamldoc.Error{File: r.file, Line: n.Line, Column: n.Column, Field: field, Msg: fmt.Sprintf(format, args...)})
}

func (r *reader) pool(key, n *yaml.Node) Pool {
	p := Pool{Name: key.Value}
	if !poolName.MatchString(p.Name) {
		r.bad(key, "", "%q is no name for a pool: letters, digits, dots and dashes, at most 63", p.Name)
	}
	if n.Kind != yaml.MappingNode {
		r.bad(n, p.Name, "must be an object with hosts, and user, identity_file or password if all hosts share them")
		return p
	}
	base := r.settings(n, p.Name, poolKeys, "hosts")
	base.Pool = p.Name
	hosts := child(n, "hosts")
	switch {
	case hosts == nil || yamldoc.IsNull(hosts):
		r.bad(n, p.Name+".hosts", "is missing; list the addresses of the pool's machines")
		return p
	case hosts.Kind != yaml.SequenceNode || len(hosts.Content) == 0:
		r.bad(hosts, p.Name+".hosts", "must be a list of addresses, or of objects with ip and what differs from the pool")
		return p
	}
	seen := map[string]int{}
	for i, e := range hosts.Content {
		field := fmt.Sprintf("%s.hosts[%d]", p.Name, i)
		h := base
		switch e.Kind {
		case yaml.ScalarNode:
			h.Name = e.Value
		case yaml.MappingNode:
			own := r.settings(e, field, hostKeys, "ip")
			ip := child(e, "ip")
			if ip == nil || yamldoc.IsNull(ip) {
				r.bad(e, field+".ip", "is missing; give the host's address, or its name in your SSH configuration")
				continue
			}
			h.Name = ip.Value
			h.over(own)
		default:
			r.bad(e, field, "must be an address, or an object with ip")
			continue
		}
		if !hostName.MatchString(h.Name) {
			r.bad(e, field, "%q is neither an address nor a name of a host", h.Name)
			continue
		}
		if first, ok := seen[h.Name]; ok {
			r.bad(e, field, "host %s is listed twice (first at line %d); remove one", h.Name, first)
			continue
		}
		seen[h.Name] = e.Line
		p.Hosts = append(p.Hosts, h)
	}
	return p
}

// over takes from o what it gives.
func (h *Host) over(o Host) {
	if o.User != "" {
		h.User = o.User
	}
	if o.Port != 0 {
		h.Port = o.Port
	}
	if o.IdentityFile != "" {
		h.IdentityFile = o.IdentityFile
	}
	if o.Password != "" {
		h.Password = o.Password
	}
	if o.ProxyJump != "" {
		h.ProxyJump = o.ProxyJump
	}
}

// settings reads what pools and hosts have in common. But is the key that is read elsewhere.
func (r *reader) settings(n *yaml.Node, field string, known []string, but string) (h Host) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if !slices.Contains(known, k.Value) {
			r.bad(k, field, "unknown field %q%s", k.Value, yamldoc.DidYouMean(k.Value, known))
			continue
		}
		if k.Value == but || yamldoc.IsNull(v) {
			continue
		}
		if v.Kind != yaml.ScalarNode {
			r.bad(v, field+"."+k.Value, "must be text")
			continue
		}
		switch k.Value {
		case "user":
			if h.User = v.Value; strings.ContainsAny(h.User, " \t\n@") || strings.HasPrefix(h.User, "-") {
				r.bad(v, field+".user", "%q is no name of a user", v.Value)
			}
		case "identity_file":
			h.IdentityFile = v.Value
		case "password":
			h.Password = v.Value
		case "proxy_jump":
			h.ProxyJump = v.Value
			if _, err := parseJumps(v.Value); err != nil {
				r.bad(v, field+".proxy_jump", "%v", err)
			}
		case "port":
			p, err := strconv.Atoi(v.Value)
			if err != nil || p < 1 || p > 65535 {
				r.bad(v, field+".port", "%q is no port (1 to 65535)", v.Value)
			}
			h.Port = p
		}
	}
	return h
}

func child(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// jump is one stop on the way to a host.
type jump struct {
	user, name string
	port       int
}

// parseJumps reads [user@]host[:port][,…] as ssh's ProxyJump has it; "none" is none.
func parseJumps(s string) (out []jump, err error) {
	if s == "" || s == "none" {
		return nil, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimPrefix(strings.TrimSpace(part), "ssh://")
		var j jump
		if i := strings.LastIndexByte(part, '@'); i >= 0 {
			j.user, part = part[:i], part[i+1:]
		}
		j.name = part
		if h, p, err := net.SplitHostPort(part); err == nil {
			n, err := strconv.Atoi(p)
			if err != nil || n < 1 || n > 65535 {
				return nil, fmt.Errorf("%q is no port of a jump host", p)
			}
			j.name, j.port = h, n
		}
		if !hostName.MatchString(j.name) {
			return nil, fmt.Errorf("%q is no jump host; write user@host:port, several with commas between", part)
		}
		out = append(out, j)
	}
	return out, nil
}

// poolsPath is the pools file in force: ours, or ~/.sky's where ours is absent; "" if there is none.
func poolsPath(home, userHome string) string {
	for _, dir := range []string{home, filepath.Join(userHome, ".sky")} {
		p := filepath.Join(dir, PoolsFile)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p
		}
	}
	return ""
}

// LoadPools reads the pools file of a home folder, or ~/.sky's where that is absent. No file is no error.
func LoadPools(home, userHome string) (Pools, error) {
	path := poolsPath(home, userHome)
	if path == "" {
		return Pools{}, nil
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Pools{}, nil
	}
	if err != nil {
		return Pools{File: path}, fmt.Errorf("the file of SSH node pools can't be read: %w", err)
	}
	ps, err := ParsePools(path, b)
	return Pools{File: path, Pools: ps}, err
}

// MergePools takes the pools of data (a file that a user names) into the home's own file: a pool of the same name is
// replaced, others stay. It gives the names of the pools in data. The file that is written keeps the text of what is taken
// over from it as it was.
func MergePools(home, userHome, name string, data []byte) ([]string, error) {
	fresh, err := ParsePools(name, data)
	if err != nil {
		return nil, err
	}
	if len(fresh) == 0 {
		return nil, fmt.Errorf("%s names no pool", name)
	}
	var doc, add yaml.Node
	if path := poolsPath(home, userHome); path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("the file of SSH node pools can't be read: %w", err)
		}
		if _, err := ParsePools(path, b); err != nil {
			return nil, err
		}
		if err := yaml.Unmarshal(b, &doc); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	if err := yaml.Unmarshal(data, &add); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(doc.Content) == 0 || yamldoc.IsNull(doc.Content[0]) {
		doc = add
	} else {
		top := doc.Content[0]
		for i := 0; i+1 < len(add.Content[0].Content); i += 2 {
			k, v := add.Content[0].Content[i], add.Content[0].Content[i+1]
			at := -1
			for j := 0; j+1 < len(top.Content); j += 2 {
				if top.Content[j].Value == k.Value {
					at = j
				}
			}
			if at >= 0 {
				top.Content[at], top.Content[at+1] = k, v
			} else {
				top.Content = append(top.Content, k, v)
			}
		}
	}
	var buf bytes.Buffer
	e := yaml.NewEncoder(&buf)
	e.SetIndent(2)
	if err := e.Encode(&doc); err != nil {
		return nil, err
	}
	if err := durable.WriteFile(filepath.Join(home, PoolsFile), buf.Bytes(), 0o600); err != nil {
		return nil, fmt.Errorf("the file of SSH node pools can't be written: %w", err)
	}
	var names []string
	for _, p := range fresh {
		names = append(names, p.Name)
	}
	return names, nil
}
