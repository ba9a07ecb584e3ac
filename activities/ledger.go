package activities

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"time"

	"go.temporal.io/api/workflowservice/v1"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
)

// askedEachRound is about how many workflows the reaper asks in a round although nothing is odd about their clusters. Asking costs
// the engine some milliseconds each: with more clusters than this, one whose row, watch and listing agree is asked in turn.
const askedEachRound = 200

// ledger is what the read model knows of the clusters, for a round of the reaper.
type ledger struct {
	a     *Activities
	rows  map[string]api.Cluster // by incarnation
	watch map[string]WatchRow
	// ended tells of a workflow that it may have ended, and so may have left something. nil: it is not known of any.
	ended func(id string) bool
	parts uint32 // in each round one of so many parts is asked in any case
	round uint32
	asked map[string]Owned
}

// openLedger reads what is known; jobs is how many managed jobs have not ended. An owner that ended is found by one listing for all
// of them.
func (a *Activities) openLedger(ctx context.Context, rows []api.Cluster, jobs int) (*ledger, error) {
	l := &ledger{a: a, rows: map[string]api.Cluster{}, watch: map[string]WatchRow{}, parts: uint32(max(len(rows), jobs)/askedEachRound) + 1, asked: map[string]Owned{}}
	if l.parts == 1 {
		return l, nil // all are asked
	}
	for _, r := range rows {
		l.rows[r.Hash] = r
	}
	if err := a.Store.EachWatch(ctx, func(w store.Watch) error {
		var row WatchRow
		if err := json.Unmarshal(w.Data, &row); err != nil {
			return fmt.Errorf("watch of %s: %w", w.Cluster, err)
		}
		l.watch[w.Hash] = row
		return nil
	}); err != nil {
		return nil, err
	}
	a.mu.Lock()
	since := a.reaped
	a.reapRound++
	l.round = a.reapRound
	a.mu.Unlock()
	// The first round of a process reads who lives, later ones who has ended since.
	which := "ExecutionStatus = 'Running'"
	if !since.IsZero() {
		which = fmt.Sprintf("ExecutionStatus != 'Running' AND CloseTime > '%s'", since.Add(-closeLag).UTC().Format(time.RFC3339))
	}
	ids, err := a.owners(ctx, which)
	if err != nil {
		a.Log.Warn("workflows can't be listed; every owner is asked", "error", err)
		return l, nil
	}
	l.ended = func(id string) bool { return ids[id] != since.IsZero() }
	return l, nil
}

// closeLag is how late the engine may list a workflow as ended.
const closeLag = 10 * time.Minute

// owners lists the workflows of clusters and managed jobs that satisfy a condition.
func (a *Activities) owners(ctx context.Context, which string) (map[string]bool, error) {
	ids := map[string]bool{}
	req := &workflowservice.ListWorkflowExecutionsRequest{PageSize: 1000, Query: fmt.Sprintf("WorkflowType IN ('%s', 'ManagedJob') AND %s", ClusterWorkflow, which)}
	for {
		page, err := a.Engine.ListWorkflow(ctx, req)
		if err != nil {
			return nil, err
		}
		for _, e := range page.GetExecutions() {
			ids[e.GetExecution().GetWorkflowId()] = true
		}
		if req.NextPageToken = page.GetNextPageToken(); len(req.NextPageToken) == 0 {
			return ids, nil
		}
	}
}

// balances says that an incarnation's row, its watch and what the infra lists agree, and that its owner lives: nothing is to be
// deleted, removed or looked at.
func (l *ledger) balances(hash string, listed []providers.Node) bool {
	if l.turn(hash) {
		return false
	}
	row, ok := l.rows[hash]
	watch, watched := l.watch[hash]
	if !ok || !watched || l.ended(l.owner(row)) {
		return false
	}
	state := map[string]providers.NodeState{}
	for _, n := range listed {
		state[n.ID] = n.State
	}
	for _, n := range watch.Nodes {
		if row.Status == api.ClusterUp && state[n.ID] != providers.NodeRunning {
			return false
		}
		delete(state, n.ID)
	}
	return len(state) == 0
}

// turn says that what bears a name is asked in this round whatever the books say.
func (l *ledger) turn(name string) bool {
	return l.ended == nil || crc32.ChecksumIEEE([]byte(name))%l.parts == l.round%l.parts
}

func (l *ledger) owner(row api.Cluster) string {
	if row.Owner != "" {
		return row.Owner
	}
	return ClusterWorkflowID(row.Name)
}

// owned is Activities.owned, once for each incarnation.
func (l *ledger) owned(ctx context.Context, name, hash string) (Owned, error) {
	if o, ok := l.asked[hash]; ok {
		return o, nil
	}
	o, err := l.a.owned(ctx, name, hash)
	if err == nil {
		l.asked[hash] = o
	}
	return o, err
}
