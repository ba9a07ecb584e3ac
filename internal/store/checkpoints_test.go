package store

import (
	"errors"
	"slices"
	"testing"

	"github.com/skyloom/skyloom/api"
)

func TestCheckpoints(t *testing.T) {
	s, _ := open(t)
	row := api.ManagedJob{ID: 7, TaskID: 1, Status: api.ManagedRunning, Attempt: 2, Seq: 1}
	must(t, s.PutManagedJobs(t.Context(), row))
	c := api.Checkpoint{JobID: 7, TaskID: 1, Attempt: 2, Files: 3, Bytes: 9, Why: "interval"}
	add := func(attempt int, manifests ...string) (api.Checkpoint, bool, error) {
		c.Attempt, c.Manifests = attempt, manifests
		return s.AddCheckpoint(t.Context(), c, 2)
	}
	if got, err := s.NewestCheckpoint(t.Context(), 7, 1); got != nil || err != nil {
		t.Fatal(got, err)
	}
	for i, x := range []struct {
		manifest string
		n        int
		fresh    bool
	}{{"a", 1, true}, {"a", 1, false}, {"b", 2, true}, {"a", 3, true}} {
		got, fresh, err := add(2, x.manifest, "rank1")
		if err != nil || got.N != x.n || fresh != x.fresh || got.Ranks != 2 {
			t.Errorf("%d: %+v %v %v", i, got, fresh, err)
		}
	}
	// Two servers may save at once: the picture that was taken later stays the newest, whichever arrives last.
	for _, x := range []struct {
		taken    int64
		manifest string
		n        int
		fresh    bool
	}{{20, "later", 4, true}, {10, "earlier", 4, false}, {21, "b", 5, true}, {30, "a", 6, true}} {
		c.Taken = x.taken
		if got, fresh, err := add(2, x.manifest, "rank1"); err != nil || got.N != x.n || fresh != x.fresh {
			t.Errorf("taken at %d: %+v %v %v", x.taken, got, fresh, err)
		}
	}
	for _, attempt := range []int{1, 3} {
		if _, _, err := add(attempt, "late"); !errors.Is(err, ErrStale) {
			t.Errorf("attempt %d: %v", attempt, err)
		}
	}
	list, err := s.Checkpoints(t.Context(), 7)
	must(t, err)
	var ns []int
	for _, c := range list {
		ns = append(ns, c.N)
	}
	if !slices.Equal(ns, []int{6, 5}) { // two are kept
		t.Error(ns)
	}
	got, err := s.NewestCheckpoint(t.Context(), 7, 1)
	if err != nil || got.N != 6 || !slices.Equal(got.Manifests, []string{"a", "rank1"}) || got.SavedAt.IsZero() {
		t.Error(got, err)
	}
	count := 0
	must(t, s.EachCheckpoint(t.Context(), func(api.Checkpoint) { count++ }))
	if count != 2 {
		t.Error(count)
	}
	row.Status, row.Seq = api.ManagedSucceeded, 2
	must(t, s.PutManagedJobs(t.Context(), row))
	if _, _, err := add(2, "after the end"); !errors.Is(err, ErrStale) {
		t.Error(err)
	}
	if _, _, err := s.AddCheckpoint(t.Context(), api.Checkpoint{JobID: 99, Manifests: []string{"x"}}, 1); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}
