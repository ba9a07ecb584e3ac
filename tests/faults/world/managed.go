package world

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/workflows"
)

// Managed is a managed job of a world on the real engine.
type Managed struct {
	W    *World
	ID   int64
	Seen [][]api.ManagedStatus // of each task, the states it was in, in order

	stop func()
	done chan struct{}
}

// StartJob starts a managed job with a number that nobody else has.
func (w *World) StartJob(id int64, rank, of int, text string) *Managed {
	w.T.Helper()
	m := &Managed{W: w, ID: id, done: make(chan struct{})}
	ctx, cancel := context.WithCancel(w.ctx)
	m.stop = cancel
	told, unsubscribe := w.Store.Subscribe(store.JobTopic(id))
	go func() {
		defer close(m.done)
		defer unsubscribe()
		for {
			m.look(ctx)
			select {
			case <-told:
			case <-ctx.Done():
				return
			}
		}
	}()
	in := workflows.ManagedInput{ID: id, Rank: rank, NumJobs: of, Body: api.JobsLaunchBody{
		Base: api.Base{RequestID: api.NewRequestID(), User: "u", UserHash: "00000001"}, Task: text, NumJobs: of}}
	if _, err := w.Client.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: activities.ManagedWorkflowID(id), TaskQueue: activities.QueueMain,
		WorkflowTaskTimeout: activities.WorkflowTaskTimeout}, "ManagedJob", in); err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(m.Close)
	return m
}

// look notes the states that the job's tasks are in.
func (m *Managed) look(ctx context.Context) {
	rows, err := m.W.Store.ManagedJob(ctx, m.ID)
	if err != nil {
		return // there are none yet
	}
	for len(m.Seen) < len(rows) {
		m.Seen = append(m.Seen, nil)
	}
	for i, r := range rows {
		if n := len(m.Seen[i]); n == 0 || m.Seen[i][n-1] != r.Status {
			m.Seen[i] = append(m.Seen[i], r.Status)
		}
	}
}

// Close ends the watching of its states; then Seen may be read.
func (m *Managed) Close() {
	m.stop()
	<-m.done
	m.look(m.W.ctx) // what came last
}

// Until waits until the rows of the job's tasks are as ok says.
func (m *Managed) Until(what string, ok func([]api.ManagedJob) bool) []api.ManagedJob {
	m.W.T.Helper()
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		rows, err := m.W.Store.ManagedJob(m.W.ctx, m.ID)
		if err == nil && ok(rows) {
			return rows
		}
		if time.Now().After(end) {
			m.W.T.Fatalf("managed job %d: waited in vain for: %s (%v, %+v)", m.ID, what, err, rows)
		}
	}
}

// Ended waits for the end of all its tasks.
func (m *Managed) Ended() []api.ManagedJob {
	m.W.T.Helper()
	return m.Until("its end", func(rows []api.ManagedJob) bool {
		return !slices.ContainsFunc(rows, func(r api.ManagedJob) bool { return !r.Status.Terminal() })
	})
}

// Is waits until the first task that counts is in a state.
func (m *Managed) Is(want api.ManagedStatus) []api.ManagedJob {
	m.W.T.Helper()
	return m.Until(string(want), func(rows []api.ManagedJob) bool { got, _ := api.ManagedState(rows); return got == want })
}

// WorkflowID is the id of the job's workflow.
func (m *Managed) WorkflowID() string { return activities.ManagedWorkflowID(m.ID) }

// Cancel asks the job to end.
func (m *Managed) Cancel() {
	m.W.T.Helper()
	if err := m.W.Client.CancelWorkflow(m.W.ctx, m.WorkflowID(), ""); err != nil {
		m.W.T.Fatal(err)
	}
}

// Nodes are those of the job's cluster that the infra lists now, by rank.
func (m *Managed) Nodes() []providers.Node {
	all, err := m.W.Cloud.List(m.W.ctx, providers.Tag{Installation: m.W.Store.Installation()})
	if err != nil {
		return nil
	}
	name := m.cluster()
	return slices.DeleteFunc(all, func(n providers.Node) bool { return n.Cluster.Name != name })
}

// cluster is the name of the first task's cluster.
func (m *Managed) cluster() string {
	rows, err := m.W.Store.ManagedJob(m.W.ctx, m.ID)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s-%d", rows[0].TaskName, m.ID)
}

// ClusterJob is the state of the job on the first task's cluster, as its agent told it last; "" if none was heard of.
func (m *Managed) ClusterJob() api.JobStatus {
	row, err := m.W.Store.Cluster(m.W.ctx, m.cluster())
	if err != nil {
		return ""
	}
	jobs, err := m.W.Store.Jobs(m.W.ctx, store.JobFilter{Hash: row.Hash})
	if err != nil || len(jobs) == 0 {
		return ""
	}
	return jobs[0].Status
}

// Take takes a node of the running job away.
func (m *Managed) Take(rank int) {
	m.W.T.Helper()
	m.Is(api.ManagedRunning)
	nodes := m.Nodes()
	if len(nodes) <= rank {
		m.W.T.Fatalf("the job has nodes %v", nodes)
	}
	if err := m.W.Cloud.Preempt(m.W.ctx, nodes[rank].Cluster, nodes[rank].ID, 0); err != nil {
		m.W.T.Fatal(err)
	}
}
