package e2essh

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/tests/lab"
)

const multinode = `name: gang
num_nodes: 3
run: |
  echo "rank $SKYPILOT_NODE_RANK of $SKYPILOT_NUM_NODES"
  echo "$SKYPILOT_NODE_IPS" | head -n1 | sed 's/^/the head is at /'
`

// TestPool is the life of a gang on a pool of three hosts.
func TestPool(t *testing.T) {
	l := lab.New(t, lab.Options{Hosts: 3, Host: lab.HostSpec{CPUs: 4, MemoryMB: 8 << 10}})
	s := newSite(t, l, "")
	s.sky("ssh", "up", "--infra", "lab").has("Node pool: lab", "10.77.0.11", "10.77.0.12", "10.77.0.13", "ready").hasNot("failed")
	s.sky("check", "-v").has("ssh: enabled", "lab/10.77.0.12: 4 of 4 CPUs")
	task := s.task("multinode.yaml", multinode)
	p := s.sky("launch", "-y", "-c", "gang", "--infra", "ssh/lab", "--num-nodes", "3", task).has("rank 0 of 3", "rank 1 of 3", "rank 2 of 3", "the head is at 10.77.0.11")
	t.Logf("launch of three nodes: %v\n%s", p.took, p.out)
	for _, h := range l.Hosts() {
		if n := len(claimed(t, h)); n != 1 {
			t.Errorf("%d claims on %s", n, h.Name)
		}
	}
	p = s.sky("exec", "gang", "--num-nodes", "3", "echo again on $SKYPILOT_NODE_RANK").has("again on 0", "again on 1", "again on 2")
	t.Logf("exec: %v", p.took)
	s.sky("exec", "-d", "gang", "sleep 300")
	s.until(2*time.Minute, "the job runs", func() bool { return strings.Contains(s.sky("queue", "gang").has("SUCCEEDED").out, "RUNNING") })
	s.sky("logs", "gang", "1", "--no-follow").has("rank 2 of 3")
	s.sky("cancel", "-y", "gang", "-a")
	s.sky("queue", "gang").has("CANCELLED").hasNot("RUNNING")
	s.sky("stop", "-y", "gang")
	s.empty("after stop")
	s.sky("start", "-y", "gang")
	s.sky("exec", "gang", "--num-nodes", "3", "echo back on $SKYPILOT_NODE_RANK").has("back on 0", "back on 1", "back on 2")
	s.kill()
	s.start()
	s.sky("exec", "gang", "echo after the kill").has("after the kill")
	s.fails("ssh", "down").has("clusters have nodes on these hosts: gang", "sky down gang")
	s.sky("down", "-y", "gang")
	s.empty("after down")
	s.sky("ssh", "down").has("clean").hasNot("not clean")
	noTrace(t, l)
	// The next launch prepares the hosts again.
	s.sky("launch", "-y", "-c", "again", "--infra", "ssh/lab", "echo here again").has("here again")
}

// TestRoom: a stopped cluster gives its share back, and may find it taken when it is started again.
func TestRoom(t *testing.T) {
	needLong(t)
	l := lab.New(t, lab.Options{Specs: []lab.HostSpec{{Name: "g", CPUs: 8, MemoryMB: 16 << 10, GPUs: []lab.GPU{{Name: "H100", Count: 2, MemoryMB: 81920}}}}})
	s := newSite(t, l, "")
	gpu := func(n string) []string {
		return []string{"--infra", "ssh/lab", "--gpus", "H100:" + n, "--cpus", "1", "--memory", "1"}
	}
	s.sky(append([]string{"launch", "-y", "-c", "first", "echo kept > ~/file; nvidia-smi -L | head -1; echo devices $CUDA_VISIBLE_DEVICES"}, gpu("2")...)...).has("H100", "devices GPU-")
	s.sky("gpus", "list").has("ssh/lab", "H100", "0 of 2 free")
	s.fails(append([]string{"launch", "-y", "-c", "second", "true"}, gpu("1")...)...).has("no capacity", "held by first")
	s.sky("stop", "-y", "first")
	s.sky(append([]string{"launch", "-y", "-c", "second", "true"}, gpu("1")...)...)
	s.fails("start", "-y", "first").has("there is no room for it now", "1 H100 of 2 free, 2 asked for; held by second")
	s.sky("status", "first").has("STOPPED")
	s.sky("down", "-y", "second")
	s.sky("start", "-y", "first")
	s.sky("exec", "first", "cat ~/file").has("kept")
	s.sky("down", "-y", "first")
}

// TestFile takes pools over from a file, with a password that must stand nowhere else.
func TestFile(t *testing.T) {
	needLong(t)
	const password = "Pa55-w0rd-of-the-h0st"
	l := lab.New(t, lab.Options{Specs: []lab.HostSpec{{Name: "pw", Password: password, NoKey: true, Sudo: lab.SudoPassword}}})
	s := newSite(t, l, "# none yet\n")
	s.fails("ssh", "up").has("no SSH node pools", "ssh_node_pools.yaml")
	s.sky("check", "-v").has("ssh: disabled", "no SSH node pools")
	s.fails("launch", "-y", "-c", "x", "--infra", "ssh/lab", "true")
	file := s.task("mine.yaml", "lab:\n  hosts: ["+l.Host(0).Addr+"]\n  user: ubuntu\n  password: "+password+"\n  usr: x\n")
	s.fails("ssh", "up", "-f", file).has(file + ":5:3: lab: unknown field \"usr\"")
	file = s.task("mine.yaml", l.PoolsYAML("lab"))
	s.sky("ssh", "up", "-f", file).has("Node pool: lab", "ready").hasNot(password)
	s.sky("launch", "-y", "-c", "x", "--infra", "ssh/lab", "id -un; env; cat /proc/1/environ | tr '\\0' '\\n'").has("root").hasNot(password)
	out, err := exec.Command("grep", "-rlF", password, s.home).Output()
	if got := strings.Fields(string(out)); len(got) != 2 {
		t.Errorf("the password stands in %v (%v)", got, err)
	}
	if text, err := l.Host(0).Run(t.Context(), "grep -rlF "+password+" /home /var/tmp /tmp /root 2>/dev/null; true"); err != nil || strings.TrimSpace(text) != "" {
		t.Errorf("on the host the password stands in %s %v", text, err)
	}
	s.sky("down", "-y", "x")
}

// traces says that a path changes also without us: what sshd, sudo and the login keep.
func traces(path string) bool {
	for _, p := range []string{"/run/", "/var/log/", "/var/lib/sudo/", "/tmp", "/var/tmp", "/dev/", "/etc/ssh/", "/root/.ssh", "/home/ubuntu/.ssh", "/home/ubuntu/.cache", "/var/run/"} {
		if strings.HasPrefix(path, p) && !strings.Contains(path, "skyloom") {
			return true
		}
	}
	return false
}
