package agent_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func TestIsolatedNode(t *testing.T) {
	needRoot(t)
	t.Setenv("TMPDIR", "/var/tmp") // the node's folders must not lie below what is bound over
	n := cluster(t, 1, quick, config(func(c *agentapi.NodeConfig) {
		c.Isolated = true
		c.TmpDir = filepath.Join(filepath.Dir(c.Dir), "tmp")
	}))[0]
	j := n.run("ls -d /proc/[0-9]* | wc -l; echo mine > /tmp/mark-of-a-node; cat /proc/1/cmdline | tr '\\0' ' '")
	out := strings.Fields(n.log(j.ID))
	if c, err := strconv.Atoi(out[0]); err != nil || c > 15 || out[2] != "init" {
		t.Errorf("the job sees %v", out)
	}
	if _, err := os.Stat("/tmp/mark-of-a-node"); err == nil {
		os.Remove("/tmp/mark-of-a-node")
		t.Error("/tmp is not the node's own")
	}
	j = n.run("(setsid env -i bash -c 'trap \"\" TERM; exec -a isolated-3c0 sleep 300' &); sleep 300")
	n.eventually("it runs", func() bool { return alive(t, "isolated-3c0") == 1 })
	n.kill9()
	if row := n.job(j.ID); row.Status != api.JobRunning {
		t.Errorf("row: %+v", row)
	}
	if _, err := n.api.Cancel(ctx(t), agentapi.CancelSpec{All: true}); err != nil {
		t.Fatal(err)
	}
	if alive(t, "isolated-3c0") != 0 {
		t.Error("processes are left")
	}
	n.run("exec -a isolated-3c1 sleep 300")
	n.eventually("it runs", func() bool { return alive(t, "isolated-3c1") == 1 })
	n.stop()
	if alive(t, "isolated-3c1") != 0 {
		t.Error("processes outlive the node")
	}
}

func TestCgroup(t *testing.T) {
	needRoot(t)
	root := ""
	for _, r := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		dir := filepath.Join(r, "skyloom-test-"+strconv.Itoa(os.Getpid()))
		if os.Mkdir(dir, 0o755) == nil {
			if _, err := os.Stat(filepath.Join(dir, "cgroup.kill")); err == nil {
				root = dir
				t.Cleanup(func() { os.Remove(dir) })
				break
			}
			os.Remove(dir)
		}
	}
	if root == "" {
		t.Skip("no cgroup v2 to write to")
	}
	n := cluster(t, 1, quick, config(func(c *agentapi.NodeConfig) { c.CgroupRoot = root }))[0]
	j := n.run("(setsid env -i bash -c 'trap \"\" TERM; exec -a cgroup-6f2 sleep 300' &); sleep 300")
	n.eventually("it runs", func() bool { return alive(t, "cgroup-6f2") == 1 })
	killMatching(t, n.cfg.Dir, "job-shim") // even then nothing escapes
	n.reaches(j.ID, api.JobFailedDriver)
	if alive(t, "cgroup-6f2") != 0 {
		t.Error("processes are left")
	}
	if left, _ := filepath.Glob(filepath.Join(root, "job-*")); len(left) != 0 {
		t.Errorf("cgroups are left: %v", left)
	}
}

func TestFullDisk(t *testing.T) {
	needRoot(t)
	disk := t.TempDir()
	if err := unix.Mount("none", disk, "tmpfs", 0, "size=2m"); err != nil {
		t.Skip("no tmpfs:", err)
	}
	t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	n := cluster(t, 1, quick, config(func(c *agentapi.NodeConfig) { c.Dir = filepath.Join(disk, "agent") }))[0]
	j := n.run("touch ~/up; while [ ! -e ~/go-1 ]; do sleep 0.02; done; exit 4")
	n.reaches(j.ID, api.JobRunning) // its shim may meet the full disk before it begins
	f, err := os.Create(filepath.Join(disk, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			break
		}
	}
	f.Close()
	full := func() error {
		for range 200 { // the journal's last page has room for some
			if _, err := n.api.Submit(ctx(t), agentapi.JobSpec{Key: "big", Epoch: 1, Run: "#" + strings.Repeat("x", 8<<10)}); err != nil {
				return err
			}
		}
		return nil
	}
	if err := full(); !agentapi.IsKind(err, agentapi.KindDiskFull) {
		t.Errorf("a full disk: %v", err)
	}
	// What runs ends, and its end is on disk in spite of it.
	release(n, 1)
	if row := n.reaches(j.ID, api.JobFailed); row.ExitCodes[0] != 4 {
		t.Errorf("row: %+v", row)
	}
	n.kill9()
	if row := n.job(j.ID); row.Status != api.JobFailed || row.ExitCodes[0] != 4 {
		t.Errorf("after a restart: %+v", row)
	}
	os.Remove(filepath.Join(disk, "fill"))
	n.eventually("jobs are taken again", func() bool {
		_, err := n.api.Submit(ctx(t), agentapi.JobSpec{Key: "small", Epoch: 1, Run: "true"})
		return err == nil
	})
	n.reaches(2, api.JobSucceeded)
}
