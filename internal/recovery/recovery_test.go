package recovery

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/skyloom/skyloom/api"
)

func TestDecide(t *testing.T) {
	p := Policy{Strategy: EagerNextRegion, MaxRestarts: 2, Codes: []int{33}}
	for _, c := range []struct {
		name     string
		p        Policy
		restarts int
		e        Ending
		move     Move
		status   api.ManagedStatus
		counts   bool
	}{
		{"success", p, 0, Ending{Status: api.JobSucceeded}, Finish, api.ManagedSucceeded, false},
		{"success on a cluster that is gone by now", p, 0, Ending{Status: api.JobSucceeded, Lost: true}, Finish, api.ManagedSucceeded, false},
		{"error, may restart", p, 0, Ending{Status: api.JobFailed, ExitCodes: []int{1}}, Restart, "", true},
		{"error, used up", p, 2, Ending{Status: api.JobFailed, ExitCodes: []int{1}}, Finish, api.ManagedFailed, false},
		{"code that does not count", p, 2, Ending{Status: api.JobFailed, ExitCodes: []int{0, 33}}, Restart, "", false},
		{"setup", Policy{}, 0, Ending{Status: api.JobFailedSetup, ExitCodes: []int{1}}, Finish, api.ManagedFailedSetup, false},
		{"failure of a lost cluster", p, 2, Ending{Status: api.JobFailed, ExitCodes: []int{1}, Lost: true}, Recover, "", false},
		{"setup cut by a preemption", Policy{}, 0, Ending{Status: api.JobFailedSetup, Lost: true}, Recover, "", false},
		{"silence", p, 0, Ending{}, Recover, "", false},
		{"driver", p, 0, Ending{Status: api.JobFailedDriver}, Recover, "", false},
		{"recovery off", Policy{Off: true, MaxRestarts: 9}, 0, Ending{Lost: true}, Finish, api.ManagedFailed, false},
		{"cancelled behind our back", p, 0, Ending{Status: api.JobCancelled}, Finish, api.ManagedFailed, false},
	} {
		d := Decide(c.p, c.restarts, c.e)
		if d.Move != c.move || d.Status != c.status || d.Counts != c.counts || d.Reason == "" {
			t.Errorf("%s: got %+v", c.name, d)
		}
	}
}

func TestErrorsAreRestartedAsOftenAsAsked(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Policy{MaxRestarts: rapid.IntRange(0, 5).Draw(t, "max")}
		counted := 0
		for i := range 20 {
			lost := rapid.Bool().Draw(t, "lost")
			d := Decide(p, counted, Ending{Status: api.JobFailed, ExitCodes: []int{1}, Lost: lost})
			switch {
			case lost && d.Move != Recover:
				t.Fatalf("a loss is answered by %s", d.Move)
			case !lost && counted < p.MaxRestarts && (d.Move != Restart || !d.Counts):
				t.Fatalf("step %d: %+v", i, d)
			case !lost && counted == p.MaxRestarts && d.Move != Finish:
				t.Fatalf("step %d: %+v after %d restarts", i, d, counted)
			}
			if d.Counts {
				counted++
			}
		}
	})
}

func TestBlocks(t *testing.T) {
	all := []Place{{Cloud: "aws", Region: "east"}, {Cloud: "aws", Region: "west"}, {Cloud: "gcp", Region: "east"}}
	old := all[0]
	blocked := func(s Strategy, round int) map[Place]bool {
		out := map[Place]bool{}
		for _, b := range Blocks(s, round, old, all) {
			out[Place{Cloud: b.Cloud, Region: b.Region}] = true
		}
		return out
	}
	if b := blocked(EagerNextRegion, 0); len(b) != 1 || !b[old] {
		t.Errorf("eager blocks %v", b)
	}
	if b := blocked(Failover, 0); len(b) != 2 || b[old] {
		t.Errorf("failover blocks %v", b)
	}
	for _, s := range []Strategy{Failover, EagerNextRegion} {
		if b := blocked(s, FirstTries); len(b) != 0 {
			t.Errorf("%s still blocks %v after its first rounds", s, b)
		}
	}
	if b := Blocks(EagerNextRegion, 0, old, []Place{old}); len(b) != 0 {
		t.Errorf("the only place there is was blocked: %v", b)
	}
}

// A launch that lost its nodes is soon tried again, and not for ever so.
func TestRelaunch(t *testing.T) {
	for n, want := range []time.Duration{2 * time.Second, 8 * time.Second, 32 * time.Second, Backoff(7, 0), Backoff(7, 1)} {
		if d := Relaunch(7, n); d != want {
			t.Errorf("round %d waits %v, want %v", n, d, want)
		}
	}
}

func TestBackoff(t *testing.T) {
	for job := int64(1); job < 200; job++ {
		for n := range 10 {
			if d := Backoff(job, n); d < 36*time.Second || d > 7*time.Minute {
				t.Fatalf("job %d round %d waits %s", job, n, d)
			}
		}
	}
	if Backoff(1, 0) == Backoff(2, 0) && Backoff(2, 0) == Backoff(3, 0) {
		t.Error("jobs are not spread")
	}
}
