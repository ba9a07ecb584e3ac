package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/api"
)

// verify is the oracle, once faults have stopped: everything converges (I16), and then nothing is lost, doubled or left.
func (in *instance) verify() {
	in.t.Helper()
	in.healthy(60 * time.Second)
	for _, a := range in.book.all() {
		if a.acked && a.end == nil {
			in.wait(a)
		}
	}
	in.settles()
	in.jobsEnd()
	in.requestsStand()
	in.ledgerBalances()
}

// settles waits until what runs is what the clusters say, and nothing else.
func (in *instance) settles() {
	in.t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
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
	list, err := in.client.Clusters(ctx, api.ClusterFilter{AllUsers: true, Verbose: true})
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

// jobsEnd waits until no job of a cluster that is there is unfinished, and checks that a request has one job at most (I7).
func (in *instance) jobsEnd() {
	in.t.Helper()
	var open []string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		lists, err := in.client.Jobs(ctx, api.JobFilter{AllUsers: true})
		cancel()
		if err != nil {
			in.t.Errorf("jobs: %v", err)
			return
		}
		open = nil
		for name, jobs := range lists.Clusters {
			keys := map[string]int64{}
			for _, j := range jobs {
				if other, twice := keys[j.Key]; twice {
					in.t.Errorf("request %s has jobs %d and %d on %s", j.Key, other, j.ID, name)
				}
				keys[j.Key] = j.ID
				if !j.Status.Terminal() {
					open = append(open, fmt.Sprintf("job %d of %s (%s) is %s", j.ID, name, j.Key, j.Status))
				}
			}
		}
		if len(open) == 0 {
			return
		}
	}
	in.t.Errorf("jobs have not ended: %v", open)
}

// requestsStand checks that every acknowledged request is there and ended as it had to (I2, I6), and that there is no other.
func (in *instance) requestsStand() {
	in.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	rows, err := in.client.Requests(ctx, api.RequestFilter{All: true})
	if err != nil {
		in.t.Errorf("requests: %v", err)
		return
	}
	byID := map[string]api.Request{}
	for _, r := range rows {
		byID[r.ID] = r
	}
	for _, a := range in.book.all() {
		r, ok := byID[a.id]
		delete(byID, a.id)
		switch {
		case !a.acked:
		case !ok:
			in.t.Errorf("%v was acknowledged and is gone", a)
		case !r.Status.Terminal():
			in.t.Errorf("%v is %s for ever\n%s", a, r.Status, in.story(a))
		case a.end != nil && a.end.Status != r.Status:
			in.t.Errorf("%v was %s and is %s", a, a.end.Status, r.Status)
		}
	}
	for id, r := range byID {
		in.t.Errorf("request %s (%s %s) was asked by nobody", id, r.Name, r.Cluster)
	}
}

// ledgerBalances checks how often each job ran (I3).
func (in *instance) ledgerBalances() {
	in.t.Helper()
	begun := in.begun()
	for _, a := range in.book.all() {
		for rank := range a.ranks {
			if n := begun[a.id][rank]; n < a.least || n > a.most {
				in.t.Errorf("%v: rank %d of its job began %d times, not %d to %d\n%s", a, rank, n, a.least, a.most, in.story(a))
			}
		}
		delete(begun, a.id)
	}
	for key := range begun {
		in.t.Errorf("a job with key %s ran that nobody asked for", key)
	}
}

// begun counts the beginnings in the ledger, by key and rank.
func (in *instance) begun() map[string]map[int]int {
	b, err := os.ReadFile(in.ledger)
	if err != nil {
		in.t.Fatal(err)
	}
	out := map[string]map[int]int{}
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		var what, key string
		var rank int
		if n, _ := fmt.Sscanf(line, "%s %s %d", &what, &key, &rank); n != 3 || what != "begin" {
			continue
		}
		if out[key] == nil {
			out[key] = map[int]int{}
		}
		out[key][rank]++
	}
	return out
}

// observer looks at every row while faults go on: none may go backwards (I13).
type observer struct {
	in       *instance
	stop     chan struct{}
	wg       sync.WaitGroup
	requests map[string]api.RequestStatus
	jobs     map[string]api.JobStatus
	clusters map[string]int64
	looks    int
}

// observe begins to look. Its stop waits for the last look.
func (in *instance) observe() func() {
	o := &observer{in: in, stop: make(chan struct{}), requests: map[string]api.RequestStatus{}, jobs: map[string]api.JobStatus{}, clusters: map[string]int64{}}
	o.wg.Add(1)
	go func() {
		defer o.wg.Done()
		for {
			o.look()
			select {
			case <-o.stop:
				return
			case <-time.After(250 * time.Millisecond):
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(o.stop)
		o.wg.Wait()
		in.t.Logf("%d looks at %d requests, %d jobs and %d clusters", o.looks, len(o.requests), len(o.jobs), len(o.clusters))
	})
}

func (o *observer) look() {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if rows, err := o.in.hasty.Requests(ctx, api.RequestFilter{All: true}); err == nil {
		o.looks++
		seen := map[string]bool{}
		for _, r := range rows {
			seen[r.ID] = true
			if was := o.requests[r.ID]; was.Terminal() && was != r.Status {
				o.in.t.Errorf("request %s left %s for %s", r.ID, was, r.Status)
			}
			o.requests[r.ID] = r.Status
		}
		for id, was := range o.requests {
			if !seen[id] {
				o.in.t.Errorf("request %s (%s) is gone", id, was)
				delete(o.requests, id)
			}
		}
	}
	if list, err := o.in.hasty.Clusters(ctx, api.ClusterFilter{AllUsers: true}); err == nil {
		for _, c := range list.Clusters {
			if was := o.clusters[c.Hash]; c.Seq < was {
				o.in.t.Errorf("cluster %s went back from row %d to %d", c.Name, was, c.Seq)
			}
			o.clusters[c.Hash] = c.Seq
		}
	}
	if lists, err := o.in.hasty.Jobs(ctx, api.JobFilter{AllUsers: true}); err == nil {
		for name, jobs := range lists.Clusters {
			for _, j := range jobs {
				key := fmt.Sprint(j.ClusterHash, "/", j.ID)
				if was, ok := o.jobs[key]; ok && (was.Terminal() && was != j.Status || j.Status.Order() < was.Order()) {
					o.in.t.Errorf("job %d of %s went from %s to %s", j.ID, name, was, j.Status)
				}
				o.jobs[key] = j.Status
			}
		}
	}
}
