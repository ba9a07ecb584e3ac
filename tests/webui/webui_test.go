// Package webui holds the test that a person can follow a launch in the workflow Web UI, behind the login.
package webui

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/browser"
	"github.com/skyloom/skyloom/tests/testserver"
)

func TestLaunchIsToldInTheWebUI(t *testing.T) {
	s := testserver.Start(t, "memory_provider: {enabled: true}\nlocal: {enabled: false}\n")
	page := browser.Open(t, s.URL)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()

	resp, err := http.Get(s.URL + "/temporal/")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode < 400 {
		t.Fatalf("the Web UI answers without a login: %s\n%s", resp.Status, body)
	}

	launch := api.LaunchBody{Base: api.Base{RequestID: api.NewRequestID(), User: "tess"}, Task: "name: told\nenvs: {WORD: clear-on-the-page}\nrun: echo $WORD\n", Cluster: "seen"}
	if _, err := s.Client.Launch(ctx, &launch); err != nil {
		t.Fatal(err)
	}
	r, err := s.Client.WaitRequest(ctx, launch.RequestID)
	if err != nil {
		t.Fatal(err)
	}
	if r.Status != api.RequestSucceeded {
		t.Fatalf("the launch ended %s: %v", r.Status, r.Error)
	}

	listed(t, ctx, s, "cluster/seen", "request/"+launch.RequestID)
	link, err := s.Client.LoginLink(ctx)
	if err != nil {
		t.Fatal(err)
	}
	page.Visit(link, "cluster/seen", "request/"+launch.RequestID)
	wf := s.URL + "/temporal/namespaces/skyloom/workflows/"
	page.Visit(wf+"request%2F"+launch.RequestID, "clear-on-the-page", "Launch")
	page.Visit(wf+"cluster%2Fseen", "bring up 1 node(s) on memory", "Provision")
	run := strings.TrimSuffix(page.URL(), "/timeline")
	page.Visit(run+"/user-metadata", "UP", "memory")
	for _, p := range page.Problems() {
		t.Error(p)
	}

	// What the page shows in clear stands encrypted on disk.
	files, err := filepath.Glob(filepath.Join(s.Home, "engine", "engine.db*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no engine files: %v", err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), "clear-on-the-page") {
			t.Errorf("%s holds a task's text in clear", name)
		}
	}
}

// listed waits until the engine's lists have the workflows: they come into them a little later than they begin.
func listed(t *testing.T, ctx context.Context, s *testserver.Server, ids ...string) {
	t.Helper()
	i, err := s.Client.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(i.Temporal.TokenFile)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial(client.Options{HostPort: i.Temporal.Address, Namespace: i.Temporal.Namespace,
		Credentials: client.NewAPIKeyStaticCredentials(strings.TrimSpace(string(key))), ConnectionOptions: client.ConnectionOptions{TLSDisabled: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, id := range ids {
		for {
			l, err := c.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{Query: fmt.Sprintf("WorkflowId = %q", id)})
			if err != nil {
				t.Fatal(err)
			}
			if len(l.Executions) > 0 {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}
