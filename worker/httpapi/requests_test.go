package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

var storeAll = store.RequestFilter{}

func TestListRequests(t *testing.T) {
	e := newEnv(t)
	c := e.client()
	list := func(f api.RequestFilter) (ids []string) {
		t.Helper()
		rs, err := c.Requests(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rs {
			ids = append(ids, r.ID)
		}
		return ids
	}
	if _, got := e.call("GET", "/api/v1/requests", ""); strings.TrimSpace(got) != `{"requests":[]}` {
		t.Errorf("an empty list reads %s", got)
	}
	for i, id := range []string{idA, idB, idC} {
		e.createRequest(id, fmt.Sprintf("c%d", i))
	}
	if err := e.st.FinishRequest(t.Context(), idA, api.RequestFailed, nil, &api.Error{Kind: api.ErrSetup, Message: "no"}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		f    api.RequestFilter
		want int
	}{
		{api.RequestFilter{}, 2}, {api.RequestFilter{All: true}, 3}, {api.RequestFilter{All: true, Limit: 1}, 1},
		{api.RequestFilter{Cluster: "c1"}, 1}, {api.RequestFilter{IDs: []string{"3f0c9a52"}}, 2}, {api.RequestFilter{IDs: []string{idA, "7777"}}, 2},
		{api.RequestFilter{IDs: []string{"ffffffff"}}, 0},
	} {
		if got := list(tt.f); len(got) != tt.want {
			t.Errorf("%+v: %v", tt.f, got)
		}
	}
	r, err := c.Request(t.Context(), idA, 0)
	if err != nil || r.Error == nil || r.Error.Message != "no" || r.FinishedAt == nil {
		t.Errorf("%+v %v", r, err)
	}
	for path, want := range map[string]string{
		"/api/v1/requests/3f0c9a52":        api.ErrInvalid,
		"/api/v1/requests/ffffffff":        api.ErrNotFound,
		"/api/v1/requests/ffffffff/events": api.ErrNotFound,
		"/api/v1/requests/7777?wait=soon":  api.ErrInvalid,
		"/api/v1/requests/a":               api.ErrInvalid,
	} {
		resp, got := e.call("GET", path, "")
		e.refused(resp, got, statusOf[want], want, "")
	}
	resp, got := e.call("GET", "/api/v1/requests?limit=-1", "")
	e.refused(resp, got, 422, api.ErrInvalid, "limit")
}

func TestLongPoll(t *testing.T) {
	e := newEnv(t)
	e.createRequest(idA, "c")
	done := make(chan *api.Request)
	go func() {
		r, err := e.client().Request(t.Context(), idA, 30*time.Second)
		if err != nil {
			t.Error(err)
		}
		done <- r
	}()
	select {
	case r := <-done:
		t.Fatalf("answered while PENDING: %+v", r)
	case <-time.After(50 * time.Millisecond):
	}
	if err := e.st.FinishRequest(t.Context(), idA, api.RequestSucceeded, json.RawMessage(`{"x":1}`), nil); err != nil {
		t.Fatal(err)
	}
	if r := <-done; r.Status != api.RequestSucceeded || string(r.Result) != `{"x":1}` {
		t.Fatalf("%+v", r)
	}
	e.createRequest(idB, "c")
	if r, err := e.client().Request(t.Context(), idB, 20*time.Millisecond); err != nil || r.Status != api.RequestPending {
		t.Fatalf("%+v %v", r, err)
	}
}

// A follower sees each event once and then the end, over connections that break and over a server that ends.
func TestFollowRequestOverCuts(t *testing.T) {
	e := newEnv(t)
	e.createRequest(idA, "c")
	const n = 1200 // more than two pages
	add := func(from, to int) {
		for i := from; i < to; i += 50 {
			var evs []store.Event
			for j := i; j < i+50; j++ {
				evs = append(evs, store.Event{Key: fmt.Sprint(j), Event: api.Event{Time: time.Now(), RequestID: idA, Kind: api.EventOutput, Message: fmt.Sprint(j)}})
			}
			if err := e.st.AppendEvents(t.Context(), evs...); err != nil {
				t.Fatal(err)
			}
		}
	}
	add(0, 600)
	// A proxy that cuts each connection after some bytes.
	cut := cutter(t, e.url, 20_000)
	var got []string
	follow := make(chan error, 1)
	var last *api.Request
	go func() {
		c := api.NewClient(cut, testToken, api.WithPatience(2*time.Minute), api.WithSleep(func(context.Context, time.Duration) error { return nil }))
		var err error
		last, err = c.FollowRequest(t.Context(), idA, 0, func(ev api.Event) error {
			got = append(got, ev.Message)
			return nil
		})
		follow <- err
	}()
	add(600, n)
	err := e.st.Write(t.Context(), store.Batch{
		Requests: []store.RequestUpdate{{ID: idA, Status: api.RequestSucceeded, Result: json.RawMessage(`{"job_id":7}`), At: time.Now()}},
		Events:   []store.Event{{Key: "done", Event: api.Event{Time: time.Now(), RequestID: idA, Kind: api.EventDone, Message: "done"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-follow; err != nil {
		t.Fatal(err)
	}
	if last.Status != api.RequestSucceeded || string(last.Result) != `{"job_id":7}` {
		t.Errorf("%+v", last)
	}
	if len(got) != n {
		t.Fatalf("%d events, want %d", len(got), n)
	}
	for i, m := range got {
		if m != fmt.Sprint(i) {
			t.Fatalf("event %d is %s", i, m)
		}
	}
}

func TestEventStreamFormat(t *testing.T) {
	e := newEnv(t)
	e.createRequest(idA, "c")
	e.event("1", api.Event{RequestID: idA, Kind: api.EventOutput, Message: "two\nlines"})
	e.event("2", api.Event{RequestID: idA, Kind: api.EventStep, Message: "b"})
	if err := e.st.FinishRequest(t.Context(), idA, api.RequestCancelled, nil, nil); err != nil {
		t.Fatal(err)
	}
	read := func(path string, headers ...string) (ids []string, evs []api.Event) {
		resp, body := e.call("GET", path, "", headers...)
		if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
			t.Fatalf("content type %q: %s", ct, body)
		}
		for block := range strings.SplitSeq(strings.TrimSpace(body), "\n\n") {
			id, data, ok := strings.Cut(block, "\n")
			var ev api.Event
			if !ok || !strings.HasPrefix(id, "id: ") || json.Unmarshal([]byte(strings.TrimPrefix(data, "data: ")), &ev) != nil {
				t.Fatalf("block %q", block)
			}
			ids, evs = append(ids, strings.TrimPrefix(id, "id: ")), append(evs, ev)
		}
		return ids, evs
	}
	ids, evs := read("/api/v1/requests/3f0c9a52/events?follow=true")
	if len(evs) != 3 || evs[0].Message != "two\nlines" || evs[2].Kind != api.EventDone || ids[2] != ids[1] {
		t.Fatalf("%v %+v", ids, evs)
	}
	var r api.Request
	if err := json.Unmarshal(evs[2].Data, &r); err != nil || r.ID != idA || r.Status != api.RequestCancelled {
		t.Errorf("%s", evs[2].Data)
	}
	if _, evs = read("/api/v1/requests/3f0c9a52/events?follow=true&after=" + ids[0]); len(evs) != 2 {
		t.Errorf("after the first: %+v", evs)
	}
	if _, evs = read("/api/v1/requests/3f0c9a52/events?follow=true", "Last-Event-ID", ids[1]); len(evs) != 1 {
		t.Errorf("after the last: %+v", evs)
	}
	if _, evs = read("/api/v1/requests/3f0c9a52/events?follow=true&limit=1"); len(evs) != 2 || evs[0].Message != "b" {
		t.Errorf("the last one: %+v", evs)
	}
	_, body := e.call("GET", "/api/v1/requests/3f0c9a52/events", "")
	var l eventList
	if json.Unmarshal([]byte(body), &l) != nil || len(l.Events) != 2 {
		t.Errorf("list %s", body)
	}
}

func TestTimeline(t *testing.T) {
	e := newEnv(t)
	c := e.putCluster(api.Cluster{Name: "c1"})
	e.createRequest(idA, "c1")
	for i := range 5 {
		e.event(fmt.Sprint(i), api.Event{Cluster: "c1", Hash: c.Hash, RequestID: idA, Kind: api.EventStep, Message: fmt.Sprint(i)})
	}
	cl := e.client()
	for _, f := range []api.EventFilter{{Cluster: "c1"}, {Request: "3f0c"}} {
		evs, err := cl.Events(t.Context(), f)
		if err != nil || len(evs) != 5 || evs[0].Message != "0" {
			t.Fatalf("%+v: %+v %v", f, evs, err)
		}
		f.Limit = 2
		if tail, err := cl.Events(t.Context(), f); err != nil || len(tail) != 2 || tail[1].Message != "4" {
			t.Errorf("%+v: %+v %v", f, tail, err)
		}
		f.After = evs[0].ID
		if page, err := cl.Events(t.Context(), f); err != nil || len(page) != 2 || page[0].Message != "1" {
			t.Errorf("%+v: %+v %v", f, page, err)
		}
	}
	resp, body := e.call("GET", "/api/v1/events?cluster=nope", "")
	e.refused(resp, body, 404, api.ErrClusterDoesNotExist, "nope")
	resp, body = e.call("GET", "/api/v1/events?cluster=c1&request=3f0c", "")
	e.refused(resp, body, 400, api.ErrInvalid, "not both")

	// Following goes on until the reader leaves.
	stop := errors.New("enough")
	n := 0
	err := cl.FollowEvents(t.Context(), api.EventFilter{Cluster: "c1"}, func(ev api.Event) error {
		if n++; n == 5 {
			e.event("late", api.Event{Cluster: "c1", Hash: c.Hash, Kind: api.EventStatus, Message: "late"})
		}
		if ev.Message == "late" {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || n != 6 {
		t.Errorf("%d events, %v", n, err)
	}
}

// Ending the server cuts the streams at once, without an end.
func TestDrainCutsStreams(t *testing.T) {
	e := newEnv(t)
	e.createRequest(idA, "c")
	e.event("1", api.Event{RequestID: idA, Kind: api.EventOutput, Message: "x"})
	req, _ := http.NewRequest("GET", e.url+"/api/v1/requests/"+idA+"/events?follow=true", nil)
	req.Header.Set("Authorization", "Bearer "+testToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	sc := bufio.NewScanner(resp.Body)
	if !sc.Scan() {
		t.Fatal("nothing came")
	}
	e.s.Drain()
	for sc.Scan() {
		if strings.Contains(sc.Text(), `"done"`) {
			t.Fatal("the stream claims to be complete")
		}
	}
}

func TestCompletion(t *testing.T) {
	e := newEnv(t)
	e.putCluster(api.Cluster{Name: "train-1"})
	e.putCluster(api.Cluster{Name: "train-2"})
	e.putCluster(api.Cluster{Name: "dev"})
	e.createRequest(idA, "c")
	for _, tt := range []struct {
		kind, in string
		want     int
	}{{"cluster_name", "tr", 2}, {"cluster_name", "", 3}, {"cluster_name", "x", 0}, {"cluster_name", "*", 0}, {"api_request", "3f", 1}, {"api_request", "4", 0}} {
		got, err := e.client().Complete(t.Context(), tt.kind, tt.in)
		if err != nil || len(got) != tt.want || got == nil {
			t.Errorf("%+v: %v %v", tt, got, err)
		}
	}
	resp, body := e.call("GET", "/api/v1/completion/volume", "")
	e.refused(resp, body, 422, api.ErrInvalid, "kind")
}
