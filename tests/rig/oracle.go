//go:build unix

package rig

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/api"
)

// AllEnd waits for every acknowledged request that nobody has waited for (I2).
func (l *Load) AllEnd() {
	l.T.Helper()
	for _, a := range l.Asks() {
		if a.Acked && a.End == nil {
			l.Wait(a)
		}
	}
}

// RequestsStand checks that every acknowledged request is there and ended as it had to (I2, I6), and that there is no other.
func (l *Load) RequestsStand() {
	l.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	rows, err := l.Client.Requests(ctx, api.RequestFilter{All: true})
	if err != nil {
		l.T.Errorf("requests: %v", err)
		return
	}
	byID := map[string]api.Request{}
	for _, r := range rows {
		byID[r.ID] = r
	}
	for _, a := range l.Asks() {
		r, ok := byID[a.ID]
		delete(byID, a.ID)
		switch {
		case !a.Acked:
		case !ok:
			l.T.Errorf("%v was acknowledged and is gone", a)
		case !r.Status.Terminal():
			l.T.Errorf("%v is %s for ever\n%s", a, r.Status, l.Story(a))
		case a.End != nil && a.End.Status != r.Status:
			l.T.Errorf("%v was %s and is %s", a, a.End.Status, r.Status)
		}
	}
	for id, r := range byID {
		l.T.Errorf("request %s (%s %s) was asked by nobody", id, r.Name, r.Cluster)
	}
}

// JobsEnd waits until no job of a cluster that is there is unfinished, and checks that a request has one job at most (I7).
func (l *Load) JobsEnd(limit time.Duration) {
	l.T.Helper()
	var open []string
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		lists, err := l.Client.Jobs(ctx, api.JobFilter{AllUsers: true})
		cancel()
		if err != nil {
			l.T.Errorf("jobs: %v", err)
			return
		}
		open = nil
		for name, jobs := range lists.Clusters {
			keys := map[string]int64{}
			for _, j := range jobs {
				if other, twice := keys[j.Key]; twice {
					l.T.Errorf("request %s has jobs %d and %d on %s", j.Key, other, j.ID, name)
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
	l.T.Errorf("jobs have not ended: %v", open)
}

// Begun counts the lines "begin KEY RANK" of a ledger, by key and rank.
func Begun(ledger string) map[string]map[int]int {
	out := map[string]map[int]int{}
	for _, line := range strings.Split(strings.TrimSpace(ledger), "\n") {
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

// LedgerBalances checks how often each job ran (I3).
func (l *Load) LedgerBalances(begun map[string]map[int]int) {
	l.T.Helper()
	for _, a := range l.Asks() {
		for rank := range a.Ranks {
			if n := begun[a.ID][rank]; n < a.Least || n > a.Most {
				l.T.Errorf("%v: rank %d of its job began %d times, not %d to %d\n%s", a, rank, n, a.Least, a.Most, l.Story(a))
			}
		}
		delete(begun, a.ID)
	}
	for key := range begun {
		l.T.Errorf("a job with key %s ran that nobody asked for", key)
	}
}

// observer looks at every row while faults go on: none may go backwards (I13).
type observer struct {
	l        *Load
	stop     chan struct{}
	wg       sync.WaitGroup
	requests map[string]api.RequestStatus
	jobs     map[string]api.JobStatus
	clusters map[string]int64
	managed  map[string]api.ManagedStatus
	looks    int
}

// Observe begins to look. Its stop waits for the last look.
func (l *Load) Observe() func() {
	o := &observer{l: l, stop: make(chan struct{}), requests: map[string]api.RequestStatus{}, jobs: map[string]api.JobStatus{}, clusters: map[string]int64{},
		managed: map[string]api.ManagedStatus{}}
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
		l.T.Logf("%d looks at %d requests, %d jobs, %d managed jobs and %d clusters", o.looks, len(o.requests), len(o.jobs), len(o.managed), len(o.clusters))
	})
}

func (o *observer) look() {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if rows, err := o.l.Hasty.Requests(ctx, api.RequestFilter{All: true}); err == nil {
		o.looks++
		seen := map[string]bool{}
		for _, r := range rows {
			seen[r.ID] = true
			if was := o.requests[r.ID]; was.Terminal() && was != r.Status {
				o.l.T.Errorf("request %s left %s for %s", r.ID, was, r.Status)
			}
			o.requests[r.ID] = r.Status
		}
		for id, was := range o.requests {
			if !seen[id] {
				o.l.T.Errorf("request %s (%s) is gone", id, was)
				delete(o.requests, id)
			}
		}
	}
	if list, err := o.l.Hasty.Clusters(ctx, api.ClusterFilter{AllUsers: true}); err == nil {
		for _, c := range list.Clusters {
			if was := o.clusters[c.Hash]; c.Seq < was {
				o.l.T.Errorf("cluster %s went back from row %d to %d", c.Name, was, c.Seq)
			}
			o.clusters[c.Hash] = c.Seq
		}
	}
	if lists, err := o.l.Hasty.Jobs(ctx, api.JobFilter{AllUsers: true}); err == nil {
		for name, jobs := range lists.Clusters {
			for _, j := range jobs {
				key := fmt.Sprint(j.ClusterHash, "/", j.ID)
				if was, ok := o.jobs[key]; ok && (was.Terminal() && was != j.Status || j.Status.Order() < was.Order()) {
					o.l.T.Errorf("job %d of %s went from %s to %s", j.ID, name, was, j.Status)
				}
				o.jobs[key] = j.Status
			}
		}
	}
	if list, err := o.l.Hasty.ManagedJobs(ctx, api.ManagedFilter{}); err == nil {
		for _, j := range list.Jobs {
			key := fmt.Sprint(j.ID, "/", j.TaskID)
			if was := o.managed[key]; was.Terminal() && was != j.Status {
				o.l.T.Errorf("managed job %s left %s for %s", key, was, j.Status)
			}
			o.managed[key] = j.Status
		}
	}
}
