package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/skyloom/skyloom/api"
)

func TestEvents(t *testing.T) {
	s, clk := open(t)
	ctx := t.Context()
	for i := range 6 {
		e := Event{Key: fmt.Sprint(i), Event: api.Event{ID: 99, RequestID: fmt.Sprint("r", i%2), Cluster: "c", Hash: fmt.Sprint("h", i/3), Kind: api.EventStep, Step: "s", Attempt: i,
			Message: fmt.Sprint("m", i), Data: json.RawMessage(`{"a":1}`)}}
		if i == 5 {
			e.Kind = api.EventDone
		}
		must(t, s.AppendEvents(ctx, e, e))
	}
	list := func(f EventFilter) string {
		t.Helper()
		es, err := s.Events(ctx, f)
		must(t, err)
		out := ""
		last := f.After
		for _, e := range es {
			out += e.Message[1:]
			if e.ID <= last || !e.Time.Equal(clk.now()) || string(e.Data) != `{"a":1}` {
				t.Fatalf("%+v", e)
			}
			last = e.ID
		}
		return out
	}
	all, err := s.Events(ctx, EventFilter{})
	must(t, err)
	for _, c := range []struct {
		f    EventFilter
		want string
	}{
		{EventFilter{}, "012345"}, {EventFilter{RequestID: "r1"}, "135"}, {EventFilter{Cluster: "c", Hash: "h1"}, "345"}, {EventFilter{Hash: "h0"}, "012"}, {EventFilter{Cluster: "x"}, ""},
		{EventFilter{Limit: 2}, "01"}, {EventFilter{Tail: 2}, "45"}, {EventFilter{After: all[3].ID}, "45"}, {EventFilter{After: all[2].ID, Limit: 1}, "3"}, {EventFilter{Kinds: []api.EventKind{api.EventDone}}, "5"},
	} {
		if got := list(c.f); got != c.want {
			t.Errorf("%+v: %s, want %s", c.f, got, c.want)
		}
	}
	must(t, s.AppendEvents(ctx, Event{Event: api.Event{Message: "mx", Data: json.RawMessage(`{"a":1}`)}}, Event{Event: api.Event{Message: "mx", Data: json.RawMessage(`{"a":1}`)}}))
	if got := list(EventFilter{After: all[5].ID}); got != "xx" {
		t.Fatal(got)
	}
}

// TestEventsOnce: writers that repeat themselves and readers that follow a cursor: each event is seen once, in order.
func TestEventsOnce(t *testing.T) {
	s, _ := open(t)
	rapid.Check(t, func(t *rapid.T) {
		tag := rapid.StringMatching(`[a-z]{12}`).Draw(t, "tag")
		n := rapid.IntRange(1, 20).Draw(t, "n")
		var wg sync.WaitGroup
		for w := range 3 {
			wg.Go(func() {
				for i := range n {
					e := Event{Key: fmt.Sprintf("%s/%d", tag, (i+w)%n), Event: api.Event{RequestID: tag, Attempt: (i + w) % n}}
					if err := s.AppendEvents(t.Context(), e); err != nil {
						t.Errorf("%v", err)
					}
				}
			})
		}
		ch, cancel := s.Subscribe(RequestTopic(tag))
		defer cancel()
		seen := map[int]bool{}
		cursor := int64(0)
		for len(seen) < n {
			es, err := s.Events(t.Context(), EventFilter{RequestID: tag, After: cursor, Limit: 3})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range es {
				if seen[e.Attempt] {
					t.Fatalf("%d twice", e.Attempt)
				}
				seen[e.Attempt], cursor = true, e.ID
			}
			if len(es) == 0 {
				select {
				case <-ch:
				case <-time.After(time.Minute):
					t.Fatal("an event was written and nobody told")
				}
			}
		}
		wg.Wait()
		if es, _ := s.Events(t.Context(), EventFilter{RequestID: tag}); len(es) != n {
			t.Fatalf("%d events, want %d", len(es), n)
		}
	})
}

func TestWatches(t *testing.T) {
	s, _ := open(t)
	ctx := t.Context()
	for i := range 5 {
		must(t, s.PutWatch(ctx, Watch{Hash: fmt.Sprint("h", i), Cluster: fmt.Sprint("c", i), Data: json.RawMessage(`{"v":1}`), Cursor: 10}))
	}
	a, err := s.LeaseWatches(ctx, "a", time.Hour, 3)
	if err != nil || len(a) != 3 || a[0].Owner != "a" || a[0].Fence != 1 || a[0].Cursor != 10 || string(a[0].Data) != `{"v":1}` || time.Until(a[0].Until) < 50*time.Minute {
		t.Fatalf("%+v %v", a, err)
	}
	b, err := s.LeaseWatches(ctx, "b", time.Hour, 10)
	if err != nil || len(b) != 2 {
		t.Fatalf("%+v %v", b, err)
	}
	for _, owner := range []string{"a", "b", "c"} {
		if w, err := s.LeaseWatches(ctx, owner, time.Hour, 10); err != nil || len(w) != 0 {
			t.Fatalf("%s: %+v %v", owner, w, err)
		}
	}
	h := a[0].Hash
	must(t, s.AdvanceCursor(ctx, h, 1, 20))
	must(t, s.AdvanceCursor(ctx, h, 1, 15))
	must(t, s.PutWatch(ctx, Watch{Hash: h, Cluster: "renamed", Data: json.RawMessage(`{"v":2}`)}))
	w, err := s.Watch(ctx, h)
	if err != nil || w.Cursor != 20 || w.Owner != "a" || w.Fence != 1 || string(w.Data) != `{"v":2}` || w.Cluster != "renamed" {
		t.Fatalf("%+v %v", w, err)
	}
	// a's lease runs out.
	if w, err := s.RenewLeases(ctx, "a", -time.Millisecond); err != nil || len(w) != 3 {
		t.Fatalf("%+v %v", w, err)
	}
	if w, err := s.RenewLeases(ctx, "a", time.Hour); err != nil || len(w) != 0 {
		t.Fatalf("a lease that ran out was renewed: %+v %v", w, err)
	}
	if w, err := s.RenewLeases(ctx, "b", time.Hour); err != nil || len(w) != 2 {
		t.Fatalf("%+v %v", w, err)
	}
	c, err := s.LeaseWatches(ctx, "c", time.Hour, 10)
	if err != nil || len(c) != 3 || c[0].Fence != 2 {
		t.Fatalf("%+v %v", c, err)
	}
	if err := s.AdvanceCursor(ctx, h, 1, 30); !errors.Is(err, ErrFenced) {
		t.Fatal(err)
	}
	must(t, s.AdvanceCursor(ctx, h, 2, 30))
	must(t, s.ReleaseLeases(ctx, "c"))
	if d, err := s.LeaseWatches(ctx, "d", time.Hour, 10); err != nil || len(d) != 3 || d[0].Fence != 3 {
		t.Fatalf("%+v %v", d, err)
	}
	must(t, s.DeleteWatch(ctx, h))
	if err := s.AdvanceCursor(ctx, h, 3, 40); !errors.Is(err, ErrFenced) {
		t.Fatal(err)
	}
	if _, err := s.Watch(ctx, h); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
}

// TestLeaseExclusive: servers that lease at once never share a watch.
func TestLeaseExclusive(t *testing.T) {
	s, _ := open(t)
	for i := range 60 {
		must(t, s.PutWatch(t.Context(), Watch{Hash: fmt.Sprint(i)}))
	}
	var mu sync.Mutex
	held := map[string]string{}
	var wg sync.WaitGroup
	for o := range 6 {
		wg.Go(func() {
			owner := fmt.Sprint("o", o)
			for {
				ws, err := s.LeaseWatches(t.Context(), owner, time.Hour, 4)
				if err != nil {
					t.Error(err)
				}
				if len(ws) == 0 {
					return
				}
				mu.Lock()
				for _, w := range ws {
					if held[w.Hash] != "" {
						t.Errorf("%s is held by %s and %s", w.Hash, held[w.Hash], owner)
					}
					held[w.Hash] = owner
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(held) != 60 {
		t.Fatalf("%d leased", len(held))
	}
}

func TestCollect(t *testing.T) {
	s, clk := open(t)
	ctx := t.Context()
	for i := range 1200 {
		must(t, s.Write(ctx, Batch{Creates: []NewRequest{newRequest(fmt.Sprintf("old-%d", i))}, Requests: []RequestUpdate{{ID: fmt.Sprintf("old-%d", i), Status: api.RequestSucceeded}},
			Events: []Event{{Key: fmt.Sprint(i), Event: api.Event{RequestID: "old"}}}}))
	}
	must(t, s.PutSecret(ctx, "s1", "request/old-1", []byte("x")))
	must(t, s.PutSecret(ctx, "s2", "request/never-accepted", []byte("x")))
	must(t, s.PutSecret(ctx, "s3", "cluster/gone", []byte("x")))
	_, _, err := s.CreateRequest(ctx, newRequest("still-open"))
	must(t, err)
	must(t, s.PutSecret(ctx, "s4", "request/still-open", []byte("x")))
	for _, h := range []string{"gone", "live"} {
		must(t, s.PutCluster(ctx, api.Cluster{Name: h, Hash: h, Seq: 1}))
		must(t, s.PutJobs(ctx, h, h, []api.Job{{ID: 1, Seq: 1, Status: api.JobSucceeded}}))
		must(t, s.UsageStart(ctx, UsageStart{Hash: h, N: 1, Name: h}))
	}
	must(t, s.RemoveCluster(ctx, Removal{Name: "gone", Hash: "gone"}))
	clk.add(48 * time.Hour)
	must(t, s.AppendEvents(ctx, Event{Key: "young"}))
	if c, err := s.Collect(ctx, Retention{}); err != nil || c != (Collected{}) {
		t.Fatalf("%+v %v", c, err)
	}
	keep := 24 * time.Hour
	c, err := s.Collect(ctx, Retention{Requests: keep, Events: keep, Jobs: keep, Clusters: keep})
	if err != nil || c != (Collected{Requests: 1200, Events: 1200, Jobs: 1, Clusters: 1}) {
		t.Fatalf("%+v %v", c, err)
	}
	rs, _ := s.Requests(ctx, RequestFilter{})
	es, _ := s.Events(ctx, EventFilter{})
	js, _ := s.Jobs(ctx, JobFilter{})
	cost, _ := s.CostReport(ctx, 0)
	if len(rs) != 1 || len(es) != 1 || len(js) != 1 || len(cost) != 1 {
		t.Fatalf("%d %d %d %d", len(rs), len(es), len(js), len(cost))
	}
	for id, want := range map[string]bool{"s1": false, "s2": false, "s3": false, "s4": true} {
		if _, err := s.GetSecret(ctx, id); (err == nil) != want {
			t.Errorf("%s: %v", id, err)
		}
	}
}
