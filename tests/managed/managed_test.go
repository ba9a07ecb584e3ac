// Package managed holds end-to-end tests of managed jobs on the simulated cloud: a whole server, real workflows, no command line.
package managed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/testserver"
)

const config = "memory_provider: {enabled: true}\nlocal: {enabled: false}\n"

type result struct {
	JobID  int64             `json:"job_id"`
	Status api.ManagedStatus `json:"status"`
	Reason string            `json:"reason"`
}

// engine connects to a server's engine as a foreign program would.
func engine(t *testing.T, s *testserver.Server) (client.Client, string) {
	t.Helper()
	i, err := s.Client.Info(context.Background())
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
	t.Cleanup(c.Close)
	return c, i.Temporal.TaskQueue
}

func run(t *testing.T, ctx context.Context, c client.Client, queue, task string) client.WorkflowRun {
	t.Helper()
	r, err := c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{TaskQueue: queue}, "ManagedJob", map[string]any{"body": map[string]any{"task": task}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestEndings(t *testing.T) {
	s := testserver.Start(t, config)
	c, queue := engine(t, s)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	runs := map[string]client.WorkflowRun{}
	want := map[string]string{}
	for name, x := range map[string][2]string{
		"succeeds":  {"name: ok\nrun: echo hello", ""},
		"fails":     {"name: bad\nrun: exit 3", "FAILED"},
		"setup":     {"name: setup\nsetup: exit 1\nrun: echo never", "FAILED_SETUP"},
		"restarts":  {"name: again\nresources: {job_recovery: {max_restarts_on_errors: 2}}\nrun: exit 3", "FAILED"},
		"too large": {"name: huge\nresources: {cpus: 100000}\nrun: echo never", "FAILED_PRECHECKS"},
		"pipeline":  {"name: p\n---\nname: one\nrun: echo 1\n---\nname: two\nrun: echo 2\n", ""},
		"group":     {"name: g\nexecution: parallel\n---\nname: a\nrun: echo 1\n---\nname: b\nrun: echo 2\n", ""},
		"broken":    {"name: p\n---\nname: one\nrun: exit 1\n---\nname: two\nrun: echo 2\n", "FAILED"},
	} {
		runs[name], want[name] = run(t, ctx, c, queue, x[0]), x[1]
	}
	for name, r := range runs {
		var res result
		err := r.Get(ctx, &res)
		switch {
		case want[name] == "" && (err != nil || res.Status != api.ManagedSucceeded):
			t.Errorf("%s: %v %+v %v", name, err, res, said(err))
		case want[name] != "" && (err == nil || !strings.Contains(err.Error(), "type: "+want[name])):
			t.Errorf("%s: got %v, want %s", name, err, want[name])
		}
	}
	nothingLeft(t, s)
	if t.Failed() {
		evs, err := s.Client.Events(context.Background(), api.EventFilter{Limit: 1000})
		if err != nil {
			t.Log(err)
		}
		for _, e := range evs {
			t.Logf("%s job %d %s %s: %s", e.Time.Format(time.StampMilli), e.JobID, e.Cluster, e.Step, e.Message)
		}
	}
}

// said is what a job's failure tells a foreign program: its details stand in clear.
func said(err error) (e api.Error) {
	var app *temporal.ApplicationError
	if errors.As(err, &app) && app.HasDetails() {
		_ = app.Details(&e)
	}
	return e
}

func TestCancelIsFinal(t *testing.T) {
	s := testserver.Start(t, config)
	c, queue := engine(t, s)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r := run(t, ctx, c, queue, "name: long\nrun: sleep 1000")
	up(t, ctx, s, "long-1")
	if err := c.CancelWorkflow(ctx, r.GetID(), ""); err != nil {
		t.Fatal(err)
	}
	if err := r.Get(ctx, nil); err == nil || !strings.Contains(err.Error(), "cancel") {
		t.Fatalf("got %v", err)
	}
	nothingLeft(t, s)
}

// up waits until the job's cluster is UP.
func up(t *testing.T, ctx context.Context, s *testserver.Server, name string) api.Cluster {
	t.Helper()
	for {
		list, err := s.Client.Clusters(ctx, api.ClusterFilter{AllUsers: true, Names: []string{name}})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list.Clusters {
			if c.Status == api.ClusterUp {
				return c
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func nothingLeft(t *testing.T, s *testserver.Server) {
	t.Helper()
	list, err := s.Client.Clusters(context.Background(), api.ClusterFilter{AllUsers: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list.Clusters {
		t.Errorf("cluster %s is left: %s", c.Name, fmt.Sprint(c.Status))
	}
}
