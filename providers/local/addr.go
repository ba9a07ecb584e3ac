package local

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/skyloom/skyloom/providers"
)

// usualPort is what a node gets on its own address if it is free there.
const usualPort = 10022

// pickIP gives a node a loopback address of its own, the same for the same node if nobody has it. Only Linux answers on
// all of 127/8; elsewhere nodes share 127.0.0.1.
func pickIP(hash string, rank int, taken map[string]bool) (string, error) {
	if runtime.GOOS != "linux" {
		return "127.0.0.1", nil
	}
	for try := range 10000 {
		h := sha256.Sum256(fmt.Appendf(nil, "%s|%d|%d", hash, rank, try))
		// 127.0 is left to the machine's own services; .0 and .255 look like a network's.
		ip := fmt.Sprintf("127.%d.%d.%d", 1+int(h[0])%254, h[1], 1+int(h[2])%254)
		if !taken[ip] {
			taken[ip] = true
			return ip, nil
		}
	}
	return "", providers.Errorf(providers.NoCapacity, providers.ScopeCloud, "local: no loopback address is free")
}

// pickPort finds a port that is free on the address now.
func pickPort(ip string, taken map[string]bool) (int, error) {
	if ip != "127.0.0.1" {
		if l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", ip, usualPort)); err == nil {
			l.Close()
			return usualPort, nil
		}
	}
	for range 100 {
		l, err := net.Listen("tcp", ip+":0")
		if err != nil {
			return 0, internal(err, "find a free port on %s", ip)
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		if key := fmt.Sprint(ip, ":", port); !taken[key] {
			taken[key] = true
			return port, nil
		}
	}
	return 0, providers.Errorf(providers.NoCapacity, providers.ScopeCloud, "local: no port is free on %s", ip)
}

// maxSocket is the longest path of a unix socket that every system takes (104 bytes with the closing zero on macOS).
const maxSocket = 100

// socketPath gives the path of a node's socket. Where Root is too deep, a short folder of this user's stands in for it.
func (p *Provider) socketPath(ref providers.ClusterRef, rank int) (string, error) {
	name := fmt.Sprintf("%s-%d.sock", ref.Hash, rank)
	dirs := append([]string{filepath.Join(p.root, "s")}, p.shortDirs()...)
	var last error
	for _, d := range dirs {
		path := filepath.Join(d, name)
		if len(path) > maxSocket {
			last = fmt.Errorf("%s is longer than %d bytes", path, maxSocket)
			continue
		}
		if last = privateDir(d); last == nil {
			return path, nil
		}
	}
	return "", internal(last, "no folder for the socket of node %s", nodeID(ref, rank))
}

// shortDirs are the folders for sockets outside Root, best first.
func (p *Provider) shortDirs() (dirs []string) {
	name := fmt.Sprintf("skyloom-%d-%x", os.Getuid(), sha256.Sum256([]byte(p.root)))[:26]
	for _, d := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/run", "/var/tmp"} {
		if filepath.IsAbs(d) {
			dirs = append(dirs, filepath.Join(d, name))
		}
	}
	return dirs
}

// forgetSockets removes the short folder with the last node.
func (p *Provider) forgetSockets(ctx context.Context) {
	unlock, err := p.lock(ctx, "root") // nodes get their sockets under it
	if err != nil {
		return
	}
	defer unlock()
	if all, err := p.records(""); err == nil && len(all) == 0 {
		for _, d := range p.shortDirs() {
			os.Remove(d) // if it is there and empty
		}
	}
}

// short makes a safe part of a path from an installation.
func short(s string) string {
	keep := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '_'
	}, s)
	return keep[:min(len(keep), 36)]
}

// privateDir makes a folder that only this user may use, or checks that it is one.
func privateDir(d string) error {
	if err := os.Mkdir(d, 0o700); err != nil && !os.IsExist(err) {
		return err
	}
	st, err := os.Lstat(d)
	if err != nil {
		return err
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !st.IsDir() || st.Mode().Perm()&0o077 != 0 || ok && int(sys.Uid) != os.Getuid() {
		return fmt.Errorf("%s is not a folder of this user alone", d)
	}
	return nil
}

// transport reaches an agent by its socket.
type transport struct{ socket string }

// DialAgent connects to the socket.
func (t transport) DialAgent(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", t.socket)
}

// Close frees nothing: connections are the caller's.
func (transport) Close() error { return nil }
