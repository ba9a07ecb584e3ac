package managed

import (
	"context"
	"sync"
	"testing"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/testserver"
)

// TestFoundAtOnce: whoever was told a job's number finds the job, and can cancel it, at once.
func TestFoundAtOnce(t *testing.T) {
	s := testserver.Start(t, config)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 3 {
				id := submit(t, s, "name: found\nrun: sleep 1000")
				rows, err := s.Client.ManagedJob(ctx, id)
				if err != nil || len(rows) != 1 || rows[0].Name != "found" || rows[0].User != "ana" {
					t.Errorf("job %d just submitted: %+v %v", id, rows, err)
				}
				if r, err := s.Client.CancelManagedJobs(ctx, &api.JobsCancelBody{JobIDs: []int64{id}}); err != nil || len(r.Cancelled) != 1 {
					t.Errorf("cancel of job %d just submitted: %+v %v", id, r, err)
				}
				until(t, s, id, "it is cancelled", func(j api.ManagedJob) bool { return j.Status == api.ManagedCancelled })
			}
		})
	}
	wg.Wait()
	nothingLeft(t, s)
}
