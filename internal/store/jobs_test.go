package store

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/skyloom/skyloom/api"
)

func TestJobs(t *testing.T) {
	s, clk := open(t)
	ctx := t.Context()
	must(t, s.PutCluster(ctx, api.Cluster{Name: "c", Hash: "h", Seq: 1}))
	must(t, s.PutCluster(ctx, api.Cluster{Name: "d", Hash: "i", Seq: 1}))
	must(t, s.PutJobs(ctx, "c", "h", []api.Job{{ID: 1, Seq: 1, Status: api.JobRunning, UserHash: "u"}, {ID: 2, Seq: 1, Status: api.JobPending}, {ID: 3, Seq: 4, Status: api.JobSucceeded}}))
	must(t, s.PutJobs(ctx, "d", "i", []api.Job{{ID: 1, Seq: 1, Status: api.JobRunning}}))
	list := func(f JobFilter) string {
		t.Helper()
		js, err := s.Jobs(ctx, f)
		must(t, err)
		out := ""
		for _, j := range js {
			out += fmt.Sprintf("%s:%d:%s ", j.Cluster, j.ID, j.Status)
		}
		return out
	}
	for want, f := range map[string]JobFilter{
		"c:3:SUCCEEDED c:2:PENDING c:1:RUNNING d:1:RUNNING ": {},
		"c:3:SUCCEEDED c:2:PENDING c:1:RUNNING ":             {Clusters: []string{"c", "x"}},
		"c:2:PENDING c:1:RUNNING ":                           {Hash: "h", ActiveOnly: true},
		"c:1:RUNNING ":                                       {UserHash: "u"},
		"c:2:PENDING ":                                       {Clusters: []string{"c"}, IDs: []int64{2, 9}},
		"c:3:SUCCEEDED ":                                     {Limit: 1},
	} {
		if got := list(f); got != want {
			t.Errorf("%+v: %s", f, got)
		}
	}
	end := clk.now().Add(time.Minute)
	must(t, s.EndOpenJobs(ctx, EndJobs{Hash: "h", Status: api.JobFailedDriver, Reason: "head lost", At: end}))
	must(t, s.EndOpenJobs(ctx, EndJobs{Hash: "h", Status: api.JobCancelled}))
	if got := list(JobFilter{Hash: "h"}); got != "c:3:SUCCEEDED c:2:FAILED_DRIVER c:1:FAILED_DRIVER " {
		t.Fatal(got)
	}
	js, _ := s.Jobs(ctx, JobFilter{Hash: "h", IDs: []int64{1}})
	if js[0].Reason != "head lost" || !js[0].EndAt.Equal(end) || js[0].ClusterHash != "h" {
		t.Fatalf("%+v", js[0])
	}
	must(t, s.RemoveCluster(ctx, Removal{Name: "c", Hash: "h"}))
	if got := list(JobFilter{Clusters: []string{"c"}}); got != "" {
		t.Fatal(got)
	}
	if err := s.EndOpenJobs(ctx, EndJobs{Hash: "h", Status: api.JobRunning}); err == nil {
		t.Fatal("jobs were ended as RUNNING")
	}
}

// TestJobMonotone: whatever arrives, in whatever order and how often, a job only moves forward and keeps its end.
func TestJobMonotone(t *testing.T) {
	s, _ := open(t)
	all := []api.JobStatus{api.JobInit, api.JobPending, api.JobSettingUp, api.JobRunning, api.JobFailedDriver, api.JobSucceeded, api.JobFailed, api.JobFailedSetup, api.JobCancelled}
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		hash := fmt.Sprint("h", run)
		var last api.Job
		for i := range rapid.IntRange(1, 20).Draw(t, "n") {
			if rapid.IntRange(0, 9).Draw(t, "op") == 0 {
				if err := s.EndOpenJobs(t.Context(), EndJobs{Hash: hash, Status: api.JobFailedDriver}); err != nil {
					t.Fatal(err)
				}
			} else if err := s.PutJobs(t.Context(), "c", hash, []api.Job{{ID: 1, Seq: rapid.Int64Range(1, 12).Draw(t, "seq"), Status: rapid.SampledFrom(all).Draw(t, "status")}}); err != nil {
				t.Fatal(err)
			}
			js, err := s.Jobs(t.Context(), JobFilter{Hash: hash})
			if err != nil {
				t.Fatal(err)
			}
			if len(js) == 0 {
				continue
			}
			j := js[0]
			if i > 0 && last.ID != 0 {
				if last.Status.Terminal() && j.Status != last.Status {
					t.Fatalf("%s left for %s", last.Status, j.Status)
				}
				if j.Status.Order() < last.Status.Order() || j.Seq < last.Seq {
					t.Fatalf("%s/%d went back to %s/%d", last.Status, last.Seq, j.Status, j.Seq)
				}
			}
			last = j
		}
	})
}
