package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/session"
)

func TestAPIStatus(t *testing.T) {
	f := newFake(t)
	if r := f.sky("", words("api status")); r.code != 0 || r.out != "No requests in progress.\n" || !f.called("GET requests?limit=50") {
		t.Errorf("%+v %v", r, f.calls)
	}
	f.requests = []api.Request{
		{ID: "11111111-aaaa-bbbb-cccc-dddddddddddd", Name: "sky.launch", User: "ana", Status: api.RequestWaiting, StatusMsg: "no room (retrying in 30s)", Cluster: "dev", CreatedAt: testNow.Add(-time.Minute)},
		{ID: "22222222-aaaa-bbbb-cccc-dddddddddddd", Name: "sky.down", User: "bob", Status: api.RequestRunning, CreatedAt: testNow.Add(-time.Hour)},
	}
	want := `ID        User  Name        Created    Status
11111111  ana   sky.launch  1 min ago  WAITING
22222222  bob   sky.down    1 hr ago   RUNNING
`
	if r := f.sky("", words("api status")); r.out != want {
		t.Errorf("got\n%s", r.out)
	}
	if r := f.sky("", words("api status -v -a -l none -c dev")); !strings.Contains(r.out, "11111111-aaaa-bbbb-cccc-dddddddddddd") || !strings.Contains(r.out, "retrying in 30s") || !f.called("GET requests?all=true&cluster=dev") {
		t.Errorf("%+v %v", r, f.calls)
	}
	if r := f.sky("", words("api status 1111 9999")); r.code != 1 || !strings.Contains(r.err, "Request 9999 not found.") || !f.called("GET requests?all=true&id=1111&id=9999&limit=50") {
		t.Errorf("%+v %v", r, f.calls)
	}
	r := f.sky("", words("api status -o json"))
	var rows []api.Request
	if err := json.Unmarshal([]byte(r.out), &rows); err != nil || len(rows) != 2 {
		t.Error(err, r.out)
	}
}

func TestAPILogsAndEvents(t *testing.T) {
	f := newFake(t)
	at := time.Date(2026, 3, 1, 11, 0, 0, 0, time.Local)
	f.requests = []api.Request{{ID: "11111111-aaaa-bbbb-cccc-dddddddddddd", Name: "sky.launch", Status: api.RequestFailed,
		Error: &api.Error{Kind: api.ErrResourcesUnavailable, Message: "no room", Hint: "Try later."}}}
	f.events = []api.Event{
		{ID: 1, Time: at, Kind: api.EventStep, Step: "provision", Message: "Bringing up 1 node", RequestID: "11111111-aaaa"},
		{ID: 2, Time: at.Add(time.Second), Kind: api.EventError, Step: "provision", Message: "no room\nanywhere", Attempt: 2, RequestID: "11111111-aaaa"},
		{ID: 3, Time: at.Add(2 * time.Second), Kind: api.EventRetry, Message: "waiting for room", NextRetry: ptr(testNow.Add(30 * time.Second))},
	}
	r := f.sky("", words("api logs 1111"))
	if r.code != 1 || !strings.HasPrefix(r.out, "11:00:00  provision   Bringing up 1 node\n") || !strings.Contains(r.err, "sky.launch 11111111: FAILED\nError: no room\nTry later.") {
		t.Errorf("%+v", r)
	}
	f.requests[0] = api.Request{ID: "11111111-aaaa-bbbb-cccc-dddddddddddd", Name: "sky.launch", Status: api.RequestRunning}
	if r = f.sky("", words("api logs 1111")); r.code != 0 || !strings.Contains(r.err, "SUCCEEDED") || strings.Count(r.out, "Bringing up") != 1 {
		t.Errorf("%+v", r)
	}
	if r = f.sky("", words("api logs 1111 --no-follow --tail 5")); r.code != 0 || !f.called("GET events?limit=5&request=11111111-aaaa-bbbb-cccc-dddddddddddd") {
		t.Errorf("%+v", r)
	}
	f.requests[0] = api.Request{ID: "11111111-aaaa-bbbb-cccc-dddddddddddd", Name: "sky.jobs.launch", Status: api.RequestSucceeded, Result: []byte(`{"job_ids":[4,5,6]}`)}
	if r = f.sky("", words("api logs 1111")); r.code != 0 || !strings.HasSuffix(r.out, "\nManaged jobs submitted, IDs: 4-6 (3 jobs)\n") {
		t.Errorf("%+v", r)
	}
	f.requests[0] = api.Request{ID: "11111111-aaaa-bbbb-cccc-dddddddddddd", Name: "sky.cancel", Status: api.RequestSucceeded, Result: []byte(`{"job_ids":[4,6]}`)}
	if r = f.sky("", words("api logs 1111")); r.code != 0 || !strings.HasSuffix(r.out, "\nCancelled jobs: 4,6\n") {
		t.Errorf("%+v", r)
	}
	r = f.sky("", words("events dev"))
	want := "2026-03-01\n" +
		"11:00:00  11111111  provision   Bringing up 1 node\n" +
		"11:00:01  11111111  provision   no room\n          anywhere (attempt 2)\n" +
		"11:00:02            retry       waiting for room; trying again in 30s"
	if r.code != 0 || !strings.HasPrefix(r.out, want) || !f.called("GET events?cluster=dev") {
		t.Errorf("got\n%s\nwant\n%s", r.out, want)
	}
	r = f.sky("", words("events 11111111 -o json -l 2"))
	var list []api.Event
	if err := json.Unmarshal([]byte(r.out), &list); err != nil || len(list) != 3 || !f.called("GET events?limit=2&request=11111111-aaaa-bbbb-cccc-dddddddddddd") {
		t.Error(err, r.out, f.calls)
	}
	r = f.sky("", words("events 11111111 -f -o json"))
	if n := strings.Count(r.out, "\n"); r.code != 0 || n != 3 || !json.Valid([]byte(strings.Split(r.out, "\n")[0])) {
		t.Errorf("%d lines: %+v", n, r)
	}
}

func TestAPICancel(t *testing.T) {
	f := newFake(t)
	if r := f.sky("", words("api cancel 1111")); r.code != 0 || r.out != "1 request was cancelled: 11111111-x\n" {
		t.Errorf("%+v", r)
	}
	if r := f.sky("yes\n", words("api cancel -u")); r.code != 1 || !strings.Contains(r.err, `Type "cancel all requests"`) {
		t.Errorf("%+v", r)
	}
	if r := f.sky("cancel all requests\n", words("api cancel -u")); r.code != 0 {
		t.Errorf("%+v", r)
	}
	if b := body[api.CancelRequestsBody](t, f, "requests/cancel"); !b.All || !b.AllUsers || b.UserHash != "0a0a0a0a" {
		t.Errorf("%+v", b)
	}
}

func TestAPIInfo(t *testing.T) {
	f := newFake(t)
	r := f.sky("", words("api info"))
	for _, want := range []string{"API server " + f.URL, "healthy", "embedded in the server", "127.0.0.1:7233", "/h/api-key"} {
		if r.code != 0 || !strings.Contains(r.out, want) {
			t.Errorf("%+v lacks %q", r, want)
		}
	}
	var m struct {
		Client   struct{ Version, Commit string }
		Server   map[string]any
		User     string
		Temporal api.EngineInfo
	}
	r = f.sky("", words("api info -o json"))
	if err := json.Unmarshal([]byte(r.out), &m); err != nil || m.User != "ana" || m.Server["status"] != "healthy" || m.Server["api_version"] != 1.0 || m.Temporal.TaskQueue != "sky" || m.Client.Version == "" {
		t.Error(err, r.out)
	}
}

func TestLoginLogout(t *testing.T) {
	f := newFake(t)
	home := t.TempDir()
	skyHome := func(s *session.Session) {
		s.UserHome = home
		delete(f.holder.env, session.EnvEndpoint)
	}
	r := f.sky("", []string{"api", "login", "-e", f.URL + "/", "--token", "sky_bad"}, skyHome)
	if r.code != 1 || !strings.Contains(r.err, "refuses the token") {
		t.Errorf("%+v", r)
	}
	r = f.sky("", []string{"api", "login", "-e", f.URL + "/", "--token", "sky_good"}, skyHome)
	if r.code != 0 || !strings.Contains(r.out, "Using the API server at "+f.URL) {
		t.Fatalf("%+v", r)
	}
	cfg := filepath.Join(home, ".skyloom", "config.yaml")
	b, err := os.ReadFile(cfg)
	if st, serr := os.Stat(cfg); err != nil || serr != nil || st.Mode().Perm() != 0o600 || !strings.Contains(string(b), "sky_good") || !strings.Contains(string(b), f.URL) {
		t.Errorf("%s %v", b, err)
	}
	if r = f.sky("", words("api info"), skyHome); r.code != 0 || !strings.Contains(r.out, f.URL) {
		t.Errorf("the stored server is used: %+v", r)
	}
	// The token is the client's own business.
	f.sky("", words("down x* -y"), skyHome)
	f.clusters = someClusters()
	f.sky("", words("down dev -y"), skyHome)
	if strings.Contains(string(f.bodies["down"]), "sky_good") {
		t.Error("the token travels in the body")
	}
	if r = f.sky("", words("api logout"), skyHome); r.code != 0 || !strings.Contains(r.out, "Logged out") {
		t.Errorf("%+v", r)
	}
	if b, _ = os.ReadFile(cfg); strings.Contains(string(b), "sky_good") || strings.Contains(string(b), f.URL) {
		t.Errorf("%s", b)
	}
	if r = f.sky("", words("api logout"), skyHome); r.code != 0 || !strings.Contains(r.out, "Not logged in") {
		t.Errorf("%+v", r)
	}
}

func TestNoServer(t *testing.T) {
	f := newFake(t)
	local := func(s *session.Session) {
		delete(f.holder.env, session.EnvEndpoint)
		f.holder.env[session.EnvNoAutostart] = "1"
	}
	if r := f.sky("", words("status"), local); r.code != 1 || !strings.Contains(r.err, "no server is running") || !strings.Contains(r.err, "sky api start") {
		t.Errorf("%+v", r)
	}
	if r := f.sky("", words("api stop"), local); r.code != 0 || r.out != "No API server is running.\n" {
		t.Errorf("%+v", r)
	}
	if r := f.sky("", words("api logs --server-logs"), local); r.code != 1 || !strings.Contains(r.err, "never run here") {
		t.Errorf("%+v", r)
	}
	if r := f.sky("", words("api start --host 0.0.0.0"), local); r.code != 1 || !strings.Contains(r.err, "later release") {
		t.Errorf("%+v", r)
	}
	foreign := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(404)
		io.WriteString(w, `{"detail":"Not Found"}`)
	}))
	defer foreign.Close()
	other := func(s *session.Session) { f.holder.env[session.EnvEndpoint] = foreign.URL }
	for _, line := range []string{"status", "launch -y true", "api info"} {
		r := f.sky("", words(line), other)
		if r.code != 1 || !strings.Contains(r.err, "what answers at "+foreign.URL+" is no Skyloom server") || !strings.Contains(r.err, "unset "+session.EnvEndpoint) {
			t.Errorf("%s: %+v", line, r)
		}
	}
	if r := f.sky("", words("api login -e "+foreign.URL)); r.code != 1 || !strings.Contains(r.err, "is no Skyloom server") {
		t.Errorf("%+v", r)
	}
	if r := f.sky("", words("down -y nosuch")); r.code != 1 || strings.Contains(r.err, "comes from") { // an error of our own server
		t.Errorf("%+v", r)
	}
	configured := func(s *session.Session) {
		delete(f.holder.env, session.EnvEndpoint)
		if err := os.WriteFile(filepath.Join(s.UserHome, ".sky.yaml"), []byte("api_server: {endpoint: '"+foreign.URL+"'}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if r := f.sky("", words("status"), configured); r.code != 1 || !strings.Contains(r.err, "comes from api_server.endpoint") || !strings.Contains(r.err, "sky api logout") {
		t.Errorf("%+v", r)
	}
	bad := func(s *session.Session) { f.holder.env[session.EnvEndpoint] = "sky.test:80" }
	if r := f.sky("", words("status"), bad); r.code != 1 || !strings.Contains(r.err, "is no server address") {
		t.Errorf("%+v", r)
	}
}

func TestCheck(t *testing.T) {
	f := newFake(t)
	f.outcome.Result = json.RawMessage(`{"infras":[{"name":"local","enabled":true,"capabilities":["compute"],"details":["2 CPUs"]},
		{"name":"aws","enabled":false,"reason":"no credentials","hint":"Run aws configure."}],"enabled":{"default":{"local":["compute"]},"team":{"aws":["compute"]}}}`)
	r := f.sky("", words("check Local aws/us-east-1 local"))
	want := "✓ local: enabled [compute]\n✗ aws: disabled\n    no credentials\n    Run aws configure.\n\nEnabled infra: local\n\nUsing Skyloom API server: " + f.URL + "\n"
	if r.code != 0 || r.out != want {
		t.Errorf("got\n%s\nwant\n%s", r.out, want)
	}
	if b := body[api.CheckBody](t, f, "check"); len(b.Clouds) != 2 || b.Clouds[0] != "local" || b.Clouds[1] != "aws" {
		t.Errorf("%+v", b)
	}
	if r = f.sky("", words("check -v")); !strings.Contains(r.out, "2 CPUs") {
		t.Error(r.out)
	}
	if r = f.sky("", words("check -o json -w default")); r.out != "{\n  \"default\": {\n    \"local\": [\n      \"compute\"\n    ]\n  }\n}\n" {
		t.Error(r.out)
	}
}

func TestGPUs(t *testing.T) {
	f := newFake(t)
	if r := f.sky("", words("gpus list")); r.code != 0 || !strings.Contains(r.out, "No accelerators") {
		t.Errorf("%+v", r)
	}
	if r := f.sky("", words("gpus list H100")); r.code != 1 || !strings.Contains(r.err, "no enabled infra offers H100") {
		t.Errorf("%+v", r)
	}
	f.gpus = api.GPUList{
		Pools: []api.GPUPool{{Infra: "local", Name: "T4", Requestable: []float64{1, 2}, Total: 2, Free: 1}},
		Offers: map[string][]api.GPUOffer{
			"V100":   {{Cloud: "aws", InstanceType: "p3.2xlarge", Name: "V100", Count: 1, CPUs: 8, DeviceMemGB: 16, MemoryGB: 61, Price: ptr(3.06), SpotPrice: ptr(0.918), Region: "us-east-1"}, {Name: "V100", Count: 4, Cloud: "gcp", Region: "us-central1"}},
			"tpu-v5": {{Name: "tpu-v5", Count: 8}},
		},
	}
	want := `Infra: local
GPU  REQUESTABLE_QTY_PER_NODE  UTILIZATION
T4   1, 2                      1 of 2 free

Cloud GPUs
GPU   AVAILABLE_QUANTITIES
V100  1, 4

TPUs
GPU     AVAILABLE_QUANTITIES
tpu-v5  8

Prices: sky gpus list NAME. All accelerators: sky gpus list -a
`
	if r := f.sky("", words("gpus list")); r.code != 0 || r.out != want {
		t.Errorf("got\n%s\nwant\n%s", r.out, want)
	}
	delete(f.gpus.Offers, "tpu-v5")
	f.gpus.Pools = nil
	want = `GPU   QTY  CLOUD  INSTANCE_TYPE  DEVICE_MEM  vCPUs  HOST_MEM  HOURLY_PRICE  HOURLY_SPOT_PRICE  REGION
V100  1    aws    p3.2xlarge     16GB        8      61GB      $ 3.060       $ 0.918            us-east-1
V100  4    gcp    (attachable)   -           -      -         -             -                  us-central1
`
	if r := f.sky("", words("gpus list V100:1 --infra aws/us-east-1")); r.code != 0 || r.out != want || !f.called("GET gpus?infra=aws%2Fus-east-1&name=V100%3A1") {
		t.Errorf("got\n%s%v", r.out, f.calls)
	}
	if r := f.sky("", words("show-gpus V100 --cloud aws --region us-east-1 -o json")); r.code != 0 || !strings.Contains(r.err, "deprecated") || !strings.Contains(r.out, `"accelerator_name": "V100"`) {
		t.Errorf("%+v", r)
	}
	if r := f.sky("", words("gpus lst")); r.code != 2 || !strings.Contains(r.err, "did you mean list?") {
		t.Errorf("%+v", r)
	}
}

func TestCostReport(t *testing.T) {
	f := newFake(t)
	for i, name := range []string{"a", "b", "c", "d", "e", "f"} {
		f.costs = append(f.costs, api.CostRow{Name: name, LaunchedAt: testNow.Add(-time.Duration(i) * time.Hour), DurationSec: 3600, NumNodes: 2, ResourcesStr: "(cpus=2)", PricePerHour: 1.5, TotalCost: 1.5})
	}
	f.costs[5].Status = "UP"
	r := f.sky("", words("cost-report"))
	want := `NAME  LAUNCHED        DURATION  RESOURCES    STATUS      COST/hr  COST (est.)
f     5 hrs ago       1h 0m     2x (cpus=2)  UP          $ 1.50   $ 1.50
a     a few secs ago  1h 0m     2x (cpus=2)  TERMINATED  $ 1.50   $ 1.50
`
	if r.code != 0 || !strings.HasPrefix(r.out, want) || !strings.Contains(r.out, "1 more: sky cost-report -a") || !strings.HasSuffix(r.out, "Total Cost: $9.00\n") || !f.called("GET cost-report?days=30") {
		t.Errorf("got\n%s", r.out)
	}
	if r = f.sky("", words("cost-report -a --days 0 -o json")); !strings.Contains(r.out, `"status": "TERMINATED"`) || !f.called("GET cost-report?days=0") {
		t.Error(r.out)
	}
}

func TestDashboard(t *testing.T) {
	f := newFake(t)
	opened := ""
	r := f.sky("", words("ui"), func(s *session.Session) {
		s.IO.OutTTY = true
		s.OpenBrowser = func(u string) error { opened = u; return nil }
	})
	if r.code != 0 || r.out != f.URL+"/login?code=1\n" || opened != f.URL+"/login?code=1" {
		t.Errorf("%+v %q", r, opened)
	}
}

func TestCompletion(t *testing.T) {
	f := newFake(t)
	if r := f.sky("", []string{"__complete", "stop", "de"}); !strings.HasPrefix(r.out, "de-one\nde-two\n") {
		t.Errorf("%+v", r)
	}
	if r := f.sky("", []string{"__complete", "api", "cancel", "1"}); !strings.HasPrefix(r.out, "1-one\n") || !f.called("GET completion/api_request?incomplete=1") {
		t.Errorf("%+v", r)
	}
	for line, want := range map[string]string{
		"autostop --wait-for":      "jobs_and_ssh\njobs\nnone\n:4\n",
		"launch --disk-tier":       "low\nmedium\nhigh\nultra\nbest\nnone\n:4\n",
		"status -o":                "table\njson\n:4\n",
		"jobs launch --workdir":    ":0\n", // a folder
		"jobs launch --local-disk": ":0\n",
	} {
		if r := f.sky("", append(append([]string{"__complete"}, words(line)...), "")); r.out != want {
			t.Errorf("%s: %q, want %q", line, r.out, want)
		}
	}
	f.Close()
	if r := f.sky("", []string{"__complete", "stop", "de"}); strings.Contains(r.out, "one") || r.code != 0 {
		t.Errorf("without a server: %+v", r)
	}
}

func TestInstallCompletion(t *testing.T) {
	f := newFake(t)
	home := t.TempDir()
	at := func(s *session.Session) { s.UserHome = home }
	rc := filepath.Join(home, ".zshrc")
	_ = os.WriteFile(rc, []byte("alias x=y"), 0o644)
	for range 2 { // twice is once
		if r := f.sky("", words("--install-shell-completion zsh"), at); r.code != 0 {
			t.Fatalf("%+v", r)
		}
	}
	b, _ := os.ReadFile(rc)
	script := filepath.Join(home, ".skyloom", ".sky-complete.zsh")
	if strings.Count(string(b), script) != 2 || !strings.HasPrefix(string(b), "alias x=y\n") {
		t.Errorf("%q", b)
	}
	if b, err := os.ReadFile(script); err != nil || !strings.Contains(string(b), "__complete") {
		t.Error(err)
	}
	if r := f.sky("", words("--uninstall-shell-completion zsh"), at); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	b, _ = os.ReadFile(rc)
	if _, err := os.Stat(script); err == nil || string(b) != "alias x=y\n" {
		t.Errorf("%q", b)
	}
	if r := f.sky("", words("--install-shell-completion fish"), at); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if _, err := os.Stat(filepath.Join(home, ".config/fish/completions/sky.fish")); err != nil {
		t.Error(err)
	}
	if r := f.sky("", words("completion bash")); r.code != 0 || !strings.Contains(r.out, "complete -o") {
		t.Errorf("%+v", r)
	}
}

// The reference names every command and flag that help shows.
func TestDocs(t *testing.T) {
	f := newFake(t)
	dir := t.TempDir()
	if r := f.sky("", []string{"docs-gen", dir}); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	b, err := os.ReadFile(filepath.Join(dir, "commands.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"## sky launch\n", "## sky api status\n", "| `-c, --cluster NAME` |", "## sky gpus list\n", "low\\|medium"} {
		if !bytes.Contains(b, []byte(want)) {
			t.Errorf("%q is missing", want)
		}
	}
	if bytes.Contains(b, []byte("docs-gen")) || bytes.Contains(b, []byte("show-gpus")) {
		t.Error("hidden commands are in it")
	}
}

// A terminal gets colours and moving lines, everything else plain text.
func TestTerminal(t *testing.T) {
	f := newFake(t)
	launched(f)
	r := f.sky("y\n", words("launch -c dev -- echo hello"), func(s *session.Session) {
		s.IO.Moving, s.IO.ErrColor, s.IO.OutColor = true, true, true
	})
	for _, want := range []string{"\x1b[32m✓\x1b[0m Bringing up 1 node on local (attempt 2)", "\x1b[31mno room\x1b[0m", "\x1b[32m✔\x1b[0m"} {
		if !strings.Contains(r.err, want) {
			t.Errorf("%q lacks %q", r.err, want)
		}
	}
	if strings.Contains(r.err, "✓\x1b[0m Request") {
		t.Errorf("the placeholder is left standing: %q", r.err)
	}
	if r.out != "\x1b[36m(sky-cmd, pid=42)\x1b[0m hello\n" {
		t.Errorf("%q", r.out)
	}
}
