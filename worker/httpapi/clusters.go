package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

type clusterQuery struct {
	Names    []string `query:"name,explode" doc:"names or globs"`
	AllUsers bool     `query:"all_users"`
	UserHash string   `query:"user_hash" doc:"only clusters of this user, unless all_users"`
	Verbose  bool     `query:"verbose" doc:"all fields, not only those of a summary"`
	Managed  bool     `query:"managed" doc:"clusters of managed jobs too; those that are named in full are always listed"`
}

type jobList struct {
	Jobs []api.Job `json:"jobs"`
}

type costReport struct {
	Rows []api.CostRow `json:"rows"`
}

func (s *Server) clusterRoutes(h huma.API) {
	op := operation("GET", "/clusters", "list-clusters", "clusters", "Clusters")
	stream(h, op, s, "application/json", "clusters", s.listClusters)
	h.OpenAPI().Paths[op.Path].Get.Responses["200"].Content["application/json"].Schema =
		h.OpenAPI().Components.Schemas.Schema(typeOf[api.ClusterList](), true, "ClusterList")

	type nameIn struct {
		Name string `path:"name" maxLength:"200"`
	}
	get(h, operation("GET", "/clusters/{name}", "get-cluster", "clusters", "One cluster, all fields", http.StatusNotFound), s,
		func(ctx context.Context, in *nameIn) (api.Cluster, error) { return s.cluster(ctx, in.Name) })
	get(h, operation("GET", "/clusters/{name}/jobs", "cluster-jobs", "jobs", "The jobs of a cluster, newest first", http.StatusNotFound), s,
		func(ctx context.Context, in *nameIn) (jobList, error) {
			if _, err := s.cluster(ctx, in.Name); err != nil {
				return jobList{}, err
			}
			jobs, err := s.o.Store.Jobs(ctx, store.JobFilter{Clusters: []string{in.Name}})
			if jobs == nil {
				jobs = []api.Job{}
			}
			return jobList{jobs}, err
		})

	type jobsIn struct {
		Clusters     []string `query:"cluster,explode" doc:"names or globs; none: all clusters"`
		SkipFinished bool     `query:"skip_finished"`
		AllUsers     bool     `query:"all_users"`
		UserHash     string   `query:"user_hash" doc:"only clusters and jobs of this user, unless all_users"`
	}
	get(h, operation("GET", "/jobs", "jobs", "jobs", "The jobs of clusters, by cluster, newest first"), s,
		func(ctx context.Context, in *jobsIn) (api.JobLists, error) {
			user := in.UserHash
			if in.AllUsers {
				user = ""
			}
			return s.jobs(ctx, in.Clusters, user, in.SkipFinished)
		})

	type costIn struct {
		Days int `query:"days" default:"30" minimum:"0" maximum:"36500" doc:"clusters used in the last days; 0: all of history"`
	}
	get(h, operation("GET", "/cost-report", "cost-report", "clusters", "What clusters have cost"), s,
		func(ctx context.Context, in *costIn) (costReport, error) {
			rows, err := s.o.Store.CostReport(ctx, in.Days)
			if rows == nil {
				rows = []api.CostRow{}
			}
			return costReport{rows}, err
		})
}

// listClusters passes the store's rows through as they are encoded there: a thousand rows cost a few milliseconds.
func (s *Server) listClusters(w http.ResponseWriter, r *http.Request, in *clusterQuery) error {
	f := store.ClusterFilter{Names: in.Names, Full: in.Verbose, SkipManaged: !in.Managed && !inFull(in.Names)}
	if !in.AllUsers {
		f.UserHash = in.UserHash
	}
	rows, err := s.o.Store.ClusterRows(r.Context(), f)
	if err != nil {
		return err
	}
	infra, err := json.Marshal(nonNil(s.be().EnabledInfra(r.Context())))
	if err != nil {
		return fmt.Errorf("encode infra: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	b := bufio.NewWriterSize(w, 32<<10)
	b.WriteString(`{"clusters":[`)
	for i, row := range rows {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(row)
	}
	b.WriteString(`],"enabled_infra":`)
	b.Write(infra)
	b.WriteString("}\n")
	_ = b.Flush() // the reader going away is no error of ours
	return nil
}

// inFull says that clusters were named, and none by a glob.
func inFull(names []string) bool {
	return len(names) > 0 && !slices.ContainsFunc(names, func(n string) bool { return strings.ContainsAny(n, `*?[\`) })
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func (s *Server) cluster(ctx context.Context, name string) (api.Cluster, error) {
	c, err := s.o.Store.Cluster(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return c, noCluster404(name)
	}
	return c, err
}

// jobs lists jobs by cluster. A name that matches nothing is told in Errors and does not spoil the rest.
func (s *Server) jobs(ctx context.Context, names []string, user string, skipFinished bool) (api.JobLists, error) {
	out := api.JobLists{Clusters: map[string][]api.Job{}, Errors: map[string]string{}}
	cf := store.ClusterFilter{Names: names, SkipManaged: !inFull(names)}
	if len(names) == 0 {
		cf.UserHash = user
	}
	cs, err := s.o.Store.Clusters(ctx, cf)
	if err != nil {
		return out, err
	}
	found := make([]string, len(cs))
	for i, c := range cs {
		found[i] = c.Name
		out.Clusters[c.Name] = []api.Job{}
	}
	for _, n := range names {
		if _, ok := out.Clusters[n]; !ok && !strings.ContainsAny(n, "*?[") {
			out.Errors[n] = noCluster404(n).Detail
		}
	}
	if len(found) == 0 {
		return out, nil
	}
	jobs, err := s.o.Store.Jobs(ctx, store.JobFilter{Clusters: found, UserHash: user, ActiveOnly: skipFinished})
	if err != nil {
		return out, err
	}
	for _, j := range jobs {
		out.Clusters[j.Cluster] = append(out.Clusters[j.Cluster], j)
	}
	return out, nil
}

type gpuQuery struct {
	Name       string  `query:"name" doc:"NAME or NAME:COUNT" maxLength:"200"`
	Quantity   float64 `query:"quantity" minimum:"0"`
	Infra      string  `query:"infra" maxLength:"200"`
	Region     string  `query:"region" maxLength:"200"`
	All        bool    `query:"all" doc:"uncommon accelerators too"`
	AllRegions bool    `query:"all_regions"`
}

func (q *gpuQuery) filter() (GPUFilter, error) {
	f := GPUFilter{Name: q.Name, Quantity: q.Quantity, Infra: q.Infra, Region: q.Region, All: q.All, AllRegions: q.AllRegions}
	if name, count, ok := strings.Cut(q.Name, ":"); ok {
		n, err := strconv.ParseFloat(count, 64)
		if err != nil || n <= 0 {
			return f, failure(api.ErrInvalid, "Write it as A100:8.", "the count in %q is not a positive number", shorten(q.Name))
		}
		f.Name, f.Quantity = name, n
	}
	return f, nil
}
