// Command typed shows a workflow of one's own that launches a cluster as a child workflow, with the Go types.
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
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/api"
)

const queue = "my-own-queue"

// TrainAndForget launches a task on a cluster of its own, and takes the cluster down whatever happens.
func TrainAndForget(ctx workflow.Context, skyQueue, cluster, task string) (int64, error) {
	launch := workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{TaskQueue: skyQueue, StaticSummary: "bring up " + cluster + " and run"})
	var got api.LaunchResult
	err := workflow.ExecuteChildWorkflow(launch, "Launch", api.LaunchBody{Task: task, Cluster: cluster, Down: true}).Get(ctx, &got)

	// The clean-up runs even if this workflow was cancelled.
	free, _ := workflow.NewDisconnectedContext(ctx)
	down := workflow.WithChildOptions(free, workflow.ChildWorkflowOptions{TaskQueue: skyQueue})
	if err == nil {
		err = workflow.ExecuteChildWorkflow(down, "Down", api.StopOrDownBody{Cluster: got.Cluster}).Get(free, nil)
	}
	return got.JobID, err
}

func main() {
	infoFile := flag.String("info", "", "output of `sky api info -o json`")
	cluster := flag.String("cluster", "child", "name of the cluster")
	hold := flag.Bool("hold", false, "start the workflow, print its id, and work until ended")
	flag.Parse()
	if err := run(*infoFile, *cluster, *hold); err != nil {
		log.Fatal(err)
	}
}

func run(infoFile, cluster string, hold bool) error {
	var info struct {
		Temporal api.EngineInfo `json:"temporal"`
	}
	raw, err := os.ReadFile(infoFile)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, &info); err != nil {
		return err
	}
	options := client.Options{HostPort: info.Temporal.Address, Namespace: info.Temporal.Namespace}
	if info.Temporal.TokenFile != "" {
		key, err := os.ReadFile(info.Temporal.TokenFile)
		if err != nil {
			return err
		}
		options.Credentials = client.NewAPIKeyStaticCredentials(strings.TrimSpace(string(key)))
		options.ConnectionOptions.TLSDisabled = true // the embedded engine listens on loopback only
	}
	c, err := client.Dial(options)
	if err != nil {
		return err
	}
	defer c.Close()
	w := worker.New(c, queue, worker.Options{})
	w.RegisterWorkflow(TrainAndForget)
	if err := w.Start(); err != nil {
		return err
	}
	defer w.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	task := "name: from-a-parent\nrun: |\n  echo hello from a child workflow\n"
	r, err := c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{TaskQueue: queue}, TrainAndForget, info.Temporal.TaskQueue, cluster, task)
	if err != nil {
		return err
	}
	fmt.Println("parent workflow:", r.GetID())
	if hold {
		<-ctx.Done()
		return nil
	}
	var job int64
	if err := r.Get(ctx, &job); err != nil {
		return err
	}
	fmt.Println("job", job, "was submitted, and the cluster is down again")
	return nil
}
