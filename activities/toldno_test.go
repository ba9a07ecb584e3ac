package activities

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

// A request that was told to be cancelled, or to have failed, is neither planned nor submitted any more.
func TestNothingBeginsOnceToldNo(t *testing.T) {
	ctx := context.Background()
	s, err := store.Open(ctx, filepath.Join(t.TempDir(), "sky.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a := &Activities{Store: s, Log: slog.New(slog.DiscardHandler)}
	for status, kind := range map[api.RequestStatus]string{api.RequestCancelled: api.ErrCancelled, api.RequestFailed: api.ErrClusterDoesNotExist} {
		id := api.NewRequestID()
		if err := s.Write(ctx, store.Batch{Creates: []store.NewRequest{{Request: api.Request{ID: id, Name: "sky.launch", Status: api.RequestRunning}, Kind: "launch"}}}); err != nil {
			t.Fatal(err)
		}
		if e, err := a.toldNo(ctx, id); e != nil || err != nil {
			t.Errorf("under way: %v %v", e, err)
		}
		if err := s.FinishRequest(ctx, id, status, nil, &api.Error{Kind: kind, Message: "no"}); err != nil {
			t.Fatal(err)
		}
		if out, err := a.Submit(ctx, SubmitInput{RequestID: id, Task: "run: echo"}); err != nil || out.Job != nil || out.Error == nil || out.Error.Kind != kind {
			t.Errorf("%s: submitted: %+v %v", status, out, err)
		}
		if out, err := a.Plan(ctx, PlanInput{RequestID: id, Body: api.LaunchBody{Task: "run: echo"}}); err != nil || out.Error == nil || out.Error.Kind != kind || out.Retry {
			t.Errorf("%s: planned: %+v %v", status, out, err)
		}
	}
	if e, err := a.toldNo(ctx, "managed/1/0/1"); e != nil || err != nil {
		t.Errorf("nobody's request: %v %v", e, err)
	}
}
