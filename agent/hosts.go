package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/agent/supervisor"
)

// hostsFile is the variable that tells a job where those names stand.
const hostsFile = "SKYPILOT_JOBGROUP_HOSTS"

// Marks around what is told by the server, in a hosts file of the node's own.
const (
	hostsBegin = "# begin: tasks of the job's group"
	hostsEnd   = "# end: tasks of the job's group"
)

var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,250}[A-Za-z0-9])?$`)

// SetHosts writes the names of other nodes down: into a file that jobs find by SKYPILOT_JOBGROUP_HOSTS, and into /etc/hosts where that
// is the node's own. The /etc/hosts of a machine that others use as well is left alone.
func (a *Agent) SetHosts(h agentapi.Hosts) error {
	var lines strings.Builder
	for _, e := range h.Hosts {
		ip, err := netip.ParseAddr(e.IP)
		if err != nil || !hostName.MatchString(e.Name) {
			return invalid("%q at %q is no host", e.Name, e.IP)
		}
		lines.WriteString(ip.String() + " " + e.Name + "\n")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if h.Epoch < a.epoch() {
		return staleEpoch(h.Epoch, a.epoch())
	}
	path := filepath.Join(a.cfg.Home, strings.TrimPrefix(agentapi.HostsFile, "~/"))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return diskError(err)
	}
	if err := durable.WriteFile(path, []byte(lines.String()), 0o644); err != nil {
		return diskError(err)
	}
	if own := supervisor.HostsFile(a.cfg.Dir); sameFile(own, "/etc/hosts") {
		if err := setHostsBlock(own, lines.String()); err != nil {
			return diskError(err)
		}
	}
	return nil
}

func sameFile(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// setHostsBlock replaces our lines of a hosts file. It is written in place, since it is bound over another one.
func setHostsBlock(path, lines string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	base, _, _ := strings.Cut(string(b), hostsBegin)
	if base != "" && !strings.HasSuffix(base, "\n") {
		base += "\n"
	}
	text := base
	if lines != "" {
		text += hostsBegin + "\n" + lines + hostsEnd + "\n"
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		return err
	}
	if err := f.Truncate(int64(len(text))); err != nil {
		return err
	}
	return f.Close()
}
