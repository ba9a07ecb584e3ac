package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/session"
)

// in makes the command run in a folder with files.
func in(t *testing.T, files map[string]string) func(*session.Session) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return func(s *session.Session) { s.Dir = dir }
}

func launched(f *fake) {
	f.outcome.Result = json.RawMessage(`{"request_id":"x","cluster_name":"dev","job_id":3,"num_nodes":1}`)
	f.logs[3] = "hello\n"
	f.events = []api.Event{
		{ID: 1, Kind: api.EventStep, Step: "provision", Message: "Bringing up 1 node on local"},
		{ID: 2, Kind: api.EventError, Message: "no room", Attempt: 1},
		{ID: 3, Kind: api.EventStep, Step: "provision", Message: "Bringing up 1 node on local", Attempt: 2},
		{ID: 4, Kind: api.EventStep, Step: "submit", Message: "Job submitted"},
	}
}

func TestLaunch(t *testing.T) {
	f := newFake(t)
	launched(f)
	r := f.sky("y\n", words("launch -c dev -- echo hello"))
	if r.code != 0 || r.out != "(sky-cmd, pid=42) hello\n" {
		t.Fatalf("%+v", r)
	}
	for _, want := range []string{
		"Command to run: echo hello\n",
		"Considered resources (1 node):\n" +
			"INFRA            INSTANCE          vCPUs  Mem(GB)  GPUS    COST ($)  CHOSEN\n" +
			"local            this-machine      2      8        -       0.00      ✔\n" +
			"aws (us-east-1)  p3.2xlarge[Spot]  8      61       V100:1  3.06       \n",
		"Launching a new cluster dev. Proceed? [Y/n]: ",
		"Bringing up 1 node on local\nno room\nBringing up 1 node on local (attempt 2)\nJob submitted\n",
		"✓ Job 3 ended: SUCCEEDED",
		"Useful Commands", "sky cancel dev 3", "sky logs dev 3", "sky queue dev", "sky exec dev", "sky stop dev", "sky down dev",
	} {
		if !strings.Contains(r.err, want) {
			t.Errorf("%q lacks %q", r.err, want)
		}
	}
	b := body[api.LaunchBody](t, f, "launch")
	if b.Cluster != "dev" || b.PlanHash != "p1" || !strings.Contains(b.Task, "run: echo hello") || !strings.Contains(b.Task, "sky-cmd") || b.User != "ana" {
		t.Errorf("%+v", b)
	}
	if b.Command != "sky launch -c dev -- echo hello" {
		t.Error(b.Command)
	}
	f.status = api.JobFailed
	if r = f.sky("", words("launch -y -c dev -- false")); r.code != 100 {
		t.Errorf("%+v", r)
	}
	if b = body[api.LaunchBody](t, f, "launch"); b.PlanHash != "" {
		t.Error("with -y nothing was agreed to, so no plan is insisted on")
	}
}

func TestLaunchVariants(t *testing.T) {
	f := newFake(t)
	launched(f)
	if r := f.sky("", words("launch -c dev -- true")); r.code != 1 || !strings.Contains(r.err, "Aborted.") || f.called("POST launch") {
		t.Errorf("nobody there: %+v", r)
	}
	r := f.sky("", words("launch --dryrun -c dev -- true"))
	if r.code != 0 || !strings.Contains(r.out, "CHOSEN") || !strings.Contains(r.out, "Dry run") || f.called("POST launch") || f.called("PUT") {
		t.Errorf("%+v", r)
	}
	r = f.sky("", words("launch -y --async -- true"))
	id := f.last
	if r.code != 0 || !strings.Contains(r.out, "Submitted sky.launch request: "+id) || !strings.Contains(r.out, "sky api logs "+id[:8]) ||
		!strings.Contains(r.out, "sky api cancel "+id[:8]) || !strings.Contains(r.out, f.URL+"/api/v1/requests/"+id[:8]+"/events") {
		t.Errorf("%+v", r)
	}
	if b := body[api.LaunchBody](t, f, "launch"); !regexp.MustCompile(`^sky-[0-9a-f]{4}-ana$`).MatchString(b.Cluster) {
		t.Error(b.Cluster)
	}
	if r = f.sky("", words("launch -y -d -c dev -- true")); r.code != 0 || r.out != "Job submitted, ID: 3\n" || f.called("GET clusters/dev/logs") {
		t.Errorf("%+v", r)
	}
	if r = f.sky("", words("launch -y -d -no-d -c dev -- true")); r.code != 0 || !f.called("GET clusters/dev/logs?follow=true&job_id=3") {
		t.Errorf("%+v", r)
	}
	f.outcome.Result = json.RawMessage(`{"cluster_name":"dev"}`)
	if r = f.sky("", words("launch -y -c dev")); r.code != 0 || !strings.Contains(r.err, "Run commands not specified or empty.") {
		t.Errorf("%+v", r)
	}
	r = f.sky("", words("launch -y -c dev -i 5 --down --wait-for none -r --no-setup --fast --resize --num-nodes 3 --clone other --gpus V100:0.5 --cpus 2+ --use-spot --env A=1 --env B -- true"),
		func(s *session.Session) { f.holder.env["B"] = "two" })
	b := body[api.LaunchBody](t, f, "launch")
	if r.code != 0 || *b.IdleMinutes != 5 || !b.Down || b.WaitFor != "none" || !b.RetryUntilUp || !b.NoSetup || !b.Fast || !b.Resize || b.CloneDiskFrom != "other" {
		t.Errorf("%+v %+v", r, b)
	}
	for _, want := range []string{"num_nodes: 3", "V100:0.5", "2+", "use_spot: true", "A: \"1\"", "B: two"} {
		if !strings.Contains(b.Task, want) {
			t.Errorf("%q lacks %q", b.Task, want)
		}
	}
}

func TestLaunchExisting(t *testing.T) {
	f := newFake(t)
	launched(f)
	f.plans = []*api.Plan{{Hash: "e", Existing: true, NumNodes: 1, Status: api.ClusterUp}}
	if r := f.sky("", words("launch -c dev -- true")); r.code != 0 || strings.Contains(r.err, "Proceed?") || strings.Contains(r.err, "Considered") {
		t.Errorf("an UP cluster is used without a question: %+v", r)
	}
	f.plans[0].Status = api.ClusterStopped
	if r := f.sky("n\n", words("launch -c dev -- true")); r.code != 1 || !strings.Contains(r.err, "Restarting the stopped cluster dev. Proceed?") {
		t.Errorf("%+v", r)
	}
}

// The plan shown is the plan launched: one that changed meanwhile is shown anew, and asked for anew.
func TestPlanChanged(t *testing.T) {
	f := newFake(t)
	launched(f)
	second := *f.plans[0]
	second.Hash, second.Candidates = "p2", []api.Candidate{{Infra: "gcp (b)", InstanceType: "n2", PricePerHour: 9, Chosen: true}}
	f.plans = append(f.plans, &second)
	f.refuse["launch"] = &api.Error{Kind: api.ErrPlanChanged, Message: "the plan changed"}
	r := f.sky("y\ny\n", words("launch -c dev -- true"))
	if r.code != 0 || strings.Count(r.err, "Proceed?") != 2 || !strings.Contains(r.err, "The plan has changed") || !strings.Contains(r.err, "gcp (b)") {
		t.Fatalf("%+v", r)
	}
	if b := body[api.LaunchBody](t, f, "launch"); b.PlanHash != "p2" {
		t.Error(b.PlanHash)
	}
	// The same when the request finds out later.
	f.plans = []*api.Plan{&second}
	f.outcome = api.Request{Status: api.RequestFailed, Error: &api.Error{Kind: api.ErrPlanChanged, Message: "the plan changed"}}
	if r = f.sky("y\nn\n", words("launch -c dev -- true")); r.code != 1 || strings.Count(r.err, "Proceed?") != 2 {
		t.Errorf("%+v", r)
	}
}

func TestLaunchFiles(t *testing.T) {
	f := newFake(t)
	launched(f)
	here := in(t, map[string]string{
		"task.yaml":                "name: t\nworkdir: src\nfile_mounts:\n  /data/x.txt: x.txt\nsecrets: {TOKEN: s3cret}\nrun: cat a\n",
		"src/a":                    "content",
		"src/sub/b":                "more",
		"x.txt":                    "single",
		"src/.git/HEAD":            "ref: refs/heads/main\n",
		"src/.git/refs/heads/main": strings.Repeat("ab", 20) + "\n",
	})
	r := f.sky("", words("launch -y -c dev task.yaml --secret OTHER=v"), here)
	if r.code != 0 || !strings.Contains(r.err, "YAML to run: task.yaml") || !strings.Contains(r.err, "Synced src: ") {
		t.Fatalf("%+v", r)
	}
	b := body[api.LaunchBody](t, f, "launch")
	if len(b.FileMounts) != 2 || b.FileMounts[0].Dst != "~/sky_workdir" || b.FileMounts[0].File || b.FileMounts[1].Dst != "/data/x.txt" || !b.FileMounts[1].File || b.FileMounts[1].Source != "x.txt" {
		t.Errorf("%+v", b.FileMounts)
	}
	if b.GitCommit != strings.Repeat("ab", 20) || b.Secrets["TOKEN"] != "s3cret" || b.Secrets["OTHER"] != "v" {
		t.Errorf("%+v", b)
	}
	if strings.Contains(b.Task, "s3cret") || strings.Contains(b.Command, "OTHER=v") || !strings.Contains(b.Command, "OTHER=<redacted>") {
		t.Errorf("a secret leaks: %s %s", b.Task, b.Command)
	}
	f.calls = nil
	r = f.sky("", words("exec dev task.yaml --cpus 8 --ports 80 -d"), here) // all is there already
	if r.code != 1 || !strings.Contains(r.err, `"dev" does not exist`) || f.called("PUT") {
		t.Errorf("nothing is sent for a cluster that isn't there: %+v", r)
	}
	f.clusters = someClusters()
	r = f.sky("", words("exec dev task.yaml --cpus 8 --ports 80 -d"), here)
	e := body[api.ExecBody](t, f, "exec")
	if r.code != 0 || !strings.Contains(r.err, "Ignored by sky exec: --cpus, --ports.") || len(e.FileMounts) != 1 || strings.Contains(e.Task, "file_mounts") || e.Cluster != "dev" || f.called("PUT blobs") {
		t.Errorf("%+v %+v", r, e)
	}
}

// Bad input: one clear message, exit code 1, and nothing was asked of the server.
func TestBadInput(t *testing.T) {
	f := newFake(t)
	here := in(t, map[string]string{
		"typo.yaml":    "run: echo\nresources:\n  accelerator: V100\n",
		"type.yaml":    "num_nodes: many\nrun: echo\n",
		"port.yaml":    "resources: {ports: 99999}\nrun: echo\n",
		"workdir.yaml": "workdir: gone\nrun: echo\n",
		"mount.yaml":   "file_mounts: {/a: gone}\nrun: echo\n",
		"env.yaml":     "envs: {NEEDED: null}\nrun: echo\n",
		"secret.yaml":  "secrets: {NEEDED: null}\nrun: echo\n",
		"bomb.yaml":    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n",
		"two.yaml":     "name: p\n---\nname: a\nrun: echo\n---\nname: b\nrun: echo\n",
		"cfg.yaml":     "no_such_section: 1\n",
		"ok.yaml":      "run: echo\n",
	})
	cases := []struct {
		line string
		code int
		want string
	}{
		{"launch -y typo.yaml", 1, `typo.yaml:3:3: resources: unknown field "accelerator"; did you mean "accelerators"?`},
		{"launch -y type.yaml", 1, "type.yaml:1:12"},
		{"launch -y port.yaml", 1, "port.yaml:1:"},
		{"launch -y gone.yaml", 1, "gone.yaml does not exist"},
		{"launch -y workdir.yaml", 1, `workdir.yaml:1:10: workdir: "gone" does not exist`},
		{"launch -y mount.yaml", 1, `the source "gone" does not exist`},
		{"launch -y env.yaml", 1, "NEEDED"},
		{"launch -y secret.yaml", 1, "NEEDED"},
		{"launch -y bomb.yaml", 1, "bomb.yaml"},
		{"launch -y two.yaml", 2, "sky launch takes one"},
		{"exec dev two.yaml", 2, "sky exec takes one"},
		{"launch -y -c ../etc ok.yaml", 1, "../etc"},
		{"launch -y -c sky-jobs-controller-ab ok.yaml", 1, "reserved"},
		{"launch -y --env UNSET_HERE ok.yaml", 1, "UNSET_HERE is not set"},
		{"launch -y --ports 0 ok.yaml", 1, "--ports"},
		{"launch -y --gpus V100:x ok.yaml", 1, "--gpus"},
		{"launch -y --config cfg.yaml ok.yaml", 1, "no_such_section"},
		{"launch -y --config ok.yaml --config active_workspace=x ok.yaml", 1, "can't be combined"},
		{"launch -y recipes:train", 1, "later release"},
		{"status nope", 1, "Cluster(s) 'nope' not found."},
		{"exec ../x true", 1, "not found"},
		{"events nope-nope", 0, "No events."},
		{"api logs 12345678", 1, "there is no request 12345678"},
		{"api status 12345678", 1, "Request 12345678 not found."},
	}
	for _, tc := range cases {
		t.Run(tc.line, func(t *testing.T) {
			r := f.sky("", words(tc.line), here)
			if r.code != tc.code || !strings.Contains(r.err, tc.want) {
				t.Errorf("%+v, want %d %q", r, tc.code, tc.want)
			}
		})
	}
	for _, c := range f.calls {
		if strings.HasPrefix(c, "P") {
			t.Errorf("a call was made: %s", c)
		}
	}
}

func TestBrokenYAMLAsCommand(t *testing.T) {
	f := newFake(t)
	launched(f)
	if r := f.sky("", words("launch gone.yaml")); r.code != 1 || !strings.Contains(r.err, `Run "gone.yaml" as a command? [y/N]`) || f.called("POST") {
		t.Errorf("%+v", r)
	}
	if r := f.sky("y\ny\n", words("launch gone.yaml")); r.code != 0 || !strings.Contains(body[api.LaunchBody](t, f, "launch").Task, "gone.yaml") {
		t.Errorf("%+v", r)
	}
}

func TestRetryUntilUpWithoutRoom(t *testing.T) {
	f := newFake(t)
	launched(f)
	f.planErr = &api.Error{Kind: api.ErrResourcesUnavailable, Message: "no infra has an H100", Details: []string{"local: no GPU"}, Hint: "Try another."}
	if r := f.sky("", words("launch -y --gpus H100 -- true")); r.code != 1 || !strings.Contains(r.err, "Error: no infra has an H100\n  local: no GPU\nTry another.") {
		t.Errorf("%+v", r)
	}
	if r := f.sky("", words("launch -y -r --gpus H100 -- true")); r.code != 0 || !strings.Contains(r.err, "no infra has an H100; with --retry-until-up") {
		t.Errorf("%+v", r)
	}
}

// Ctrl-C never cancels: it says how to follow and how to cancel.
func TestInterrupt(t *testing.T) {
	f := newFake(t)
	launched(f)
	f.hang = true
	done := make(chan ran)
	go func() { done <- f.sky("", words("launch -y -c dev -- sleep 100")) }()
	for !f.called("GET requests/") {
	}
	f.mu.Lock()
	cancel := f.holder.cancel
	f.mu.Unlock()
	cancel()
	r := <-done
	id := f.last
	if r.code != 130 || !strings.Contains(r.err, "The sky.launch request goes on: "+id) || !strings.Contains(r.err, "sky api logs "+id[:8]) || !strings.Contains(r.err, "sky api cancel "+id[:8]) {
		t.Errorf("%+v", r)
	}
	if f.called("POST requests/cancel") {
		t.Error("it was cancelled")
	}
}
