package world

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

const rejectDuplicate = enumspb.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE

// Owned asks the cluster's workflow what it owns; the zero value if none runs.
func (w *World) Owned(name string) (o activities.Owned) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	v, err := w.Client.QueryWorkflow(ctx, activities.ClusterWorkflowID(name), "", activities.QueryState)
	var missing *serviceerror.NotFound
	if errors.As(err, &missing) {
		return o
	}
	if err == nil {
		err = v.Get(&o)
	}
	if err != nil {
		w.T.Errorf("ask cluster %s what it owns: %v", name, err)
	}
	return o
}

// Converge checks that everything comes to rest after the faults have ended: every request ends within limit (I2, I16),
// the reaper finds and removes what nobody owns (I1), and the books balance. Then it takes all clusters down and checks
// that nothing is left. limit is in the world's time.
func (w *World) Converge(limit time.Duration, names ...string) {
	w.T.Helper()
	w.Resume()
	deadline := time.Now().Add(limit)
	for _, id := range w.Submitted {
		for pause := 100 * time.Millisecond; !w.Request(id).Status.Terminal(); pause = min(pause*2, time.Minute) {
			if time.Now().After(deadline) {
				r := w.Request(id)
				w.T.Errorf("I16: %s %s (cluster %s) has not ended %s after the faults: %s %q", r.Name, id, r.Cluster, limit, r.Status, r.StatusMsg)
				return
			}
			time.Sleep(pause)
		}
	}
	w.settleNodes(names)
	w.checkOwners(names)
	w.checkRequests()
	ids := []string{}
	for _, name := range names {
		if _, ok := w.Cluster(name); ok {
			ids = append(ids, w.Down(name))
		}
	}
	for _, id := range ids {
		if r := w.Wait(id, limit); r.Status != api.RequestSucceeded && (r.Error == nil || r.Error.Kind != api.ErrClusterDoesNotExist) {
			w.T.Errorf("I16: the last down of %s is %s: %s", r.Cluster, r.Status, errText(r.Error))
		}
	}
	w.Pause(2 * time.Minute)
	if w.sim == nil && len(w.Cloud.Ledger().Alive()) > 0 {
		time.Sleep(65 * time.Second) // the reaper leaves what is younger than a minute alone
	}
	w.Reap()
	if err := w.Cloud.Ledger().Check(nil); err != nil {
		w.T.Errorf("I1, I3, I4: the ledger does not balance at the end: %v", err)
	}
	w.checkJobs()
	for _, name := range names {
		if row, ok := w.Cluster(name); ok {
			w.T.Errorf("cluster %s still has a row: %s", name, row.Status)
		}
		if o := w.Owned(name); o.Hash != "" {
			w.T.Errorf("workflow of cluster %s still owns %s", name, o.Hash)
		}
	}
	w.mu.Lock()
	for _, b := range w.breaches {
		w.T.Error(b)
	}
	w.mu.Unlock()
}

// Pause lets time pass, if it costs nothing.
func (w *World) Pause(d time.Duration) {
	if w.sim != nil {
		time.Sleep(d)
	}
}

// settleNodes gives the reaper its time.
func (w *World) settleNodes(names []string) {
	w.Pause(2 * time.Minute)
	w.Reap()
	w.Pause(2 * time.Minute)
	if w.sim == nil {
		return
	}
	w.Reap()
	w.Pause(time.Minute)
}

// checkOwners holds what the infra has against what workflows and rows say.
func (w *World) checkOwners(names []string) {
	live := map[string]bool{}
	owned := map[string]activities.Owned{}
	for _, name := range names {
		o := w.Owned(name)
		row, ok := w.Cluster(name)
		switch {
		case o.Hash == "" && ok:
			w.T.Errorf("cluster %s has a row (%s, %s) and no owner", name, row.Hash, row.Status)
		case o.Hash != "" && !ok:
			w.T.Errorf("workflow of cluster %s owns %s (%s), and there is no row", name, o.Hash, o.Status)
		case o.Hash != row.Hash:
			w.T.Errorf("cluster %s: the row tells of %s, the workflow of %s", name, row.Hash, o.Hash)
		case o.Hash != "" && o.Status != row.Status:
			w.T.Errorf("cluster %s: the row says %s, the workflow %s", name, row.Status, o.Status)
		}
		if o.Hash != "" {
			live[o.Hash] = true
			owned[o.Hash] = o
		}
	}
	l := w.Cloud.Ledger()
	if w.sim == nil {
		return // the reaper needs a minute of a node's age; the last check finds leaks too
	}
	if err := l.Check(live); err != nil {
		w.T.Errorf("I1, I3, I4: the ledger does not balance: %v", err)
	}
	alive := map[string][]string{}
	for _, e := range l.Alive() {
		alive[e.Owner.Hash] = append(alive[e.Owner.Hash], e.NodeID)
	}
	for hash, o := range owned {
		var ids []string
		for _, n := range o.Nodes {
			ids = append(ids, n.ID)
		}
		sort.Strings(ids)
		have := alive[hash]
		sort.Strings(have)
		bad := o.Status == api.ClusterUp && strings.Join(ids, " ") != strings.Join(have, " ")
		for _, id := range have {
			bad = bad || !slices.Contains(ids, id) && o.Status != api.ClusterInit // a stopped node may die: nobody looks until it is started
		}
		if bad {
			w.T.Errorf("cluster %s is %s with nodes %v, alive are %v", o.Row.Name, o.Status, ids, have)
		}
	}
}

// checkRequests holds each request's row against the workflow's own answer.
func (w *World) checkRequests() {
	if w.sim == nil {
		return
	}
	for _, id := range w.Submitted {
		r := w.Request(id)
		ctx, cancel := context.WithTimeout(context.Background(), 24*time.Hour)
		_, err := w.sim.outcome(ctx, activities.RequestWorkflowID(id))
		cancel()
		switch {
		case ctx.Err() != nil && errors.Is(err, ctx.Err()):
			w.T.Errorf("%s %s is %s, and its workflow runs on", r.Name, id, r.Status)
		case (err == nil) != (r.Status == api.RequestSucceeded):
			w.T.Errorf("%s %s is %s (%s), and its workflow ended with %v", r.Name, id, r.Status, errText(r.Error), err)
		case r.Status != api.RequestSucceeded && r.Error == nil:
			w.T.Errorf("I11: %s %s is %s and does not say why", r.Name, id, r.Status)
		}
	}
}

// checkJobs checks every job there ever was: one per key (I3, I7), each ended (I2), none of a cancelled request (I8).
func (w *World) checkJobs() {
	byKey := map[string]map[string]api.Job{} // by key, by place
	for _, j := range w.allJobs() {
		if byKey[j.Key] == nil {
			byKey[j.Key] = map[string]api.Job{}
		}
		byKey[j.Key][fmt.Sprintf("%s/%d", j.ClusterHash, j.ID)] = j
		if !j.Status.Terminal() {
			w.T.Errorf("I2: job %d of %s (%s) is %s, and its cluster is gone", j.ID, j.Cluster, j.ClusterHash, j.Status)
		}
	}
	for _, id := range w.Submitted {
		r := w.Request(id)
		if r.Name != "sky.launch" && r.Name != "sky.exec" {
			continue
		}
		jobs := byKey[id]
		if len(jobs) > 1 {
			w.T.Errorf("I3: %s %s has %d jobs: %v", r.Name, id, len(jobs), jobs)
		}
		var res api.LaunchResult
		if r.Status == api.RequestSucceeded {
			if err := json.Unmarshal(r.Result, &res); err != nil {
				w.T.Errorf("result of %s: %v", id, err)
			}
			if res.JobID > 0 && len(jobs) == 0 {
				w.T.Errorf("I2: %s %s answered job %d of %s, which nobody knows", r.Name, id, res.JobID, res.Cluster)
			}
		}
		for _, j := range jobs {
			if res.JobID > 0 && (j.ID != res.JobID || j.ClusterHash != res.Hash) {
				w.T.Errorf("I7: %s %s answered job %d of %s and has job %d of %s", r.Name, id, res.JobID, res.Hash, j.ID, j.ClusterHash)
			}
			if r.Status == api.RequestCancelled && j.Status != api.JobCancelled && (r.FinishedAt == nil || j.StartAt != nil && j.StartAt.After(*r.FinishedAt)) {
				w.T.Errorf("I8: %s %s was cancelled, and its job %d of %s began afterwards (%s)", r.Name, id, j.ID, j.Cluster, j.Status)
			}
		}
	}
}

// allJobs lists the jobs of all clusters there ever were.
func (w *World) allJobs() (out []api.Job) {
	seen := map[string]bool{}
	for _, e := range w.Cloud.Ledger().Entries {
		if seen[e.Owner.Hash] {
			continue
		}
		seen[e.Owner.Hash] = true
		jobs, err := w.Store.Jobs(context.Background(), store.JobFilter{Hash: e.Owner.Hash})
		if err != nil {
			w.T.Errorf("jobs of %s: %v", e.Owner.Hash, err)
		}
		out = append(out, jobs...)
	}
	return out
}

// Story prints what happened to each request and cluster, for a test that failed.
func (w *World) Story(names ...string) string {
	var b strings.Builder
	for _, id := range w.Submitted {
		r := w.Request(id)
		fmt.Fprintf(&b, "%s %-12s %-9s %s %s %s\n", r.CreatedAt.Format(time.TimeOnly), r.Name, r.Status, r.Cluster, id, errText(r.Error))
	}
	for _, name := range names {
		fmt.Fprintf(&b, "--- %s\n", name)
		for _, line := range w.Events(store.EventFilter{Cluster: name}) {
			b.WriteString(line + "\n")
		}
	}
	b.WriteString("--- nodes\n")
	for _, e := range w.Cloud.Ledger().Entries {
		end := "alive"
		if !e.Died.IsZero() {
			end = e.Died.Format(time.TimeOnly) + " " + e.Reason
		}
		fmt.Fprintf(&b, "%s %s token %s until %s\n", e.Born.Format(time.TimeOnly), e.NodeID, e.Token, end)
	}
	return b.String()
}
