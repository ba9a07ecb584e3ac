package arrays

import (
	"encoding/json"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/recovery"
)

func TestSets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		elements := rapid.SliceOfN(rapid.IntRange(0, 60), 0, 80).Draw(t, "elements")
		want := map[int]bool{}
		for _, e := range elements {
			want[e] = true
		}
		s := Of(elements...)
		if s.Len() != len(want) {
			t.Fatalf("%s holds %d, want %d", s, s.Len(), len(want))
		}
		last := -1
		s.All(func(e int) bool {
			if !want[e] || e <= last || !s.Has(e) {
				t.Fatalf("%s gives %d after %d", s, e, last)
			}
			last = e
			return true
		})
		b, err := json.Marshal(s)
		var back Set
		if err != nil || json.Unmarshal(b, &back) != nil || back.String() != s.String() {
			t.Fatalf("%s reads back as %s: %v", b, back, err)
		}
		n := rapid.IntRange(0, 90).Draw(t, "n")
		first, rest := s.Take(n)
		if first.Len() != min(n, s.Len()) || first.Union(rest).String() != s.String() || first.Len()+rest.Len() != s.Len() {
			t.Fatalf("%s by %d: %s and %s", s, n, first, rest)
		}
		first.All(func(e int) bool {
			if rest.Has(e) {
				t.Fatalf("%d is in both parts", e)
			}
			return true
		})
	})
	if _, err := Parse("3-1"); err == nil {
		t.Error("a range that falls is taken")
	}
}

func TestBatchSize(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		todo, clusters, slots := rapid.IntRange(1, 100_000).Draw(t, "todo"), rapid.IntRange(1, 500).Draw(t, "clusters"), rapid.IntRange(1, 64).Draw(t, "slots")
		mean := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "mean"))
		n := BatchSize(todo, clusters, slots, mean, rapid.Bool().Draw(t, "known"))
		if n < 1 || n > todo || n > MaxBatch {
			t.Fatalf("%d of %d", n, todo)
		}
	})
	// An hour each: no cluster is given more than it runs at once. No time at all: the first tells, then a few large batches.
	if n := BatchSize(10_000, 50, 4, time.Hour, true); n != 4 {
		t.Errorf("long elements come in batches of %d", n)
	}
	if n := BatchSize(10_000, 50, 4, 0, true); n != 200 {
		t.Errorf("quick elements come in batches of %d", n)
	}
	if n := BatchSize(10_000, 50, 4, 0, false); n != 8 {
		t.Errorf("the first batch is of %d", n)
	}
	if n := BatchSize(0, 50, 4, 0, false); n != 0 {
		t.Errorf("nothing comes in batches of %d", n)
	}
}

func TestDecide(t *testing.T) {
	again := recovery.Policy{MaxRestarts: 1, Codes: []int{33}}
	failed := recovery.Ending{Status: api.JobFailed, ExitCodes: []int{3}}
	for name, c := range map[string]struct {
		p    recovery.Policy
		t    Try
		want Verdict
	}{
		"success on a lost cluster": {again, Try{Ending: recovery.Ending{Status: api.JobSucceeded, Lost: true}}, Verdict{Status: api.ManagedSucceeded}},
		"failure, tries left":       {again, Try{Ending: failed}, Verdict{Status: api.ManagedPending, Counts: true, Reason: "rank 0 exited with 3; restart 1 of 1"}},
		"failure, none left":        {again, Try{Restarts: 1, Ending: failed}, Verdict{Status: api.ManagedFailed, Reason: "rank 0 exited with 3"}},
		"code that does not count": {again, Try{Restarts: 1, Ending: recovery.Ending{Status: api.JobFailed, ExitCodes: []int{33}}},
			Verdict{Status: api.ManagedPending, Reason: "exit code 33 is among recover_on_exit_codes"}},
		"failure on a lost cluster": {again, Try{Restarts: 1, Ending: recovery.Ending{Status: api.JobFailed, Lost: true, Reason: "gone"}}, Verdict{Status: api.ManagedPending, Reason: "gone"}},
		"unfinished, lost":          {again, Try{Unfinished: true, Ending: recovery.Ending{Lost: true, Reason: "gone"}}, Verdict{Status: api.ManagedPending, Reason: "gone"}},
		"the node's own trouble":    {again, Try{Ending: recovery.Ending{Status: api.JobFailedDriver, Reason: "no disk"}}, Verdict{Status: api.ManagedPending, Return: true, Reason: "no disk"}},
		"the node's own trouble, for ever": {again, Try{Returns: MaxReturns, Ending: recovery.Ending{Status: api.JobFailedDriver, Reason: "no disk"}},
			Verdict{Status: api.ManagedFailed, Reason: "could not be run, 11 times: no disk"}},
		"cancelled":             {again, Try{Cancelled: true, Unfinished: true}, Verdict{Status: api.ManagedCancelled, Reason: "cancelled"}},
		"cancelled, but done":   {again, Try{Cancelled: true, Ending: recovery.Ending{Status: api.JobSucceeded}}, Verdict{Status: api.ManagedSucceeded}},
		"cancelled, had failed": {again, Try{Cancelled: true, Ending: failed}, Verdict{Status: api.ManagedFailed, Reason: "rank 0 exited with 3"}},
		"recovery off":          {recovery.Policy{Off: true}, Try{Unfinished: true, Ending: recovery.Ending{Lost: true, Reason: "gone"}}, Verdict{Status: api.ManagedFailed, Reason: "lost, and job_recovery is none: gone"}},
	} {
		if got := Decide(c.p, c.t); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
