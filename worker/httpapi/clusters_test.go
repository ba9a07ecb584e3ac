package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

func TestListClusters(t *testing.T) {
	e := newEnv(t)
	if _, body := e.call("GET", "/api/v1/clusters", ""); strings.TrimSpace(body) != `{"clusters":[],"enabled_infra":["local"]}` {
		t.Errorf("an empty list reads %s", body)
	}
	e.putCluster(api.Cluster{Name: "dev", UserHash: "u1", LastTaskYAML: "run: x", Nodes: 2})
	e.putCluster(api.Cluster{Name: "train-1", UserHash: "u1"})
	e.putCluster(api.Cluster{Name: "train-2", UserHash: "u2"})
	for _, tt := range []struct {
		f    api.ClusterFilter
		want string
	}{
		{api.ClusterFilter{}, "dev train-1 train-2"},
		{api.ClusterFilter{UserHash: "u1"}, "dev train-1"},
		{api.ClusterFilter{UserHash: "u1", AllUsers: true}, "dev train-1 train-2"},
		{api.ClusterFilter{Names: []string{"train-*"}}, "train-1 train-2"},
		{api.ClusterFilter{Names: []string{"dev", "train-2", "nope"}}, "dev train-2"},
	} {
		l, err := e.client().Clusters(t.Context(), tt.f)
		if err != nil {
			t.Fatal(err)
		}
		names := map[string]bool{}
		for _, c := range l.Clusters {
			names[c.Name] = true
		}
		want := map[string]bool{}
		for n := range strings.FieldsSeq(tt.want) {
			want[n] = true
		}
		if fmt.Sprint(names) != fmt.Sprint(want) || len(l.EnabledInfra) != 1 {
			t.Errorf("%+v: %v", tt.f, names)
		}
	}
	c, err := e.client().Cluster(t.Context(), "dev")
	if err != nil || c.LastTaskYAML != "run: x" || c.Nodes != 2 {
		t.Errorf("%+v %v", c, err)
	}
	l, err := e.client().Clusters(t.Context(), api.ClusterFilter{Names: []string{"dev"}, Verbose: true})
	if err != nil || len(l.Clusters) != 1 || l.Clusters[0].LastTaskYAML != "run: x" {
		t.Errorf("verbose: %+v %v", l, err)
	}
	for _, name := range []string{"nope", "..%2f..%2fetc", "%00", strings.Repeat("x", 150)} {
		resp, body := e.call("GET", "/api/v1/clusters/"+name, "")
		e.refused(resp, body, 404, api.ErrClusterDoesNotExist, "does not exist")
	}
}

// TestUnknownParameters: a filter that is spelt wrongly lists nothing.
func TestUnknownParameters(t *testing.T) {
	e := newEnv(t)
	for _, path := range []string{"/clusters?nmae=x", "/jobs/queue?statuses=RUNNING", "/requests?all=true&x=1", "/info?verbose=true", "/events?clusters=x", "/gpus?Name=A100"} {
		resp, body := e.call("GET", "/api/v1"+path, "")
		e.refused(resp, body, 422, api.ErrInvalid, "unknown parameter")
	}
	if resp, body := e.call("GET", "/api/v1/health?x=1", ""); resp.StatusCode != 200 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestJobs(t *testing.T) {
	e := newEnv(t)
	a := e.putCluster(api.Cluster{Name: "a", UserHash: "u1"})
	b := e.putCluster(api.Cluster{Name: "b", UserHash: "u2"})
	now := time.Now()
	e.putJob(a, api.Job{ID: 1, Name: "one", Status: api.JobSucceeded, UserHash: "u1", SubmittedAt: now, Seq: 1})
	e.putJob(a, api.Job{ID: 2, Name: "two", Status: api.JobRunning, UserHash: "u1", SubmittedAt: now, Seq: 1})
	e.putJob(b, api.Job{ID: 1, Name: "three", Status: api.JobRunning, UserHash: "u2", SubmittedAt: now, Seq: 1})
	for _, tt := range []struct {
		f    api.JobFilter
		want string
	}{
		{api.JobFilter{}, "map[a:[two one] b:[three]] map[]"},
		{api.JobFilter{UserHash: "u1"}, "map[a:[two one]] map[]"},
		{api.JobFilter{UserHash: "u1", AllUsers: true, SkipFinished: true}, "map[a:[two] b:[three]] map[]"},
		{api.JobFilter{Clusters: []string{"b", "nope"}}, `map[b:[three]] map[nope:cluster "nope" does not exist]`},
		{api.JobFilter{Clusters: []string{"x*"}}, `map[] map[]`},
	} {
		l, err := e.client().Jobs(t.Context(), tt.f)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string][]string{}
		for c, jobs := range l.Clusters {
			for _, j := range jobs {
				got[c] = append(got[c], j.Name)
			}
		}
		if l.Errors == nil {
			l.Errors = map[string]string{}
		}
		if s := fmt.Sprint(got, " ", l.Errors); strings.Join(strings.Fields(s), " ") != tt.want {
			t.Errorf("%+v: %s", tt.f, s)
		}
	}
	_, body := e.call("GET", "/api/v1/clusters/a/jobs", "")
	var l jobList
	if json.Unmarshal([]byte(body), &l) != nil || len(l.Jobs) != 2 || l.Jobs[0].ID != 2 {
		t.Errorf("%s", body)
	}
}

func TestCostReport(t *testing.T) {
	e := newEnv(t)
	if _, body := e.call("GET", "/api/v1/cost-report", ""); strings.TrimSpace(body) != `{"rows":[]}` {
		t.Errorf("%s", body)
	}
	err := e.st.Write(t.Context(), store.Batch{UsageStarts: []store.UsageStart{{Hash: "h", N: 1, Name: "a", Nodes: 2, PricePerHour: 3, At: time.Now().Add(-time.Hour)}}})
	if err != nil {
		t.Fatal(err)
	}
	rows, err := e.client().CostReport(t.Context(), 0)
	if err != nil || len(rows) != 1 || rows[0].Name != "a" {
		t.Errorf("%+v %v", rows, err)
	}
}

// BenchmarkListClusters serves `sky status` of a server with 1,000 clusters.
func BenchmarkListClusters(b *testing.B) {
	e := newEnv(b)
	now := time.Now()
	for i := range 10 {
		var cs []api.Cluster
		for j := range 100 {
			n := fmt.Sprintf("cluster-%03d", i*100+j)
			cs = append(cs, api.Cluster{Name: n, Hash: n, Status: api.ClusterUp, LaunchedAt: &now, StatusUpdatedAt: now, UserHash: "u", UserName: "ada", Workspace: "default",
				Cloud: "local", Nodes: 1, CPUs: 2, MemoryGB: 8, ResourcesStr: "1x(cpus=2)", ResourcesFull: "1x local(cpus=2, mem=8)", LastTaskYAML: strings.Repeat("run: x\n", 100), Seq: 1})
		}
		if err := e.st.Write(context.Background(), store.Batch{Clusters: cs}); err != nil {
			b.Fatal(err)
		}
	}
	h := e.s.Handler()
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest("GET", "http://127.0.0.1:80/api/v1/clusters?all_users=true", nil)
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, fakeAddr("127.0.0.1:80")))
		r.Header.Set("Authorization", "Bearer "+testToken)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != 200 || w.Body.Len() < 100_000 {
			b.Fatal(w.Code, w.Body.Len())
		}
	}
}

type fakeAddr string

func (fakeAddr) Network() string  { return "tcp" }
func (a fakeAddr) String() string { return string(a) }
