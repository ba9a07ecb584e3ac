// Package webui holds the test that a person can follow a launch in the workflow Web UI, behind the login.
package webui

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/config"
	"github.com/skyloom/skyloom/tests/browser"
	"github.com/skyloom/skyloom/worker"
)

// start runs a server in this process, on the memory cloud, and gives a client of it.
func start(t *testing.T) (*api.Client, string) {
	t.Helper()
	home := t.TempDir()
	cfg, err := config.Parse("config.yaml", []byte("memory_provider: {enabled: true}\nlocal: {enabled: false}\n"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- worker.Run(ctx, worker.Options{Home: home, Config: cfg, Addr: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := client(home)
		if err == nil {
			if h, err := c.Health(ctx); err == nil && h.Status == "healthy" {
				return c, c.Endpoint()
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("the server does not become healthy")
		}
	}
}

// client reads what the server wrote down for its clients.
func client(home string) (*api.Client, error) {
	raw, err := os.ReadFile(filepath.Join(home, "server.json"))
	if err != nil {
		return nil, err
	}
	var at struct {
		URL string `json:"url"`
	}
	if err := json.Unmarshal(raw, &at); err != nil {
		return nil, err
	}
	token, err := os.ReadFile(filepath.Join(home, "token"))
	if err != nil {
		return nil, err
	}
	return api.NewClient(at.URL, strings.TrimSpace(string(token))), nil
}

func TestLaunchIsToldInTheWebUI(t *testing.T) {
	c, origin := start(t)
	page := browser.Open(t, origin)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	if resp, err := http.Get(origin + "/temporal/"); err != nil {
		t.Fatal(err)
	} else {
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK || strings.Contains(string(body), "workflow") && resp.StatusCode < 400 {
			t.Fatalf("the Web UI answers without a login: %s", resp.Status)
		}
	}

	body := api.LaunchBody{Base: api.Base{RequestID: api.NewRequestID()}, Task: "name: told\nenvs: {WORD: clear-on-the-page}\nrun: echo $WORD\n", Cluster: "seen"}
	body.User = "tess"
	if _, err := c.Launch(ctx, &body); err != nil {
		t.Fatal(err)
	}
	r, err := c.WaitRequest(ctx, body.RequestID)
	if err != nil {
		t.Fatal(err)
	}
	if r.Status != api.RequestSucceeded {
		t.Fatalf("the launch ended %s: %v", r.Status, r.Error)
	}

	link, err := c.LoginLink(ctx)
	if err != nil {
		t.Fatal(err)
	}
	page.Visit(link, "cluster/seen", "request/"+body.RequestID)
	wf := origin + "/temporal/namespaces/skyloom/workflows/"
	page.Visit(wf+"request%2F"+body.RequestID, "clear-on-the-page", "Launch")
	page.Visit(wf+"cluster%2Fseen", "bring up 1 node(s) on memory", "Provision")
	run := strings.TrimSuffix(page.URL(), "/timeline")
	page.Visit(run+"/user-metadata", "UP", "memory")
	for _, p := range page.Problems() {
		t.Error(p)
	}

	// What the page shows in clear stands encrypted on disk.
	for _, name := range []string{"engine/engine.db", "engine/engine.db-wal"} {
		for _, dir := range []string{filepath.Dir(tokenFile(t, c, ctx))} {
			data, err := os.ReadFile(filepath.Join(dir, filepath.Base(name)))
			if err != nil {
				continue
			}
			if strings.Contains(string(data), "clear-on-the-page") {
				t.Errorf("%s holds a task's text in clear", name)
			}
		}
	}
}

func tokenFile(t *testing.T, c *api.Client, ctx context.Context) string {
	t.Helper()
	info, err := c.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return info.Temporal.TokenFile
}
