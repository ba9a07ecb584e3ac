// Package webui holds the test that a person can follow a launch in the workflow Web UI, behind the login.
package webui

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
