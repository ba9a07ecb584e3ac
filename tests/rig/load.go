//go:build unix

package rig

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
)

// Patience is how long a request may take to end, faults included, unless a Load says otherwise.
const Patience = 3 * time.Minute

// Ask is one request of the load, and how it must end.
type Ask struct {
	ID, Kind, Cluster string
	Acked             bool
	// Want judges its end; Least and Most bound how often its script may begin on each rank.
	Want        func(api.Request) error
	Least, Most int
	Ranks       int
	End         *api.Request
}

func (a *Ask) String() string { return fmt.Sprintf("%s %s %s", a.Kind, a.Cluster, a.ID) }

// Job is what a request runs: on so many nodes, for so long.
type Job struct {
	Nodes int
	Sleep string // seconds
	Files []api.FileMount
	Retry bool
}

// Load asks a server for things and keeps book of what it asked.
type Load struct {
	T             testing.TB
	Client, Hasty *api.Client
	// Script is the task of a request.
	Script func(id string, j Job) string
	// Patience is how long a request may take to end; 0: Patience.
	Patience time.Duration

	mu   sync.Mutex
	asks []*Ask
}

// Asks are all requests so far.
func (l *Load) Asks() []*Ask {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.asks)
}

func (l *Load) patience() time.Duration {
	if l.Patience > 0 {
		return l.Patience
	}
	return Patience
}

func base(id, kind, cluster string) api.Base {
	return api.Base{RequestID: id, User: "chaos", UserHash: "c4a05c4a", Command: "sky " + kind + " " + cluster}
}

// Ask sends a request until it is acknowledged. Its id is the load's, so that a repeated call is the same request.
func (l *Load) Ask(kind, cluster string, j Job, want func(api.Request) error) *Ask {
	l.T.Helper()
	a := &Ask{ID: api.NewRequestID(), Kind: kind, Cluster: cluster, Want: want}
	if kind == "launch" || kind == "exec" {
		a.Least, a.Most, a.Ranks = 1, 1, max(j.Nodes, 1)
	}
	l.mu.Lock()
	l.asks = append(l.asks, a)
	l.mu.Unlock()
	l.Send(a, j)
	return a
}

// Send sends a request, once more if it was sent before: that changes nothing.
func (l *Load) Send(a *Ask, j Job) {
	l.T.Helper()
	b := base(a.ID, a.Kind, a.Cluster)
	ctx, cancel := context.WithTimeout(context.Background(), l.patience())
	defer cancel()
	var ref *api.Ref
	var err error
	switch a.Kind {
	case "launch":
		ref, err = l.Client.Launch(ctx, &api.LaunchBody{Base: b, Cluster: a.Cluster, Task: l.Script(a.ID, j), FileMounts: j.Files, RetryUntilUp: j.Retry})
	case "exec":
		ref, err = l.Client.Exec(ctx, &api.ExecBody{Base: b, Cluster: a.Cluster, Task: l.Script(a.ID, j), FileMounts: j.Files})
	case "start":
		ref, err = l.Client.Start(ctx, &api.StartBody{Base: b, Cluster: a.Cluster})
	case "stop":
		ref, err = l.Client.Stop(ctx, &api.StopOrDownBody{Base: b, Cluster: a.Cluster})
	case "down":
		ref, err = l.Client.Down(ctx, &api.StopOrDownBody{Base: b, Cluster: a.Cluster})
	case "autostop":
		ref, err = l.Client.Autostop(ctx, &api.AutostopBody{Base: b, Cluster: a.Cluster, IdleMinutes: 30})
	case "cancel":
		ref, err = l.Client.CancelJobs(ctx, &api.CancelBody{Base: b, Cluster: a.Cluster, All: true})
	default:
		l.T.Errorf("the load knows no %q", a.Kind)
		return
	}
	switch {
	case err != nil:
		l.T.Errorf("%v was not taken: %v", a, err)
	case ref.RequestID != a.ID:
		l.T.Errorf("%v was taken as %s", a, ref.RequestID)
	default:
		a.Acked = true
	}
}

// Wait waits for a request's end and judges it.
func (l *Load) Wait(a *Ask) *api.Request {
	l.T.Helper()
	if !a.Acked {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), l.patience())
	defer cancel()
	r, err := l.Client.WaitRequest(ctx, a.ID)
	if err != nil {
		status := "unknown"
		if r != nil {
			status = string(r.Status)
		}
		l.T.Errorf("%v has not ended after %v (%s): %v\n%s", a, l.patience(), status, err, l.Story(a))
		return nil
	}
	a.End = r
	if err := a.Want(*r); err != nil {
		l.T.Errorf("%v: %v\n%s", a, err, l.Story(a))
	}
	return r
}

// CancelRequest asks that a request be cancelled. One that has ended stays as it is.
func (l *Load) CancelRequest(a *Ask) {
	l.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), l.patience())
	defer cancel()
	if _, err := l.Client.CancelRequests(ctx, &api.CancelRequestsBody{RequestIDs: []string{a.ID}}); err != nil && a.Acked {
		l.T.Errorf("%v could not be cancelled: %v", a, err)
	}
}

// Do asks and waits.
func (l *Load) Do(kind, cluster string, j Job, want func(api.Request) error) (*Ask, *api.Request) {
	l.T.Helper()
	a := l.Ask(kind, cluster, j, want)
	return a, l.Wait(a)
}

// Story is the timeline of a request and its cluster, for a person.
func (l *Load) Story(a *Ask) string {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	var s strings.Builder
	events, err := l.Hasty.Events(ctx, api.EventFilter{Cluster: a.Cluster, Limit: 40})
	if err != nil {
		return err.Error()
	}
	for _, e := range events {
		fmt.Fprintf(&s, "  %s %.8s %.8s %s %s: %s\n", e.Time.Local().Format("15:04:05.000"), e.Hash, e.RequestID, e.Kind, e.Step, e.Message)
	}
	return s.String()
}

// What a request may end as.

// Succeeds wants a success.
func Succeeds(r api.Request) error {
	if r.Status == api.RequestSucceeded {
		return nil
	}
	return fmt.Errorf("it ended as %s (%v), not as SUCCEEDED", r.Status, r.Error)
}

// Fails wants an error of one of the kinds.
func Fails(kinds ...string) func(api.Request) error {
	return func(r api.Request) error {
		if r.Status == api.RequestFailed && r.Error != nil && slices.Contains(kinds, r.Error.Kind) {
			return nil
		}
		return fmt.Errorf("it ended as %s (%v), not as FAILED with %v", r.Status, r.Error, kinds)
	}
}

// Cancelled wants a request that was cancelled.
func Cancelled(r api.Request) error {
	if r.Status == api.RequestCancelled {
		return nil
	}
	return fmt.Errorf("it ended as %s (%v), not as CANCELLED", r.Status, r.Error)
}

// Either wants one of several ends.
func Either(ways ...func(api.Request) error) func(api.Request) error {
	return func(r api.Request) error {
		var err error
		for _, w := range ways {
			if err = w(r); err == nil {
				return nil
			}
		}
		return err
	}
}

// Status is a cluster's status, "" if there is none.
func (l *Load) Status(cluster string) api.ClusterStatus {
	l.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), l.patience())
	defer cancel()
	list, err := l.Client.Clusters(ctx, api.ClusterFilter{Names: []string{cluster}, AllUsers: true})
	switch {
	case err != nil:
		l.T.Errorf("status of %s: %v", cluster, err)
		return ""
	case len(list.Clusters) == 0:
		return ""
	}
	return list.Clusters[0].Status
}

// JobReaches waits until the job of a request has the status.
func (l *Load) JobReaches(a *Ask, r *api.Request, want api.JobStatus) {
	l.T.Helper()
	var res api.LaunchResult
	if err := json.Unmarshal(r.Result, &res); err != nil || res.JobID == 0 {
		l.T.Errorf("%v: its result %s names no job (%v)", a, r.Result, err)
		return
	}
	last := api.JobStatus("")
	ok := l.Eventually(fmt.Sprintf("job %d of %v is %s", res.JobID, a, want), func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		lists, err := l.Client.Jobs(ctx, api.JobFilter{Clusters: []string{a.Cluster}, AllUsers: true})
		if err != nil {
			return false
		}
		for _, j := range lists.Clusters[a.Cluster] {
			if j.ID == res.JobID && j.ClusterHash == res.Hash {
				last = j.Status
			}
		}
		return last == want || last.Terminal()
	})
	if ok && last != want {
		l.T.Errorf("job %d of %v is %s, not %s", res.JobID, a, last, want)
	}
}

// Unfinished counts the jobs of a cluster that have not ended, as far as they are known; -1: they are not.
func (l *Load) Unfinished(cluster string) int {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	lists, err := l.Client.Jobs(ctx, api.JobFilter{Clusters: []string{cluster}, AllUsers: true, SkipFinished: true})
	if err != nil || lists.Errors[cluster] != "" {
		return -1
	}
	return len(lists.Clusters[cluster])
}

// Eventually waits for a condition, with more patience than it should need.
func (l *Load) Eventually(what string, ok func() bool) bool {
	l.T.Helper()
	for end := time.Now().Add(l.patience() / 2); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	l.T.Errorf("it does not come about that %s", what)
	return false
}
