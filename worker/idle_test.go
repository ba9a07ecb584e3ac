package worker

import (
	"path/filepath"
	"testing"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

// TestAtWork holds what keeps a server from ending by itself.
func TestAtWork(t *testing.T) {
	st, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "sky.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	ctx := t.Context()
	expect := func(want string) {
		t.Helper()
		if got, err := atWork(ctx, st); err != nil || got != want {
			t.Errorf("%q %v, want %q", got, err, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	expect("")
	id := api.NewRequestID()
	_, _, err = st.CreateRequest(ctx, store.NewRequest{Request: api.Request{ID: id, Name: "sky.launch", Status: api.RequestPending}, Kind: "launch", BodyHash: "h"})
	must(err)
	expect("requests")
	must(st.FinishRequest(ctx, id, api.RequestSucceeded, nil, nil))
	expect("")
	must(st.PutCluster(ctx, api.Cluster{Name: "c", Hash: "h1", Status: api.ClusterUp, Seq: 1}))
	expect("clusters")
	must(st.PutCluster(ctx, api.Cluster{Name: "c", Hash: "h1", Status: api.ClusterStopped, Seq: 2}))
	expect("")
	must(st.PutManagedJobs(ctx, api.ManagedJob{ID: 1, Status: api.ManagedPending, Seq: 1}))
	expect("managed jobs")
	must(st.PutManagedJobs(ctx, api.ManagedJob{ID: 1, Status: api.ManagedCancelled, Seq: 2}))
	expect("")
	n, err := st.CreateSchedule(ctx, api.JobSchedule{Name: "s", RequestID: api.NewRequestID()}, []byte("{}"))
	must(err)
	expect("schedules")
	must(st.DeleteSchedule(ctx, n))
	expect("")
}
