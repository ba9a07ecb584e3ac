//go:build linux

package labchaos

import (
	"fmt"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/lab"
	"github.com/skyloom/skyloom/tests/rig"
)

// TestLostHost: the host of a managed job falls silent for good. Nothing can confirm that it is gone, so the job goes on
// elsewhere once it counts as lost. The host was only cut off: when it is back, what it still runs of the job is ended.
func TestLostHost(t *testing.T) {
	loseHost(t, "lost", 46004, 1)
}

// TestLostWorker: it is the host of the second of two nodes; the head answers all the time.
func TestLostWorker(t *testing.T) {
	loseHost(t, "worker", 46006, 2)
}

// loseHost cuts off the host of the last node of a managed job for as long as it takes to be given up.
func loseHost(t *testing.T, name string, port, nodes int) {
	if testing.Short() {
		t.Skip("waits until a host is lost")
	}
	t.Parallel()
	l := hostsOf(t, 8, nil)
	s := open(t, l, name, poolsOf(l, l.Hosts(), false), port)
	f := &fleet{s: s, w: newWorld(t, s, paceOf(false), nil)}
	x := &training{request: api.NewRequestID(), text: fmt.Sprintf(`name: %s
num_nodes: %d
resources: {infra: ssh/lab, cpus: 1, memory: 1}
run: if [ $SKYPILOT_ATTEMPT = 1 ]; then sleep 1000; fi
`, name, nodes)}
	if !f.submit(x) {
		return
	}
	var old *lab.Host
	s.Eventually("the first attempt runs", func() bool {
		for _, h := range l.Hosts() {
			for _, p := range processesOf(t, h) {
				if p.Env("SKYPILOT_ATTEMPT") == "1" && p.Env("SKYPILOT_NODE_RANK") == fmt.Sprint(nodes-1) && p.verb() == "" {
					old = h
				}
			}
		}
		return old != nil
	})
	if old == nil {
		return
	}
	if err := old.Cut(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	s.Eventually("the job succeeds elsewhere", func() bool {
		rows, err := s.Hasty.ManagedJob(t.Context(), x.id)
		return err == nil && len(rows) == 1 && rows[0].Status == api.ManagedSucceeded && rows[0].Attempt == 2
	})
	if took := time.Since(began); took < lostAfter {
		t.Errorf("the host was given up after %v, before %v", took, lostAfter)
	} else {
		t.Logf("lost after %v: the job has succeeded elsewhere %v after the cut\n%s", lostAfter, took.Round(time.Second), f.story(x.id))
	}
	if inits, _, _ := nodesOn(t, old); len(inits) != 1 {
		t.Errorf("the host that is cut off runs %v", inits)
	}
	if err := old.Join(); err != nil {
		t.Fatal(err)
	}
	s.settles(f.w)
}

// TestFilesForRestartedHost: a host is restarted as files are about to be brought to its node. Whoever waits for them is told,
// and the cluster can be started again.
func TestFilesForRestartedHost(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a lab and a server")
	}
	t.Parallel()
	l := hostsOf(t, 8, nil)
	s := open(t, l, "files", poolsOf(l, l.Hosts(), false), 46005)
	s.Do("launch", "f", rig.Job{Sleep: "600"}, rig.Succeeds)
	files := rig.Job{Files: s.Upload("content of a workdir")}
	for _, h := range l.Hosts() {
		if inits, _, _ := nodesOn(t, h); len(inits) > 0 {
			if err := h.Reboot(); err != nil {
				t.Fatal(err)
			}
		}
	}
	began := time.Now()
	s.Do("exec", "f", files, rig.Fails(api.ErrClusterNotUp))
	t.Logf("told after %v", time.Since(began).Round(time.Millisecond))
	s.Do("start", "f", rig.Job{}, rig.Succeeds)
	if a, r := s.Do("exec", "f", files, rig.Succeeds); r != nil && r.Status == api.RequestSucceeded {
		s.JobReaches(a, r, api.JobSucceeded)
	}
	s.Do("down", "f", rig.Job{}, rig.Succeeds)
}

// TestLostCluster: the host of a cluster is cut off until it counts as lost. Its infra goes on listing the node as last known: whoever
// asks is not told that the cluster is UP. When the host is back the cluster is as it was.
func TestLostCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("waits until a host is lost")
	}
	t.Parallel()
	l := hostsOf(t, 8, nil)
	s := open(t, l, "gone", poolsOf(l, l.Hosts(), false), 46007)
	s.Do("launch", "g", rig.Job{Sleep: "600"}, rig.Succeeds)
	var old *lab.Host
	for _, h := range l.Hosts() {
		if inits, _, _ := nodesOn(t, h); len(inits) > 0 {
			old = h
		}
	}
	if old == nil {
		t.Fatal("the node is on no host")
	}
	refresh := func() {
		t.Helper()
		ref, err := s.Client.Refresh(t.Context(), &api.RefreshBody{Base: api.Base{RequestID: api.NewRequestID(), User: "chaos", UserHash: "c4a05c4a"}, Clusters: []string{"g"}, AllUsers: true})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := s.Client.WaitRequest(t.Context(), ref.RequestID); err != nil || r.Status != api.RequestSucceeded {
			t.Fatalf("refresh: %v %+v", err, r)
		}
	}
	if err := old.Cut(); err != nil {
		t.Fatal(err)
	}
	s.Eventually("the cluster is INIT", func() bool { return s.Status("g") == api.ClusterInit })
	refresh()
	if st := s.Status("g"); st != api.ClusterInit {
		t.Errorf("the host is cut off; asked about, the cluster is %s", st)
	}
	if err := old.Join(); err != nil {
		t.Fatal(err)
	}
	s.Eventually("the cluster is UP when its node answers again", func() bool { refresh(); return s.Status("g") == api.ClusterUp })
	s.Do("down", "g", rig.Job{}, rig.Succeeds)
}
