package chaos

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
)

// savePoints are what a save of a managed job's checkpoint passes.
var savePoints = []string{"checkpoint.before-content", "checkpoint.before-row"}

// bucketPoints are what a save into a bucket passes.
var bucketPoints = []string{"checkpoint.before-content", "checkpoint.before-manifest", "checkpoint.before-row"}

// trainee is a managed job that saves a number, and tells with which one each attempt begins.
type trainee struct {
	in   *instance
	told string // a line per attempt, and one per number
}

// train launches it; to is where it saves, "": the server's store.
func (in *instance) train(to string) *trainee {
	in.t.Helper()
	x := &trainee{in: in, told: filepath.Join(in.dir, "told")}
	task := fmt.Sprintf(`name: trainee
resources: {infra: local, use_spot: true}
checkpoint: {path: ~/ckpt, keep: 2, to: %[2]q}
run: |
  mkdir -p "$SKYPILOT_CHECKPOINT_DIR"; cd "$SKYPILOT_CHECKPOINT_DIR"
  n=$(cat state 2>/dev/null || echo 0)
  echo attempt $SKYPILOT_ATTEMPT $n >> %[1]s
  while :; do
    n=$((n+1)); echo $n > state.tmp; mv state.tmp state
    echo number $SKYPILOT_ATTEMPT $n >> %[1]s
    sleep 0.4
  done
`, x.told, to)
	if _, err := in.Client.LaunchJobs(context.Background(), &api.JobsLaunchBody{Task: task}); err != nil {
		in.t.Fatal(err)
	}
	return x
}

// heard gives what the newest line of a kind says of an attempt; 0: there is none.
func (x *trainee) heard(kind string, attempt int) (n int) {
	b, err := os.ReadFile(x.told)
	if err != nil && !os.IsNotExist(err) {
		x.in.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var k string
		var a, v int
		if c, _ := fmt.Sscan(line, &k, &a, &v); c == 3 && k == kind && a == attempt {
			n = v
		}
	}
	return n
}

func (x *trainee) row() api.ManagedJob {
	l, err := x.in.Client.ManagedJobs(context.Background(), api.ManagedFilter{})
	if err != nil || len(l.Jobs) != 1 {
		return api.ManagedJob{}
	}
	return l.Jobs[0]
}

// runs waits until an attempt after this one has done something.
func (x *trainee) runs(after int) (row api.ManagedJob) {
	x.in.t.Helper()
	x.in.Eventually(fmt.Sprintf("an attempt after %d runs", after), func() bool {
		row = x.row()
		return row.Attempt > after && row.Status == api.ManagedRunning && x.heard("number", row.Attempt) > 0
	})
	return row
}

// TestSaveFailpoints kills the server once at each point of a save, on demand and at a notice: what was acknowledged before is what
// the next attempt has at least, and what is known can be restored.
func TestSaveFailpoints(t *testing.T) {
	t.Parallel()
	killedWhileSaving(open(t), "", savePoints, 0, 10)
}

// killedWhileSaving kills the server at each point, under a save on demand (0) or at a notice of so many seconds.
func killedWhileSaving(in *instance, to string, points []string, notices ...int) {
	t := in.t
	t.Helper()
	defer in.Observe()()
	x := in.train(to)
	attempt, least := 0, 0
	for _, notice := range notices {
		for _, point := range points {
			row := x.runs(attempt)
			attempt = row.Attempt
			if notice == 0 {
				in.arm(point)
				if _, err := in.Hasty.SaveCheckpoints(context.Background(), row.ID); err == nil {
					t.Errorf("%s: a save was acknowledged though the server died of it", point)
				}
				if in.awaitKill(point).IsZero() {
					t.Fatalf("a save did not pass %s", point)
				}
				in.Healthy(2 * time.Minute)
			}
			in.Eventually("a save is acknowledged", func() bool {
				done := x.heard("number", attempt)
				_, err := in.Client.SaveCheckpoints(context.Background(), row.ID)
				if err == nil {
					least = done
				}
				return err == nil
			})
			if notice > 0 {
				in.arm(point)
			}
			in.Eventually("its node is taken away", func() bool {
				_, err := in.Client.Preempt(context.Background(), &api.PreemptBody{Cluster: row.Cluster, NoticeSeconds: notice})
				return err == nil
			})
			if notice > 0 {
				if in.awaitKill(point).IsZero() {
					t.Fatalf("a save at a notice did not pass %s", point)
				}
				in.Healthy(2 * time.Minute)
			}
			next := x.runs(attempt).Attempt
			begun := x.heard("attempt", next)
			t.Logf("notice %d s, killed at %-26s: attempt %d was saved at %d, attempt %d begins after %d", notice, point, attempt, least, next, begun)
			if begun < least {
				t.Errorf("attempt %d begins after %d, though %d was saved", next, begun, least)
			}
		}
	}
	if _, err := in.Client.CancelManagedJobs(context.Background(), &api.JobsCancelBody{JobIDs: []int64{1}}); err != nil {
		t.Fatal(err)
	}
	in.Eventually("the job is cancelled", func() bool { return x.row().Status == api.ManagedCancelled })
	in.settles()
}
