package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/secret"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/task"
)

func pid() int { return os.Getpid() }

// submitRoutes are the mutating calls, and those reads that take long: each is a request with an id of the client's.
func (s *Server) submitRoutes(h huma.API) {
	submit(h, s, "launch", "Bring a cluster up if need be, and run a task on it",
		func(b *api.LaunchBody) (api.Base, string) { return b.Base, b.Cluster }, optionalCluster)
	submit(h, s, "exec", "Run a task on a cluster that is UP",
		func(b *api.ExecBody) (api.Base, string) { return b.Base, b.Cluster }, needCluster)
	submit(h, s, "start", "Start a stopped cluster", func(b *api.StartBody) (api.Base, string) { return b.Base, b.Cluster }, needCluster)
	submit(h, s, "stop", "Stop a cluster; its files stay", func(b *api.StopOrDownBody) (api.Base, string) { return b.Base, b.Cluster }, needCluster)
	submit(h, s, "down", "Remove a cluster", func(b *api.StopOrDownBody) (api.Base, string) { return b.Base, b.Cluster }, needCluster)
	submit(h, s, "autostop", "Set, change or clear the idle timer of a cluster",
		func(b *api.AutostopBody) (api.Base, string) { return b.Base, b.Cluster }, needCluster)
	submit(h, s, "cancel", "Cancel jobs on a cluster", func(b *api.CancelBody) (api.Base, string) { return b.Base, b.Cluster }, needCluster)
	submit(h, s, "preempt", "Take spot nodes away as a cloud would", func(b *api.PreemptBody) (api.Base, string) { return b.Base, b.Cluster }, needCluster)
	submit(h, s, "check", "See which infra can be used, and why not", func(b *api.CheckBody) (api.Base, string) { return b.Base, "" }, noCluster)
	submit(h, s, "refresh", "Ask the infra how clusters are", func(b *api.RefreshBody) (api.Base, string) { return b.Base, "" }, noCluster)
	submit(h, s, "jobs.launch", "Submit managed jobs", func(b *api.JobsLaunchBody) (api.Base, string) { return b.Base, "" }, noCluster)

	op := operation("POST", "/requests/cancel", "cancel-requests", "requests", "Cancel requests", http.StatusNotFound)
	type cancelIn struct{ Body api.CancelRequestsBody }
	get(h, op, s, func(ctx context.Context, in *cancelIn) (api.CancelRequestsReply, error) {
		return s.cancelRequests(ctx, in.Body)
	})
}

func noCluster(string) error { return nil }

func optionalCluster(name string) error {
	if name == "" {
		return nil
	}
	return needCluster(name)
}

// needCluster refuses what can't be the name of a cluster, before anything is stored.
func needCluster(name string) error {
	if name == "" {
		return failure(api.ErrInvalid, "", "cluster_name is empty")
	}
	if err := task.ValidateClusterName(name); err != nil {
		return failure(api.ErrInvalid, "", "%s", err)
	}
	return nil
}

type bodyIn[B any] struct{ Body B }

// accepted is the answer to a mutating call.
type accepted struct {
	RequestID string `header:"X-Skyloom-Request-ID"`
	Body      api.Ref
}

func submit[B any](h huma.API, s *Server, kind, summary string, parts func(*B) (api.Base, string), check func(string) error) {
	tag := "clusters"
	if strings.HasPrefix(kind, "jobs.") {
		tag = managedTag
	}
	op := operation("POST", "/"+strings.ReplaceAll(kind, ".", "/"), strings.ReplaceAll(kind, ".", "-"), tag, summary,
		http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable, http.StatusInsufficientStorage)
	op.DefaultStatus = http.StatusAccepted
	huma.Register(h, op, func(ctx context.Context, in *bodyIn[B]) (*accepted, error) {
		base, cluster := parts(&in.Body)
		err := check(cluster)
		var ref api.Ref
		if err == nil {
			ref, err = s.submit(ctx, kind, base, cluster, in.Body)
		}
		if err != nil {
			return nil, s.toProblem(ctx, err)
		}
		return &accepted{ref.RequestID, ref}, nil
	})
}

// submit records the request and hands it on. What makes it idempotent is the row: the same id with the same body is
// the same request; one that has ended is answered from its row.
func (s *Server) submit(ctx context.Context, kind string, base api.Base, cluster string, body any) (api.Ref, error) {
	if err := checkID(base.RequestID); err != nil {
		return api.Ref{}, err
	}
	canonical, err := json.Marshal(body) // struct order, map keys sorted: the same for the same content
	if err != nil {
		return api.Ref{}, fmt.Errorf("encode body: %w", err)
	}
	hash := s.digest(append([]byte(kind+"\n"), canonical...))
	body, kept, err := s.withoutSecrets(ctx, base.RequestID, body)
	if err != nil {
		return api.Ref{}, err
	}
	row, existed, err := s.o.Store.CreateRequest(ctx, store.NewRequest{
		Request: api.Request{
			ID: base.RequestID, Name: "sky." + kind, Status: api.RequestPending, Cluster: cluster, User: base.User,
			UserHash: base.UserHash, Command: base.Command, CreatedAt: s.now().UTC(),
		},
		Kind: kind, Body: kept, BodyHash: hash,
	})
	if errors.Is(err, store.ErrConflict) {
		return api.Ref{}, failure(api.ErrConflict, "Use a new id for another request.", "request %s exists already, with another body", base.RequestID)
	}
	if err != nil {
		return api.Ref{}, err
	}
	if existed && row.Status.Terminal() {
		return api.Ref{RequestID: row.ID, Name: row.Name, Cluster: row.Cluster, Status: row.Status}, nil
	}
	// From here on the request stands: the client going away does not undo it.
	ref, err := s.be().Submit(context.WithoutCancel(ctx), kind, base, cluster, body)
	if err == nil {
		ref.RequestID, ref.Name = first(ref.RequestID, row.ID), first(ref.Name, row.Name)
		ref.Cluster = first(ref.Cluster, row.Cluster)
		if ref.Status == "" {
			ref.Status = row.Status
		}
		return ref, nil
	}
	var e *api.Error
	if errors.As(err, &e) && e.Kind != api.ErrUnavailable && e.Kind != api.ErrInternal && e.Kind != api.ErrStorage {
		// Refused for good. An unknown outcome leaves the row open: repeating the call, or the server's next start, settles it.
		if ferr := s.o.Store.FinishRequest(context.WithoutCancel(ctx), row.ID, api.RequestFailed, nil, e); ferr != nil {
			s.log.Error("a refused request could not be closed", "request", row.ID, "err", ferr)
		}
	}
	return api.Ref{}, err
}

// checkID takes a UUID in its usual form only: the id becomes part of names elsewhere.
func checkID(id string) error {
	u, err := uuid.Parse(id)
	if err != nil || u.String() != id || u == uuid.Nil {
		return failure(api.ErrInvalid, "The client chooses it, at random, and keeps it when it repeats the call.",
			"request_id must be a UUID in lower case, such as 3f0c9a52-6f0e-4b7e-9a55-0d4f3f9e8a11")
	}
	return nil
}

// withoutSecrets moves inline secrets to the secret store. kept is the body as the request's row may hold it: nil where
// secrets could not be moved.
func (s *Server) withoutSecrets(ctx context.Context, id string, body any) (out any, kept []byte, err error) {
	var values, refs map[string]string
	scope := secret.RequestScope(id)
	switch b := body.(type) {
	case api.LaunchBody:
		values, refs = b.Secrets, b.SecretRefs
	case api.ExecBody:
		values, refs = b.Secrets, b.SecretRefs
	case api.JobsLaunchBody:
		values, refs, scope = b.Secrets, b.SecretRefs, secret.JobsScope(id)
	}
	if len(values) > 0 {
		if s.o.Secrets == nil {
			return body, nil, nil
		}
		all := make(map[string]string, len(values)+len(refs))
		for name, ref := range refs {
			all[name] = ref
		}
		for name, value := range values {
			if all[name], err = s.o.Secrets.Put(ctx, scope, value); err != nil {
				return nil, nil, fmt.Errorf("keep secret %s: %w", name, err)
			}
		}
		switch b := body.(type) {
		case api.LaunchBody:
			b.Secrets, b.SecretRefs = nil, all
			body = b
		case api.ExecBody:
			b.Secrets, b.SecretRefs = nil, all
			body = b
		case api.JobsLaunchBody:
			b.Secrets, b.SecretRefs = nil, all
			body = b
		}
	}
	kept, err = json.Marshal(body)
	return body, kept, err
}

// cancelRequests resolves prefixes; ids that are unknown or finished are skipped, as long as one of them is known.
func (s *Server) cancelRequests(ctx context.Context, b api.CancelRequestsBody) (api.CancelRequestsReply, error) {
	if len(b.RequestIDs) == 0 && !b.All && !b.AllUsers {
		return api.CancelRequestsReply{}, failure(api.ErrInvalid, "Name requests, or say all.", "there is nothing to cancel: no request ids, and not all")
	}
	if len(b.RequestIDs) > 1000 {
		return api.CancelRequestsReply{}, failure(api.ErrInvalid, "", "at most 1000 requests can be cancelled in one call")
	}
	given, unknown := b.RequestIDs, []string(nil)
	b.RequestIDs = nil
	for _, id := range given {
		r, err := s.request(ctx, id)
		var p *Problem
		switch {
		case errors.As(err, &p) && p.Type == api.ErrNotFound:
			unknown = append(unknown, id)
		case err != nil:
			return api.CancelRequestsReply{}, err
		default:
			b.RequestIDs = append(b.RequestIDs, r.ID)
		}
	}
	if len(given) > 0 && len(b.RequestIDs) == 0 {
		return api.CancelRequestsReply{}, failure(api.ErrNotFound, "See: sky api status -a", "there is no request %s", strings.Join(unknown, ", "))
	}
	ids, err := s.be().CancelRequests(ctx, b)
	if ids == nil {
		ids = []string{}
	}
	return api.CancelRequestsReply{Cancelled: ids}, err
}
