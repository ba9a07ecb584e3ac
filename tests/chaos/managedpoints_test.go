package chaos

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
)

// managedPoints are what a managed job passes between its submission and its end.
var managedPoints = []string{"jobs.before-start-workflows", "jobs.after-start-workflows", "provision.before-create", "provision.after-create", "provision.after-configure",
	"job.before-submit", "job.after-submit", "down.before-delete", "down.after-delete"}

// TestManagedFailpoints kills the server once at each point of a managed job's life. A submission that got no answer is repeated; there is
// one job all the same, which runs once, in its first attempt.
func TestManagedFailpoints(t *testing.T) {
	t.Parallel()
	in := open(t)
	defer in.Observe()()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	for i, point := range managedPoints {
		told := filepath.Join(in.dir, "told-"+point)
		in.arm(point)
		body := api.JobsLaunchBody{Base: api.Base{RequestID: api.NewRequestID()}, Task: fmt.Sprintf("name: once\nresources: {infra: local}\nrun: echo once >> %s; sleep 1\n", told)}
		_, err := in.Client.LaunchJobs(ctx, &body)
		if in.awaitKill(point).IsZero() {
			t.Fatalf("a managed job did not pass %s", point)
		}
		in.Healthy(2 * time.Minute)
		if err != nil {
			if _, err := in.Client.LaunchJobs(ctx, &body); err != nil {
				t.Fatalf("%s: sent again: %v", point, err)
			}
		}
		var rows []api.ManagedJob
		in.Eventually("the job ends", func() bool {
			l, err := in.Client.ManagedJobs(ctx, api.ManagedFilter{})
			if err != nil || len(l.Jobs) == 0 {
				return false
			}
			rows = l.Jobs
			return len(rows) > i && rows[0].Status.Terminal()
		})
		if len(rows) != i+1 {
			t.Fatalf("%s: %d jobs, want %d", point, len(rows), i+1)
		}
		if r := rows[0]; r.Status != api.ManagedSucceeded || r.Attempt != 1 || r.Recoveries != 0 {
			t.Errorf("%s: the job is %s in attempt %d (%s)", point, r.Status, r.Attempt, r.FailureReason)
		}
		if b, err := os.ReadFile(told); string(b) != "once\n" {
			t.Errorf("%s: the job told %q, %v", point, b, err)
		}
		t.Logf("killed at %s: %s", point, rows[0].Status)
	}
	in.settles()
}
