package engine_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/skyloom/skyloom/worker/codec"
	"github.com/skyloom/skyloom/worker/engine"
)

// childDir names the folder on which the test binary, started again, runs an engine until it is killed.
const childDir = "SKYLOOM_ENGINE_TEST_CHILD"

func child(dir string) int {
	fail := func(err error) int {
		fmt.Println("error:", err)
		return 1
	}
	ctx := context.Background()
	e, err := engine.Start(ctx, engine.Options{Dir: filepath.Join(dir, "engine")})
	if err != nil {
		return fail(err)
	}
	ring, err := codec.LoadRing(filepath.Join(dir, "keys.json"))
	if err != nil {
		return fail(err)
	}
	dc := codec.New(ring)
	c, err := e.Dial(ctx, dc, codec.FailureConverter(dc))
	if err != nil {
		return fail(err)
	}
	// Acknowledged, and nothing has run yet: no worker is there.
	if _, err := c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: "greet/killed", TaskQueue: queue}, Greet, "hello"); err != nil {
		return fail(err)
	}
	if err := c.SignalWorkflow(ctx, "greet/killed", "", "name", "survivor"); err != nil {
		return fail(err)
	}
	fmt.Println("ready", e.Address())
	time.Sleep(time.Hour)
	return 0
}

func TestKillLosesNothing(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	line, _ := bufio.NewReader(out).ReadString('\n')
	address, ok := strings.CutPrefix(strings.TrimSpace(line), "ready ")
	if !ok {
		t.Fatalf("the child says %q", line)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()

	began := time.Now()
	e := start(t, filepath.Join(dir, "engine"))
	if e.Address() != address {
		t.Errorf("address %s became %s", address, e.Address())
	}
	ring, err := codec.LoadRing(filepath.Join(dir, "keys.json"))
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, e, ring)
	work(t, c)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var got string
	if err := c.GetWorkflow(ctx, "greet/killed", "").Get(ctx, &got); err != nil || got != "hello survivor" {
		t.Fatalf("%q, %v", got, err)
	}
	t.Logf("from start to result %v", time.Since(began).Round(time.Millisecond))
}
