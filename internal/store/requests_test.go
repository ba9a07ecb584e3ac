package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/skyloom/skyloom/api"
)

func newRequest(id string) NewRequest {
	return NewRequest{Request: api.Request{ID: id, Name: "sky.launch", Cluster: "c", User: "me", UserHash: "u", Command: "sky launch"}, Kind: "launch", Body: []byte("{}"), BodyHash: "b1"}
}

func TestRequests(t *testing.T) {
	s, clk := open(t)
	ctx := t.Context()
	n := newRequest("aaaa-1")
	n.Request.CreatedAt = clk.now()
	row, existed, err := s.CreateRequest(ctx, n)
	if err != nil || existed || row.Status != api.RequestPending || !row.CreatedAt.Equal(clk.now()) || row.Cluster != "c" {
		t.Fatalf("%+v %v %v", row, existed, err)
	}
	must(t, s.SetRequest(ctx, "aaaa-1", api.RequestRunning, "working", nil))
	row, existed, err = s.CreateRequest(ctx, n)
	if err != nil || !existed || row.Status != api.RequestRunning || row.StatusMsg != "working" {
		t.Fatalf("%+v %v %v", row, existed, err)
	}
	other := n
	other.BodyHash = "b2"
	if _, _, err := s.CreateRequest(ctx, other); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "aaaa-1") {
		t.Fatal(err)
	}

	retry := clk.now().Add(time.Minute)
	must(t, s.SetRequest(ctx, "aaaa-1", api.RequestWaiting, "no capacity", &retry))
	must(t, s.SetRequest(ctx, "aaaa-1", api.RequestPending, "back?", nil))
	row, err = s.Request(ctx, "aaaa-1")
	if err != nil || row.Status != api.RequestWaiting || !row.NextRetry.Equal(retry) || row.StatusMsg != "no capacity" {
		t.Fatalf("%+v %v", row, err)
	}
	open, err := s.OpenRequests(ctx, "launch", "exec")
	if err != nil || len(open) != 1 || string(open[0].Body) != "{}" || open[0].Kind != "launch" || open[0].BodyHash != "b1" {
		t.Fatalf("%+v %v", open, err)
	}
	if open, _ := s.OpenRequests(ctx, "down"); len(open) != 0 {
		t.Fatalf("%+v", open)
	}
	clk.add(time.Hour)
	fail := &api.Error{Kind: api.ErrResourcesUnavailable, Message: "none", Details: []string{"a", "b"}}
	must(t, s.FinishRequest(ctx, "aaaa-1", api.RequestFailed, nil, fail))
	must(t, s.FinishRequest(ctx, "aaaa-1", api.RequestSucceeded, json.RawMessage(`{"x":1}`), nil))
	must(t, s.SetRequest(ctx, "aaaa-1", api.RequestRunning, "again", nil))
	row, err = s.Request(ctx, "aaaa-1")
	if err != nil || row.Status != api.RequestFailed || !reflect.DeepEqual(row.Error, fail) || row.Result != nil || row.NextRetry != nil || !row.FinishedAt.Equal(clk.now()) {
		t.Fatalf("%+v %v", row, err)
	}
	if open, _ := s.OpenRequests(ctx); len(open) != 0 {
		t.Fatalf("%+v", open)
	}
	if err := s.FinishRequest(ctx, "aaaa-1", api.RequestRunning, nil, nil); err == nil {
		t.Fatal("finished as RUNNING")
	}
	if err := s.FinishRequest(ctx, "aaaa-1", api.RequestSucceeded, json.RawMessage("{"), nil); err == nil {
		t.Fatal("a broken result was stored")
	}
	must(t, s.SetRequest(ctx, "unknown", api.RequestRunning, "", nil))
}

func TestRequestLists(t *testing.T) {
	s, clk := open(t)
	ctx := t.Context()
	for i, id := range []string{"abcd-1111", "abcd-2222", "abce-3333", "ffff-4444"} {
		n := newRequest(id)
		n.Request.Cluster = fmt.Sprint("c", i%2)
		n.Request.CreatedAt = clk.add(time.Minute)
		_, _, err := s.CreateRequest(ctx, n)
		must(t, err)
	}
	must(t, s.FinishRequest(ctx, "abcd-2222", api.RequestSucceeded, json.RawMessage(`{"job_id":7}`), nil))
	list := func(f RequestFilter) string {
		t.Helper()
		rs, err := s.Requests(ctx, f)
		must(t, err)
		out := ""
		for _, r := range rs {
			out += r.ID[len(r.ID)-1:]
			if r.Result != nil {
				out += "!"
			}
		}
		return out
	}
	for _, c := range []struct {
		f    RequestFilter
		want string
	}{
		{RequestFilter{}, "4321"}, {RequestFilter{Full: true}, "432!1"}, {RequestFilter{ActiveOnly: true}, "431"}, {RequestFilter{Limit: 2}, "43"},
		{RequestFilter{Cluster: "c1"}, "42"}, {RequestFilter{UserHash: "x"}, ""}, {RequestFilter{IDs: []string{"abcd-1111", "zz"}}, "1"}, {RequestFilter{Name: "sky.down"}, ""},
	} {
		if got := list(c.f); got != c.want {
			t.Errorf("%+v: %s, want %s", c.f, got, c.want)
		}
	}
	if r, err := s.Request(ctx, "ffff"); err != nil || r.ID != "ffff-4444" {
		t.Fatal(r, err)
	}
	if r, err := s.Request(ctx, "abcd-2"); err != nil || string(r.Result) != `{"job_id":7}` {
		t.Fatal(r, err)
	}
	var amb *AmbiguousError
	if _, err := s.Request(ctx, "abcd"); !errors.As(err, &amb) || len(amb.IDs) != 2 || !strings.Contains(err.Error(), "abcd-2222") {
		t.Fatal(err)
	}
	for _, id := range []string{"abc", "none-such", "", "abcd%", "abc_", "%%%%"} {
		if _, err := s.Request(ctx, id); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestRequestMonotone(t *testing.T) {
	s, _ := open(t)
	all := []api.RequestStatus{api.RequestPending, api.RequestWaiting, api.RequestRunning, api.RequestSucceeded, api.RequestFailed, api.RequestCancelled}
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		id := fmt.Sprintf("request-%d", run)
		if _, _, err := s.CreateRequest(t.Context(), newRequest(id)); err != nil {
			t.Fatal(err)
		}
		var last api.Request
		for i := range rapid.IntRange(1, 12).Draw(t, "n") {
			u := RequestUpdate{ID: id, Status: rapid.SampledFrom(all).Draw(t, "status"), Msg: fmt.Sprint(i)}
			if u.Status.Terminal() {
				u.Result = json.RawMessage(fmt.Sprint(i))
			}
			for range rapid.IntRange(1, 2).Draw(t, "times") {
				if err := s.Write(t.Context(), Batch{Requests: []RequestUpdate{u}}); err != nil {
					t.Fatal(err)
				}
			}
			r, err := s.Request(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			if last.Status.Terminal() && !reflect.DeepEqual(r, last) {
				t.Fatalf("%+v was changed to %+v", last, r)
			}
			if last.Status != "" && last.Status != api.RequestPending && r.Status == api.RequestPending {
				t.Fatal("back to PENDING")
			}
			if !last.Status.Terminal() && u.Status.Terminal() && r.Status != u.Status {
				t.Fatal("the end was not taken")
			}
			last = r
		}
	})
}

// TestCreateRequestRaces: many clients send the same request at once; one row comes of it.
func TestCreateRequestRaces(t *testing.T) {
	s, _ := open(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	made, conflicts := 0, 0
	for i := range 40 {
		wg.Go(func() {
			n := newRequest("same-id")
			n.BodyHash = fmt.Sprint("b", i%2)
			_, existed, err := s.CreateRequest(t.Context(), n)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, ErrConflict):
				conflicts++
			case err != nil:
				t.Error(err)
			case !existed:
				made++
			}
		})
	}
	wg.Wait()
	if made != 1 || conflicts != 20 {
		t.Fatalf("%d made, %d conflicts", made, conflicts)
	}
}

func TestWriteBatch(t *testing.T) {
	s, clk := open(t)
	ctx := t.Context()
	b := Batch{
		Creates:     []NewRequest{newRequest("child-1")},
		Clusters:    []api.Cluster{{Name: "c", Hash: "h", Seq: 1, Status: api.ClusterUp}},
		Jobs:        []JobsUpdate{{"c", "h", []api.Job{{ID: 1, Seq: 1, Status: api.JobRunning}}}},
		UsageStarts: []UsageStart{{Hash: "h", N: 1, Name: "c", PricePerHour: 1, At: clk.now()}},
		Watches:     []Watch{{Hash: "h", Cluster: "c"}},
		Requests:    []RequestUpdate{{ID: "child-1", Status: api.RequestSucceeded, Cluster: "c2"}},
		Events:      []Event{{Key: "k", Event: api.Event{RequestID: "child-1", Kind: api.EventDone}}},
	}
	for range 3 {
		must(t, s.Write(ctx, b))
	}
	r, err := s.Request(ctx, "child-1")
	must(t, err)
	es, err := s.Events(ctx, EventFilter{RequestID: "child-1"})
	must(t, err)
	w, err := s.Watch(ctx, "h")
	must(t, err)
	if r.Status != api.RequestSucceeded || r.Cluster != "c2" || len(es) != 1 || w.Cluster != "c" {
		t.Fatalf("%+v %+v %+v", r, es, w)
	}
	// All or nothing.
	bad := Batch{Clusters: []api.Cluster{{Name: "c", Hash: "h", Seq: 2, Status: api.ClusterStopped}}, UsageStarts: []UsageStart{{Hash: "h"}}}
	if err := s.Write(ctx, bad); err == nil {
		t.Fatal("accepted")
	}
	if c, _ := s.Cluster(ctx, "c"); c.Status != api.ClusterUp {
		t.Fatal("half of a batch was written")
	}
	// The whole end of a cluster in one.
	must(t, s.Write(ctx, Batch{EndJobs: []EndJobs{{Hash: "h", Status: api.JobCancelled}}, Removals: []Removal{{Name: "c", Hash: "h", Seq: 3}}}))
	if _, err := s.Watch(ctx, "h"); !errors.Is(err, ErrNotFound) {
		t.Fatal("a removed cluster is watched")
	}
	must(t, s.PutWatch(ctx, Watch{Hash: "h"}))
	if _, err := s.Watch(ctx, "h"); !errors.Is(err, ErrNotFound) {
		t.Fatal("a removed cluster is watched again")
	}
}
