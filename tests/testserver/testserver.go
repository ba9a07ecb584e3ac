// Package testserver runs a whole server inside a test's process: engine, workers, API. It knows nothing of what is tested.
package testserver

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/config"
	"github.com/skyloom/skyloom/worker"
)

// Server is a running server.
type Server struct {
	Home   string
	URL    string
	Client *api.Client
}

// Start runs a server with the configuration (YAML) until the test ends; change may alter what else it is given.
func Start(t *testing.T, yaml string, change ...func(*worker.Options)) *Server {
	t.Helper()
	home := t.TempDir()
	cfg, err := config.Parse("config.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("SKYLOOM_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	o := worker.Options{Home: home, Config: cfg, Addr: "127.0.0.1:0", Log: log}
	for _, f := range change {
		f(&o)
	}
	go func() { ended <- worker.Run(ctx, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if c, err := client(home); err == nil {
			if h, err := c.Health(ctx); err == nil && h.Status == "healthy" {
				return &Server{Home: home, URL: c.Endpoint(), Client: c}
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
