//go:build unix

package train

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/objectstore"
)

// withStore is the configuration of a server that reaches a store.
func withStore(s *objectstore.Store, profile string) string {
	return config + fmt.Sprintf("buckets:\n  s3: {endpoint: %q, region: %s, profile: %s, credentials_file: %s}\n", s.URL, objectstore.Region, profile, s.Credentials)
}

// intoBucket is a task of the example that saves into a bucket.
func intoBucket(text, to string) string {
	return strings.Replace(text, "checkpoint:\n", "checkpoint:\n  to: "+to+"\n", 1)
}

// TestPreemptedIntoBucket is TestPreemptedFiveTimes with checkpoints in a bucket, twice: once with a notice, once without. What is kept
// can be got out by hand.
func TestPreemptedIntoBucket(t *testing.T) {
	store := objectstore.Start(t)
	store.Bucket("training")
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
	defer cancel()
	goal := filepath.Join(t.TempDir(), "goal")
	x := startWith(t, ctx, withStore(store, "owner"), func(ledger string) string {
		return intoBucket(example(t, ledger, goal, 3), "s3://training/runs")
	})
	least := map[int]int{}
	attempt := 0
	for i := range 2 {
		var cluster string
		attempt, cluster = x.advance(attempt, 8)
		x.restoredNewest(attempt)
		seen, _, _ := read(t, x.ledger)
		done := seen[attempt][len(seen[attempt])-1]
		if i == 0 {
			saved, err := x.s.Client.SaveCheckpoints(ctx, x.id)
			if err != nil || len(saved.Checkpoints) != 1 || !strings.HasPrefix(saved.Checkpoints[0].Where, "s3://training/runs/") {
				t.Fatalf("%+v %v", saved, err)
			}
			if len(saved.Checkpoints[0].Warnings) == 0 {
				least[attempt+1] = done + 1
			}
			x.preempt(cluster, 0)
		} else {
			x.preempt(cluster, 5)
			x.until("the next attempt", func() bool { return x.row().Attempt > attempt })
			if x.savedInTime(attempt) {
				least[attempt+1] = done + 1
			}
		}
	}
	x.until("the last attempt", func() bool { return x.row().Attempt > attempt })
	_, last, _ := read(t, x.ledger)
	steps := last + 20
	if err := os.WriteFile(goal+".new", fmt.Appendln(nil, steps), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(goal+".new", goal); err != nil {
		t.Fatal(err)
	}
	want := undisturbed(t, steps)
	x.until("the job ends", func() bool { return x.row().Status.Terminal() })
	if r := x.row(); r.Status != api.ManagedSucceeded || r.Recoveries != 2 {
		t.Errorf("%s after %d recoveries: %s", r.Status, r.Recoveries, r.FailureReason)
	}
	got, last, result := read(t, x.ledger)
	if result != want || last != steps {
		t.Errorf("the result is %q after %d steps, undisturbed %q after %d", result, last, want, steps)
	}
	for a, list := range got {
		if list[0] < least[a] {
			t.Errorf("attempt %d begins with step %d, which was saved: %d would have been the first to do", a, list[0], least[a])
		}
	}
	x.byHand(store)
}

// byHand reads the checkpoints out of the bucket with nothing but what the layout says. Nothing of them is in the server's own store.
func (x *trial) byHand(store *objectstore.Store) {
	t := x.t
	t.Helper()
	list := x.checkpoints()
	if len(list) == 0 || len(list) > 3 {
		t.Fatalf("%+v", list)
	}
	objects := store.Objects("training")
	for _, c := range list {
		key := strings.TrimPrefix(c.Where, "s3://training/")
		if objects[key] == 0 {
			t.Fatalf("checkpoint %d is not at %s", c.N, c.Where)
		}
		raw, err := os.ReadFile(filepath.Join(store.Dir, "data", "training", filepath.FromSlash(key)))
		if err != nil {
			t.Fatal(err)
		}
		var saved struct {
			Job   int64 `json:"job"`
			Nodes []struct {
				Entries []struct {
					Path, Blob string
					Size       int64
				} `json:"entries"`
			} `json:"nodes"`
		}
		if err := json.Unmarshal(raw, &saved); err != nil || saved.Job != x.id || len(saved.Nodes) != 1 || len(saved.Nodes[0].Entries) == 0 {
			t.Fatalf("%s %v", raw, err)
		}
		for _, e := range saved.Nodes[0].Entries {
			blob := filepath.ToSlash(filepath.Join(filepath.Dir(filepath.Dir(key)), "blobs", e.Blob))
			if size, ok := objects[blob]; !ok || size != e.Size {
				t.Errorf("checkpoint %d: %s is %d bytes at %s, not %d", c.N, e.Path, size, blob, e.Size)
			}
		}
	}
	kept, err := filepath.Glob(filepath.Join(x.s.Home, "artifacts", "manifests", "*", "*"))
	if err != nil {
		t.Error(err)
	}
	for _, c := range list {
		for _, k := range kept {
			if filepath.Base(k) == c.Manifests[0] {
				t.Errorf("checkpoint %d is in the server's store too", c.N)
			}
		}
	}
}

// TestRanksIntoBucket saves two nodes together, and gives each its own back.
func TestRanksIntoBucket(t *testing.T) {
	store := objectstore.Start(t)
	store.Bucket("ranks")
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	x := startWith(t, ctx, withStore(store, "owner"), func(string) string {
		return `name: ranks
num_nodes: 2
resources: {infra: local, use_spot: true}
checkpoint: {path: state, scope: all, to: s3://ranks}
setup: mkdir -p "$SKYPILOT_CHECKPOINT_DIR"
run: |
  cd "$SKYPILOT_CHECKPOINT_DIR"
  if [ "$SKYPILOT_ATTEMPT" -gt 1 ]; then
    [ "$(cat rank)" = "$SKYPILOT_NODE_RANK" ] && [ "$(ls | wc -l)" = 1 ]
    exit
  fi
  echo $SKYPILOT_NODE_RANK >rank
  sleep 1000
`
	})
	x.until("both ranks are saved", func() bool {
		if x.row().Status != api.ManagedRunning {
			return false
		}
		l, err := x.s.Client.SaveCheckpoints(ctx, x.id)
		return err == nil && len(l.Checkpoints) == 1 && l.Checkpoints[0].Ranks == 2 && l.Checkpoints[0].Files == 2
	})
	x.preempt(x.row().Cluster, 0)
	x.until("the job ends", func() bool { return x.row().Status.Terminal() })
	if r := x.row(); r.Status != api.ManagedSucceeded || r.Attempt != 2 {
		t.Errorf("%s after %d attempts: %s", r.Status, r.Attempt, r.FailureReason)
	}
}

// TestBucketTrouble tells at submission what is wrong with a bucket, and later in the events; a job goes on meanwhile.
func TestBucketTrouble(t *testing.T) {
	store := objectstore.Start(t)
	store.Bucket("closed")
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	text := func(to string) string {
		return `name: goeson
resources: {infra: local, use_spot: true}
checkpoint: {path: state, every: 1s, to: ` + to + `}
setup: mkdir -p "$SKYPILOT_CHECKPOINT_DIR"
run: |
  cd "$SKYPILOT_CHECKPOINT_DIR"
  i=0; while :; do i=$((i+1)); echo $i >n.tmp; mv n.tmp n; sleep 0.5; done
`
	}
	x := startWith(t, ctx, withStore(store, "owner"), func(string) string { return text("s3://closed/x") })
	for to, want := range map[string]string{"s3://absent/x": "there is no such bucket", "oci://x/y": "not supported"} {
		_, err := x.s.Client.LaunchJobs(ctx, &api.JobsLaunchBody{Task: text(to)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", to, err)
		}
	}
	if l, err := x.s.Client.ManagedJobs(ctx, api.ManagedFilter{}); err != nil || len(l.Jobs) != 1 {
		t.Errorf("%+v %v", l, err)
	}
	x.until("a checkpoint", func() bool { return len(x.checkpoints()) > 0 })
	store.Stop()
	x.until("the event of a save that failed", func() bool {
		for _, e := range x.events() {
			if e.Step == "checkpoint" && e.Kind == api.EventError && strings.Contains(e.Message, "can't") {
				return true
			}
		}
		return false
	})
	if r := x.row(); r.Status != api.ManagedRunning || r.Attempt != 1 {
		t.Errorf("%s, attempt %d", r.Status, r.Attempt)
	}
	n := x.checkpoints()[0].N
	store.Run()
	x.until("it is saved again", func() bool { return x.checkpoints()[0].N > n })
	if _, err := x.s.Client.CancelManagedJobs(ctx, &api.JobsCancelBody{JobIDs: []int64{x.id}}); err != nil {
		t.Fatal(err)
	}
	x.until("it is cancelled", func() bool { return x.row().Status == api.ManagedCancelled })
}

// TestBucketLost takes away what the newest checkpoint consists of: the next attempt does not begin from something else in silence.
func TestBucketLost(t *testing.T) {
	store := objectstore.Start(t)
	store.Bucket("lost")
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	x := startWith(t, ctx, withStore(store, "owner"), func(string) string {
		return `name: loses
resources: {infra: local, use_spot: true}
checkpoint: {path: state, to: s3://lost}
setup: mkdir -p "$SKYPILOT_CHECKPOINT_DIR"
run: |
  echo $SKYPILOT_ATTEMPT >"$SKYPILOT_CHECKPOINT_DIR/attempt"
  sleep 1000
`
	})
	x.until("a checkpoint", func() bool {
		if x.row().Status != api.ManagedRunning {
			return false
		}
		l, err := x.s.Client.SaveCheckpoints(ctx, x.id)
		return err == nil && len(l.Checkpoints) == 1
	})
	blobs, err := filepath.Glob(filepath.Join(store.Dir, "data", "lost", "*", "job-1", "task-0", "blobs"))
	if err != nil || len(blobs) != 1 {
		t.Fatal(blobs, err)
	}
	if err := os.RemoveAll(blobs[0]); err != nil {
		t.Fatal(err)
	}
	x.preempt(x.row().Cluster, 0)
	x.until("the job ends", func() bool { return x.row().Status.Terminal() })
	if r := x.row(); r.Status == api.ManagedSucceeded || !strings.Contains(r.FailureReason, "checkpoint 1 is not whole any more") {
		t.Errorf("%s: %s", r.Status, r.FailureReason)
	}
}
