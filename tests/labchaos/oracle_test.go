//go:build linux

package labchaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/lab"
)

// ledgerDir is where jobs write on every host; it outlives a reboot.
const ledgerDir = "/var/chaos"

// nodesOn counts what there is of nodes on a host, by the node's name: running inits, folders, and claims that count (those
// of before a restart do not).
func nodesOn(t *testing.T, h *lab.Host) (inits, folders, claims map[string]int) {
	inits, folders, claims = map[string]int{}, map[string]int{}, map[string]int{}
	for _, p := range processesOf(t, h) {
		if p.verb() == "init" {
			inits[p.node()]++
		}
	}
	out, err := h.Run(context.Background(), `
for f in `+h.Home+`/.skyloom-host/nodes/*/record.json; do [ -e "$f" ] && echo "folder $f"; done
cat /proc/sys/kernel/random/boot_id
for f in /var/tmp/skyloom-claims/*.json; do [ -e "$f" ] && cat "$f"; done; true`)
	if err != nil {
		if h.Up() {
			t.Errorf("nodes on %s: %v", h.Name, err)
		}
		return
	}
	boot := ""
	for line := range strings.SplitSeq(strings.TrimSpace(out), "\n") {
		var c struct{ ID, Boot string }
		switch path, folder := strings.CutPrefix(line, "folder "); {
		case folder:
			parts := strings.Split(path, "/")
			folders[parts[len(parts)-2]]++
		case boot == "":
			boot = strings.TrimSpace(line)
		case json.Unmarshal([]byte(line), &c) == nil && c.Boot == boot:
			claims[c.ID]++
		}
	}
	return
}

// balanced compares the clusters known with what there is on the hosts (I1, I3, I4).
func (s *site) balanced(w *world) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	list, err := s.Client.Clusters(ctx, api.ClusterFilter{AllUsers: true, Verbose: true})
	if err != nil {
		return err
	}
	inits, folders, claims := map[string][]string{}, map[string][]string{}, map[string][]string{}
	for _, m := range w.machines() {
		i, f, c := nodesOn(s.t, m.Host)
		for _, x := range []struct {
			on map[string]int
			at map[string][]string
		}{{i, inits}, {f, folders}, {c, claims}} {
			for node, n := range x.on {
				for range n {
					if !w.foreign[node] {
						x.at[node] = append(x.at[node], m.Name)
					}
				}
			}
		}
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, c := range list.Clusters {
		for rank := range c.Nodes {
			node := fmt.Sprintf("%s-%d", c.NameOnCloud, rank)
			up := c.Status == api.ClusterUp
			if n := len(inits[node]); n > 1 || up && n != 1 || c.Status == api.ClusterStopped && n != 0 {
				bad("cluster %s is %s (%s); node %s runs on %v", c.Name, c.Status, c.StatusReason, node, inits[node])
			}
			if n := len(folders[node]); n > 1 || n == 0 && c.Status != api.ClusterInit {
				bad("cluster %s is %s (%s); node %s has folders on %v", c.Name, c.Status, c.StatusReason, node, folders[node])
			}
			if up && !slices.Equal(claims[node], inits[node]) {
				bad("cluster %s is UP; node %s runs on %v and has claims on %v", c.Name, node, inits[node], claims[node])
			}
			delete(inits, node)
			delete(folders, node)
			if c.Status != api.ClusterStopped {
				delete(claims, node)
			}
		}
		if c.Step != "" {
			bad("cluster %s is still at %q (%s)", c.Name, c.Step, c.LastError)
		}
	}
	for what, at := range map[string]map[string][]string{"runs": inits, "has a folder": folders, "has a claim": claims} {
		for node, hosts := range at {
			bad("node %s %s on %v and no cluster has it", node, what, hosts)
		}
	}
	return errors.Join(errs...)
}

// settles waits until what there is on the hosts is what the clusters say, and nothing else. What was given up for gone is
// the reaper's: it is asked for a round now and then.
func (s *site) settles(w *world) {
	s.t.Helper()
	var err error
	for end, next := time.Now().Add(2*time.Minute), time.Now().Add(5*time.Second); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		if err = s.balanced(w); err == nil {
			return
		}
		if time.Now().After(next) {
			s.reap()
			next = time.Now().Add(20 * time.Second)
		}
	}
	s.t.Errorf("hosts and clusters do not agree: %v", err)
}

// ledger is what jobs wrote on all hosts.
func (s *site) ledger() string {
	s.t.Helper()
	var b strings.Builder
	for _, h := range s.lab.Hosts() {
		text, err := h.ReadFile(ledgerDir + "/ledger")
		if err != nil {
			s.t.Errorf("ledger of %s: %v", h.Name, err)
		}
		b.Write(text)
	}
	return b.String()
}

// watchHosts looks at what runs on the hosts again and again. Its stop waits for the last look.
func (s *site) watchHosts(look func()) (stop func()) {
	over, done := make(chan struct{}), make(chan struct{})
	looks := 0
	go func() {
		defer close(done)
		for {
			look()
			looks++
			select {
			case <-over:
				return
			case <-time.After(500 * time.Millisecond):
			}
		}
	}()
	return sync.OnceFunc(func() { close(over); <-done; s.t.Logf("%d looks at the hosts", looks) })
}

// lookAtHosts is one look while faults go on. Nothing of a job that is shown as cancelled runs (I8), no rank of a job runs on
// two hosts (I3), and what is not ours lives as long as its host (I4).
func (s *site) lookAtHosts(w *world, x *strangers) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	cancelled := map[string]string{}
	if lists, err := s.Hasty.Jobs(ctx, api.JobFilter{AllUsers: true}); err == nil {
		for name, jobs := range lists.Clusters {
			for _, j := range jobs {
				if j.Status == api.JobCancelled {
					cancelled[j.Key] = fmt.Sprintf("job %d of %s", j.ID, name)
				}
			}
		}
	}
	where := map[string]string{}
	for _, m := range w.machines() {
		gone, ghosts := w.missing(m)
		w.mu.Lock()
		boots := m.boots
		w.mu.Unlock()
		lives := false
		for _, p := range processesOf(s.t, m.Host) {
			key := p.Env("KEY")
			if key == "" || p.verb() != "" {
				continue
			}
			if key == x.asks[m.Name].ID {
				lives = true
				continue
			}
			if gone || ghosts[p.node()] {
				continue // its user says that it is no more
			}
			if job := cancelled[key]; job != "" {
				s.t.Errorf("%s is shown as CANCELLED and runs on %s: %v", job, m.Name, p)
			}
			rank := key + "/" + p.Env("SKYPILOT_NODE_RANK")
			if other := where[rank]; other != "" && other != m.Name {
				s.t.Errorf("rank %s runs on %s and on %s", rank, other, m.Name)
			}
			where[rank] = m.Name
		}
		w.mu.Lock()
		same := boots == m.boots && boots == 0 && m.state != "off" && !(m.state != "up" && !m.Up())
		w.mu.Unlock()
		if !lives && same && m.Up() {
			s.t.Errorf("the stranger's job on %s was ended, and the host was not", m.Name)
		}
	}
}
