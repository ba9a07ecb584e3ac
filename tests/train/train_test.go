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
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/activities"
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

// start launches a job whose task file knows where its ledger is.
func start(t *testing.T, ctx context.Context, text func(ledger string) string) *trial {
	t.Helper()
	return startWith(t, ctx, config, text)
}

func startWith(t *testing.T, ctx context.Context, config string, text func(ledger string) string) *trial {
	t.Helper()
	x := &trial{t: t, ctx: ctx, s: testserver.Start(t, config), ledger: filepath.Join(t.TempDir(), "ledger"), id: 1}
	t.Cleanup(func() {
		if t.Failed() {
			x.story()
		}
	})
	if _, err := x.s.Client.LaunchJobs(ctx, &api.JobsLaunchBody{Task: text(x.ledger)}); err != nil {
		t.Fatal(err)
	}
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

// example gives examples/train.yaml with the lines of its program where they are, some steps and a ledger. The attempts before the
// last have no end; the last one waits for its number of steps in the file goal.
func example(t *testing.T, ledger, goal string, attempts int) string {
	t.Helper()
	b, err := os.ReadFile("../../examples/train.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs("../../examples/train")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for old, now := range map[string]string{
		"workdir: examples/train\n": "",
		"every: 2s":                 "every: 1s",
		"  STEPS: \"200\"\n":        fmt.Sprintf("  STEPS: \"1000000\"\n  LEDGER: %s\n", ledger),
		"run: |\n": fmt.Sprintf("run: |\n  cd %s\n  if [ $SKYPILOT_ATTEMPT -ge %d ]; then\n    until [ -s %[3]s ]; do sleep 0.05; done\n    export STEPS=$(cat %[3]s)\n  fi\n",
			dir, attempts, goal),
	} {
		if strings.Count(text, old) != 1 {
			t.Fatalf("examples/train.yaml has no line %q", old)
		}
		text = strings.Replace(text, old, now, 1)
	}
	return text
}

// TestPreemptedFiveTimes runs examples/train.yaml, takes its node away five times (SKYLOOM_TRAIN: as often as that says), with
// and without notice, and compares the result with that of an undisturbed run.
func TestPreemptedFiveTimes(t *testing.T) {
	times := 5
	if n, err := strconv.Atoi(os.Getenv("SKYLOOM_TRAIN")); err == nil && n > times {
		times = n
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(times)*2*time.Minute)
	defer cancel()
	dir := t.TempDir()
	goal := filepath.Join(dir, "goal")
	x := start(t, ctx, func(ledger string) string { return example(t, ledger, goal, times+1) })
	least := map[int]int{} // by attempt: the first step that it may do
	attempt := 0
	for i := range times {
		var cluster string
		attempt, cluster = x.advance(attempt, 8)
		x.restoredNewest(attempt)
		seen, _, _ := read(t, x.ledger)
		done := seen[attempt][len(seen[attempt])-1]
		if i%2 == 0 { // no notice: what was saved last counts
			saved, err := x.s.Client.SaveCheckpoints(ctx, x.id)
			if err != nil || len(saved.Checkpoints) != 1 || saved.Checkpoints[0].Attempt > attempt {
				t.Fatalf("%+v %v", saved, err)
			}
			if w := saved.Checkpoints[0].Warnings; len(w) == 0 {
				least[attempt+1] = done + 1
			} else {
				t.Logf("attempt %d: %v", attempt, w)
			}
			x.preempt(cluster, 0)
		} else {
			x.preempt(cluster, 3)
			x.until("the next attempt", func() bool { return x.row().Attempt > attempt })
			if x.savedInTime(attempt) { // a busy machine may need longer than the notice
				least[attempt+1] = done + 1
			}
		}
		if l := x.checkpoints(); len(l) > 3 || i > 0 && len(l) < 1 {
			t.Errorf("%d checkpoints are kept", len(l))
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
	if r := x.row(); r.Status != api.ManagedSucceeded || r.Recoveries != times {
		t.Errorf("%s after %d recoveries: %s", r.Status, r.Recoveries, r.FailureReason)
	}
	got, last, result := read(t, x.ledger)
	if result != want || last != steps {
		t.Errorf("the result is %q after %d steps, undisturbed %q after %d", result, last, want, steps)
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

// restoredNewest checks that no attempt before this one has saved anything newer than what this one began with.
func (x *trial) restoredNewest(attempt int) {
	x.t.Helper()
	restored := 0
	for _, e := range x.events() {
		if n := 0; e.Attempt == attempt {
			if k, _ := fmt.Sscanf(e.Message, "restores checkpoint %d,", &n); k == 1 {
				restored = n
			}
		}
	}
	for _, c := range x.checkpoints() {
		if c.Attempt < attempt && c.N > restored {
			x.t.Errorf("attempt %d began with checkpoint %d, though attempt %d had saved %d", attempt, restored, c.Attempt, c.N)
		}
	}
}

// savedInTime says that an attempt's program has saved after a notice, and that all of it was kept.
func (x *trial) savedInTime(attempt int) bool {
	for _, e := range x.events() {
		if e.Attempt == attempt && e.Step == "checkpoint" && e.Kind == api.EventStep {
			x.t.Logf("attempt %d: %s", attempt, e.Message)
			return !strings.Contains(e.Message, ";")
		}
	}
	x.t.Logf("attempt %d was not saved within its notice", attempt)
	return false
}

func (x *trial) events() []api.Event {
	x.t.Helper()
	evs, err := x.s.Client.ManagedEvents(x.ctx, x.id, 0, 0)
	if err != nil {
		x.t.Fatal(err)
	}
	return evs
}

// TestAllRanks saves the folders of two nodes together: each rank gets its own back, and nothing else.
func TestAllRanks(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
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
	x := start(t, ctx, func(string) string { return text })
	x.until("both ranks are saved", func() bool {
		if x.row().Status != api.ManagedRunning {
			return false
		}
		l, err := x.s.Client.SaveCheckpoints(ctx, x.id)
		return err == nil && len(l.Checkpoints) == 1 && l.Checkpoints[0].Ranks == 2 && l.Checkpoints[0].Files == 2
	})
	x.preempt(x.row().Cluster, 10)
	x.until("the job ends", func() bool { return x.row().Status.Terminal() })
	if r := x.row(); r.Status != api.ManagedSucceeded || r.Attempt != 2 {
		t.Errorf("%s after %d attempts: %s", r.Status, r.Attempt, r.FailureReason)
	}
	if l := x.checkpoints(); len(l) != 2 || l[0].Why != "notice" || l[0].Files != 4 || l[1].Why != "demand" {
		t.Errorf("%+v", l)
	}
}

// TestLogOfALostNode loses nodes without a notice: what they had printed is there all the same, but for the last seconds.
func TestLogOfALostNode(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	x := start(t, ctx, func(string) string {
		return `name: talks
num_nodes: 2
resources: {infra: local, use_spot: true}
setup: echo setup of $SKYPILOT_SETUP_NODE_RANK
run: |
  echo rank $SKYPILOT_NODE_RANK attempt $SKYPILOT_ATTEMPT
  i=0
  while [ $SKYPILOT_ATTEMPT -lt 2 ]; do i=$((i+1)); echo line $i; sleep 0.05; done
  echo the end
`
	})
	// Kept is what would be left if the nodes were lost now.
	kept := func(rank int, phase string) string {
		b, _ := os.ReadFile(filepath.Join(activities.LogDir(x.s.Home, 1, 0, 1), fmt.Sprintf("%d-%s.log", rank, phase)))
		return string(b)
	}
	x.until("the log of both nodes is kept while they run", func() bool {
		for rank := range 2 {
			if kept(rank, "setup") != fmt.Sprintf("setup of %d\n", rank) || strings.Count(kept(rank, "run"), "\n") < 20 {
				return false
			}
		}
		return true
	})
	lines := [2]int{strings.Count(kept(0, "run"), "\n"), strings.Count(kept(1, "run"), "\n")}
	x.preempt(x.row().Cluster, 0)
	x.until("the job ends", func() bool { return x.row().Status.Terminal() })
	text, cuts := map[string]string{}, map[string]bool{}
	end, err := x.s.Client.ManagedLogs(ctx, x.id, api.ManagedLogFilter{}, func(c api.LogChunk) error {
		text[fmt.Sprintf("%d/%d-%s", c.Attempt, c.Rank, c.Phase)] += string(c.Data)
		if c.Cut != "" {
			cuts[fmt.Sprintf("%d/%d", c.Attempt, c.Rank)] = true
			t.Log(c.Cut)
		}
		return nil
	})
	if err != nil || end.Status != api.ManagedSucceeded {
		t.Fatalf("%+v %v", end, err)
	}
	for rank := range 2 {
		first := text[fmt.Sprintf("1/%d-run", rank)]
		want := fmt.Sprintf("rank %d attempt 1\n", rank)
		for i := 1; len(want) < len(first); i++ {
			want += fmt.Sprintf("line %d\n", i)
		}
		if !strings.HasPrefix(want, first) || strings.Count(first, "\n") < lines[rank] {
			t.Errorf("node %d, attempt 1, of which %d lines were kept before: %.200q", rank, lines[rank], first)
		}
		if got := text[fmt.Sprintf("2/%d-run", rank)]; got != fmt.Sprintf("rank %d attempt 2\nthe end\n", rank) {
			t.Errorf("node %d, attempt 2: %q", rank, got)
		}
		if !cuts[fmt.Sprintf("1/%d", rank)] || cuts[fmt.Sprintf("2/%d", rank)] {
			t.Errorf("said to be cut: %v", cuts)
		}
	}
}

// TestRefused tells before anything is created what can't be done.
func TestRefused(t *testing.T) {
	s := testserver.Start(t, config)
	for to, want := range map[string]string{
		"oci://bucket/x": "not supported", "https://account.blob.core.windows.net/c": "not supported",
		"r2://bucket/x": "does not say where", "s3://-/x": "not the name of a bucket",
	} {
		_, err := s.Client.LaunchJobs(context.Background(), &api.JobsLaunchBody{Task: "checkpoint: {path: ~/ckpt, to: \"" + to + "\"}\nrun: echo\n"})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", to, err)
		}
	}
	if l, err := s.Client.ManagedJobs(context.Background(), api.ManagedFilter{}); err != nil || len(l.Jobs) > 0 {
		t.Errorf("%+v %v", l, err)
	}
	if _, err := s.Client.SaveCheckpoints(context.Background(), 9); err == nil || !strings.Contains(err.Error(), "no managed job 9") {
		t.Error(err)
	}
	if _, err := s.Client.Checkpoints(context.Background(), 9); err == nil || !strings.Contains(err.Error(), "no managed job 9") {
		t.Error(err)
	}
}
