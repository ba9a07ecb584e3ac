package chaos

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/filesync"
)

// patience is how long a request may take to end, kills included.
const patience = 90 * time.Second

// ask is one request of the load, and how it must end.
type ask struct {
	id, kind, cluster string
	acked             bool
	// want judges its end; least and most bound how often its script may begin on each rank.
	want        func(api.Request) error
	least, most int
	ranks       int
	end         *api.Request
}

func (a *ask) String() string { return fmt.Sprintf("%s %s %s", a.kind, a.cluster, a.id) }

// job tells a script: what it is called with, and how long it takes.
type job struct {
	nodes int
	sleep string // seconds
	files []api.FileMount
	retry bool
}

// book keeps every request of the load.
type book struct {
	mu   sync.Mutex
	asks []*ask
}

func (b *book) add(a *ask) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asks = append(b.asks, a)
}

func (b *book) all() []*ask {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.asks)
}

// script is the task of a request: each rank writes down when it begins and when it has done its work.
func (in *instance) script(id string, j job) string {
	var s strings.Builder
	fmt.Fprintf(&s, "name: chaos\nnum_nodes: %d\nenvs:\n  KEY: %s\nrun: |\n", max(j.nodes, 1), id)
	fmt.Fprintf(&s, "  echo \"begin $KEY $SKYPILOT_NODE_RANK\" >> %s\n", in.ledger)
	if j.sleep != "" {
		fmt.Fprintf(&s, "  sleep %s\n", j.sleep)
	}
	fmt.Fprintf(&s, "  echo \"end $KEY $SKYPILOT_NODE_RANK\" >> %s\n", in.ledger)
	return s.String()
}

func base(id, kind, cluster string) api.Base {
	return api.Base{RequestID: id, User: "chaos", UserHash: "c4a05c4a", Command: "sky " + kind + " " + cluster}
}

// ask sends a request until it is acknowledged. Its id is the load's, so that a repeated call is the same request.
func (in *instance) ask(kind, cluster string, j job, want func(api.Request) error) *ask {
	in.t.Helper()
	a := &ask{id: api.NewRequestID(), kind: kind, cluster: cluster, want: want}
	b := base(a.id, kind, cluster)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if kind == "launch" || kind == "exec" {
		a.least, a.most, a.ranks = 1, 1, max(j.nodes, 1)
	}
	in.book.add(a)
	var err error
	switch kind {
	case "launch":
		_, err = in.client.Launch(ctx, &api.LaunchBody{Base: b, Cluster: cluster, Task: in.script(a.id, j), FileMounts: j.files, RetryUntilUp: j.retry})
	case "exec":
		_, err = in.client.Exec(ctx, &api.ExecBody{Base: b, Cluster: cluster, Task: in.script(a.id, j), FileMounts: j.files})
	case "start":
		_, err = in.client.Start(ctx, &api.StartBody{Base: b, Cluster: cluster})
	case "stop":
		_, err = in.client.Stop(ctx, &api.StopOrDownBody{Base: b, Cluster: cluster})
	case "down":
		_, err = in.client.Down(ctx, &api.StopOrDownBody{Base: b, Cluster: cluster})
	case "autostop":
		_, err = in.client.Autostop(ctx, &api.AutostopBody{Base: b, Cluster: cluster, IdleMinutes: 30})
	case "cancel":
		_, err = in.client.CancelJobs(ctx, &api.CancelBody{Base: b, Cluster: cluster, All: true})
	default:
		in.t.Fatalf("the load knows no %q", kind)
	}
	if err != nil {
		in.t.Errorf("%v was not taken: %v", a, err)
		return a
	}
	a.acked = true
	return a
}

// wait waits for a request's end and judges it.
func (in *instance) wait(a *ask) *api.Request {
	in.t.Helper()
	if !a.acked {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := in.client.WaitRequest(ctx, a.id)
	if err != nil {
		status := "unknown"
		if r != nil {
			status = string(r.Status)
		}
		in.t.Errorf("%v has not ended after %v (%s): %v\n%s", a, patience, status, err, in.story(a))
		return nil
	}
	a.end = r
	if err := a.want(*r); err != nil {
		in.t.Errorf("%v: %v\n%s", a, err, in.story(a))
	}
	return r
}

// cancelRequest asks that a request be cancelled. One that has ended stays as it is.
func (in *instance) cancelRequest(a *ask) {
	in.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := in.client.CancelRequests(ctx, &api.CancelRequestsBody{RequestIDs: []string{a.id}}); err != nil && a.acked {
		in.t.Errorf("%v could not be cancelled: %v", a, err)
	}
}

// do asks and waits.
func (in *instance) do(kind, cluster string, j job, want func(api.Request) error) (*ask, *api.Request) {
	in.t.Helper()
	a := in.ask(kind, cluster, j, want)
	return a, in.wait(a)
}

// story is the timeline of a request and its cluster, for a person.
func (in *instance) story(a *ask) string {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	var s strings.Builder
	events, err := in.hasty.Events(ctx, api.EventFilter{Cluster: a.cluster, Limit: 40})
	if err != nil {
		return err.Error()
	}
	for _, e := range events {
		fmt.Fprintf(&s, "  %s %.8s %.8s %s %s: %s\n", e.Time.Local().Format("15:04:05.000"), e.Hash, e.RequestID, e.Kind, e.Step, e.Message)
	}
	return s.String()
}

// What a request may end as.

func succeeds(r api.Request) error {
	if r.Status == api.RequestSucceeded {
		return nil
	}
	return fmt.Errorf("it ended as %s (%v), not as SUCCEEDED", r.Status, r.Error)
}

// fails wants an error of one of the kinds.
func fails(kinds ...string) func(api.Request) error {
	return func(r api.Request) error {
		if r.Status == api.RequestFailed && r.Error != nil && slices.Contains(kinds, r.Error.Kind) {
			return nil
		}
		return fmt.Errorf("it ended as %s (%v), not as FAILED with %v", r.Status, r.Error, kinds)
	}
}

func cancelled(r api.Request) error {
	if r.Status == api.RequestCancelled {
		return nil
	}
	return fmt.Errorf("it ended as %s (%v), not as CANCELLED", r.Status, r.Error)
}

func either(ways ...func(api.Request) error) func(api.Request) error {
	return func(r api.Request) error {
		var err error
		for _, w := range ways {
			if err = w(r); err == nil {
				return nil
			}
		}
		return err
	}
}

// upload brings a small tree to the server, to be synced.
func (in *instance) upload(content string) []api.FileMount {
	in.t.Helper()
	dir := in.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "data.txt"), []byte(content), 0o600); err != nil {
		in.t.Fatal(err)
	}
	ctx := context.Background()
	tree, err := filesync.Scan(ctx, dir, filesync.ScanOptions{})
	if err != nil {
		in.t.Fatal(err)
	}
	encoded, err := tree.Manifest.Bytes()
	if err != nil {
		in.t.Fatal(err)
	}
	for {
		rep, err := in.client.PutManifest(ctx, encoded)
		if err != nil {
			in.t.Fatal(err)
		}
		if len(rep.Missing) == 0 {
			return []api.FileMount{{Dst: "~/data", Manifest: rep.ID, Source: dir}}
		}
		err = in.client.PutBlobs(ctx, func() (io.ReadCloser, error) {
			var buf bytes.Buffer
			err := filesync.WritePack(ctx, &buf, tree, rep.Missing, filesync.PackOptions{})
			return io.NopCloser(&buf), err
		})
		if err != nil {
			in.t.Fatal(err)
		}
	}
}
