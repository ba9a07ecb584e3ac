package webui_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/skyloom/skyloom/worker/codec"
	"github.com/skyloom/skyloom/worker/engine"
	"github.com/skyloom/skyloom/worker/webui"
)

const (
	secret = "s3cr3t-plain-text"
	queue  = "webui-test"
	id     = "story/one" // a slash, as in all our ids
)

// Story does one step, then waits, and says so.
func Story(ctx workflow.Context, _ string) error {
	step := workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: time.Minute, Summary: "step " + secret})
	if err := workflow.ExecuteActivity(step, Step).Get(ctx, nil); err != nil {
		return err
	}
	workflow.SetCurrentDetails(ctx, "waiting, "+secret)
	workflow.GetSignalChannel(ctx, "end").Receive(ctx, nil)
	return nil
}

func Step(context.Context) (string, error) { return "outcome " + secret, nil }

// The tests share one engine with one workflow: they only look.
var (
	shared *engine.Engine
	ring   *codec.Ring
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "webui-test-")
	if err != nil {
		return fail(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if shared, err = engine.Start(ctx, engine.Options{Dir: filepath.Join(dir, "engine")}); err != nil {
		return fail(err)
	}
	defer func() { _ = shared.Stop() }()
	if ring, err = codec.LoadRing(filepath.Join(dir, "keys.json")); err != nil {
		return fail(err)
	}
	dc := codec.New(ring)
	c, err := shared.Dial(ctx, dc, codec.FailureConverter(dc))
	if err != nil {
		return fail(err)
	}
	defer c.Close()
	w := worker.New(c, queue, worker.Options{})
	w.RegisterWorkflow(Story)
	w.RegisterActivity(Step)
	if err := w.Start(); err != nil {
		return fail(err)
	}
	defer w.Stop()
	_, err = c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID: id, TaskQueue: queue, StaticSummary: "summary " + secret, StaticDetails: "details " + secret,
	}, Story, "input "+secret)
	if err != nil {
		return fail(err)
	}
	return m.Run()
}

// server mounts the UI and the codec endpoint as our API server does it.
func server(t *testing.T, readOnly bool) *httptest.Server {
	t.Helper()
	u, err := webui.Start(webui.Options{Conn: shared.Conn(), Namespace: shared.Namespace(), CodecEndpoint: "/codec", ReadOnly: readOnly})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Close() })
	mux := http.NewServeMux()
	mux.Handle("/temporal/", u.Handler())
	mux.Handle("/temporal", u.Handler())
	mux.Handle("/codec/", codec.Handler(ring))
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func call(t *testing.T, method, url, body string, header ...string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(data)
}

func TestPage(t *testing.T) {
	s := server(t, true)
	for _, path := range []string{"/temporal", "/temporal/", "/temporal/namespaces/skyloom/workflows", "/temporal/a%2Fb"} {
		status, header, body := call(t, http.MethodGet, s.URL+path, "")
		if status != http.StatusOK || !strings.Contains(body, `base: "/temporal"`) || !strings.HasPrefix(header.Get("Content-Type"), "text/html") {
			t.Fatalf("%s: %d %v %s", path, status, header, body)
		}
		policy := header.Get("Content-Security-Policy")
		for _, m := range regexp.MustCompile(`(?s)<script>(.*?)</script>`).FindAllStringSubmatch(body, -1) {
			sum := sha256.Sum256([]byte(m[1]))
			if want := "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"; !strings.Contains(policy, want) {
				t.Errorf("the policy %s does not let the page's script run (%s)", policy, want)
			}
		}
		if !strings.Contains(policy, "connect-src 'self'") || strings.Contains(strings.ToLower(body), "http-equiv=\"content-security-policy\"") {
			t.Errorf("%s: policy %s", path, policy)
		}
		for _, m := range regexp.MustCompile(`"(/[^"]+\.(?:js|css))"`).FindAllStringSubmatch(body, -1) {
			status, header, _ := call(t, http.MethodGet, s.URL+m[1], "")
			if status != http.StatusOK || strings.HasPrefix(header.Get("Content-Type"), "text/html") || !strings.Contains(header.Get("Cache-Control"), "immutable") {
				t.Fatalf("%s: %d %v", m[1], status, header)
			}
		}
	}
	if status, _, body := call(t, http.MethodGet, s.URL+"/temporal/_app/immutable/none.js", ""); status != http.StatusNotFound {
		t.Errorf("a missing file: %d %s", status, body)
	}
	status, header, body := call(t, http.MethodGet, s.URL+"/temporal/render?content=**bold**&theme=dark", "")
	if status != http.StatusOK || !strings.Contains(body, "<strong>bold</strong>") || !strings.Contains(header.Get("Content-Security-Policy"), "sandbox") {
		t.Errorf("markdown: %d %s", status, body)
	}

	status, _, body = call(t, http.MethodGet, s.URL+"/temporal/api/v1/settings", "")
	var settings struct {
		DefaultNamespace                      string
		DisableNewsFetch, DisableWriteActions bool
		Codec                                 struct {
			Endpoint                            string
			IncludeCredentials, PassAccessToken bool
		}
	}
	if err := json.Unmarshal([]byte(body), &settings); status != http.StatusOK || err != nil {
		t.Fatalf("%d %s", status, body)
	}
	if settings.DefaultNamespace != engine.DefaultNamespace || !settings.DisableNewsFetch || !settings.DisableWriteActions ||
		settings.Codec.Endpoint != "/codec" || !settings.Codec.IncludeCredentials || settings.Codec.PassAccessToken {
		t.Errorf("%s", body)
	}

	story(t, s)
	readOnly(t, s)
}

const workflowPath = "/temporal/api/v1/namespaces/skyloom/workflows/story%2Fone"

// story reads what the UI's pages read about a workflow, and decodes it as they do.
func story(t *testing.T, s *httptest.Server) {
	t.Helper()
	status, _, body := call(t, http.MethodGet, s.URL+"/temporal/api/v1/namespaces", "")
	if status != http.StatusOK || !strings.Contains(body, engine.DefaultNamespace) {
		t.Fatalf("namespaces: %d %s", status, body)
	}
	deadline := time.Now().Add(time.Minute)
	for {
		status, _, body = call(t, http.MethodGet, s.URL+"/temporal/api/v1/namespaces/skyloom/workflows?query="+"SkyKind%20is%20null", "")
		if status == http.StatusOK && strings.Contains(body, id) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("list: %d %s", status, body)
		}
		time.Sleep(20 * time.Millisecond)
	}
	// A header that the browser sends along must not replace the engine's credentials.
	status, _, body = call(t, http.MethodGet, s.URL+workflowPath, "", "Authorization", "Bearer of-our-api")
	var described struct {
		WorkflowExecutionInfo struct{ Execution struct{ RunID string } }
		ExecutionConfig       struct {
			UserMetadata struct{ Summary, Details json.RawMessage }
		}
	}
	if err := json.Unmarshal([]byte(body), &described); status != http.StatusOK || err != nil || strings.Contains(body, secret) {
		t.Fatalf("describe: %d %v %s", status, err, body)
	}
	meta := described.ExecutionConfig.UserMetadata
	if clear := decode(t, s, meta.Summary, meta.Details); clear[0] != `"summary `+secret+`"` || clear[1] != `"details `+secret+`"` {
		t.Errorf("summary and details are %v", clear)
	}

	for {
		status, _, body = call(t, http.MethodPost, s.URL+workflowPath+"/query/__temporal_workflow_metadata",
			fmt.Sprintf(`{"execution":{"workflowId":%q},"query":{"queryType":"__temporal_workflow_metadata"}}`, id))
		var answer struct {
			QueryResult struct{ Payloads []json.RawMessage }
		}
		if err := json.Unmarshal([]byte(body), &answer); status != http.StatusOK || err != nil || len(answer.QueryResult.Payloads) != 1 {
			t.Fatalf("query: %d %v %s", status, err, body)
		}
		clear := decode(t, s, answer.QueryResult.Payloads[0])
		if strings.Contains(clear[0], "waiting, "+secret) {
			break
		}
		if time.Now().After(deadline) { // the workflow says so only after its step
			t.Fatalf("current details are %v", clear)
		}
		time.Sleep(20 * time.Millisecond)
	}

	status, _, body = call(t, http.MethodGet, s.URL+workflowPath+"/run/"+described.WorkflowExecutionInfo.Execution.RunID+"/history.json", "")
	if status != http.StatusOK || !json.Valid([]byte(body)) || strings.Contains(body, `"error"`) || strings.Contains(body, secret) {
		t.Errorf("download of the history: %d %s", status, body)
	}
}

func decode(t *testing.T, s *httptest.Server, payloads ...json.RawMessage) []string {
	t.Helper()
	body, err := json.Marshal(map[string]any{"payloads": payloads})
	if err != nil {
		t.Fatal(err)
	}
	status, _, text := call(t, http.MethodPost, s.URL+"/codec/decode?preserveStorageRefs=true", string(body), "X-Namespace", "skyloom")
	var out struct{ Payloads []struct{ Data []byte } }
	if err := json.Unmarshal([]byte(text), &out); status != http.StatusOK || err != nil || len(out.Payloads) != len(payloads) {
		t.Fatalf("decode: %d %v %s", status, err, text)
	}
	var clear []string
	for _, p := range out.Payloads {
		clear = append(clear, string(p.Data))
	}
	return clear
}

func readOnly(t *testing.T, s *httptest.Server) {
	t.Helper()
	for _, action := range []string{"terminate", "cancel", "signal/end"} {
		if status, _, body := call(t, http.MethodPost, s.URL+workflowPath+"/"+action, "{}"); status != http.StatusMethodNotAllowed {
			t.Errorf("%s in a read-only UI: %d %s", action, status, body)
		}
	}
}

func TestForeignSitesCantAct(t *testing.T) {
	s := server(t, false)
	// A signal that the workflow does not listen to harms nobody.
	url := s.URL + workflowPath + "/signal/nothing"
	for name, header := range map[string][]string{
		"cross-site": {"Sec-Fetch-Site", "cross-site"},
		"same-site":  {"Sec-Fetch-Site", "same-site"}, // another port of this machine
		"origin":     {"Origin", "http://evil.example"},
	} {
		if status, _, body := call(t, http.MethodPost, url, "{}", header...); status != http.StatusForbidden {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	if status, _, body := call(t, http.MethodPost, url, "{}", "Sec-Fetch-Site", "same-origin"); status != http.StatusOK {
		t.Errorf("same origin: %d %s", status, body)
	}
}

func TestOptions(t *testing.T) {
	conn, err := grpc.NewClient("passthrough:///127.0.0.1:1", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for want, o := range map[string]webui.Options{
		"no connection":     {},
		"can't be the path": {Conn: conn, PublicPath: "/"},
		"must look like":    {Conn: conn, PublicPath: "temporal/"},
		"path on the same":  {Conn: conn, CodecEndpoint: "https://elsewhere.example"},
	} {
		if _, err := webui.Start(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	// Without an engine the page still comes, and says what it can't reach.
	u, err := webui.Start(webui.Options{Conn: conn})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(u.Handler())
	defer s.Close()
	if status, _, _ := call(t, http.MethodGet, s.URL+"/temporal/", ""); status != http.StatusOK {
		t.Errorf("page: %d", status)
	}
	if status, _, body := call(t, http.MethodGet, s.URL+"/temporal/api/v1/namespaces", ""); status != http.StatusServiceUnavailable {
		t.Errorf("api: %d %s", status, body)
	}
	if status, _, _ := call(t, http.MethodGet, s.URL+"/elsewhere", ""); status != http.StatusNotFound {
		t.Errorf("elsewhere: %d", status)
	}
}
