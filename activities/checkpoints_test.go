package activities

import (
	"path/filepath"
	"testing"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

// TestNewestCheckpointOfEarlierAttempts: the server may die after it has submitted an attempt and before it could say so. What the
// attempt has saved itself by then is not brought back over what it works on.
func TestNewestCheckpointOfEarlierAttempts(t *testing.T) {
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "sky.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a := &Activities{Store: s}
	row := api.ManagedJob{ID: 1, Status: api.ManagedRunning, Attempt: 1, Seq: 1}
	if err := s.PutManagedJobs(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.AddCheckpoint(t.Context(), api.Checkpoint{JobID: 1, Attempt: 1, Manifests: []string{"m"}}, 3); err != nil {
		t.Fatal(err)
	}
	if c, err := a.NewestCheckpoint(t.Context(), 1, 0, 1); c != nil || err != nil {
		t.Errorf("attempt 1 starts from its own %+v %v", c, err)
	}
	if c, err := a.NewestCheckpoint(t.Context(), 1, 0, 2); c == nil || c.Attempt != 1 || err != nil {
		t.Errorf("attempt 2 starts from %+v %v", c, err)
	}
}
