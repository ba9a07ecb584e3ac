// Command plainjson shows a launch as a child workflow by name and plain JSON only, as any SDK language can do it. It
// imports nothing of Skyloom.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
)

const queue = "my-json-queue"

// Pipeline launches a cluster, runs a second job on it, and takes it down.
func Pipeline(ctx workflow.Context, skyQueue, cluster string) (map[string]any, error) {
	child := func(ctx workflow.Context) workflow.Context {
		return workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{TaskQueue: skyQueue})
	}
	var launched, second map[string]any
	err := workflow.ExecuteChildWorkflow(child(ctx), "Launch", map[string]any{
		"task": "run: echo one", "cluster_name": cluster, "idle_minutes_to_autostop": 10, "down": true,
	}).Get(ctx, &launched)
	if err != nil {
		return nil, explain(err)
	}
	err = workflow.ExecuteChildWorkflow(child(ctx), "Exec", map[string]any{"task": "run: echo two", "cluster_name": cluster}).Get(ctx, &second)
	free, _ := workflow.NewDisconnectedContext(ctx)
	if e := workflow.ExecuteChildWorkflow(child(free), "Down", map[string]any{"cluster_name": cluster}).Get(free, nil); err == nil {
		err = e
	}
	if err != nil {
		return nil, explain(err)
	}
	return map[string]any{"first": launched["job_id"], "second": second["job_id"]}, nil
}

// explain reads what failed: the failure's type is the kind of error, its details hold message and hint in clear.
func explain(err error) error {
	var app *temporal.ApplicationError
	for e := err; e != nil; {
		if a, ok := e.(*temporal.ApplicationError); ok {
			app = a
		}
		u, ok := e.(interface{ Unwrap() error })
		if !ok {
			break
		}
		e = u.Unwrap()
	}
	var details map[string]any
	if app != nil && app.HasDetails() && app.Details(&details) == nil {
		return temporal.NewNonRetryableApplicationError(fmt.Sprint(details["message"]), app.Type(), nil, details)
	}
	return err
}

func main() {
	infoFile := flag.String("info", "", "output of `sky api info -o json`")
	cluster := flag.String("cluster", "child-json", "name of the cluster")
	flag.Parse()
	if err := run(*infoFile, *cluster); err != nil {
		log.Fatal(err)
	}
}

func run(infoFile, cluster string) error {
	var info struct {
		Temporal struct {
			Address   string `json:"address"`
			Namespace string `json:"namespace"`
			TaskQueue string `json:"task_queue"`
			TokenFile string `json:"token_file"`
		} `json:"temporal"`
	}
	raw, err := os.ReadFile(infoFile)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, &info); err != nil {
		return err
	}
	key, err := os.ReadFile(info.Temporal.TokenFile)
	if err != nil {
		return err
	}
	c, err := client.Dial(client.Options{
		HostPort: info.Temporal.Address, Namespace: info.Temporal.Namespace,
		Credentials:       client.NewAPIKeyStaticCredentials(strings.TrimSpace(string(key))),
		ConnectionOptions: client.ConnectionOptions{TLSDisabled: true},
	})
	if err != nil {
		return err
	}
	defer c.Close()
	w := worker.New(c, queue, worker.Options{})
	w.RegisterWorkflow(Pipeline)
	if err := w.Start(); err != nil {
		return err
	}
	defer w.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	r, err := c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{TaskQueue: queue}, Pipeline, info.Temporal.TaskQueue, cluster)
	if err != nil {
		return err
	}
	var out map[string]any
	if err := r.Get(ctx, &out); err != nil {
		return err
	}
	fmt.Println("jobs:", out["first"], out["second"])
	return nil
}
