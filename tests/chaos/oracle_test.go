package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/rig"
)

// verify is the oracle, once faults have stopped: everything converges (I16), and then nothing is lost, doubled or left.
func (in *instance) verify() {
	in.t.Helper()
	in.Healthy(60 * time.Second)
	in.AllEnd()
	in.settles()
	in.JobsEnd(2 * time.Minute)
	in.RequestsStand()
	in.LedgerBalances(in.begun())
}

// settles waits until what runs is what the clusters say, and nothing else.
func (in *instance) settles() {
	in.t.Helper()
	var err error
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = in.balanced(); err == nil {
			return
		}
	}
	in.t.Errorf("nodes and clusters do not agree: %v", err)
}

// balanced compares the clusters known with the nodes there are (I1).
func (in *instance) balanced() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	list, err := in.Client.Clusters(ctx, api.ClusterFilter{AllUsers: true, Verbose: true})
	if err != nil {
		return err
	}
	procs, folders := in.processes(), in.folders()
	inits := map[string][]int{}
	for _, p := range procs {
		if p.verb() == "init" && p.node != "" {
			inits[p.node] = append(inits[p.node], p.pid)
		}
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	running := map[string]bool{}
	for _, c := range list.Clusters {
		running[c.Hash] = c.Status == api.ClusterUp
		for rank := range c.Nodes {
			node := filepath.Join(c.NameOnCloud, fmt.Sprint("node", rank))
			want := 0
			if c.Status == api.ClusterUp {
				want = 1
			}
			if got := inits[node]; len(got) != want {
				bad("cluster %s is %s (%s); node %s has %d processes of init %v", c.Name, c.Status, c.StatusReason, node, len(got), got)
			}
			if !slices.Contains(folders, node) {
				bad("cluster %s is %s; node %s has no folder", c.Name, c.Status, node)
			}
			delete(inits, node)
			folders = slices.DeleteFunc(folders, func(f string) bool { return f == node })
		}
		if c.Status != api.ClusterUp && c.Status != api.ClusterStopped {
			bad("cluster %s is still %s (%s, %s)", c.Name, c.Status, c.Step, c.StatusReason)
		}
	}
	for node, pids := range inits {
		bad("node %s runs (%v) and no cluster has it", node, pids)
	}
	for _, f := range folders {
		bad("node %s has a folder and no cluster has it", f)
	}
	for _, p := range procs {
		if p.hash != "" && !running[p.hash] {
			bad("process %d (%s) of %s runs and its cluster is not UP", p.pid, strings.Join(p.args, " "), p.hash)
		}
	}
	return errors.Join(errs...)
}

// begun counts the beginnings in the ledger, by key and rank.
func (in *instance) begun() map[string]map[int]int {
	b, err := os.ReadFile(in.ledger)
	if err != nil {
		in.t.Fatal(err)
	}
	return rig.Begun(string(b))
}
