package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

type jobLogQuery struct {
	Name   string `path:"name" maxLength:"200"`
	JobID  int64  `query:"job_id" minimum:"0" doc:"0 or none: the latest job"`
	Follow bool   `query:"follow" doc:"go on until the job has ended"`
	Tail   int    `query:"tail" minimum:"0" maximum:"10000000" doc:"only the last lines of each node; 0: everything"`
	Cursor string `query:"cursor" doc:"where to read on: RANK/PHASE:OFFSET,…" maxLength:"30000"`
}

func (s *Server) logRoutes(h huma.API) {
	op := operation("GET", "/clusters/{name}/logs", "job-logs", "jobs", "The log of a job, of all its nodes", http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable)
	op.Description = "A framed stream: a JSON line (LogFrame), then so many raw bytes as its len says. Empty lines keep it alive. The first frame names the job; " +
		"the last one has end set, and the job's status. A stream without it was cut: ask again with a cursor made of the offsets that you have."
	stream(h, op, s, api.LogMediaType, "log frames", s.jobLogs)
	h.OpenAPI().Components.Schemas.Schema(typeOf[api.LogFrame](), true, "LogFrame")

	stream(h, operation("GET", "/clusters/{name}/provision_logs", "provision-logs", "clusters", "How a cluster was brought up", http.StatusNotFound),
		s, "text/plain", "lines of text", s.provisionLogs)
	stream(h, operation("GET", "/clusters/{name}/hook_logs", "hook-logs", "clusters", "What the lifecycle hooks of a cluster printed",
		http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable), s, "text/plain", "the hooks' output", s.hookLogs)
}

// jobLogs merges the logs of all nodes of a job.
func (s *Server) jobLogs(w http.ResponseWriter, r *http.Request, in *jobLogQuery) error {
	cursor, err := parseCursor(in.Cursor)
	if err != nil {
		return err
	}
	ctx, cancel := s.streamContext(r.Context())
	defer cancel()
	c, err := s.cluster(ctx, in.Name)
	if err != nil {
		return err
	}
	nodes, err := s.nodes(ctx, c)
	if err != nil {
		return err
	}
	defer closeClients(nodes)
	job, err := s.findJob(ctx, c, nodes[0].Client, in.JobID)
	if err != nil {
		return err
	}
	first := api.LogFrame{JobID: job.ID, JobName: job.Name, Nodes: max(job.NumNodes, 1)}
	m := &logMerge{s: s, cluster: c, job: job, follow: in.Follow, tail: in.Tail, out: newFrameWriter(w, first), headDone: make(chan struct{})}
	if in.Follow {
		if err := m.out.begin(); err != nil {
			return nil
		}
	}
	go m.out.keepAlive(ctx, keepAlive)
	err = m.run(ctx, nodes, cursor)
	cancel() // the connection is ours alone again
	if err != nil && m.out.hasBegun() {
		if ctx.Err() == nil || r.Context().Err() == nil {
			s.log.Info("a log stream was cut", "cluster", c.Name, "job", job.ID, "err", err)
		}
		return nil // no End frame: the reader knows, and resumes
	}
	return err
}

// nodes gives a cluster's agents by rank; there is at least one.
func (s *Server) nodes(ctx context.Context, c api.Cluster) ([]NodeClient, error) {
	nodes, err := s.be().NodeClients(ctx, c.Name)
	if err == nil && len(nodes) == 0 {
		err = failure(api.ErrClusterNotUp, "Start it: sky start "+c.Name, "cluster %s is %s: it has no node to read from", c.Name, c.Status)
	}
	return nodes, err
}

// closeClients drops connections that lie idle; those in use stay.
func closeClients(nodes []NodeClient) {
	for _, n := range nodes {
		n.Client.Close()
	}
}

// findJob finds a job, or the latest one. The head's agent is asked where the mirror does not know it (yet).
func (s *Server) findJob(ctx context.Context, c api.Cluster, head *agentapi.Client, id int64) (api.Job, error) {
	f := store.JobFilter{Clusters: []string{c.Name}, Limit: 1}
	if id > 0 {
		f.IDs = []int64{id}
	}
	jobs, err := s.o.Store.Jobs(ctx, f)
	if err != nil {
		return api.Job{}, err
	}
	if len(jobs) > 0 {
		return jobs[0], nil
	}
	none := failure(api.ErrJobNotFound, "See: sky queue "+c.Name, "cluster %s has no job yet", c.Name)
	if id > 0 {
		none.Detail = fmt.Sprintf("there is no job %d on cluster %s", id, c.Name)
	}
	var j api.Job
	if id > 0 {
		j, err = head.Job(ctx, id)
	} else if jobs, err = head.Jobs(ctx); err == nil {
		if len(jobs) == 0 {
			return j, none
		}
		j = jobs[len(jobs)-1]
	}
	if agentapi.IsKind(err, agentapi.KindNotFound) {
		return j, none
	}
	if err != nil {
		return j, unreachable(c.Name, err)
	}
	return j, nil
}

func unreachable(cluster string, err error) error {
	var e *agentapi.Error
	if errors.As(err, &e) {
		return failure(api.ErrUnavailable, "See: sky events "+cluster, "the agent of cluster %s answered: %s", cluster, e.Detail)
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	return failure(api.ErrUnavailable, "See how it is: sky status "+cluster, "the agent of cluster %s can't be reached: %v", cluster, err)
}
