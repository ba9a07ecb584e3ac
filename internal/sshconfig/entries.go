package sshconfig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// Dir is the folder ssh of a SKY_HOME. It need not exist.
type Dir struct{ Path string }

// At is the folder of a SKY_HOME, which must be absolute.
func At(home string) Dir { return Dir{filepath.Join(home, "ssh")} }

// KeyFile is the user's private key.
func (d Dir) KeyFile() string { return filepath.Join(d.Path, "id_ed25519") }

// ConfigFile is what ~/.ssh/config includes.
func (d Dir) ConfigFile() string { return filepath.Join(d.Path, "config") }

// KnownHostsFile holds the pinned host keys.
func (d Dir) KnownHostsFile() string { return filepath.Join(d.Path, "known_hosts") }

func (d Dir) stateFile() string { return filepath.Join(d.Path, "clusters.json") }

func (d Dir) make() error {
	if err := os.MkdirAll(d.Path, 0o700); err != nil {
		return fmt.Errorf("the folder for ssh can't be made: %w", err)
	}
	return nil
}

// Host is one node of a cluster.
type Host struct {
	IP      string `json:"ip,omitempty"` // for people; the way to the node is the proxy's
	User    string `json:"user,omitempty"`
	HostKey string `json:"host_key,omitempty"` // TYPE BASE64; empty: pinned by the proxy at the first login
}

// Cluster is the entry of one cluster.
type Cluster struct {
	Hash   string `json:"hash"`             // of its incarnation
	Server string `json:"server,omitempty"` // address of the API server; empty: the one of this SKY_HOME
	Hosts  []Host `json:"hosts"`            // by rank
}

// Clusters are the entries by the clusters' names.
type Clusters map[string]Cluster

// Proxy gives the command line by which ssh reaches a node. It stands in the configuration as it is, so that a percent
// sign in it must be written twice.
type Proxy func(name string, c Cluster, rank int) string

// Read gives the entries there are. A damaged file reads as none: the next change writes it anew.
func (d Dir) Read() (Clusters, error) {
	b, err := os.ReadFile(d.stateFile())
	if errors.Is(err, fs.ErrNotExist) {
		return Clusters{}, nil
	}
	if err != nil {
		return nil, err
	}
	cs := Clusters{}
	if json.Unmarshal(b, &cs) != nil || cs == nil {
		return Clusters{}, nil
	}
	return cs, nil
}

// Update changes the entries under a lock and brings the files into line.
func (d Dir) Update(proxy Proxy, change func(Clusters)) error {
	if err := d.make(); err != nil {
		return err
	}
	unlock, err := lock(d.Path)
	if err != nil {
		return err
	}
	defer unlock()
	cs, err := d.Read()
	if err != nil {
		return err
	}
	change(cs)
	state, err := json.MarshalIndent(cs, "", "  ")
	if err != nil {
		return err
	}
	// The pins first: an entry without one would be refused.
	return errors.Join(
		d.write(d.KnownHostsFile(), knownHosts(cs)),
		d.write(d.ConfigFile(), d.config(cs, proxy)),
		d.write(d.stateFile(), append(state, '\n')),
	)
}

// Pin sets the host key of a node that has an entry. The entry's incarnation may be an older one: ssh, which has read
// its configuration already, looks the key up under that one's alias.
func (d Dir) Pin(proxy Proxy, name string, rank int, key string) error {
	cs, err := d.Read()
	if err != nil {
		return err
	}
	if c := cs[name]; rank < 0 || rank >= len(c.Hosts) || c.Hosts[rank].HostKey == key {
		return nil
	}
	return d.Update(proxy, func(cs Clusters) {
		if c := cs[name]; rank < len(c.Hosts) {
			c.Hosts[rank].HostKey = key
		}
	})
}

func (d Dir) write(path string, b []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, b) {
		return nil
	}
	return replace(path, b, 0o600)
}

// Alias is the name under which a node's host key is pinned: another one for each incarnation of a cluster.
func Alias(hash string, rank int) string { return fmt.Sprintf("skyloom-%s-%d", hash, rank) }

// HostName is what a node is called in ssh's configuration.
func HostName(cluster string, rank int) string {
	if rank == 0 {
		return cluster
	}
	return fmt.Sprintf("%s-worker%d", cluster, rank)
}

func knownHosts(cs Clusters) []byte {
	var b bytes.Buffer
	for _, name := range sorted(cs) {
		for rank, h := range cs[name].Hosts {
			if h.HostKey != "" && oneLine(h.HostKey) {
				fmt.Fprintf(&b, "%s %s\n", Alias(cs[name].Hash, rank), h.HostKey)
			}
		}
	}
	return b.Bytes()
}

func oneLine(s string) bool { return !strings.ContainsAny(s, "\r\n") }

func sorted(cs Clusters) []string {
	names := make([]string, 0, len(cs))
	for n := range cs {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// config is the file that ~/.ssh/config includes. ssh takes the first entry that fits, so heads come first: a cluster
// called dev-worker1 is reached under its name also beside a cluster called dev.
func (d Dir) config(cs Clusters, proxy Proxy) []byte {
	var b bytes.Buffer
	b.WriteString("# Written by sky: the clusters that are UP. Changes are lost.\n")
	names := sorted(cs)
	for _, heads := range []bool{true, false} {
		for _, name := range names {
			for rank := range cs[name].Hosts {
				if (rank == 0) == heads {
					d.entry(&b, name, cs[name], rank, proxy)
				}
			}
		}
	}
	return b.Bytes()
}

// gcmFirst are the ciphers of an entry: those that processors do by themselves come first.
const gcmFirst = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com"

func (d Dir) entry(b *bytes.Buffer, name string, c Cluster, rank int, proxy Proxy) {
	h := c.Hosts[rank]
	address := h.IP
	if address == "" || !oneLine(address) {
		address = HostName(name, rank)
	}
	fmt.Fprintf(b, "\nHost %s\n", HostName(name, rank))
	put := func(key, value string) { fmt.Fprintf(b, "  %s %s\n", key, value) }
	put("HostName", address)
	put("HostKeyAlias", Alias(c.Hash, rank))
	if h.User != "" && oneLine(h.User) {
		put("User", word(h.User))
	}
	put("IdentityFile", word(escape(d.KeyFile())))
	put("IdentitiesOnly", "yes")
	put("UserKnownHostsFile", word(escape(d.KnownHostsFile())))
	put("GlobalKnownHostsFile", nullDevice)
	put("StrictHostKeyChecking", "yes")
	put("UpdateHostKeys", "no")
	put("CheckHostIP", "no")
	put("Ciphers", gcmFirst)
	put("ServerAliveInterval", "30")
	put("ServerAliveCountMax", "10")
	put("ProxyCommand", proxy(name, c, rank))
}

// escape protects percent signs, which ssh expands.
func escape(s string) string { return strings.ReplaceAll(s, "%", "%%") }

// word quotes a value that may hold blanks.
func word(s string) string {
	if !strings.ContainsAny(s, " \t\"#\\") {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// replace writes a file whole.
func replace(path string, b []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
