package worker

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/skyloom/skyloom/internal/config"
	"github.com/skyloom/skyloom/worker/engine"
)

// A namespace belongs to the installation that came first, until its mark is taken away.
func TestClaim(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	log := slog.New(slog.DiscardHandler)
	inner, err := engine.Start(ctx, engine.Options{Dir: filepath.Join(t.TempDir(), "engine"), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := inner.Stop(); err != nil {
			t.Error(err)
		}
	})
	// To a server, an engine in another process is no different.
	e, err := engine.Connect(ctx, engine.ExternalOptions{Address: inner.Address(), APIKeyFile: inner.TokenFile(), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Stop() }()
	c, err := e.Dial(ctx, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	reaper := c.ScheduleClient().GetHandle(ctx, reaperSchedule)

	// One that was made before there were marks becomes the first one's.
	if _, err := c.ScheduleClient().Create(ctx, client.ScheduleOptions{ID: reaperSchedule, Paused: true, Action: &client.ScheduleWorkflowAction{ID: "reaper", Workflow: "Reaper", TaskQueue: "q"}}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second is its next start
		if err := claim(ctx, e, c, "first"); err != nil {
			t.Fatal(err)
		}
	}
	if d, err := reaper.Describe(ctx); err != nil || d.Schedule.State.Paused || len(d.Schedule.Spec.Intervals) != 1 {
		t.Fatalf("the reaper's schedule is not as it should be: %+v, %v", d, err)
	}
	if err := claim(ctx, e, c, "second"); err == nil || !strings.Contains(err.Error(), "belongs to installation first, and this is installation second") {
		t.Fatalf("got %v", err)
	}

	// So a server ends at its start, and changes nothing.
	cfg, err := config.Parse("config.yaml", fmt.Appendf(nil, "memory_provider: {enabled: true}\nlocal: {enabled: false}\ntemporal: {address: %q, namespace: %q, api_key_file: %q, tls: {enabled: false}}\n", inner.Address(), inner.Namespace(), inner.TokenFile()))
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Home: t.TempDir(), Config: cfg, Addr: "127.0.0.1:0", Log: log}
	if err := Run(ctx, o); err == nil || !strings.Contains(err.Error(), "belongs to installation first") || !strings.Contains(err.Error(), "temporal schedule delete") {
		t.Fatalf("a server on another's namespace: %v", err)
	}
	if err := claim(ctx, e, c, "first"); err != nil {
		t.Fatalf("the first one's is not its own any more: %v", err)
	}

	// Taken over: what the error names is what the mark stands on.
	if err := reaper.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	if err := claim(ctx, e, c, "second"); err != nil {
		t.Fatal(err)
	}
	if err := claim(ctx, e, c, "first"); err == nil || !strings.Contains(err.Error(), "belongs to installation second") {
		t.Fatalf("got %v", err)
	}
}
