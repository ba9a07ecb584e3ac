// Package child holds the test that workflows of others can launch clusters as child workflows, and leak nothing.
package child

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/testserver"
)

const config = "memory_provider: {enabled: true, create_delay: 1s}\nlocal: {enabled: false}\n"

// program builds an example.
func program(t *testing.T, name string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), name)
	if out, err := exec.Command("go", "build", "-o", bin, "github.com/skyloom/skyloom/examples/child-workflow/"+name).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

// info writes what `sky api info -o json` prints of the engine.
func info(t *testing.T, s *testserver.Server) (file string, engine api.EngineInfo) {
	t.Helper()
	i, err := s.Client.Info(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(map[string]any{"temporal": i.Temporal})
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "info.json")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return file, i.Temporal
}

func clusters(t *testing.T, s *testserver.Server) map[string]api.ClusterStatus {
	t.Helper()
	list, err := s.Client.Clusters(context.Background(), api.ClusterFilter{AllUsers: true})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]api.ClusterStatus{}
	for _, c := range list.Clusters {
		out[c.Name] = c.Status
	}
	return out
}

func TestExamples(t *testing.T) {
	s := testserver.Start(t, config)
	file, _ := info(t, s)
	for name, want := range map[string]string{"typed": "job 1 was submitted, and the cluster is down again", "plainjson": "jobs: 1 2"} {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, program(t, name), "-info", file, "-cluster", "by-"+name).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	if left := clusters(t, s); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestTerminatedParent ends a parent while its child launches: the launch is finished by the cluster's own workflow, its request
// ends, and the cluster can be seen and taken down.
func TestTerminatedParent(t *testing.T) {
	s := testserver.Start(t, config)
	file, engine := info(t, s)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(t, "typed"), "-info", file, "-cluster", "orphan", "-hold")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	lines := bufio.NewReader(out)
	id := ""
	for id == "" {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		id, _ = strings.CutPrefix(strings.TrimSpace(line), "parent workflow: ")
		if id == strings.TrimSpace(line) {
			id = ""
		}
	}
	go io.Copy(io.Discard, lines) //nolint:errcheck // the rest does not matter
	for clusters(t, s)["orphan"] != api.ClusterInit {
		time.Sleep(20 * time.Millisecond)
		if ctx.Err() != nil {
			t.Fatal("the launch never began")
		}
	}
	key, err := os.ReadFile(engine.TokenFile)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial(client.Options{HostPort: engine.Address, Namespace: engine.Namespace,
		Credentials: client.NewAPIKeyStaticCredentials(strings.TrimSpace(string(key))), ConnectionOptions: client.ConnectionOptions{TLSDisabled: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.TerminateWorkflow(ctx, id, "", "the test ends the parent"); err != nil {
		t.Fatal(err)
	}
	for clusters(t, s)["orphan"] != api.ClusterUp {
		time.Sleep(50 * time.Millisecond)
		if ctx.Err() != nil {
			t.Fatalf("the cluster is neither up nor gone: %v", clusters(t, s))
		}
	}
	for {
		open, err := s.Client.Requests(ctx, api.RequestFilter{})
		if err != nil {
			t.Fatal(err)
		}
		if len(open) == 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	down := api.StopOrDownBody{Base: api.Base{RequestID: api.NewRequestID()}, Cluster: "orphan"}
	if _, err := s.Client.Down(ctx, &down); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Client.WaitRequest(ctx, down.RequestID); err != nil || r.Status != api.RequestSucceeded {
		t.Fatalf("down: %v %v", r, err)
	}
	if left := clusters(t, s); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestRefusals: what a foreign parent gets wrong ends its child with a kind it can read.
func TestRefusals(t *testing.T) {
	s := testserver.Start(t, config)
	_, engine := info(t, s)
	key, err := os.ReadFile(engine.TokenFile)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial(client.Options{HostPort: engine.Address, Namespace: engine.Namespace,
		Credentials: client.NewAPIKeyStaticCredentials(strings.TrimSpace(string(key))), ConnectionOptions: client.ConnectionOptions{TLSDisabled: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	for _, x := range []struct {
		workflow string
		input    map[string]any
		kind     string
	}{
		{"Launch", map[string]any{"task": "secrets: {K: in-clear}\nrun: 'true'", "cluster_name": "x"}, api.ErrInvalid},
		{"Launch", map[string]any{"task": "resuorces: {}", "cluster_name": "x"}, api.ErrInvalid},
		{"Launch", map[string]any{"task": "run: 'true'", "cluster_name": "../x"}, api.ErrInvalid},
		{"Exec", map[string]any{"task": "run: 'true'", "cluster_name": "nobody"}, api.ErrClusterDoesNotExist},
		{"Down", map[string]any{"cluster_name": "nobody"}, api.ErrClusterDoesNotExist},
	} {
		r, err := c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{TaskQueue: engine.TaskQueue}, x.workflow, x.input)
		if err != nil {
			t.Fatal(err)
		}
		err = r.Get(ctx, nil)
		if err == nil || !strings.Contains(err.Error(), x.kind) {
			t.Errorf("%s %v: got %v, want %s", x.workflow, x.input, err, x.kind)
		}
	}
	if left := clusters(t, s); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
