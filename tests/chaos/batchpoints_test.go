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

// batchPoints are what a batch of an array's elements passes.
var batchPoints = []string{"batch.before-submit", "batch.after-submit", "batch.before-settle", "batch.after-settle"}

// TestBatchFailpoints kills the server once at each point of a batch: the array ends as it would have, and every element ran once.
func TestBatchFailpoints(t *testing.T) {
	t.Parallel()
	in := open(t)
	defer in.Observe()()
	const elements = 12
	for i, point := range batchPoints {
		told := filepath.Join(in.dir, "told-"+point)
		in.arm(point)
		ref, err := in.Client.LaunchJobs(context.Background(), &api.JobsLaunchBody{Base: api.Base{RequestID: api.NewRequestID()}, Task: fmt.Sprintf(`name: sweep
resources: {infra: local}
array: {count: %d, parallel: 2}
run: echo $SKYPILOT_ARRAY_INDEX >> %s
`, elements, told)})
		if err != nil {
			t.Fatalf("%s: %v %v", point, ref, err)
		}
		if in.awaitKill(point).IsZero() {
			t.Fatalf("an array did not pass %s", point)
		}
		in.Healthy(2 * time.Minute)
		var row api.ManagedJob
		in.Eventually("the array ends", func() bool {
			l, err := in.Client.ManagedJobs(context.Background(), api.ManagedFilter{IDs: []int64{int64(i + 1)}})
			if err != nil || len(l.Jobs) != 1 {
				return false
			}
			row = l.Jobs[0]
			return row.Status.Terminal()
		})
		if row.Status != api.ManagedSucceeded {
			t.Errorf("%s: the array is %s (%s)", point, row.Status, row.FailureReason)
		}
		b, err := os.ReadFile(told)
		if err != nil {
			t.Fatal(err)
		}
		ran := map[string]int{}
		for line := range strings.Lines(string(b)) {
			ran[strings.TrimSpace(line)]++
		}
		for e := range elements {
			if n := ran[fmt.Sprint(e)]; n != 1 {
				t.Errorf("%s: element %d ran %d times", point, e, n)
			}
		}
		t.Logf("killed at %s: %s", point, row.Status)
	}
	in.settles()
}
