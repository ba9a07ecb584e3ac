package cli

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/console"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/internal/version"
)

func ptr[T any](v T) *T { return &v }

func someClusters() []api.Cluster {
	return []api.Cluster{
		{Name: "dev", Hash: "h1", Status: api.ClusterUp, Cloud: "local", Nodes: 1, ResourcesStr: "1x(cpus=2)", LaunchedAt: ptr(testNow.Add(-3 * time.Minute)), AutostopMinutes: 10, HeadIP: "127.0.0.1",
			Workspace: "default", UserName: "ana", UserHash: "0a0a0a0a", LastTaskYAML: "resources: {ports: [8080, 9000-9001]}\nrun: x\n"},
		{Name: "train-1", Status: api.ClusterStopped, Cloud: "aws", Region: "us-east-1", Zone: "us-east-1a", Nodes: 2, ResourcesStr: "2x(p3.2xlarge)", LaunchedAt: ptr(testNow.Add(-50 * time.Hour)), AutostopMinutes: 120, ToDown: true, Workspace: "default"},
		{Name: "train-2", Status: api.ClusterInit, InitKind: "unhealthy", Cloud: "gcp", Region: "a-region-with-a-very-long-name", AutostopMinutes: -1, Workspace: "default"},
	}
}

func TestVersion(t *testing.T) {
	f := newFake(t)
	for _, a := range []string{"--version", "-v", "version"} {
		if r := f.sky("", words(a)); r.code != 0 || r.out != "skyloom, version "+version.Version+"\n" {
			t.Errorf("%s: %+v", a, r)
		}
	}
	for _, a := range []string{"--commit", "-c"} {
		if r := f.sky("", words(a)); r.code != 0 || r.out != "skyloom, commit "+version.Commit+"\n" {
			t.Errorf("%s: %+v", a, r)
		}
	}
	if len(f.calls) != 0 {
		t.Error("a version needs no server", f.calls)
	}
}

// Each wrong command line: exit code 2, what is wrong, and no call that changes anything.
func TestUsageErrors(t *testing.T) {
	cases := map[string]string{
		"lanch":                               `did you mean launch?`,
		"api strat":                           `did you mean start`,
		"status --ip":                         "exactly one cluster",
		"status --ip a b":                     "exactly one cluster",
		"status --ip --endpoints a":           "can't be combined",
		"status --ip -r a":                    "--refresh",
		"status -o xml":                       "table, json",
		"status --nope":                       "unknown flag",
		"exec":                                "which cluster?",
		"exec dev":                            "what is to run?",
		"logs":                                "which cluster?",
		"logs dev x":                          `"x" is no job id`,
		"logs dev 1 2":                        "--sync-down only",
		"logs dev 1 --status -s":              "can't be combined",
		"logs dev --worker 1":                 "--provision",
		"logs dev --provision 3":              "can't be combined",
		"logs dev --hook=nope":                "stop, preemption, down",
		"logs dev --tail -2":                  "-1 or more",
		"logs dev --provision -w 0":           "must be 1 or more",
		"cancel":                              "which cluster?",
		"cancel dev 1 -a":                     "can't be combined",
		"stop":                                "which clusters?",
		"down":                                "which clusters?",
		"down dev --graceful-timeout 5":       "goes with --graceful",
		"autostop":                            "which clusters?",
		"autostop dev -i 5 --cancel":          "can't be combined",
		"autostop dev --wait-for never":       "must be one of",
		"start dev --down":                    "--idle-minutes",
		"preempt":                             "exactly one cluster",
		"preempt dev --node -1":               "must be 0 or more",
		"launch --resize x.yaml":              "needs -c",
		"launch --docker true":                "image_id: docker:",
		"launch --num-nodes x true":           "whole number",
		"launch --infra aws --cloud gcp true": "can't be combined",
		"launch --env-file /nope true":        "does not exist",
		"launch --workdir /nope true":         "is no folder",
		"gpus list A100 B100":                 "at most one",
		"gpus list A100 -a":                   "without an accelerator",
		"gpus list --all-regions":             "needs an accelerator",
		"gpus list A100 --region x":           "--cloud",
		"events":                              "exactly one",
		"cost-report x":                       "no arguments",
		"cost-report --days -1":               "0 or more",
		"api logs":                            "--server-logs",
		"api logs x --server-logs":            "--server-logs",
		"api cancel":                          "which requests?",
		"api cancel abc -a":                   "can't be combined",
		"api status -l 0":                     "none or all",
		"api login":                           "which server?",
		"api login -e sky.test":               "no server address",
		"api login -e http://x --token abc":   "begins with sky_",
		"api info x":                          "no arguments",
		"completion csh":                      "unknown shell",
		"--install-shell-completion csh":      "must be one of",
		"version x":                           "no arguments",
		"ls":                                  "did you mean status",
		"rm dev":                              "did you mean down",
		"spot launch x":                       "jobs?",
		"launch --gpu A100 true":              "did you mean --gpus?",
		"status --verbos":                     "did you mean --verbose?",
		"launch -c x python t.py --lr 1":      "put -- before that: sky launch ... -- python ...",
		"exec dev python t.py --lr 1":         "put -- before that: sky exec ... -- python ...",
		"jobs launch python t.py -x":          "put -- before that: sky jobs launch ... -- python ...",
		"jobs logs 1 --controller -s":         "can't be combined",
	}
	f := newFake(t)
	f.clusters = someClusters()
	for line, want := range cases {
		t.Run(line, func(t *testing.T) {
			r := f.sky("", words(line))
			if r.code != 2 || !strings.Contains(r.err, want) || !strings.Contains(r.err, "--help") || r.out != "" {
				t.Errorf("%+v, want %q", r, want)
			}
		})
	}
	for _, c := range f.calls {
		if strings.HasPrefix(c, "POST") {
			t.Errorf("a call was made: %s", c)
		}
	}
}

func TestLaterCommands(t *testing.T) {
	f := newFake(t)
	for _, line := range []string{"jobs pool apply x.yaml", "jobs dashboard", "serve up x.yaml", "storage ls", "volumes ls", "workspace use x", "local up", "debug-dump --help", "status-kubernetes", "gpus label -c x",
		"users ls", "recipes list", "workspaces", "batch", "help serve", "help jobs pool"} {
		if r := f.sky("", words(line)); r.code != 1 || !strings.Contains(r.err, "later release") {
			t.Errorf("%s: %+v", line, r)
		}
	}
	help := f.sky("", words("--help")).out
	if strings.Contains(help, "\n  serve ") || !strings.Contains(help, "\n  jobs ") || !strings.Contains(help, "cost-report") {
		t.Error(help)
	}
}

// Every command that goes by the configuration takes --config; those that are about it, or need none, don't.
func TestConfigFlag(t *testing.T) {
	f := newFake(t)
	if r := f.sky("", words("status --config active_workspace=team")); r.code != 0 || !strings.HasPrefix(r.out, "Enabled Infra (workspace: 'team'): ") {
		t.Errorf("%+v", r)
	}
	f.clusters = someClusters()
	if r := f.sky("", words("down dev -y --config active_workspace=team")); r.code != 0 || body[api.StopOrDownBody](t, f, "down").Workspace != "team" {
		t.Errorf("%+v", r)
	}
	if r := f.sky("", words("queue --config nosuch.key=1")); r.code != 1 || !strings.Contains(r.err, "nosuch") {
		t.Errorf("%+v", r)
	}
	eachCommand(NewRoot(&session.Session{IO: &console.Console{}}), func(c *cobra.Command) {
		want := c.Runnable() && !c.HasSubCommands() && !withoutConfig[c.Name()]
		if got := c.Flags().Lookup("config") != nil; got != want {
			t.Errorf("%s: --config is %v, want %v", c.CommandPath(), got, want)
		}
	})
}

// Who looks for the controller that other products run managed jobs on is told where they are.
func TestControllers(t *testing.T) {
	f := newFake(t)
	for _, line := range []string{"down -y sky-jobs-controller-1f", "status sky-jobs-controller-1f", "cancel -y sky-jobs-controller-1f", "queue sky-jobs-controller-1f"} {
		if r := f.sky("", words(line)); r.code != 1 || !strings.Contains(r.err, "sky jobs queue") {
			t.Errorf("%s: %+v", line, r)
		}
	}
}

// A question ends with Ctrl-C as with no: code 1, and nothing is done.
func TestInterruptedQuestion(t *testing.T) {
	f := newFake(t)
	f.clusters = someClusters()
	asked, never := io.Pipe()
	defer never.Close()
	r := f.sky("", words("down dev"), func(s *session.Session) {
		s.IO.In = asked
		s.IO.Err = &onWrite{s.IO.Err, "Proceed?", f.holder.cancel}
	})
	if r.code != 1 || !strings.HasSuffix(r.err, "Proceed? [Y/n]: \nAborted.\n") || f.called("POST") {
		t.Errorf("%+v %v", r, f.calls)
	}
}

// onWrite calls do once what is written holds a text.
type onWrite struct {
	io.Writer
	text string
	do   func()
}

func (w *onWrite) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if strings.Contains(string(p), w.text) {
		w.do()
	}
	return n, err
}

func TestStatus(t *testing.T) {
	f := newFake(t)
	if r := f.sky("", words("status")); r.code != 0 || r.out != "Enabled Infra: local, aws\n\nClusters\nNo existing clusters.\n\nManaged jobs\nNo in-progress managed jobs.\n" {
		t.Errorf("%+v", r)
	}
	if !f.called("GET clusters?user_hash=0a0a0a0a") {
		t.Error(f.calls)
	}
	f.clusters = someClusters()
	want := `Enabled Infra: local, aws

Clusters
NAME     INFRA                      RESOURCES       STATUS     AUTOSTOP  LAUNCHED
dev      local                      1x(cpus=2)      UP         10m       3 mins ago
train-1  aws (us-east-1a)           2x(p3.2xlarge)  STOPPED    2h(down)  2 days ago
train-2  gcp (a-region-with-a-ver…  -               UNHEALTHY  -         -

Managed jobs
No in-progress managed jobs.

1 cluster will stop or go down when idle. To change that: sky autostop CLUSTER --cancel
`
	if r := f.sky("", words("status")); r.code != 0 || r.out != want {
		t.Errorf("got\n%s\nwant\n%s", r.out, want)
	}
	r := f.sky("", words("status -u -v"))
	if !strings.Contains(r.out, "NAME     USER  USER_ID   WORKSPACE  INFRA") || !strings.Contains(r.out, "HEAD_IP") || !strings.Contains(r.out, "gcp (a-region-with-a-very-long-name)") {
		t.Error(r.out)
	}
	r = f.sky("", words("status train-* nope x*"))
	if r.code != 1 || strings.Contains(r.out, "Enabled") || strings.Contains(r.out, "dev") || !strings.Contains(r.err, "Cluster(s) 'nope', 'x*' not found.") {
		t.Errorf("%+v", r)
	}
	if r = f.sky("", words("status x*")); r.code != 0 {
		t.Errorf("a pattern without a match is no failure: %+v", r)
	}
	r = f.sky("", words("status -o json"))
	var rows []map[string]any
	if err := json.Unmarshal([]byte(r.out), &rows); err != nil || len(rows) != 3 || rows[0]["name"] != "dev" || rows[0]["autostop"] != 10.0 || rows[0]["init_kind"] != nil || !strings.HasPrefix(r.out, "[\n  {\n") {
		t.Error(err, r.out)
	}
	for _, k := range []string{"owner", "labels", "links", "priority", "last_event", "cluster_name_on_cloud", "region", "accelerators", "to_down", "cluster_hash"} {
		if _, ok := rows[0][k]; !ok {
			t.Errorf("the field %s is missing", k)
		}
	}
	f.clusters = nil
	if r = f.sky("", words("status -o JSON")); r.out != "[]\n" {
		t.Errorf("%q", r.out)
	}
}

func TestStatusAddresses(t *testing.T) {
	f := newFake(t)
	f.clusters = someClusters()
	for line, want := range map[string]string{
		"status --ip dev":            "127.0.0.1\n",
		"status --endpoints dev":     "8080: 127.0.0.1:8080\n9000: 127.0.0.1:9000\n9001: 127.0.0.1:9001\n",
		"status --endpoint 9001 dev": "127.0.0.1:9001\n",
	} {
		if r := f.sky("", words(line)); r.code != 0 || r.out != want {
			t.Errorf("%s: %+v", line, r)
		}
	}
	for line, want := range map[string]string{
		"status --ip train-1":      "not UP but STOPPED",
		"status --ip nope":         "does not exist",
		"status --endpoint 22 dev": "Opened: 8080, 9000, 9001",
	} {
		if r := f.sky("", words(line)); r.code != 1 || r.out != "" || !strings.Contains(r.err, want) {
			t.Errorf("%s: %+v", line, r)
		}
	}
}

func TestStatusRefresh(t *testing.T) {
	f := newFake(t)
	f.clusters = someClusters()
	if r := f.sky("", words("status -r train-*")); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if b := body[api.RefreshBody](t, f, "refresh"); len(b.Clusters) != 2 || b.Clusters[0] != "train-1" {
		t.Errorf("%+v", b)
	}
}

func TestQueue(t *testing.T) {
	f := newFake(t)
	f.clusters = someClusters()[:2]
	f.jobs["dev"] = []api.Job{
		{ID: 1, Name: "prep", User: "ana", UserHash: "0a0a0a0a", SubmittedAt: testNow.Add(-time.Hour), StartAt: ptr(testNow.Add(-50 * time.Minute)), EndAt: ptr(testNow.Add(-49 * time.Minute)), Resources: "1x[CPU:1]", Status: api.JobSucceeded, LogPath: "~/sky_logs/a", Metadata: map[string]string{"git_commit": "0123456789abcdef"}},
		{ID: 2, Name: "train", User: "ana", UserHash: "0a0a0a0a", SubmittedAt: testNow.Add(-2 * time.Minute), StartAt: ptr(testNow.Add(-65 * time.Second)), Status: api.JobRunning},
		{ID: 3, Name: "other", User: "bob", UserHash: "0b", SubmittedAt: testNow, Status: api.JobPending},
	}
	f.jobErrs = map[string]string{"train-1": "cluster train-1 is STOPPED"}
	r := f.sky("", words("queue"))
	want := `Job queue of cluster dev
ID  NAME   USER  SUBMITTED   STARTED     DURATION  RESOURCES  STATUS     LOG           GIT COMMIT
2   train  ana   2 mins ago  1 min ago   1m 5s     -          RUNNING    -             -
1   prep   ana   1 hr ago    50 mins ago  1m 0s     1x[CPU:1]  SUCCEEDED  ~/sky_logs/a  0123456789ab
`
	want = strings.Replace(want, "1 min ago   1m 5s", "1 min ago    1m 5s", 1)
	want = strings.Replace(want, "STARTED     DUR", "STARTED      DUR", 1)
	if r.code != 0 || r.out != want {
		t.Errorf("got\n%s\nwant\n%s", r.out, want)
	}
	if !strings.Contains(r.err, "train-1 can't be read: cluster train-1 is STOPPED") {
		t.Error(r.err)
	}
	if r := f.sky("", words("queue -u -s dev")); strings.Contains(r.out, "prep") || !strings.Contains(r.out, "other") {
		t.Error(r.out)
	}
	r = f.sky("", words("queue -o json dev"))
	var m map[string][]map[string]any
	if err := json.Unmarshal([]byte(r.out), &m); err != nil || len(m["dev"]) != 2 || m["dev"][0]["job_id"] != 2.0 || m["dev"][0]["end_at"] != nil || m["dev"][0]["links"] == nil {
		t.Error(err, r.out)
	}
	if r = f.sky("", words("queue nope")); r.code != 1 || !strings.Contains(r.err, "nope not found") {
		t.Errorf("%+v", r)
	}
}

func TestLogs(t *testing.T) {
	f := newFake(t)
	f.clusters = someClusters()
	f.logs[1], f.logs[2] = "one\ntwo\n", "latest"
	f.jobs["dev"] = []api.Job{{ID: 1, Status: api.JobSucceeded, LogPath: "~/sky_logs/sky-2026"}, {ID: 2, Status: api.JobRunning}, {ID: 3, Status: api.JobCancelled}}
	r := f.sky("", words("logs dev 1"))
	if r.code != 0 || r.out != "(sky-cmd, pid=42) one\n(sky-cmd, pid=42) two\n" || !strings.Contains(r.err, "Job 1 ended: SUCCEEDED") || !strings.Contains(r.err, "last 1000 lines") {
		t.Errorf("%+v", r)
	}
	if !f.called("GET clusters/dev/logs?follow=true&job_id=1&tail=1000") {
		t.Error(f.calls)
	}
	f.status = api.JobFailed
	if r = f.sky("", words("logs dev --tail 0")); r.code != 100 || r.out != "(sky-cmd, pid=42) latest\n" || !f.called("GET clusters/dev/logs?follow=true") {
		t.Errorf("%+v", r)
	}
	f.status = api.JobRunning
	if r = f.sky("", words("logs dev 2 --no-follow")); r.code != 101 || !f.called("GET clusters/dev/logs?follow=false&job_id=2") {
		t.Errorf("%+v", r)
	}
	if r = f.sky("", words("logs dev 9")); r.code != 102 || !strings.Contains(r.err, "job 9 not found") {
		t.Errorf("%+v", r)
	}
	for line, want := range map[string]int{"logs dev 1 --status": 0, "logs dev 2 --status": 101, "logs dev --status": 103, "logs dev 8 --status": 102, "logs nope --status": 1} {
		if r := f.sky("", words(line)); r.code != want {
			t.Errorf("%s: %+v, want %d", line, r, want)
		}
	}
	if r = f.sky("", words("logs dev 1 --status")); r.out != "Job 1: SUCCEEDED\n" {
		t.Errorf("%+v", r)
	}
	for line, want := range map[string]string{
		"logs dev --provision": "provision_logs of dev\n", "logs dev --provision -w 2 --no-follow": "provision_logs of dev\n",
		"logs dev --hook": "hook_logs of dev\n", "logs dev --hook stop": "hook_logs of dev\n", "logs dev --autostop": "hook_logs of dev\n",
	} {
		if r := f.sky("", words(line)); r.code != 0 || r.out != want {
			t.Errorf("%s: %+v", line, r)
		}
	}
	for _, c := range []string{"GET clusters/dev/provision_logs?worker=2", "GET clusters/dev/hook_logs?event=stop", "GET clusters/dev/hook_logs"} {
		if !f.called(c) {
			t.Errorf("%s is not among %v", c, f.calls)
		}
	}
}

func TestSyncDown(t *testing.T) {
	f := newFake(t)
	f.clusters = someClusters()
	f.logs[1], f.logs[2] = "raw \xff\n", ""
	f.jobs["dev"] = []api.Job{{ID: 1, LogPath: "~/sky_logs/sky-2026"}, {ID: 2, LogPath: "../../etc"}}
	home := t.TempDir()
	r := f.sky("", words("logs dev 1 2 --sync-down"), func(s *session.Session) { s.UserHome = home })
	dir := filepath.Join(home, "sky_logs", "dev", "sky-2026")
	if r.code != 0 || !strings.Contains(r.out, "Job 1 logs: "+dir+"\n") {
		t.Fatalf("%+v", r)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "run.log")); err != nil || string(b) != "raw \xff\n" {
		t.Errorf("%q %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(home, "sky_logs", "dev", "etc", "run.log")); err != nil || len(b) != 0 {
		t.Errorf("%q %v", b, err)
	}
	if r = f.sky("", words("logs dev 9 1 -s")); r.code != 102 || !strings.Contains(r.err, "Job 9 not found") || !strings.Contains(r.out, "Job 1 logs: ") {
		t.Errorf("%+v", r)
	}
}

func TestCancel(t *testing.T) {
	f := newFake(t)
	f.clusters = someClusters()
	f.outcome.Result = json.RawMessage(`{"cluster_name":"dev","job_ids":[4]}`)
	r := f.sky("y\n", words("cancel dev 4"))
	if r.code != 0 || r.out != "Cancelled job 4 on cluster dev.\n" || !strings.Contains(r.err, "Cancelling job 4 on dev. Proceed?") {
		t.Errorf("%+v", r)
	}
	if b := body[api.CancelBody](t, f, "cancel"); len(b.JobIDs) != 1 || b.JobIDs[0] != 4 || b.UserHash != "0a0a0a0a" || b.Command != "sky cancel dev 4" {
		t.Errorf("%+v", b)
	}
	if r = f.sky("n\n", words("cancel dev")); r.code != 1 || !strings.Contains(r.err, "latest running job") || !strings.Contains(r.err, "Aborted.") {
		t.Errorf("%+v", r)
	}
	if r = f.sky("", words("cancel train-* 3 -y")); r.code != 2 || !strings.Contains(r.err, "several clusters (train-1, train-2)") {
		t.Errorf("%+v", r)
	}
	if r = f.sky("", words("cancel nope -a -y")); r.code != 1 || !strings.Contains(r.err, "Cluster nope not found") {
		t.Errorf("%+v", r)
	}
	if r = f.sky("", words("cancel dev -a -y --async")); r.code != 0 || !strings.Contains(r.out, "Submitted sky.cancel request: "+f.last) {
		t.Errorf("%+v", r)
	}
}

func TestStopDownAutostopStart(t *testing.T) {
	f := newFake(t)
	f.clusters = someClusters()
	r := f.sky("\n", words("stop dev"))
	if r.code != 0 || !strings.Contains(r.err, "Stopping 1 cluster: dev. Proceed? [Y/n]") || !strings.Contains(r.err, "To restart the cluster, run: sky start dev") {
		t.Errorf("%+v", r)
	}
	if r = f.sky("", words("stop dev")); r.code != 1 || !strings.Contains(r.err, "Aborted.") {
		t.Errorf("nobody there: %+v", r)
	}
	r = f.sky("", words("stop -a -y")) // a stopped one is left out
	if r.code != 0 || strings.Contains(r.err, "train-1") || !strings.Contains(r.err, "train-2 is stopped") || !strings.Contains(r.err, "✓ 2  ✗ 0") {
		t.Errorf("%+v", r)
	}
	if r = f.sky("", words("stop train-1 -y")); r.code != 0 || !strings.Contains(r.err, "already stopped") {
		t.Errorf("%+v", r)
	}
	r = f.sky("", words("down -y nope train-* x*"))
	if r.code != 1 || !strings.Contains(r.err, "Cluster nope not found.") || !strings.Contains(r.err, "Cluster 'x*' not found.") || !strings.Contains(r.err, "Cluster train-2 is removed.") {
		t.Errorf("%+v", r)
	}
	f.refuse["down"] = &api.Error{Kind: api.ErrConflict, Message: "it is busy"}
	if r = f.sky("", words("down -y -p --graceful --graceful-timeout 5 dev train-1")); r.code != 1 || !strings.Contains(r.err, "it is busy") || !strings.Contains(r.err, "✓ 1  ✗ 1") {
		t.Errorf("%+v", r)
	}
	if b := body[api.StopOrDownBody](t, f, "down"); !b.Purge || !b.Graceful || *b.GracefulTimeout != 5 {
		t.Errorf("%+v", b)
	}
	if r = f.sky("", words("autostop dev -y")); r.code != 0 || !strings.Contains(r.err, "will stop after 5 idle minutes") {
		t.Errorf("%+v", r)
	}
	if r = f.sky("", words("autostop dev -y -i 0 --down --wait-for JOBS")); r.code != 0 || !strings.Contains(r.err, "will go down after 1 idle minute.") {
		t.Errorf("%+v", r)
	}
	if b := body[api.AutostopBody](t, f, "autostop"); b.IdleMinutes != 0 || !b.Down || b.WaitFor != "jobs" {
		t.Errorf("%+v", b)
	}
	f.sky("", words("autostop dev -y --cancel"))
	if b := body[api.AutostopBody](t, f, "autostop"); b.IdleMinutes != -1 {
		t.Errorf("%+v", b)
	}
	if r = f.sky("", words("start dev")); r.code != 0 || !strings.Contains(r.err, "already has status UP") || f.called("POST start") {
		t.Errorf("%+v", r)
	}
	if r = f.sky("", words("start")); r.code != 2 || !strings.Contains(r.err, "several: dev, train-1, train-2") {
		t.Errorf("%+v", r)
	}
	if r = f.sky("", words("start train-1 -y -i 30 --down -r")); r.code != 0 || !strings.Contains(r.err, "Cluster train-1 is UP.") {
		t.Errorf("%+v", r)
	}
	if b := body[api.StartBody](t, f, "start"); *b.IdleMinutes != 30 || !b.Down || !b.RetryUntilUp || b.Force {
		t.Errorf("%+v", b)
	}
	f.clusters = f.clusters[1:2]
	if r = f.sky("y\n", words("start")); r.code != 0 || !strings.Contains(r.err, "Starting 1 cluster: train-1") {
		t.Errorf("%+v", r)
	}
	f.clusters = nil
	if r = f.sky("", words("start")); r.code != 0 || !strings.Contains(r.err, "No existing clusters.") {
		t.Errorf("%+v", r)
	}
	if r = f.sky("", words("down -a -y")); r.code != 0 || !strings.Contains(r.err, "No existing clusters.") {
		t.Errorf("%+v", r)
	}
}

func TestPreempt(t *testing.T) {
	f := newFake(t)
	f.outcome = api.Request{Status: api.RequestFailed, Error: &api.Error{Kind: api.ErrNotSupported, Message: "aws can't simulate that", Hint: "Use local."}}
	if r := f.sky("", words("preempt dev --node 0 --notice 30")); r.code != 1 || !strings.Contains(r.err, "Error: aws can't simulate that\nUse local.") {
		t.Errorf("%+v", r)
	}
	if b := body[api.PreemptBody](t, f, "preempt"); *b.Node != 0 || b.NoticeSeconds != 30 {
		t.Errorf("%+v", b)
	}
}
