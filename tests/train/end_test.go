package train

import (
	"context"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
)

// TestSavedAtTheEnd gives attempts up whose folder can still be reached: one that fails by itself, and one that loses its other node.
// Neither has an interval, nor does it get a notice; the next attempt goes on where the one before was all the same.
func TestSavedAtTheEnd(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	x := start(t, ctx, func(string) string {
		return `name: ends
num_nodes: 2
resources: {infra: local, use_spot: true, job_recovery: {max_restarts_on_errors: 1}}
checkpoint: {path: state, signal: USR1}
setup: mkdir -p "$SKYPILOT_CHECKPOINT_DIR"
run: |
  [ $SKYPILOT_NODE_RANK = 0 ] || { trap : TERM; while :; do sleep 0.1; done; }
  cd "$SKYPILOT_CHECKPOINT_DIR"
  trap 'echo asked in attempt $SKYPILOT_ATTEMPT >>story' USR1
  cat story 2>/dev/null
  echo attempt $SKYPILOT_ATTEMPT >>story
  case $SKYPILOT_ATTEMPT in
  1) exit 3 ;;
  2) touch ../second; while :; do sleep 0.1; done ;;
  esac
`
	})
	x.until("the second attempt runs", func() bool {
		r := x.row()
		return r.Status == api.ManagedRunning && r.Attempt == 2 && r.Restarts == 1
	})
	r := x.row()
	x.until("it has read what the first one left", func() bool {
		text := ""
		_, err := x.s.Client.ManagedLogs(ctx, x.id, api.ManagedLogFilter{}, func(c api.LogChunk) error {
			if c.Attempt == 2 && c.Rank == 0 {
				text += string(c.Data)
			}
			return nil
		})
		return err == nil && text == "attempt 1\n"
	})
	if _, err := x.s.Client.Preempt(ctx, &api.PreemptBody{Cluster: r.Cluster, Node: new(1)}); err != nil {
		t.Fatal(err)
	}
	x.until("the third attempt", func() bool { return x.row().Attempt == 3 })
	x.until("it has read what the second one left", func() bool {
		text := ""
		_, err := x.s.Client.ManagedLogs(ctx, x.id, api.ManagedLogFilter{}, func(c api.LogChunk) error {
			if c.Attempt == 3 && c.Rank == 0 {
				text += string(c.Data)
			}
			return nil
		})
		return err == nil && (text == "attempt 1\nattempt 2\n" || text == "attempt 1\nattempt 2\nasked in attempt 2\n")
	})
	l := x.checkpoints()
	if len(l) < 2 || l[len(l)-1].Why != "end" || l[len(l)-1].Attempt != 1 || l[len(l)-2].Why != "end" || l[len(l)-2].Attempt != 2 {
		t.Errorf("%+v", l)
	}
	if _, err := x.s.Client.CancelManagedJobs(ctx, &api.JobsCancelBody{JobIDs: []int64{x.id}}); err != nil {
		t.Fatal(err)
	}
	x.until("it is cancelled", func() bool { return x.row().Status == api.ManagedCancelled })
	if n := len(x.checkpoints()); n != len(l) {
		t.Errorf("a cancel has saved: %d checkpoints", n)
	}
}
