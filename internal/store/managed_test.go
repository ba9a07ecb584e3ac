package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/skyloom/skyloom/api"
)

func TestJobNumbers(t *testing.T) {
	s, _ := open(t)
	get := func(req string, n int) []int64 {
		t.Helper()
		ids, err := s.JobNumbers(t.Context(), req, n)
		must(t, err)
		return ids
	}
	for _, c := range []struct {
		req  string
		n    int
		want []int64
	}{{"a", 2, []int64{1, 2}}, {"b", 1, []int64{3}}, {"a", 2, []int64{1, 2}}, {"a", 1, []int64{1}}, {"a", 3, []int64{1, 2, 4}}, {"c", 2, []int64{5, 6}}} {
		if got := get(c.req, c.n); !slices.Equal(got, c.want) {
			t.Errorf("%s %d: %v, want %v", c.req, c.n, got, c.want)
		}
	}
	if _, err := s.JobNumbers(t.Context(), "a", 0); err == nil {
		t.Error("no number was asked for, and none refused")
	}
	for id, want := range map[int64]bool{4: true, 99: false} {
		if ok, err := s.JobNumbered(t.Context(), id); ok != want || err != nil {
			t.Error(id, ok, err)
		}
	}
	// Many at once: none twice, none left out.
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[int64]bool{}
	for i := range 20 {
		wg.Go(func() {
			ids, err := s.JobNumbers(t.Context(), fmt.Sprint("r", i%10), 3)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			for _, id := range ids {
				seen[id] = true
			}
		})
	}
	wg.Wait()
	if len(seen) != 30 {
		t.Errorf("%d numbers, want 30", len(seen))
	}
}

func managed(id int64, task int, st api.ManagedStatus, seq int64) api.ManagedJob {
	return api.ManagedJob{ID: id, TaskID: task, NumTasks: 1, Name: fmt.Sprint("n", id), Status: st, Seq: seq, UserHash: fmt.Sprint("u", id%2), RequestID: fmt.Sprint("r", (id+1)/2),
		SubmittedAt: time.Date(2026, 1, 1, int(id), 0, 0, 0, time.UTC)}
}

func TestManagedJobs(t *testing.T) {
	s, _ := open(t)
	ctx := t.Context()
	rows := []api.ManagedJob{managed(1, 0, api.ManagedSucceeded, 1), managed(2, 0, api.ManagedRunning, 1), managed(3, 0, api.ManagedSucceeded, 1), managed(3, 1, api.ManagedRunning, 1),
		managed(4, 0, api.ManagedPending, 1), managed(5, 0, api.ManagedFailed, 1)}
	rows[2].UserYAML = "run: \"3\"\n"
	must(t, s.Write(ctx, Batch{ManagedJobs: rows}))
	at := func(h int) *time.Time { v := time.Date(2026, 1, 1, h, 0, 0, 0, time.UTC); return &v }
	for _, c := range []struct {
		f      ManagedFilter
		want   string
		total  int
		counts map[api.ManagedStatus]int
	}{
		{ManagedFilter{}, "5.0 4.0 3.0 3.1 2.0 1.0", 5, map[api.ManagedStatus]int{"SUCCEEDED": 2, "RUNNING": 2, "PENDING": 1, "FAILED": 1}},
		{ManagedFilter{Limit: 3}, "5.0 4.0 3.0 3.1", 5, map[api.ManagedStatus]int{"SUCCEEDED": 2, "RUNNING": 2, "PENDING": 1, "FAILED": 1}},
		{ManagedFilter{SkipFinished: true}, "4.0 3.0 3.1 2.0", 3, map[api.ManagedStatus]int{"SUCCEEDED": 2, "RUNNING": 2, "PENDING": 1, "FAILED": 1}},
		{ManagedFilter{SkipFinished: true, Limit: 1}, "4.0", 3, nil},
		{ManagedFilter{Statuses: []api.ManagedStatus{api.ManagedSucceeded, api.ManagedFailed}}, "5.0 3.0 3.1 1.0", 3, nil},
		{ManagedFilter{UserHash: "u0"}, "4.0 2.0", 2, map[api.ManagedStatus]int{"RUNNING": 1, "PENDING": 1}},
		{ManagedFilter{UserHash: "u1", Statuses: []api.ManagedStatus{api.ManagedRunning}}, "3.0 3.1", 1, map[api.ManagedStatus]int{"SUCCEEDED": 2, "RUNNING": 1, "FAILED": 1}},
		{ManagedFilter{Name: "n3"}, "3.0 3.1", 1, nil},
		{ManagedFilter{IDs: []int64{1, 4, 9}}, "4.0 1.0", 2, nil},
		{ManagedFilter{Since: at(2), Before: at(4)}, "3.0 3.1 2.0", 2, nil},
		{ManagedFilter{Name: "none"}, "", 0, map[api.ManagedStatus]int{}},
	} {
		got, total, counts, err := s.ManagedJobs(ctx, c.f)
		must(t, err)
		text := ""
		for i, r := range got {
			if i > 0 {
				text += " "
			}
			text += fmt.Sprintf("%d.%d", r.ID, r.TaskID)
		}
		if text != c.want || total != c.total || (c.counts != nil && fmt.Sprint(counts) != fmt.Sprint(c.counts)) {
			t.Errorf("%+v: %s, %d, %v; want %s, %d, %v", c.f, text, total, counts, c.want, c.total, c.counts)
		}
	}
	job, err := s.ManagedJob(ctx, 3)
	if err != nil || len(job) != 2 || job[0].UserYAML != "run: \"3\"\n" || job[1].UserYAML != "" || !job[0].SubmittedAt.Equal(*at(3)) {
		t.Fatalf("%+v %v", job, err)
	}
	if _, err := s.ManagedJob(ctx, 9); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	raw, total, _, err := s.ManagedRows(ctx, ManagedFilter{IDs: []int64{3}, Full: true})
	must(t, err)
	var back api.ManagedJob
	must(t, json.Unmarshal(raw[0], &back))
	if total != 1 || len(raw) != 2 || fmt.Sprintf("%+v", back) != fmt.Sprintf("%+v", job[0]) {
		t.Fatalf("%s", raw)
	}
	if raw, _, _, err := s.ManagedRows(ctx, ManagedFilter{IDs: []int64{3}}); err != nil || len(raw) != 2 || slices.Contains(raw[0], 0) {
		t.Fatalf("%s %v", raw, err)
	}
	for req, want := range map[string]string{"": "[2 3 4]", "r1": "[2]", "r2": "[3 4]", "r3": "[]"} {
		if ids, err := s.ManagedOpen(ctx, req); err != nil || fmt.Sprint(ids) != want {
			t.Errorf("open of %q: %v %v, want %s", req, ids, err, want)
		}
	}
	for _, bad := range []api.ManagedJob{{}, {ID: 1}, {ID: 1, TaskID: -1, Status: api.ManagedRunning}, {Status: api.ManagedRunning}} {
		if err := s.PutManagedJobs(ctx, bad); err == nil {
			t.Errorf("%+v was written", bad)
		}
	}
}

// TestManagedNeverBack: whatever comes, late or twice, a row's sequence only grows and its end stays.
func TestManagedNeverBack(t *testing.T) {
	s, _ := open(t)
	all := []api.ManagedStatus{api.ManagedPending, api.ManagedStarting, api.ManagedRunning, api.ManagedRecovering, api.ManagedCancelling, api.ManagedSucceeded, api.ManagedCancelled, api.ManagedFailed}
	id := int64(0)
	rapid.Check(t, func(t *rapid.T) {
		id++
		var cur api.ManagedJob
		for range rapid.IntRange(1, 12).Draw(t, "n") {
			row := managed(id, 0, rapid.SampledFrom(all).Draw(t, "status"), rapid.Int64Range(1, 10).Draw(t, "seq"))
			row.Details = rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "details")
			if err := s.PutManagedJobs(t.Context(), row); err != nil {
				t.Fatal(err)
			}
			if row.Seq > cur.Seq && (!cur.Status.Terminal() || row.Status == cur.Status) {
				cur = row
			}
			got, err := s.ManagedJob(t.Context(), id)
			if err != nil || len(got) != 1 || got[0].Seq != cur.Seq || got[0].Status != cur.Status || got[0].Details != cur.Details {
				t.Fatalf("%+v, want %+v (%v)", got, cur, err)
			}
			_, _, counts, err := s.ManagedJobs(t.Context(), ManagedFilter{IDs: []int64{id}})
			if err != nil || len(counts) != 1 || counts[cur.Status] != 1 {
				t.Fatalf("%v %v", counts, err)
			}
		}
	})
}

func TestManagedEventsAndTopics(t *testing.T) {
	s, _ := open(t)
	ctx := t.Context()
	job, stopJob := s.Subscribe(JobTopic(7))
	defer stopJob()
	anyRow, stopAny := s.Subscribe(ManagedTopic)
	defer stopAny()
	all, stopAll := s.Subscribe(AllTopic)
	defer stopAll()
	adm, stopAdm := s.Subscribe(AdmissionTopic)
	defer stopAdm()
	told := func(what string, c <-chan struct{}, want bool) {
		t.Helper()
		select {
		case <-c:
			if !want {
				t.Errorf("%s: told for nothing", what)
			}
		default:
			if want {
				t.Errorf("%s: not told", what)
			}
		}
	}
	must(t, s.AppendEvents(ctx, Event{Key: "1", Event: api.Event{JobID: 7, Kind: api.EventStatus, Message: "seven"}}, Event{Key: "2", Event: api.Event{JobID: 8, Kind: api.EventStatus, Message: "eight"}}))
	told("job", job, true)
	told("all", all, true)
	told("rows", anyRow, false)
	es, err := s.Events(ctx, EventFilter{JobID: 7})
	if err != nil || len(es) != 1 || es[0].Message != "seven" || es[0].JobID != 7 {
		t.Fatalf("%+v %v", es, err)
	}
	must(t, s.PutManagedJobs(ctx, managed(8, 0, api.ManagedPending, 1)))
	told("job", job, false)
	told("rows", anyRow, true)
	told("all", all, true)
	_, _, err = s.AskAdmission(ctx, Admission{JobID: 7}, AdmissionLimits{})
	must(t, err)
	told("admissions", adm, true)
	told("all", all, false)
}

func TestManagedCollect(t *testing.T) {
	s, clk := open(t)
	ctx := t.Context()
	ids, err := s.JobNumbers(ctx, "req", 2)
	must(t, err)
	row := func(id int64, task int, st api.ManagedStatus) api.ManagedJob {
		r := managed(id, task, st, 1)
		r.RequestID, r.UserYAML = "req", "run: x"
		return r
	}
	must(t, s.PutManagedJobs(ctx, row(ids[0], 0, api.ManagedSucceeded), row(ids[0], 1, api.ManagedRunning), row(ids[1], 0, api.ManagedFailed)))
	must(t, s.PutSecret(ctx, "s1", "jobs/req", []byte("x")))
	must(t, s.PutSecret(ctx, "s2", "jobs/lost", []byte("x")))
	keep := Retention{Requests: time.Hour, ManagedJobs: time.Hour}
	step := func(want int, left string, secrets ...bool) {
		t.Helper()
		c, err := s.Collect(ctx, keep)
		must(t, err)
		rows, _, _, err := s.ManagedJobs(ctx, ManagedFilter{})
		must(t, err)
		got := ""
		for _, r := range rows {
			got += fmt.Sprintf("%d.%d ", r.ID, r.TaskID)
		}
		if c.ManagedJobs != want || got != left {
			t.Fatalf("%+v, left %q; want %d, %q", c, got, want, left)
		}
		for i, want := range secrets {
			if _, err := s.GetSecret(ctx, fmt.Sprint("s", i+1)); (err == nil) != want {
				t.Fatalf("secret %d: %v, want %v", i+1, err, want)
			}
		}
	}
	step(0, "2.0 1.0 1.1 ", true, true)
	clk.add(2 * time.Hour)
	step(1, "1.0 1.1 ", true, false) // the first job still has an open task, and needs its secret
	end := row(ids[0], 1, api.ManagedCancelled)
	end.Seq = 2
	must(t, s.PutManagedJobs(ctx, end))
	step(0, "1.0 1.1 ", true)
	clk.add(2 * time.Hour)
	step(1, "", false)
	if again, err := s.JobNumbers(ctx, "other", 1); err != nil || again[0] != 3 {
		t.Fatalf("%v %v: a number was given out again", again, err)
	}
}

// TestManagedFiles: what a job needs is kept until its last task has ended.
func TestManagedFiles(t *testing.T) {
	s, _ := open(t)
	kept := func() string {
		t.Helper()
		var ids []string
		must(t, s.EachManagedFile(t.Context(), func(id string) { ids = append(ids, id) }))
		slices.Sort(ids)
		return fmt.Sprint(ids)
	}
	files := []ManagedFiles{{1, []string{"a", "b"}}, {2, []string{"b", "c"}}}
	begin := Batch{ManagedJobs: []api.ManagedJob{managed(1, 0, api.ManagedPending, 1), managed(1, 1, api.ManagedPending, 1), managed(2, 0, api.ManagedPending, 1)}, ManagedFiles: files}
	must(t, s.Write(t.Context(), begin))
	must(t, s.Write(t.Context(), begin))
	must(t, s.PutManagedJobs(t.Context(), managed(1, 0, api.ManagedSucceeded, 2)))
	if got := kept(); got != "[a b c]" {
		t.Error(got)
	}
	must(t, s.PutManagedJobs(t.Context(), managed(1, 1, api.ManagedFailed, 2)))
	if got := kept(); got != "[b c]" {
		t.Error(got)
	}
	must(t, s.PutManagedJobs(t.Context(), managed(2, 0, api.ManagedCancelled, 2)))
	must(t, s.Write(t.Context(), begin)) // late
	if got := kept(); got != "[]" {
		t.Error(got)
	}
	n := 0
	must(t, s.ManagedIDs(t.Context(), func(int64) { n++ }))
	if n != 2 {
		t.Error(n)
	}
}

func TestClustersOfManagedJobs(t *testing.T) {
	s, _ := open(t)
	must(t, s.PutCluster(t.Context(), api.Cluster{Name: "mine", Hash: "h1", Seq: 1}))
	must(t, s.PutCluster(t.Context(), api.Cluster{Name: "train-1", Hash: "h2", Seq: 1, Managed: true}))
	for skip, want := range map[bool]int{false: 2, true: 1} {
		if cs, err := s.Clusters(t.Context(), ClusterFilter{SkipManaged: skip}); err != nil || len(cs) != want || cs[0].Name != "mine" {
			t.Errorf("%+v %v", cs, err)
		}
	}
}

func realisticJob(i int) api.ManagedJob {
	at := time.Date(2026, 1, 2, 3, 4, i%60, 0, time.UTC)
	st := []api.ManagedStatus{api.ManagedRunning, api.ManagedSucceeded, api.ManagedPending, api.ManagedFailed}[i%4]
	return api.ManagedJob{ID: int64(i), NumTasks: 1, Name: fmt.Sprint("train-", i), TaskName: fmt.Sprint("train-", i), Status: st, Resources: "1x[A100:8][Spot]", Cluster: fmt.Sprintf("train-%d-%d", i, i),
		ClusterHash: fmt.Sprintf("%032x", i), ClusterRes: "1x aws(p4d.24xlarge, [spot], A100:8)", Cloud: "aws", Region: "us-east-1", Zone: "us-east-1a", Infra: "aws/us-east-1", Attempt: 1, User: "someone",
		UserHash: "0123abcd", Workspace: "default", SubmittedAt: at, StartAt: &at, RunSeconds: 12.5, RunningSince: &at, UserYAML: string(make([]byte, 500)), Command: "sky jobs launch train.yaml",
		RequestID: fmt.Sprintf("%036x", i), NumJobs: 1, ClusterJobID: 1, Seq: 3}
}

// BenchmarkList10000Jobs: the first page in milliseconds, all of them in less than 200 ms.
func BenchmarkList10000Jobs(b *testing.B) {
	s := benchStore(b)
	const n = 10000
	for from := 1; from <= n; from += 500 {
		var batch Batch
		for i := from; i < from+500; i++ {
			batch.ManagedJobs = append(batch.ManagedJobs, realisticJob(i))
		}
		must(b, s.Write(b.Context(), batch))
	}
	for _, c := range []struct {
		name string
		f    ManagedFilter
		want int
	}{{"page", ManagedFilter{Limit: 50}, 50}, {"user's page", ManagedFilter{Limit: 50, UserHash: "0123abcd"}, 50}, {"open page", ManagedFilter{Limit: 50, SkipFinished: true, UserHash: "0123abcd"}, 50},
		{"one", ManagedFilter{IDs: []int64{17}, Full: true}, 1}, {"all", ManagedFilter{}, n}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				if rows, _, _, err := s.ManagedJobs(b.Context(), c.f); err != nil || len(rows) != c.want {
					b.Fatal(len(rows), err)
				}
			}
		})
	}
	b.Run("all raw", func(b *testing.B) {
		for b.Loop() {
			if rows, _, _, err := s.ManagedRows(b.Context(), ManagedFilter{}); err != nil || len(rows) != n {
				b.Fatal(len(rows), err)
			}
		}
	})
	b.Run("write", func(b *testing.B) {
		i, start := 0, cpu()
		for b.Loop() {
			i++
			j := realisticJob(i%n + 1)
			j.Seq = int64(i + 10)
			j.Status = api.ManagedRunning
			must(b, s.PutManagedJobs(b.Context(), j))
		}
		b.ReportMetric(float64(cpu()-start)/float64(b.N)/1e3, "cpu-us/op")
	})
}
