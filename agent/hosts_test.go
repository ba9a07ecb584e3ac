package agent_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

func TestHosts(t *testing.T) {
	machine, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	isolated := os.Geteuid() == 0
	n := cluster(t, 1, quick, config(func(c *agentapi.NodeConfig) { c.Isolated = isolated }))[0]
	tell := func(epoch int64, hosts ...agentapi.HostEntry) error {
		return n.api.SetHosts(ctx(t), agentapi.Hosts{Epoch: epoch, Hosts: hosts})
	}
	see := func() string {
		j := n.submit(agentapi.JobSpec{Epoch: 1, Envs: map[string]string{"SKYPILOT_JOBGROUP_HOSTS": agentapi.HostsFile}, Run: `cat "$SKYPILOT_JOBGROUP_HOSTS"; echo --; cat /etc/hosts`})
		n.reaches(j.ID, api.JobSucceeded)
		return n.log(j.ID)
	}
	for _, want := range []string{"127.9.0.1 main-0.grp\n127.9.0.2 main-1.grp\n", "127.9.0.3 main-0.grp\n", ""} {
		var hosts []agentapi.HostEntry
		for line := range strings.Lines(want) {
			f := strings.Fields(line)
			hosts = append(hosts, agentapi.HostEntry{IP: f[0], Name: f[1]})
		}
		for range 2 {
			if err := tell(1, hosts...); err != nil {
				t.Fatal(err)
			}
		}
		file, etc, _ := strings.Cut(see(), "--\n")
		if file != want {
			t.Errorf("the file of the group reads %q, not %q", file, want)
		}
		if isolated && (!strings.HasPrefix(etc, string(machine)) || strings.Count(etc, want) != 1 && want != "" || want == "" && etc != string(machine)) {
			t.Errorf("/etc/hosts reads %q", etc)
		}
	}
	for _, bad := range []agentapi.HostEntry{{Name: "a b", IP: "1.2.3.4"}, {Name: "a\nb", IP: "1.2.3.4"}, {Name: "a", IP: "1.2.3.4 evil"}, {IP: "1.2.3.4"}} {
		if err := tell(1, bad); !agentapi.IsKind(err, agentapi.KindInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	form(t, 2, n)
	if err := tell(1); !agentapi.IsKind(err, agentapi.KindStaleEpoch) {
		t.Error(err)
	}
	if now, _ := os.ReadFile("/etc/hosts"); string(now) != string(machine) {
		t.Error("the machine's own hosts file has changed")
	}
	if _, err := os.Stat(filepath.Join(n.cfg.Home, ".sky", "jobgroup_hosts")); err != nil {
		t.Error(err)
	}
}
