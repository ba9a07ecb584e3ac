package httpapi

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/secret"
)

const (
	idA = "3f0c9a52-6f0e-4b7e-9a55-0d4f3f9e8a11"
	idB = "3f0c9a52-6f0e-4b7e-9a55-0d4f3f9e8a12"
	idC = "77777777-6f0e-4b7e-9a55-0d4f3f9e8a13"
)

func TestSubmitKinds(t *testing.T) {
	e := newEnv(t)
	c := e.client()
	base := func() api.Base {
		return api.Base{RequestID: api.NewRequestID(), User: "ada", UserHash: "u1", Command: "sky x"}
	}
	five := 5
	calls := []struct {
		kind string
		do   func() (*api.Ref, error)
		body any
	}{
		{"launch", func() (*api.Ref, error) {
			return c.Launch(t.Context(), &api.LaunchBody{Base: base(), Cluster: "c1", Task: "run: true", IdleMinutes: &five})
		}, api.LaunchBody{}},
		{"exec", func() (*api.Ref, error) { return c.Exec(t.Context(), &api.ExecBody{Base: base(), Cluster: "c1"}) }, api.ExecBody{}},
		{"start", func() (*api.Ref, error) { return c.Start(t.Context(), &api.StartBody{Base: base(), Cluster: "c1"}) }, api.StartBody{}},
		{"stop", func() (*api.Ref, error) { return c.Stop(t.Context(), &api.StopOrDownBody{Base: base(), Cluster: "c1"}) }, api.StopOrDownBody{}},
		{"down", func() (*api.Ref, error) { return c.Down(t.Context(), &api.StopOrDownBody{Base: base(), Cluster: "c1"}) }, api.StopOrDownBody{}},
		{"autostop", func() (*api.Ref, error) {
			return c.Autostop(t.Context(), &api.AutostopBody{Base: base(), Cluster: "c1"})
		}, api.AutostopBody{}},
		{"cancel", func() (*api.Ref, error) {
			return c.CancelJobs(t.Context(), &api.CancelBody{Base: base(), Cluster: "c1"})
		}, api.CancelBody{}},
		{"preempt", func() (*api.Ref, error) { return c.Preempt(t.Context(), &api.PreemptBody{Base: base(), Cluster: "c1"}) }, api.PreemptBody{}},
		{"check", func() (*api.Ref, error) { return c.Check(t.Context(), &api.CheckBody{Base: base()}) }, api.CheckBody{}},
		{"refresh", func() (*api.Ref, error) { return c.Refresh(t.Context(), &api.RefreshBody{Base: base()}) }, api.RefreshBody{}},
	}
	for i, tt := range calls {
		ref, err := tt.do()
		if err != nil {
			t.Fatalf("%s: %v", tt.kind, err)
		}
		got := e.be.calls()[i]
		if got.kind != tt.kind || fmt.Sprintf("%T", got.body) != fmt.Sprintf("%T", tt.body) || got.base.User != "ada" || got.base.RequestID != ref.RequestID {
			t.Errorf("%s reached the backend as %+v", tt.kind, got)
		}
		if ref.Name != "sky."+tt.kind || ref.Status != api.RequestPending || ref.Cluster != got.cluster {
			t.Errorf("%s: ref %+v", tt.kind, ref)
		}
		row, err := e.st.Request(t.Context(), ref.RequestID)
		if err != nil || row.Name != "sky."+tt.kind || row.User != "ada" || row.UserHash != "u1" || row.Command != "sky x" {
			t.Errorf("%s: row %+v, %v", tt.kind, row, err)
		}
	}
	if b := e.be.calls()[0].body.(api.LaunchBody); b.IdleMinutes == nil || *b.IdleMinutes != 5 || b.Cluster != "c1" {
		t.Errorf("launch body %+v", b)
	}
}

func TestSubmitIsIdempotent(t *testing.T) {
	e := newEnv(t)
	body := `{"request_id":"` + idA + `","cluster_name":"c1","task":"run: true","config":{"b":1,"a":{"x":[1,2]}}}`
	same := ` { "config":{"a":{"x":[1,2]},"b":1}, "task":"run: true", "cluster_name":"c1", "request_id":"` + idA + `" } `
	other := `{"request_id":"` + idA + `","cluster_name":"c1","task":"run: false"}`
	for _, b := range []string{body, body, same} {
		if resp, got := e.call("POST", "/api/v1/launch", b); resp.StatusCode != 202 || resp.Header.Get(api.HeaderRequestID) != idA {
			t.Fatalf("%d %s", resp.StatusCode, got)
		}
	}
	resp, got := e.call("POST", "/api/v1/launch", other)
	e.refused(resp, got, 409, api.ErrConflict, idA)
	// The same id for another kind of request is another request, too.
	resp, got = e.call("POST", "/api/v1/exec", `{"request_id":"`+idA+`","cluster_name":"c1","task":"run: true"}`)
	e.refused(resp, got, 409, api.ErrConflict, idA)
	if n := len(e.be.calls()); n != 3 {
		t.Fatalf("%d calls reached the backend, want 3: it is told again while the request is open", n)
	}
	if err := e.st.FinishRequest(t.Context(), idA, api.RequestSucceeded, json.RawMessage(`{}`), nil); err != nil {
		t.Fatal(err)
	}
	resp, got = e.call("POST", "/api/v1/launch", body)
	var ref api.Ref
	if json.Unmarshal([]byte(got), &ref) != nil || resp.StatusCode != 202 || ref.Status != api.RequestSucceeded {
		t.Fatalf("%d %s", resp.StatusCode, got)
	}
	if n := len(e.be.calls()); n != 3 {
		t.Fatalf("a finished request reached the backend again")
	}
}

func TestSubmitSameIDAtOnce(t *testing.T) {
	e := newEnv(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	got := map[int]int{}
	for i := range 16 {
		wg.Go(func() {
			resp, _ := e.call("POST", "/api/v1/launch", fmt.Sprintf(`{"request_id":"%s","task":"run: echo %d"}`, idA, i%2))
			mu.Lock()
			got[resp.StatusCode]++
			mu.Unlock()
		})
	}
	wg.Wait()
	if got[202] != 8 || got[409] != 8 {
		t.Fatalf("answers: %v; want one body accepted, the other refused", got)
	}
}

func TestRefusedSubmitIsClosed(t *testing.T) {
	e := newEnv(t)
	e.be.submitErr = fmt.Errorf("x: %w", &api.Error{Kind: api.ErrInvalid, Message: "task: no", Hint: "do", Details: []string{"line"}})
	resp, got := e.call("POST", "/api/v1/launch", `{"request_id":"`+idA+`","task":"x"}`)
	if p := e.refused(resp, got, 400, api.ErrInvalid, "task: no"); p.Hint != "do" || len(p.Details) != 1 {
		t.Errorf("%+v", p)
	}
	if row, err := e.st.Request(t.Context(), idA); err != nil || row.Status != api.RequestFailed || row.Error.Message != "task: no" {
		t.Errorf("%+v, %v", row, err)
	}
	// An unknown outcome leaves it open: the client repeats the call.
	e.be.submitErr = errors.New("the engine hung up: secret-detail")
	resp, got = e.call("POST", "/api/v1/launch", `{"request_id":"`+idB+`","task":"x"}`)
	e.refused(resp, got, 500, api.ErrInternal, "internal error")
	if strings.Contains(got, "secret-detail") || !strings.Contains(e.logs.String(), "secret-detail") {
		t.Error("an internal error belongs in the log, not in the answer")
	}
	if row, err := e.st.Request(t.Context(), idB); err != nil || row.Status.Terminal() {
		t.Errorf("%+v, %v", row, err)
	}
	e.be.submitErr = nil
	if resp, got = e.call("POST", "/api/v1/launch", `{"request_id":"`+idB+`","task":"x"}`); resp.StatusCode != 202 {
		t.Fatalf("%d %s", resp.StatusCode, got)
	}
}

var _ SecretStore = (*secret.Store)(nil)

// memorySecrets is a secret store for tests.
type memorySecrets map[string]string

func (m memorySecrets) Put(_ context.Context, scope, value string) (string, error) {
	sum := sha256.Sum256([]byte(scope + value))
	ref := "secret://" + hex.EncodeToString(sum[:8])
	m[ref] = value
	return ref, nil
}

func (m memorySecrets) Digest(b []byte) string {
	sum := sha256.Sum256(append([]byte("key"), b...))
	return hex.EncodeToString(sum[:])
}

func TestSecretsAreMovedFirst(t *testing.T) {
	mem := memorySecrets{}
	e := newEnv(t, func(o *Options) { o.Secrets = mem })
	body := `{"request_id":"` + idA + `","task":"x","secrets":{"KEY":"hunter2"}}`
	for range 2 {
		if resp, got := e.call("POST", "/api/v1/launch", body); resp.StatusCode != 202 {
			t.Fatalf("%d %s", resp.StatusCode, got)
		}
	}
	b := e.be.calls()[0].body.(api.LaunchBody)
	if b.Secrets != nil || mem[b.SecretRefs["KEY"]] != "hunter2" {
		t.Errorf("body %+v", b)
	}
	open, err := e.st.OpenRequests(t.Context())
	if err != nil || len(open) != 1 || open[0].Kind != "launch" || strings.Contains(string(open[0].Body), "hunter2") || !strings.Contains(string(open[0].Body), "secret://") {
		t.Errorf("%+v, %v", open, err)
	}
	resp, got := e.call("POST", "/api/v1/launch", strings.Replace(body, "hunter2", "hunter3", 1))
	e.refused(resp, got, 409, api.ErrConflict, "another body")
	if strings.Contains(e.logs.String(), "hunter") {
		t.Error("a secret is in the log")
	}
}

func TestBadBodies(t *testing.T) {
	e := newEnv(t)
	good := `{"request_id":"` + idA + `","cluster_name":"c1","task":"run: true"}`
	tests := []struct {
		name, path, body string
		headers          []string
		status           int
		detail           string
	}{
		{"cut", "/launch", good[:len(good)-10], nil, 400, "ends in the middle"},
		{"cut in a string", "/launch", `{"task":"run`, nil, 400, "ends in the middle"},
		{"empty", "/launch", "", nil, 400, "body is required"},
		{"not JSON", "/launch", "task: x", nil, 400, "not valid JSON"},
		{"two values", "/launch", good + good, nil, 400, "not valid JSON"},
		{"a list", "/launch", "[1]", nil, 400, "must be a JSON object"},
		{"null", "/launch", "null", nil, 400, "must be a JSON object"},
		{"deep", "/launch", strings.Repeat(`{"config":`, 20000), nil, 400, "not valid JSON"},
		{"unknown field", "/launch", `{"request_id":"` + idA + `","task":"x","clutser":"c"}`, nil, 422, `unknown field "clutser"`},
		{"unknown field below", "/launch", `{"request_id":"` + idA + `","task":"x","files":[{"dst":"a","manifest":"b","evil":1}]}`, nil, 422, `unknown field "files[0].evil"`},
		{"field in another case", "/launch", `{"request_id":"` + idA + `","Task":"x","task":"x"}`, nil, 422, `unknown field "Task"`},
		{"wrong type", "/launch", `{"request_id":"` + idA + `","task":7}`, nil, 422, `field "task": expected string`},
		{"missing field", "/exec", `{"request_id":"` + idA + `","task":"x"}`, nil, 422, "cluster_name"},
		{"wrong value", "/autostop", `{"request_id":"` + idA + `","cluster_name":"c","idle_minutes":1,"wait_for":"x"}`, nil, 422, "wait_for"},
		{"fraction", "/autostop", `{"request_id":"` + idA + `","cluster_name":"c","idle_minutes":1.5}`, nil, 422, "idle_minutes"},
		{"huge number", "/autostop", `{"request_id":"` + idA + `","cluster_name":"c","idle_minutes":1e300}`, nil, 422, "idle_minutes"},
		{"too many jobs", "/jobs/launch", `{"request_id":"` + idA + `","task":"run: x","num_jobs":1000000000}`, nil, 422, "num_jobs"},
		{"idle for ever and a day", "/launch", `{"request_id":"` + idA + `","task":"run: x","idle_minutes_to_autostop":9000000000000000}`, nil, 422, "idle_minutes_to_autostop"},
		{"waits for something else", "/launch", `{"request_id":"` + idA + `","task":"run: x","wait_for":"godot"}`, nil, 422, "wait_for"},
		{"notice in the past", "/preempt", `{"request_id":"` + idA + `","cluster_name":"c","notice_seconds":-1}`, nil, 422, "notice_seconds"},
		{"fewer than no jobs", "/jobs/launch", `{"request_id":"` + idA + `","task":"run: x","num_jobs":-1}`, nil, 422, "num_jobs"},
		{"no id", "/launch", `{"task":"x"}`, nil, 422, "request_id"},
		{"id is no UUID", "/launch", `{"request_id":"../../etc","task":"x"}`, nil, 422, "request_id"},
		{"id in braces", "/launch", `{"request_id":"{` + idA + `}","task":"x"}`, nil, 400, "request_id must be a UUID"},
		{"id in capitals", "/launch", `{"request_id":"` + strings.ToUpper(idA) + `","task":"x"}`, nil, 400, "request_id must be a UUID"},
		{"zero id", "/launch", `{"request_id":"00000000-0000-0000-0000-000000000000","task":"x"}`, nil, 400, "request_id must be a UUID"},
		{"name with a path", "/launch", `{"request_id":"` + idA + `","task":"x","cluster_name":"../x"}`, nil, 400, "path"},
		{"empty name", "/down", `{"request_id":"` + idA + `","cluster_name":""}`, nil, 400, "cluster_name is empty"},
		{"form", "/launch", good, []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, "must be JSON"},
		{"text", "/launch", good, []string{"Content-Type", "text/plain"}, 415, "must be JSON"},
		{"no type", "/launch", good, []string{"Content-Type", ""}, 415, "must be JSON"},
		{"too large", "/launch", `{"task":"` + strings.Repeat("x", maxJSONBody) + `"}`, nil, 413, "limit is 4 MiB"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e.t = t
			resp, got := e.call("POST", "/api/v1"+tt.path, tt.body, tt.headers...)
			p := e.refused(resp, got, tt.status, api.ErrInvalid, tt.detail)
			if len(p.Detail) > 500 {
				t.Errorf("detail of %d bytes", len(p.Detail))
			}
		})
	}
	if rows, err := e.st.Requests(t.Context(), storeAll); err != nil || len(rows) != 0 || len(e.be.calls()) != 0 {
		t.Errorf("something was created: %v %v", rows, err)
	}
	// In charset, and as large as allowed.
	resp, got := (&env{t: t, url: e.url}).call("POST", "/api/v1/launch", good, "Content-Type", "application/json; charset=utf-8")
	if resp.StatusCode != 202 {
		t.Errorf("%d %s", resp.StatusCode, got)
	}
	big := `{"request_id":"` + idB + `","task":"`
	big += strings.Repeat("x", maxJSONBody-len(big)-2) + `"}`
	if resp, got := (&env{t: t, url: e.url}).call("POST", "/api/v1/launch", big); resp.StatusCode != 202 {
		t.Errorf("%d %.100s", resp.StatusCode, got)
	}
}

// A body that is announced longer than it is.
func TestBodyCutOnTheWay(t *testing.T) {
	e := newEnv(t)
	conn, err := net.Dial("tcp", strings.TrimPrefix(e.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /api/v1/launch HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"task\":",
		strings.TrimPrefix(e.url, "http://"), testToken)
	conn.(*net.TCPConn).CloseWrite()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	e.refused(resp, string(b), 400, api.ErrInvalid, "ends before its announced length")
}

func TestOptimizeAndGPUs(t *testing.T) {
	e := newEnv(t)
	p, err := e.client().Optimize(t.Context(), &api.OptimizeBody{Task: "run: x", Cluster: "c"})
	if err != nil || p.Hash != "h" || e.be.optimized.Cluster != "c" {
		t.Fatalf("%+v %v", p, err)
	}
	if _, err := e.client().GPUs(t.Context(), api.GPUFilter{Name: "A100:0.5", Infra: "local", All: true}); err != nil {
		t.Fatal(err)
	}
	if want := (GPUFilter{Name: "A100", Quantity: 0.5, Infra: "local", All: true}); e.be.gpus != want {
		t.Errorf("%+v", e.be.gpus)
	}
	resp, got := e.call("GET", "/api/v1/gpus?name=A100:x", "")
	e.refused(resp, got, 400, api.ErrInvalid, "A100:x")
}

func TestCancelRequests(t *testing.T) {
	e := newEnv(t)
	e.createRequest(idA, "c")
	e.createRequest(idB, "c")
	e.createRequest(idC, "c")
	c := e.client()
	r, err := c.CancelRequests(t.Context(), &api.CancelRequestsBody{RequestIDs: []string{"7777", "99999999"}, UserHash: "u"})
	if err != nil || len(r.Cancelled) != 1 || r.Cancelled[0] != idC || e.be.cancelled.UserHash != "u" {
		t.Fatalf("%+v %v", r, err)
	}
	for _, tt := range []struct{ body, kind, detail string }{
		{`{"request_ids":["3f0c9a52"]}`, api.ErrInvalid, "ambiguous"},
		{`{"request_ids":["ffffffff"]}`, api.ErrNotFound, "ffffffff"},
		{`{"request_ids":["ab"]}`, api.ErrInvalid, "too short"},
		{`{}`, api.ErrInvalid, "nothing to cancel"},
	} {
		resp, got := e.call("POST", "/api/v1/requests/cancel", tt.body)
		e.refused(resp, got, statusOf[tt.kind], tt.kind, tt.detail)
	}
	if _, err := c.CancelRequests(t.Context(), &api.CancelRequestsBody{All: true}); err != nil || !e.be.cancelled.All {
		t.Errorf("%+v %v", e.be.cancelled, err)
	}
}
