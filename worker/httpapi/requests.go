package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

const (
	// maxWait bounds a long poll.
	maxWait = time.Minute
	// pollEvery is how often a waiting call looks without being told: another replica may have written.
	pollEvery = 3 * time.Second
	// eventPage is how many events are read at once.
	eventPage = 500
	// defaultEvents is how many events a list has when no limit is given.
	defaultEvents = 1000
)

type requestList struct {
	Requests []api.Request `json:"requests"`
}

type eventList struct {
	Events []api.Event `json:"events"`
}

func (s *Server) requestRoutes(h huma.API) {
	type listIn struct {
		All     bool     `query:"all" doc:"finished ones too"`
		Limit   int      `query:"limit" minimum:"0" doc:"0: all"`
		Cluster string   `query:"cluster"`
		User    string   `query:"user_hash"`
		IDs     []string `query:"id,explode" doc:"ids or prefixes; finished ones are listed too"`
	}
	get(h, operation("GET", "/requests", "list-requests", "requests", "Requests, newest first"), s,
		func(ctx context.Context, in *listIn) (requestList, error) {
			f := store.RequestFilter{ActiveOnly: !in.All, Cluster: in.Cluster, UserHash: in.User, Limit: in.Limit}
			return s.listRequests(ctx, f, in.IDs)
		})

	type getIn struct {
		ID   string `path:"id" doc:"id or unambiguous prefix" maxLength:"100"`
		Wait string `query:"wait" doc:"hold the answer until the request has ended, at most this long: 30s; at most 60s"`
	}
	get(h, operation("GET", "/requests/{id}", "get-request", "requests", "One request", http.StatusNotFound), s,
		func(ctx context.Context, in *getIn) (api.Request, error) { return s.waitRequest(ctx, in.ID, in.Wait) })

	type eventsIn struct {
		ID string `path:"id" doc:"id or unambiguous prefix" maxLength:"100"`
		EventQuery
	}
	op := operation("GET", "/requests/{id}/events", "request-events", "requests", "What a request did, and does", http.StatusNotFound)
	op.Description = "With follow=true: server-sent events, one per event, whose id is the cursor to resume after; the last one is of kind done and " +
		"holds the request as it ended. Without: a JSON list."
	eventRoute(h, op, s, func(w http.ResponseWriter, r *http.Request, in *eventsIn) error {
		req, err := s.request(r.Context(), in.ID)
		if err != nil {
			return err
		}
		return s.events(w, r, store.EventFilter{RequestID: req.ID}, in.EventQuery, true)
	})

	type timelineIn struct {
		Cluster string `query:"cluster" maxLength:"200"`
		Request string `query:"request" doc:"id or unambiguous prefix" maxLength:"100"`
		EventQuery
	}
	op = operation("GET", "/events", "events", "requests", "The timeline of a cluster or request", http.StatusNotFound)
	op.Description = "With follow=true: server-sent events without an end. Without: a JSON list, oldest first."
	eventRoute(h, op, s, func(w http.ResponseWriter, r *http.Request, in *timelineIn) error {
		f, err := s.timeline(r.Context(), in.Cluster, in.Request)
		if err != nil {
			return err
		}
		return s.events(w, r, f, in.EventQuery, false)
	})

	type completeIn struct {
		Kind       string `path:"kind" enum:"cluster_name,api_request,managed_job,managed_job_name"`
		Incomplete string `query:"incomplete" maxLength:"200"`
	}
	get(h, operation("GET", "/completion/{kind}", "completion", "server", "Names that begin so, for shells", http.StatusNotFound), s,
		func(ctx context.Context, in *completeIn) ([]string, error) {
			return s.complete(ctx, in.Kind, in.Incomplete)
		})
}

// eventRoute registers a call that answers with a list of events or a stream of them.
func eventRoute[I any](h huma.API, op huma.Operation, s *Server, f func(http.ResponseWriter, *http.Request, *I) error) {
	stream(h, op, s, "text/event-stream", "events", f)
	path := h.OpenAPI().Paths[op.Path]
	path.Get.Responses["200"].Content["application/json"] = &huma.MediaType{
		Schema: h.OpenAPI().Components.Schemas.Schema(typeOf[eventList](), true, "EventList"),
	}
}

// request finds one request by id or unambiguous prefix.
func (s *Server) request(ctx context.Context, id string) (api.Request, error) {
	id = strings.ToLower(id)
	if len(id) < 4 {
		return api.Request{}, failure(api.ErrInvalid, "Give at least 4 characters of the id.", "the request id %q is too short", id)
	}
	r, err := s.o.Store.Request(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return r, failure(api.ErrNotFound, "See: sky api status -a", "there is no request %s", shorten(id))
	}
	return r, err
}

func (s *Server) listRequests(ctx context.Context, f store.RequestFilter, ids []string) (requestList, error) {
	if len(ids) > 200 {
		return requestList{}, failure(api.ErrInvalid, "", "at most 200 ids can be asked for in one call")
	}
	if len(ids) > 0 {
		f.ActiveOnly = false
		for _, id := range ids {
			r, err := s.request(ctx, id)
			var amb *store.AmbiguousError
			var p *Problem
			switch {
			case errors.As(err, &amb):
				f.IDs = append(f.IDs, amb.IDs...)
			case errors.As(err, &p) && p.Type == api.ErrNotFound:
			case err != nil:
				return requestList{}, err
			default:
				f.IDs = append(f.IDs, r.ID)
			}
		}
		if len(f.IDs) == 0 {
			return requestList{Requests: []api.Request{}}, nil
		}
	}
	rows, err := s.o.Store.Requests(ctx, f)
	if rows == nil {
		rows = []api.Request{}
	}
	return requestList{rows}, err
}

// waitRequest answers with the request once it has ended, or as it stands when the time is over.
func (s *Server) waitRequest(ctx context.Context, id, wait string) (api.Request, error) {
	var d time.Duration
	if wait != "" {
		var err error
		if d, err = time.ParseDuration(wait); err != nil || d < 0 {
			return api.Request{}, failure(api.ErrInvalid, "", "wait must be a time such as 30s")
		}
	}
	r, err := s.request(ctx, id)
	if err != nil || d == 0 || r.Status.Terminal() {
		return r, err
	}
	told, stop := s.o.Store.Subscribe(store.RequestTopic(r.ID))
	defer stop()
	end := time.NewTimer(min(d, maxWait))
	defer end.Stop()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for {
		if r, err = s.o.Store.Request(ctx, r.ID); err != nil || r.Status.Terminal() {
			return r, err
		}
		select {
		case <-told:
		case <-poll.C:
		case <-end.C:
			return r, nil
		case <-s.draining:
			return r, nil
		case <-ctx.Done():
			return r, ctx.Err()
		}
	}
}

// timeline is the filter of a cluster's or a request's events; what never was is not found.
func (s *Server) timeline(ctx context.Context, cluster, request string) (store.EventFilter, error) {
	switch {
	case cluster != "" && request != "":
		return store.EventFilter{}, failure(api.ErrInvalid, "", "name a cluster or a request, not both")
	case request != "":
		r, err := s.request(ctx, request)
		return store.EventFilter{RequestID: r.ID}, err
	case cluster == "":
		return store.EventFilter{}, nil
	}
	f := store.EventFilter{Cluster: cluster}
	if _, err := s.o.Store.Cluster(ctx, cluster); !errors.Is(err, store.ErrNotFound) {
		return f, err
	}
	f.Limit = 1
	evs, err := s.o.Store.Events(ctx, f) // of a cluster that is gone
	f.Limit = 0
	if err == nil && len(evs) == 0 {
		err = noCluster404(cluster)
	}
	return f, err
}

func noCluster404(name string) *Problem {
	return failure(api.ErrClusterDoesNotExist, "See: sky status", "cluster %q does not exist", shorten(name))
}

// EventQuery selects events.
type EventQuery struct {
	After  int64 `query:"after" minimum:"0" doc:"only events after this id"`
	Follow bool  `query:"follow" doc:"go on with what happens from now on, as server-sent events"`
	Limit  int   `query:"limit" minimum:"0" maximum:"100000" doc:"at most so many: the last ones, or with after the first ones"`
}

// events answers with a list, or with a stream. toEnd: the stream ends with the request.
func (s *Server) events(w http.ResponseWriter, r *http.Request, f store.EventFilter, q EventQuery, toEnd bool) error {
	f.After = q.After
	if id := r.Header.Get("Last-Event-ID"); id != "" && q.Follow {
		n, err := strconv.ParseInt(id, 10, 64)
		if err != nil {
			return failure(api.ErrInvalid, "", "Last-Event-ID must be a number")
		}
		f.After = max(f.After, n)
	}
	if !q.Follow {
		n := q.Limit
		if n == 0 {
			n = defaultEvents
		}
		if f.After > 0 {
			f.Limit = n
		} else {
			f.Tail = n
		}
		evs, err := s.o.Store.Events(r.Context(), f)
		if err != nil {
			return err
		}
		if evs == nil {
			evs = []api.Event{}
		}
		return writeJSON(w, eventList{evs})
	}
	if f.After == 0 && q.Limit > 0 { // begin with the last ones
		t := f
		t.Tail = q.Limit
		evs, err := s.o.Store.Events(r.Context(), t)
		if err != nil {
			return err
		}
		if len(evs) > 0 {
			f.After = evs[0].ID - 1
		}
	}
	ctx, cancel := s.streamContext(r.Context())
	defer cancel()
	out := newSSE(w)
	if err := s.followEvents(ctx, out, f, toEnd); err != nil && ctx.Err() == nil && !out.broken {
		s.log.Error("a stream of events ended early", "err", err) // the reader resumes
	}
	return nil
}

// followEvents sends events as they come. With toEnd it ends after the request's last one, with an event of kind done.
func (s *Server) followEvents(ctx context.Context, out *sse, f store.EventFilter, toEnd bool) error {
	topic := store.AllTopic
	switch {
	case f.RequestID != "":
		topic = store.RequestTopic(f.RequestID)
	case f.Cluster != "":
		topic = store.ClusterTopic(f.Cluster)
	case f.JobID != 0:
		topic = store.JobTopic(f.JobID)
	}
	told, stop := s.o.Store.Subscribe(topic)
	defer stop()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	f.Limit = eventPage
	for {
		// The request first, then its events: those written together with its end are seen.
		var req api.Request
		if toEnd {
			var err error
			if req, err = s.o.Store.Request(ctx, f.RequestID); err != nil {
				return err
			}
		}
		for {
			evs, err := s.o.Store.Events(ctx, f)
			if err != nil {
				return err
			}
			for _, e := range evs {
				f.After = e.ID
				if toEnd && e.Kind == api.EventDone {
					continue // told below, with the request in it
				}
				if err := out.event(e); err != nil {
					return err
				}
			}
			if len(evs) < eventPage {
				break
			}
		}
		if toEnd && req.Status.Terminal() {
			return out.event(doneEvent(req, f.After, s.now()))
		}
		if err := out.flush(); err != nil {
			return err
		}
	wait:
		for {
			select {
			case <-told:
				break wait
			case <-poll.C:
				break wait
			case <-alive.C:
				if err := out.comment(); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

func doneEvent(r api.Request, after int64, now time.Time) api.Event {
	data, _ := json.Marshal(r)
	e := api.Event{ID: after, Time: now.UTC(), Cluster: r.Cluster, RequestID: r.ID, Kind: api.EventDone, Message: string(r.Status), Data: data}
	if r.FinishedAt != nil {
		e.Time = *r.FinishedAt
	}
	return e
}

func (s *Server) complete(ctx context.Context, kind, incomplete string) ([]string, error) {
	out := []string{}
	if strings.ContainsAny(incomplete, "*?[]\\") {
		return out, nil
	}
	switch kind {
	case "cluster_name":
		cs, err := s.o.Store.Clusters(ctx, store.ClusterFilter{Names: []string{incomplete + "*"}, SkipManaged: true})
		for _, c := range cs {
			out = append(out, c.Name)
		}
		return out, err
	case "managed_job", "managed_job_name":
		return s.completeJobs(ctx, kind == "managed_job_name", incomplete)
	default:
		rs, err := s.o.Store.Requests(ctx, store.RequestFilter{Limit: 1000})
		for _, r := range rs {
			if strings.HasPrefix(r.ID, incomplete) {
				out = append(out, r.ID)
			}
		}
		return out, err
	}
}

func writeJSON(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(b, '\n')) // the reader going away is no error of ours
	return nil
}
