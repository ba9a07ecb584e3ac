package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/session"
)

type managedFrame struct {
	api.LogFrame
	text string
}

// listManaged answers as the server does, as far as the tests look.
func (f *fake) listManaged(w http.ResponseWriter, q url.Values) {
	out := api.ManagedList{Jobs: []api.ManagedJob{}, Counts: map[api.ManagedStatus]int{}}
	ids, _ := api.ParseIDs(q.Get("ids"))
	open := map[int64]bool{}
	for _, r := range f.managed {
		open[r.ID] = open[r.ID] || !r.Status.Terminal()
	}
	limit := 1 << 30
	fmt.Sscan(q.Get("limit"), &limit)
	seen := map[int64]bool{}
	for _, r := range f.managed {
		if (len(ids) > 0 && !slices.Contains(ids, r.ID)) || (q.Get("name") != "" && r.Name != q.Get("name")) || (q.Get("user_hash") != "" && r.UserHash != q.Get("user_hash")) {
			continue
		}
		out.Counts[r.Status]++
		if q.Get("skip_finished") != "" && !open[r.ID] {
			continue
		}
		if !seen[r.ID] {
			seen[r.ID] = true
			out.Total++
		}
		if out.Total <= limit {
			out.Jobs = append(out.Jobs, r)
		}
	}
	reply(w, out)
}

func (f *fake) sendManagedLog(w http.ResponseWriter, id string) {
	frames, ok := f.managedLogs[id]
	if !ok {
		problem(w, 404, &api.Error{Kind: api.ErrJobNotFound, Message: "there is no managed job " + id})
		return
	}
	w.Header().Set("Content-Type", api.LogMediaType)
	enc := json.NewEncoder(w)
	for _, fr := range frames {
		fr.Len = len(fr.text)
		_ = enc.Encode(fr.LogFrame)
		io.WriteString(w, fr.text)
	}
}

// someJobs are a running one, a group, a failed one, and one that waits; the newest first.
func someJobs() []api.ManagedJob {
	at := func(d time.Duration) *time.Time { t := testNow.Add(-d); return &t }
	row := func(id int64, st api.ManagedStatus) api.ManagedJob {
		return api.ManagedJob{ID: id, NumTasks: 1, Name: fmt.Sprint("job", id), TaskName: fmt.Sprint("job", id), Status: st, Resources: "1x[CPU:1+]", User: "ana", UserHash: "0a0a0a0a", Workspace: "default",
			SubmittedAt: testNow.Add(-time.Hour), NumJobs: 1}
	}
	wait := row(9, api.ManagedPending)
	wait.Details, wait.SubmittedAt = "8 of 8 launches are under way; 3 jobs are ahead of it", testNow.Add(-time.Minute)
	wait.NextRetry = func() *time.Time { t := testNow.Add(90 * time.Second); return &t }()
	running := row(7, api.ManagedRunning)
	running.Recoveries, running.RunSeconds, running.RunningSince, running.StartAt, running.Cluster, running.ClusterJobID, running.Attempt, running.Infra = 2, 60, at(10*time.Minute), at(30*time.Minute), "job7-7", 1, 3, "local"
	a, b := row(5, api.ManagedSucceeded), row(5, api.ManagedRunning)
	a.NumTasks, b.NumTasks, b.TaskID, a.Name, b.Name, a.TaskName, b.TaskName = 2, 2, 1, "grp", "grp", "main", "side"
	a.Group, b.Group, a.Primary = true, true, true
	a.Status = api.ManagedRunning
	failed := row(3, api.ManagedFailed)
	failed.FailureReason, failed.EndAt, failed.RunSeconds = "exit code 3", at(50*time.Minute), 65
	return []api.ManagedJob{wait, running, a, b, failed}
}

func TestJobsQueue(t *testing.T) {
	f := newFake(t)
	if r := f.sky("", words("jobs queue")); r.code != 0 || r.out != "Managed jobs\nNo managed jobs.\n" || !f.called("GET jobs/queue?limit=50&user_hash=0a0a0a0a") {
		t.Errorf("%+v %v", r, f.calls)
	}
	f.managed = someJobs()
	want := `Managed jobs
In progress tasks: 1 PENDING, 3 RUNNING
ID  TASK  NAME      REQUESTED   SUBMITTED  TOT. DURATION  JOB DURATION  #RECOVERIES  STATUS             PROGRESS  POOL  DETAILS
9   -     job9      1x[CPU:1+]  1 min ago  1m 0s          -             0            PENDING            -         -     tries again in 1m 30s: 8 of 8 launches are under way; 3 jobs are ahea…
7   -     job7      1x[CPU:1+]  1 hr ago   1h 0m          11m 0s        2            RUNNING            -         -     -
5   -     grp       -           1 hr ago   1h 0m          -             0            RUNNING (task: 0)  -         -     -
 ↳  0     main [P]  1x[CPU:1+]  1 hr ago   1h 0m          -             0            RUNNING            -         -     -
 ↳  1     side      1x[CPU:1+]  1 hr ago   1h 0m          -             0            RUNNING            -         -     -
3   -     job3      1x[CPU:1+]  1 hr ago   10m 0s         1m 5s         0            FAILED             -         -     -
`
	if r := f.sky("", words("jobs queue")); r.code != 0 || r.out != want {
		t.Errorf("got\n%s\nwant\n%s", r.out, want)
	}
	r := f.sky("", words("jobs queue -v -u"))
	for _, want := range []string{"USER  USER_ID", "WORKSPACE", "WORKER_CLUSTER", "WORKER_JOB_ID", "STARTED", "INFRA", "RESOURCES", "SCHED. STATE", "DETAILS", "GIT_COMMIT", "job7-7", "ALIVE_BACKOFF", "DONE", "exit code 3"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("%q is missing in\n%s", want, r.out)
		}
	}
	f.calls = nil
	if r = f.sky("", words("jobs queue -s FAILED_CONTROLLER -o json")); r.code != 0 || r.out != "[]\n" || f.called("GET jobs/queue") {
		t.Errorf("%+v %v", r, f.calls)
	}
	if r = f.sky("", words("jobs queue -l 2")); !strings.Contains(r.out, "newest 2 of 4 jobs") || strings.Contains(r.out, "job3") {
		t.Error(r.out)
	}
	for line, call := range map[string]string{
		"jobs queue -a -u":           "GET jobs/queue",
		"jobs queue --skip-finished": "GET jobs/queue?limit=50&skip_finished=true&user_hash=0a0a0a0a",
		"jobs queue -s":              "GET jobs/queue?limit=50&skip_finished=true&user_hash=0a0a0a0a",
		"jobs queue -s running -s PENDING,failed_setup -u":                 "GET jobs/queue?limit=50&status=RUNNING&status=PENDING&status=FAILED_SETUP",
		"jobs queue -s failed,failed_controller -u":                        "GET jobs/queue?limit=50&status=FAILED",
		"jobs queue --status=Failed -u":                                    "GET jobs/queue?limit=50&status=FAILED",
		"jobs queue --since 2h -u -r":                                      "GET jobs/queue?limit=50&since=2026-03-01T10%3A00%3A00Z",
		"jobs queue --since 90 -u":                                         "GET jobs/queue?limit=50&since=2026-03-01T11%3A58%3A30Z",
		"jobs queue --after 2026-02-03 --before 2026-02-04T05:06:07 -u -a": "GET jobs/queue?before=" + url.QueryEscape(localTime(2026, 2, 4, 5, 6, 7)) + "&since=" + url.QueryEscape(localTime(2026, 2, 3, 0, 0, 0)),
	} {
		f.calls = nil
		if r := f.sky("", words(line)); r.code != 0 || !slices.Contains(f.calls, call) {
			t.Errorf("%s: %+v; called %v, want %s", line, r, f.calls, call)
		}
	}
	for line, want := range map[string]string{
		"jobs queue nope": "takes no", "jobs queue -s NOPE": "no state", "jobs queue --since 3y": "30m, 48h", "jobs queue --since 1h --after 2026-01-01": "can't be combined",
		"jobs queue --after yesterday": "2026-03-01", "jobs queue -l 0": "-a", "jobs queue -o xml": "must be one of",
	} {
		if r := f.sky("", words(line)); r.code != 2 || !strings.Contains(r.err, want) {
			t.Errorf("%s: %+v", line, r)
		}
	}
}

func localTime(y int, mo time.Month, d, h, mi, s int) string {
	return time.Date(y, mo, d, h, mi, s, 0, time.Local).UTC().Format(time.RFC3339Nano)
}

func TestJobsQueueJSON(t *testing.T) {
	f := newFake(t)
	if r := f.sky("", words("jobs queue -o json")); r.out != "[]\n" {
		t.Errorf("%q", r.out)
	}
	f.managed = someJobs()
	r := f.sky("", words("jobs queue -o json"))
	var rows []map[string]any
	if err := json.Unmarshal([]byte(r.out), &rows); err != nil || len(rows) != 5 {
		t.Fatal(err, r.out)
	}
	for _, k := range []string{"job_id", "task_id", "job_name", "task_name", "job_duration", "workspace", "status", "schedule_state", "resources", "cluster_resources", "cluster_resources_full", "cloud", "region", "zone",
		"infra", "recovery_count", "details", "failure_reason", "user_name", "user_hash", "submitted_at", "start_at", "end_at", "user_yaml", "entrypoint", "metadata", "controller_pid", "priority", "priority_class", "pool",
		"pool_hash", "current_cluster_name", "job_id_on_pool_cluster", "accelerators", "labels", "links", "node_names", "execution", "is_job_group", "is_primary_in_job_group", "is_batch", "batch_total_batches",
		"batch_completed_batches", "internal_external_ips", "internal_services"} {
		if _, ok := rows[0][k]; !ok {
			t.Errorf("the field %s is missing", k)
		}
	}
	if rows[1]["job_duration"] != 660.0 || rows[1]["status"] != "RUNNING" || rows[1]["recovery_count"] != 2.0 || rows[2]["is_primary_in_job_group"] != true || rows[0]["schedule_state"] != "ALIVE_BACKOFF" {
		t.Errorf("%v", rows)
	}
}

func TestStatusShowsJobs(t *testing.T) {
	f := newFake(t)
	f.managed = someJobs()
	r := f.sky("", words("status"))
	if !strings.Contains(r.out, "\nManaged jobs\nIn progress tasks: 1 PENDING, 3 RUNNING\nID ") || strings.Contains(r.out, "job3") || !strings.Contains(r.out, "3 managed jobs in progress. To see them: sky jobs queue") ||
		!f.called("GET jobs/queue?limit=5&skip_finished=true&user_hash=0a0a0a0a") {
		t.Errorf("%s\n%v", r.out, f.calls)
	}
	f.clusters = someClusters()
	for _, line := range []string{"status --no-show-managed-jobs", "status dev", "status -o json", "status --ip dev"} {
		f.calls = nil
		if r := f.sky("", words(line)); r.code != 0 || strings.Contains(r.out, "Managed jobs") || f.called("GET jobs/queue") {
			t.Errorf("%s: %+v", line, r)
		}
	}
}

func jobLaunched(f *fake, ids ...int64) {
	b, _ := json.Marshal(api.JobsLaunchResult{RequestID: "x", JobIDs: ids})
	f.outcome.Result = b
	f.managedLogs = map[string][]managedFrame{"7": {{api.LogFrame{JobID: 7, JobName: "train"}, ""}, {api.LogFrame{JobID: 7, Attempt: 1, Nodes: 1}, ""}, {api.LogFrame{Phase: "run", Attempt: 1}, "one\n"},
		{api.LogFrame{JobID: 7, Attempt: 2, Nodes: 1}, ""}, {api.LogFrame{Phase: "run", Attempt: 2, PID: 4}, "two\n"}, {api.LogFrame{JobID: 7, End: true, Status: api.JobStatus(api.ManagedSucceeded)}, ""}}}
}

func TestJobsLaunch(t *testing.T) {
	f := newFake(t)
	jobLaunched(f, 7)
	r := f.sky("y\n", words("jobs launch -n train --gpus V100 --job-recovery FAILOVER --priority 500 --after 3,4:any -- echo hi"))
	if r.code != 0 || r.out != "(train) one\n(train, pid=4) two\n" {
		t.Fatalf("%+v", r)
	}
	for _, want := range []string{"Command to run: echo hi", "Considered resources", "Launching a managed job train. Proceed? [Y/n]", "Managed job submitted, ID: 7", "── attempt 2 ──", "✓ Managed job 7 ended: SUCCEEDED", "sky jobs logs 7", "sky jobs cancel 7", "sky jobs events 7"} {
		if !strings.Contains(r.err, want) {
			t.Errorf("%q is missing in %s", want, r.err)
		}
	}
	b := body[api.JobsLaunchBody](t, f, "jobs/launch")
	if b.Name != "train" || b.NumJobs != 1 || b.User != "ana" || fmt.Sprint(b.After) != "[3:ok 4:any]" || !strings.Contains(b.Task, "FAILOVER") || !strings.Contains(b.Task, "priority: 500") || !strings.Contains(b.Task, "V100") {
		t.Errorf("%+v", b)
	}
	for status, code := range map[api.ManagedStatus]int{api.ManagedFailed: 100, api.ManagedFailedSetup: 100, api.ManagedFailedNoResource: 100, api.ManagedCancelled: 103} {
		f.managedLogs["7"] = []managedFrame{{api.LogFrame{JobID: 7}, ""}, {api.LogFrame{End: true, Status: api.JobStatus(status), Reason: "so it is"}, ""}}
		if r := f.sky("", words("jobs launch -y -- false")); r.code != code || !strings.Contains(r.err, "✗ Managed job 7 ended: "+string(status)+" (so it is)") {
			t.Errorf("%s: %+v", status, r)
		}
	}
	if r := f.sky("", words("jobs launch -y -d -- true")); r.code != 0 || r.out != "Managed job submitted, ID: 7\n" || !strings.Contains(r.err, "sky jobs logs 7") {
		t.Errorf("%+v", r)
	}
	if r := f.sky("", words("jobs launch -y --async -- true")); r.code != 0 || !strings.HasPrefix(r.out, "Submitted sky.jobs.launch request: ") {
		t.Errorf("%+v", r)
	}
	jobLaunched(f, 7, 8, 9, 11)
	if r := f.sky("", words("jobs launch -y -c sweep --num-jobs 4 -- true")); r.code != 0 || r.out != "Managed jobs submitted, IDs: 7-9,11 (4 jobs)\n" || !strings.Contains(r.err, "sky jobs cancel 7-9,11") {
		t.Errorf("%+v", r)
	}
	if b := body[api.JobsLaunchBody](t, f, "jobs/launch"); b.NumJobs != 4 || b.Name != "sweep" {
		t.Errorf("%+v", b)
	}
	f.planErr = &api.Error{Kind: api.ErrResourcesUnavailable, Message: "no V100 anywhere\nmore"}
	if r := f.sky("", words("jobs launch -y -d -- true")); r.code != 0 || !strings.Contains(r.err, "no V100 anywhere; the job waits") {
		t.Errorf("%+v", r)
	}
	f.planErr = &api.Error{Kind: api.ErrResourcesMismatch, Message: "never"}
	if r := f.sky("", words("jobs launch -y -d -- true")); r.code != 1 || !strings.Contains(r.err, "never") {
		t.Errorf("%+v", r)
	}
	f.planErr = nil
	if r := f.sky("n\n", words("jobs launch -- true")); r.code != 1 {
		t.Errorf("%+v", r)
	}
	for line, want := range map[string]string{"jobs launch --num-jobs 0 -- true": "1 or more", "jobs launch --after x -- true": "ID:ok", "jobs launch --after 3:bad -- true": "ID:ok", "jobs launch -n a -c b -- true": "same thing"} {
		if r := f.sky("", words(line)); r.code != 2 || !strings.Contains(r.err, want) {
			t.Errorf("%s: %+v", line, r)
		}
	}
	for _, line := range []string{"jobs launch -p mypool -- true", "jobs cancel --pool mypool"} {
		if r := f.sky("", words(line)); r.code != 1 || !strings.Contains(r.err, "pools come with a later release") {
			t.Errorf("%s: %+v", line, r)
		}
	}
}

const pipeline = `name: pipe
---
name: first
workdir: ./src
run: make
---
name: second
file_mounts:
  /data: ./data.txt
secrets:
  TOKEN:
run: use
`

func TestJobsLaunchPipeline(t *testing.T) {
	f := newFake(t)
	jobLaunched(f, 7)
	at := in(t, map[string]string{"pipe.yaml": pipeline, "src/a.txt": "a", "data.txt": "d"})
	r := f.sky("", words("jobs launch -y -d --secret TOKEN=hunter2 --cpus 4 pipe.yaml"), at)
	if r.code != 0 || !strings.Contains(r.err, "Task 0 (first)") || !strings.Contains(r.err, "Task 1 (second)") || !strings.Contains(r.err, "Ignored, since") || !strings.Contains(r.err, "--cpus") {
		t.Fatalf("%+v", r)
	}
	b := body[api.JobsLaunchBody](t, f, "jobs/launch")
	if b.Name != "pipe" || strings.Count(b.Task, "---") < 2 || strings.Contains(b.Task, "hunter2") || b.Secrets["TOKEN"] != "hunter2" || len(b.FileMounts[0]) != 1 || b.FileMounts[0][0].Dst != "~/sky_workdir" ||
		len(b.FileMounts[1]) != 1 || b.FileMounts[1][0].Dst != "/data" || !b.FileMounts[1][0].File {
		t.Errorf("%+v", b)
	}
	if r := f.sky("", words("launch -y pipe.yaml"), at); r.code != 2 || !strings.Contains(r.err, "sky jobs launch") {
		t.Errorf("%+v", r)
	}
}

func TestJobsLogs(t *testing.T) {
	f := newFake(t)
	if r := f.sky("", words("jobs logs")); r.code != 102 || !strings.Contains(r.err, "no managed jobs") {
		t.Errorf("%+v", r)
	}
	f.managed = someJobs()
	jobLaunched(f)
	run := func(line string, code int, out string) ran {
		t.Helper()
		f.calls = nil
		r := f.sky("", words(line))
		if r.code != code || r.out != out {
			t.Errorf("%s: %+v %v", line, r, f.calls)
		}
		return r
	}
	run("jobs logs 7", 0, "(train) one\n(train, pid=4) two\n")
	if !f.called("GET jobs/7/logs?follow=true") {
		t.Error(f.calls)
	}
	run("jobs logs 7 eval --no-follow --tail 5 -r", 0, "(train) one\n(train, pid=4) two\n")
	if !f.called("GET jobs/7/logs?tail=5&task=eval") {
		t.Error(f.calls)
	}
	run("jobs logs -n job7", 0, "(train) one\n(train, pid=4) two\n")
	f.managedLogs["9"] = []managedFrame{{api.LogFrame{JobID: 9}, ""}, {api.LogFrame{End: true, Status: api.JobStatus(api.ManagedPending), Reason: "no room"}, ""}}
	if r := run("jobs logs --no-follow", 101, ""); !strings.Contains(r.err, "Managed job 9 is PENDING (no room)") {
		t.Errorf("%+v", r)
	}
	run("jobs logs 99", 102, "")
	run("jobs logs -n nobody", 102, "")
	f.managedLogs["5"] = []managedFrame{{api.LogFrame{JobID: 5, JobName: "grp"}, ""}, {api.LogFrame{Task: 0, TaskName: "main", Attempt: 1, Nodes: 1}, ""}, {api.LogFrame{Task: 1, TaskName: "side", Attempt: 1, Nodes: 1}, ""},
		{api.LogFrame{Task: 1, Phase: "run", Attempt: 1}, "half "}, {api.LogFrame{Task: 0, Phase: "run", Attempt: 1}, "of main\n"}, {api.LogFrame{Task: 1, Phase: "run", Attempt: 1, Offset: 5}, "a line\n"}, {api.LogFrame{End: true, Status: "SUCCEEDED"}, ""}}
	if r := run("jobs logs 5", 0, "(main) of main\n(side) half a line\n"); !strings.Contains(r.err, "── task 1 (side) ──") {
		t.Errorf("%+v", r)
	}
	for line, want := range map[string]string{"jobs logs x": "no job id", "jobs logs 1-3": "no job id", "jobs logs 1 2 3": "too many", "jobs logs 7 -s --tail 3": "can't be combined", "jobs logs 7 --tail -1": "0 or more"} {
		if r := f.sky("", words(line)); r.code != 2 || !strings.Contains(r.err, want) {
			t.Errorf("%s: %+v", line, r)
		}
	}
	home := t.TempDir()
	f.managedLogs["7"][2].Rank = 1
	r := f.sky("", words("jobs logs 7 --sync-down"), func(s *session.Session) { s.UserHome = home })
	dir := filepath.Join(home, "sky_logs", "managed_jobs", "7-job7")
	if r.code != 0 || r.out != "Job 7 logs: "+dir+"\n" {
		t.Fatalf("%+v", r)
	}
	for file, want := range map[string]string{"attempt-1/1-run.log": "one\n", "attempt-2/0-run.log": "two\n"} {
		if b, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(b) != want {
			t.Errorf("%s: %q %v", file, b, err)
		}
	}
}

func TestJobsCancel(t *testing.T) {
	f := newFake(t)
	f.cancelled = api.JobsCancelReply{Cancelled: []int64{5, 6, 7}, Finished: []int64{3}}
	r := f.sky("y\n", words("jobs cancel 3 5-7"))
	if r.code != 0 || r.out != "Cancelling managed jobs 5-7.\n" || !strings.Contains(r.err, "Cancelling managed jobs 3,5-7. Proceed?") || !strings.Contains(r.err, "Ended before: managed job 3.") {
		t.Errorf("%+v", r)
	}
	if b := body[api.JobsCancelBody](t, f, "jobs/cancel"); fmt.Sprint(b.JobIDs) != "[3 5 6 7]" || b.UserHash != "0a0a0a0a" || len(b.RequestID) != 36 {
		t.Errorf("%+v", b)
	}
	if r = f.sky("", words("jobs cancel -y 3-7 8")); r.code != 1 || !strings.Contains(r.err, "Managed jobs 4,8 not found.") {
		t.Errorf("%+v", r)
	}
	f.cancelled = api.JobsCancelReply{Finished: []int64{1, 2}}
	if r = f.sky("", words("jobs cancel -a -y --graceful --graceful-timeout 3")); r.code != 0 || r.out != "No managed job to cancel.\n" || strings.Contains(r.err, "Ended") {
		t.Errorf("%+v", r)
	}
	if b := body[api.JobsCancelBody](t, f, "jobs/cancel"); !b.All || b.AllUsers {
		t.Errorf("%+v", b)
	}
	f.sky("", words("jobs cancel -n train -y"))
	if b := body[api.JobsCancelBody](t, f, "jobs/cancel"); b.Name != "train" {
		t.Errorf("%+v", b)
	}
	f.refuse["jobs/cancel"] = &api.Error{Kind: api.ErrJobNotFound, Message: "there is no managed job 77"}
	if r = f.sky("", words("jobs cancel 77 -y")); r.code != 1 || !strings.Contains(r.err, "no managed job 77") {
		t.Errorf("%+v", r)
	}
	for line, want := range map[string]string{"jobs cancel": "which jobs", "jobs cancel 1 -a": "can't be combined", "jobs cancel -n x -u": "can't be combined", "jobs cancel x": "no job id", "jobs cancel 7-5": "no range", "jobs cancel 1 --graceful-timeout 3": "goes with"} {
		if r := f.sky("", words(line)); r.code != 2 || !strings.Contains(r.err, want) {
			t.Errorf("%s: %+v", line, r)
		}
	}
}

func TestJobsEvents(t *testing.T) {
	f := newFake(t)
	f.managed = someJobs()
	f.events = []api.Event{{ID: 1, Time: testNow.Add(-time.Hour), JobID: 3, Kind: api.EventStatus, Step: "job", Message: "RUNNING on local", Attempt: 2}}
	at := testNow.Add(-time.Hour).Local().Format("15:04:05")
	if r := f.sky("", words("jobs events 3")); r.code != 0 || !strings.Contains(r.out, at+"  job         RUNNING on local (attempt 2)\n") {
		t.Errorf("%+v", r)
	}
	if r := f.sky("", words("jobs events 3 -f")); r.code != 0 || !strings.Contains(r.out, "RUNNING on local") { // it has ended
		t.Errorf("%+v", r)
	}
	if r := f.sky("", words("jobs logs 3 --controller")); r.code != 0 || !strings.Contains(r.out, "RUNNING on local") {
		t.Errorf("%+v", r)
	}
	var list []api.Event
	if r := f.sky("", words("jobs events 3 -o json -l 2")); json.Unmarshal([]byte(r.out), &list) != nil || len(list) != 1 || list[0].JobID != 3 || !f.called("GET jobs/3/events?limit=2") {
		t.Errorf("%+v", r)
	}
	for line, want := range map[string]string{"jobs events": "exactly one", "jobs events x": "no job id", "jobs events 1-2": "no job id", "jobs events 3 -l -1": "0 or more"} {
		if r := f.sky("", words(line)); r.code != 2 || !strings.Contains(r.err, want) {
			t.Errorf("%s: %+v", line, r)
		}
	}
}

func TestJobsCompletion(t *testing.T) {
	f := newFake(t)
	for line, call := range map[string]string{"jobs cancel 1": "GET completion/managed_job?incomplete=1", "jobs logs 1": "GET completion/managed_job?incomplete=1", "jobs logs -n tr": "GET completion/managed_job_name?incomplete=tr"} {
		if r := f.sky("", append([]string{"__complete"}, words(line)...)); !strings.Contains(r.out, "-one\n") || !f.called(call) {
			t.Errorf("%s: %+v %v", line, r, f.calls)
		}
	}
	if r := f.sky("", words("jobs --help")); !strings.Contains(r.out, "launch") || !strings.Contains(r.out, "events") || strings.Contains(r.out, "pool") {
		t.Error(r.out)
	}
	if r := f.sky("", words("jobs queue --help")); strings.Contains(r.out, "refresh") || strings.Contains(r.out, "[=") {
		t.Error(r.out)
	}
}

func TestSchedules(t *testing.T) {
	f := newFake(t)
	f.schedules = []api.JobSchedule{
		{ID: 3, Name: "night", ScheduleSpec: api.ScheduleSpec{Cron: "0 3 * * *", Timezone: "UTC", Overlap: api.OverlapBufferOne}, User: "ana", UserHash: "0a0a0a0a",
			Next: []time.Time{testNow.Add(15 * time.Hour)}, Last: []api.ScheduleFiring{{At: testNow.Add(-9 * time.Hour), JobIDs: []int64{7, 8, 9}}}, Skipped: 2},
		{ID: 4, Name: "off", ScheduleSpec: api.ScheduleSpec{Cron: "@daily", Paused: true}, User: "ben"}}
	r := f.sky("", words("jobs schedules ls"))
	if want := "3   night  \"0 3 * * *\", UTC  buffer-one  ACTIVE  in 15h 0m  9 hrs ago  7-9   2        0\n"; r.code != 0 || !strings.Contains(r.out, want) || !f.called("GET jobs/schedules?user_hash=0a0a0a0a") {
		t.Errorf("%+v %v", r, f.calls)
	}
	if r := f.sky("", words("jobs schedules ls -u")); !strings.Contains(r.out, "PAUSED") || !strings.Contains(r.out, "ben") || !f.called("GET jobs/schedules") {
		t.Errorf("%+v %v", r, f.calls)
	}
	if r := f.sky("", words("jobs schedules ls -o json")); r.code != 0 || !strings.Contains(r.out, `"cron": "0 3 * * *"`) {
		t.Errorf("%+v", r)
	}
	for line, want := range map[string]string{"pause 3 4 --note why": "Paused schedules 3-4.\n", "resume night": "Resumed schedule 3.\n", "delete 3 -y": "Deleted schedule 3.\n"} {
		if r := f.sky("", strings.Fields("jobs schedules "+line)); r.code != 0 || r.out != want {
			t.Errorf("%s: %+v", line, r)
		}
	}
	if r := f.sky("n\n", words("jobs schedules delete 3")); r.code == 0 || !strings.Contains(r.err, "Deleting schedule 3. Proceed?") {
		t.Errorf("%+v", r)
	}
	for _, line := range []string{"delete", "ls 3", "trigger", "trigger 3 4", "trigger 3-4", "backfill 3", "backfill 3 --from 2026-03-01", "backfill 3 --from x --to 2026-03-01"} {
		if r := f.sky("", words("jobs schedules "+line)); r.code != 2 {
			t.Errorf("%s: %+v", line, r)
		}
	}
	for _, line := range []string{"pause x", "trigger 3,9", "delete -y 9"} {
		if r := f.sky("", words("jobs schedules "+line)); r.code != 1 || !strings.Contains(r.err, "there is no schedule") {
			t.Errorf("%s: %+v", line, r)
		}
	}
}

func TestJobsLaunchScheduled(t *testing.T) {
	f := newFake(t)
	made := api.JobSchedule{ID: 3, Name: "night", ScheduleSpec: api.ScheduleSpec{Cron: "0 3 * * *", Timezone: "Europe/Berlin"}, Next: []time.Time{testNow.Add(14 * time.Hour), testNow.Add(38 * time.Hour)}}
	raw, err := json.Marshal(api.JobsLaunchResult{Schedule: &made, JobIDs: []int64{}})
	if err != nil {
		t.Fatal(err)
	}
	f.outcome = api.Request{Status: api.RequestSucceeded, Result: raw}
	r := f.sky("y\n", []string{"jobs", "launch", "-n", "night", "--schedule", "0 3 * * *", "--schedule-timezone", "Europe/Berlin", "--schedule-overlap", "Cancel-Other", "--schedule-catch-up", "2h", "echo hi"})
	if r.code != 0 || !strings.Contains(r.out, "Schedule 3 made: night (\"0 3 * * *\", Europe/Berlin)\n  fires at 2026-03-02 03:00 CET") || !strings.Contains(r.out, "\n  and at   2026-03-03 03:00 CET") {
		t.Errorf("%+v", r)
	}
	if !strings.Contains(r.err, `Scheduling a managed job night ("0 3 * * *", Europe/Berlin). Proceed?`) {
		t.Errorf("%s", r.err)
	}
	b := body[api.JobsLaunchBody](t, f, "jobs/launch")
	if b.Schedule == nil || *b.Schedule != (api.ScheduleSpec{Cron: "0 3 * * *", Timezone: "Europe/Berlin", Overlap: api.OverlapCancelOther, CatchUpSeconds: 7200}) {
		t.Errorf("%+v", b.Schedule)
	}
	for _, args := range [][]string{{"--schedule", "0 3 * *"}, {"--schedule-timezone", "UTC"}, {"--schedule", "@daily", "--after", "3"}, {"--schedule", "@daily", "--schedule-overlap", "x"}, {"--schedule", "@daily", "--schedule-catch-up", "x"}} {
		if r := f.sky("", append(append([]string{"jobs", "launch", "-y"}, args...), "true")); r.code != 2 {
			t.Errorf("%v: %+v", args, r)
		}
	}
}

func TestNotify(t *testing.T) {
	f := newFake(t)
	jobLaunched(f, 7)
	if r := f.sky("", words("jobs launch -y -d --notify http://a/x --notify https://b -- true")); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if b := body[api.JobsLaunchBody](t, f, "jobs/launch"); fmt.Sprint(b.Notify) != "[http://a/x https://b]" {
		t.Errorf("%+v", b.Notify)
	}
	if r := f.sky("", words("jobs webhook-secret")); r.code != 0 || r.out != "whsec_x\n" {
		t.Errorf("%+v", r)
	}
	if r := f.sky("", words("jobs webhook-secret -o json")); !strings.Contains(r.out, `"secret": "whsec_x"`) {
		t.Errorf("%+v", r)
	}
}
