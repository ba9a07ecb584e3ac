// Package train runs the training example as a managed job on spot nodes of this machine, which are taken away from it again
// and again: it ends with the result of an undisturbed run, and no step before the last complete checkpoint is done twice.
package train

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/testserver"
)

const config = "local: {enabled: true}\n"

func TestMain(m *testing.M) {
	if runtime.GOOS != "linux" {
		fmt.Println("skipped: nodes of this machine are at their best on Linux")
		return
	}
	dir, err := os.MkdirTemp("", "tr")
	if err != nil {
		panic(err)
	}
	if out, err := exec.Command("go", "build", "-ldflags=-s -w", "-o", filepath.Join(dir, "sky-agent"), "github.com/skyloom/skyloom/cmd/sky-agent").CombinedOutput(); err != nil {
		fmt.Printf("%s\n%v\n", out, err)
		os.Exit(1)
	}
	os.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// trial is a job of the example, and its ledger.
type trial struct {
	t      *testing.T
	ctx    context.Context
	s      *testserver.Server
	id     int64
	ledger string
}

// program gives the example's command.
func program(t *testing.T) string {
	dir, err := filepath.Abs("../../examples/train")
	if err != nil {
		t.Fatal(err)
	}
	if p, err := exec.LookPath("python3"); err == nil {
		return p + " " + filepath.Join(dir, "train.py")
	}
	return "sh " + filepath.Join(dir, "train.sh")
}

func undisturbed(t *testing.T, steps int) string {
	dir := t.TempDir()
	cmd := exec.Command("sh", "-c", program(t))
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "LEDGER="+filepath.Join(dir, "ledger"), fmt.Sprint("STEPS=", steps), "STEP_SECONDS=0", "SKYPILOT_CHECKPOINT_DIR=ckpt")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v", out, err)
	}
	_, _, result := read(t, filepath.Join(dir, "ledger"))
	return result
}

// read gives the steps by attempt, in order, the last one done, and the result.
func read(t *testing.T, path string) (steps map[int][]int, last int, result string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	steps = map[int][]int{}
	for line := range strings.Lines(string(b)) {
		if r, ok := strings.CutPrefix(line, "result "); ok {
			result = strings.TrimSpace(r)
			continue
		}
		var attempt, step int
		if n, _ := fmt.Sscan(line, &attempt, &step); n == 2 {
			steps[attempt] = append(steps[attempt], step)
			last = max(last, step)
		}
	}
	return steps, last, result
}

func launch(t *testing.T, ctx context.Context, steps int, rule, more string) *trial {
	t.Helper()
	x := &trial{t: t, ctx: ctx, s: testserver.Start(t, config), ledger: filepath.Join(t.TempDir(), "ledger")}
	text := fmt.Sprintf("name: train\nresources: {infra: local, use_spot: true}\ncheckpoint: %s\nenvs: {STEPS: \"%d\", STEP_SECONDS: \"0.05\", LEDGER: %s}\n%srun: %s\n",
		rule, steps, x.ledger, more, program(t))
	if _, err := x.s.Client.LaunchJobs(ctx, &api.JobsLaunchBody{Task: text}); err != nil {
		t.Fatal(err)
	}
	x.id = 1
	t.Cleanup(func() {
		if t.Failed() {
			x.story()
		}
	})
	return x
}

func (x *trial) story() {
	evs, err := x.s.Client.ManagedEvents(context.Background(), x.id, 0, 0)
	x.t.Log("events", err)
	for _, e := range evs {
		x.t.Logf("%s %s %s: %s", e.Time.Format(time.StampMilli), e.Kind, e.Step, e.Message)
	}
}

func (x *trial) row() api.ManagedJob {
	x.t.Helper()
	l, err := x.s.Client.ManagedJobs(x.ctx, api.ManagedFilter{})
	if err != nil {
		x.t.Fatal(err)
	}
	if len(l.Jobs) == 0 {
		return api.ManagedJob{} // just submitted
	}
	return l.Jobs[0]
}

func (x *trial) until(what string, f func() bool) {
	x.t.Helper()
	for !f() {
		if x.ctx.Err() != nil {
			x.t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(30 * time.Millisecond)
	}
}

// advance waits until an attempt has done some steps, and gives its number and cluster.
func (x *trial) advance(after, by int) (attempt int, cluster string) {
	x.t.Helper()
	x.until(fmt.Sprintf("an attempt after %d goes on", after), func() bool {
		r := x.row()
		if r.Status.Terminal() {
			x.t.Fatalf("the job has ended: %s %s", r.Status, r.FailureReason)
		}
		steps, _, _ := read(x.t, x.ledger)
		attempt, cluster = r.Attempt, r.Cluster
		return r.Status == api.ManagedRunning && r.Attempt > after && len(steps[r.Attempt]) >= by
	})
	return attempt, cluster
}

func (x *trial) preempt(cluster string, notice int) {
	x.t.Helper()
	if _, err := x.s.Client.Preempt(x.ctx, &api.PreemptBody{Cluster: cluster, NoticeSeconds: notice}); err != nil {
		x.t.Fatal(err)
	}
}

func (x *trial) checkpoints() []api.Checkpoint {
	x.t.Helper()
	l, err := x.s.Client.Checkpoints(x.ctx, x.id)
	if err != nil {
		x.t.Fatal(err)
	}
	return l.Checkpoints
}

func TestPreemptedFiveTimes(t *testing.T) {
	if os.Getenv("SKYLOOM_TRAIN") == "" {
		t.Skip("five preemptions in a row: make e2e-jobs runs them; the other test of this package is the smoke part")
	}
	const steps = 240
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	want := undisturbed(t, steps)
	x := launch(t, ctx, steps, "{path: ~/ckpt, every: 1s, signal: USR1, keep: 2}", "")
	least := map[int]int{} // by attempt: the first step that it may do
	attempt := 0
	for i := range 5 {
		var cluster string
		attempt, cluster = x.advance(attempt, 8)
		seen, _, _ := read(t, x.ledger)
		done := seen[attempt][len(seen[attempt])-1]
		if i%2 == 0 { // no notice: what was saved last counts
			saved, err := x.s.Client.SaveCheckpoints(ctx, x.id)
			if err != nil || len(saved.Checkpoints) != 1 || saved.Checkpoints[0].Attempt > attempt {
				t.Fatalf("%+v %v", saved, err)
			}
			x.preempt(cluster, 0)
		} else {
			x.preempt(cluster, 3)
		}
		least[attempt+1] = done + 1
		if l := x.checkpoints(); len(l) > 2 || i > 0 && len(l) < 1 {
			t.Errorf("%d checkpoints are kept", len(l))
		}
	}
	x.until("the job ends", func() bool { return x.row().Status.Terminal() })
	if r := x.row(); r.Status != api.ManagedSucceeded || r.Recoveries != 5 {
		t.Errorf("%s after %d recoveries: %s", r.Status, r.Recoveries, r.FailureReason)
	}
	got, last, result := read(t, x.ledger)
	if result != want || last != steps {
		t.Errorf("the result is %q after %d steps, undisturbed %q", result, last, want)
	}
	seen := map[int]bool{}
	for a, list := range got {
		if list[0] < least[a] {
			t.Errorf("attempt %d begins with step %d, which was saved: %d would have been the first to do", a, list[0], least[a])
		}
		for i, s := range list {
			seen[s] = true
			if s != list[0]+i {
				t.Errorf("attempt %d does step %d as number %d after %d", a, s, i, list[0])
			}
		}
	}
	if len(seen) != steps {
		t.Errorf("%d of %d steps were done", len(seen), steps)
	}
	// What has ended is saved no more.
	if _, err := x.s.Client.SaveCheckpoints(ctx, x.id); err == nil {
		t.Error("a job that has ended was saved")
	}
}

// TestAllRanks saves the folders of two nodes together: each rank gets its own back, and nothing else.
func TestAllRanks(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	x := &trial{t: t, ctx: ctx, s: testserver.Start(t, config), id: 1}
	t.Cleanup(func() {
		if t.Failed() {
			x.story()
		}
	})
	text := `name: ranks
num_nodes: 2
resources: {infra: local, use_spot: true}
checkpoint: {path: state, scope: all, on_preempt: echo told >"$SKYPILOT_CHECKPOINT_DIR/notice"}
setup: mkdir -p "$SKYPILOT_CHECKPOINT_DIR"
run: |
  cd "$SKYPILOT_CHECKPOINT_DIR"
  if [ "$SKYPILOT_ATTEMPT" -gt 1 ]; then
    [ "$(cat rank)" = "$SKYPILOT_NODE_RANK" ] && [ "$(cat notice)" = told ] && [ "$(ls | wc -l)" = 2 ]
    exit
  fi
  echo $SKYPILOT_NODE_RANK >rank
  sleep 1000
`
	if _, err := x.s.Client.LaunchJobs(ctx, &api.JobsLaunchBody{Task: text}); err != nil {
		t.Fatal(err)
	}
	x.until("both ranks are saved", func() bool {
		if x.row().Status != api.ManagedRunning {
			return false
		}
		l, err := x.s.Client.SaveCheckpoints(ctx, x.id)
		return err == nil && len(l.Checkpoints) == 1 && l.Checkpoints[0].Ranks == 2 && l.Checkpoints[0].Files == 2
	})
	x.preempt(x.row().Cluster, 4)
	x.until("the job ends", func() bool { return x.row().Status.Terminal() })
	if r := x.row(); r.Status != api.ManagedSucceeded || r.Attempt != 2 {
		t.Errorf("%s after %d attempts: %s", r.Status, r.Attempt, r.FailureReason)
	}
	if l := x.checkpoints(); len(l) != 2 || l[0].Why != "notice" || l[0].Files != 4 || l[1].Why != "demand" {
		t.Errorf("%+v", l)
	}
}

// TestRefused tells before anything is created what can't be done.
func TestRefused(t *testing.T) {
	s := testserver.Start(t, config)
	_, err := s.Client.LaunchJobs(context.Background(), &api.JobsLaunchBody{Task: "checkpoint: {path: ~/ckpt, to: s3://bucket/x}\nrun: echo\n"})
	if err == nil || !strings.Contains(err.Error(), "come with a later version") {
		t.Error(err)
	}
	if _, err := s.Client.SaveCheckpoints(context.Background(), 9); err == nil || !strings.Contains(err.Error(), "no managed job 9") {
		t.Error(err)
	}
	if _, err := s.Client.Checkpoints(context.Background(), 9); err == nil || !strings.Contains(err.Error(), "no managed job 9") {
		t.Error(err)
	}
}
