package engine_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/skyloom/skyloom/worker/codec"
	"github.com/skyloom/skyloom/worker/engine"
)

// One engine serves the tests that only look at it from outside.
var (
	sharedOnce   sync.Once
	sharedEngine *engine.Engine
	sharedDir    string
	sharedErr    error
)

func shared(t *testing.T) *engine.Engine {
	t.Helper()
	sharedOnce.Do(func() {
		if sharedDir, sharedErr = os.MkdirTemp("", "engine-test-"); sharedErr != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		sharedEngine, sharedErr = engine.Start(ctx, engine.Options{
			Dir:    filepath.Join(sharedDir, "engine"),
			Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
		})
	})
	if sharedErr != nil {
		t.Fatal(sharedErr)
	}
	return sharedEngine
}

func sharedRing(t *testing.T) *codec.Ring {
	t.Helper()
	shared(t)
	ring, err := codec.LoadRing(filepath.Join(sharedDir, "keys.json"))
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(child(dir))
	}
	code := m.Run()
	if sharedEngine != nil {
		if err := sharedEngine.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stop the shared engine:", err)
			code = 1
		}
	}
	if sharedDir != "" {
		_ = os.RemoveAll(sharedDir)
	}
	os.Exit(code)
}
