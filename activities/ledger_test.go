package activities

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
)

// lister is an engine that lists the given workflows.
type lister struct {
	client.Client
	ids   []string
	query string
	err   error
}

func (l *lister) ListWorkflow(_ context.Context, r *workflowservice.ListWorkflowExecutionsRequest) (*workflowservice.ListWorkflowExecutionsResponse, error) {
	l.query = r.Query
	out := &workflowservice.ListWorkflowExecutionsResponse{}
	for _, id := range l.ids {
		out.Executions = append(out.Executions, &workflowpb.WorkflowExecutionInfo{Execution: &commonpb.WorkflowExecution{WorkflowId: id}})
	}
	return out, l.err
}

// Only clusters whose row, watch and listing agree and whose owner lives are passed over, and each of these is asked now and then.
func TestLedger(t *testing.T) {
	ctx := context.Background()
	s, err := store.Open(ctx, filepath.Join(t.TempDir(), "sky.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	engine := &lister{}
	a := &Activities{Store: s, Engine: engine, Log: slog.New(slog.DiscardHandler)}
	node := func(hash string) providers.Node { return providers.Node{ID: "n-" + hash, State: providers.NodeRunning} }
	var rows []api.Cluster
	const n = 3 * askedEachRound
	for i := range n {
		hash := fmt.Sprintf("h%d", i)
		r := api.Cluster{Name: "c" + hash, Hash: hash, Status: api.ClusterUp, Owner: fmt.Sprintf("job/%d", i)}
		rows = append(rows, r)
		engine.ids = append(engine.ids, r.Owner)
		if err := s.PutWatch(ctx, store.Watch{Hash: hash, Cluster: r.Name, Data: EncodeResult(WatchRow{Nodes: []providers.Node{node(hash)}})}); err != nil {
			t.Fatal(err)
		}
	}
	// A few clusters are spared the reading: none is passed over.
	few, err := a.openLedger(ctx, rows[:3], 3)
	if err != nil || few.balances("h0", []providers.Node{node("h0")}) {
		t.Fatal("with few clusters all are asked", err)
	}
	asked := map[string]bool{}
	for range 4 {
		l, err := a.openLedger(ctx, rows, len(rows))
		if err != nil {
			t.Fatal(err)
		}
		passed := 0
		for _, r := range rows {
			if l.balances(r.Hash, []providers.Node{node(r.Hash)}) {
				passed++
			} else {
				asked[r.Hash] = true
			}
		}
		if passed < n/2 || passed == n {
			t.Errorf("%d of %d are passed over", passed, n)
		}
		hash := ""
		for _, r := range rows {
			if l.balances(r.Hash, []providers.Node{node(r.Hash)}) {
				hash = r.Hash
				break
			}
		}
		gone, other := node(hash), node("other")
		gone.State = providers.NodeGone
		for what, nodes := range map[string][]providers.Node{"nothing listed": nil, "its node is gone": {gone}, "a node too many": {node(hash), other}, "another's node": {other}} {
			if l.balances(hash, nodes) {
				t.Errorf("%s: passed over", what)
			}
		}
		if l.balances("stranger", []providers.Node{node("stranger")}) {
			t.Error("an incarnation without a row is passed over")
		}
	}
	if len(asked) != n {
		t.Errorf("%d of %d were asked in four rounds", len(asked), n)
	}
	// Later rounds hear of those that have ended.
	a.reaped = time.Now()
	engine.ids = []string{"job/7"}
	l, err := a.openLedger(ctx, rows, len(rows))
	if err != nil {
		t.Fatal(err)
	}
	if l.ended("job/8") || !l.ended("job/7") {
		t.Errorf("who has ended is not what %q lists", engine.query)
	}
	engine.err = errors.New("no")
	if l, err = a.openLedger(ctx, rows, len(rows)); err != nil || l.balances("h0", []providers.Node{node("h0")}) {
		t.Errorf("without the engine's list nobody is passed over (%v)", err)
	}
}
