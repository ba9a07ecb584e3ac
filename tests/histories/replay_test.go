package histories

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"os"
	"os/user"
	"regexp"
	"strings"
	"testing"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/log"
	sdkworker "go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/providers/memory"
	"github.com/skyloom/skyloom/worker"
	"github.com/skyloom/skyloom/workflows"
)

// stories are the histories that must be there.
var stories = []string{
	"launch-new", "launch-reuse", "launch-failover", "launch-failed", "launch-retry-until-up", "launch-cancelled", "launch-cancelled-waiting",
	"exec", "exec-refused", "start", "stop", "down", "autostop", "cancel-jobs", "preempt", "refresh", "check", "reaper",
	"cluster-life", "cluster-failover", "cluster-waited", "cluster-launch-cancelled", "cluster-preempted", "cluster-autodown",
	"cluster-continued-1", "cluster-continued-2",
	"array", "array-retried", "array-preempted", "array-cancelled",
	"job-single", "job-numbered", "job-pipeline", "job-pipeline-failed", "job-group", "job-group-met", "job-group-recovered", "job-group-moved", "job-group-apart", "job-group-never", "job-restarted", "job-failed-setup", "job-failed-prechecks",
	"job-recovered", "job-cancelled", "job-backed-off",
	"job-after", "job-after-never", "job-after-cancelled", "job-scheduled", "schedule", "schedule-deleted",
}

type quiet struct{}

func (quiet) Debug(string, ...any) {}
func (quiet) Info(string, ...any)  {}
func (quiet) Warn(string, ...any)  {}
func (quiet) Error(string, ...any) {}

var _ log.Logger = quiet{}

// replay replays a history on the present workflows, some of them replaced.
func replay(t *testing.T, h *historypb.History, replaced map[string]any) error {
	t.Helper()
	r := sdkworker.NewWorkflowReplayer()
	for name, f := range worker.Workflows() {
		if other, ok := replaced[name]; ok {
			f = other
		}
		r.RegisterWorkflowWithOptions(f, workflow.RegisterOptions{Name: name})
	}
	return r.ReplayWorkflowHistory(quiet{}, h)
}

func load(t *testing.T, story string) *historypb.History {
	t.Helper()
	f, err := os.Open("testdata/" + story + ".json")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h, err := client.HistoryFromJSON(f, client.HistoryJSONOptions{})
	if err != nil {
		t.Fatalf("%s: %v", story, err)
	}
	if strings.HasPrefix(story, "cluster-continued") {
		was := workflows.HistoryLimit
		workflows.HistoryLimit = shortHistory
		t.Cleanup(func() { workflows.HistoryLimit = was })
	}
	return h
}

func TestReplay(t *testing.T) {
	have := map[string]bool{}
	for _, f := range files(t) {
		story := storyOf(f)
		have[story] = true
		t.Run(story, func(t *testing.T) {
			if err := replay(t, load(t, story), nil); err != nil {
				t.Errorf("a workflow that runs while this version is rolled out would be stuck: %v\nchange workflow code by a named version (workflow.GetVersion), or record anew if no release had the old order", err)
			}
		})
	}
	for _, s := range stories {
		if !have[s] {
			t.Errorf("there is no history of %s", s)
		}
		delete(have, s)
	}
	for s := range have {
		t.Errorf("nobody records the history of %s anew", s)
	}
}

// otherCheck is Check with its first two steps in the other order.
func otherCheck(ctx workflow.Context, in api.CheckBody) (api.CheckResult, error) {
	var acts *activities.Activities
	var out api.CheckResult
	actx := workflow.WithActivityOptions(ctx, workflow.ActivityOptions{TaskQueue: activities.QueueProvision, StartToCloseTimeout: time.Minute})
	if err := workflow.ExecuteActivity(actx, acts.Check, in).Get(actx, &out); err != nil {
		return out, err
	}
	lctx := workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{StartToCloseTimeout: time.Minute})
	return out, workflow.ExecuteLocalActivity(lctx, acts.Open, api.Request{ID: in.RequestID}, "check").Get(lctx, nil)
}

// lateLaunch is Launch with a wait before it.
func lateLaunch(ctx workflow.Context, in api.LaunchBody) (api.LaunchResult, error) {
	if err := workflow.Sleep(ctx, time.Second); err != nil {
		return api.LaunchResult{}, err
	}
	return workflows.Launch(ctx, in)
}

// hastyCluster is Cluster with an activity before it.
func hastyCluster(ctx workflow.Context, st cluster.State) error {
	var acts *activities.Activities
	actx := workflow.WithActivityOptions(ctx, workflow.ActivityOptions{TaskQueue: activities.QueueProvision, StartToCloseTimeout: time.Minute})
	if err := workflow.ExecuteActivity(actx, acts.Reap).Get(actx, nil); err != nil {
		return err
	}
	return workflows.Cluster(ctx, st)
}

func TestChangedOrderIsCaught(t *testing.T) {
	for _, c := range []struct {
		story, name string
		f           any
	}{
		{"check", "Check", otherCheck},
		{"launch-new", "Launch", lateLaunch},
		{"cluster-life", activities.ClusterWorkflow, hastyCluster},
		{"cluster-continued-2", activities.ClusterWorkflow, hastyCluster},
		{"stop", "Stop", workflows.Check},
	} {
		err := replay(t, load(t, c.story), map[string]any{c.name: c.f})
		if err == nil {
			t.Errorf("%s replays on a changed %s: nobody would notice", c.story, c.name)
		}
	}
}

// plans decodes the decisions of where to launch that a history holds.
func plans(t *testing.T, h *historypb.History) (out []activities.PlanOutput) {
	t.Helper()
	dc := converter.GetDefaultDataConverter()
	for _, ev := range h.Events {
		m := ev.GetMarkerRecordedEventAttributes()
		if m.GetMarkerName() != "LocalActivity" {
			continue
		}
		var data struct{ ActivityType string }
		decode(t, dc, m.Details["data"], &data)
		if data.ActivityType != "Plan" {
			continue
		}
		var p activities.PlanOutput
		decode(t, dc, m.Details["result"], &p)
		out = append(out, p)
	}
	return out
}

func decode(t *testing.T, dc converter.DataConverter, p *commonpb.Payloads, v any) {
	t.Helper()
	if err := dc.FromPayloads(p, v); err != nil {
		t.Fatal(err)
	}
}

// A better optimizer, other prices or other places are not in the way of a launch under way: what was chosen is in its
// history.
func TestChangedOptimizerIsNotInTheWay(t *testing.T) {
	h := load(t, "cluster-failover")
	recorded := plans(t, h)
	if len(recorded) < 2 || recorded[0].Choice == nil {
		t.Fatalf("the history holds %d decisions", len(recorded))
	}
	was := recorded[0].Choice.Spec
	cloud, err := memory.New(memory.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer cloud.Close()
	cloud.Withdraw(was.Zone, "")
	cloud.Withdraw("", was.InstanceType)
	for _, z := range []string{"east-1a", "east-1b", "east-1c"} {
		cloud.Withdraw(z, "")
	}
	acts := &activities.Activities{Providers: providers.NewRegistry(cloud)}
	now, err := acts.Optimize(context.Background(), api.OptimizeBody{Task: quick})
	if err != nil {
		t.Fatal(err)
	}
	if now.Candidates[0].Zone == was.Zone {
		t.Fatalf("the optimizer still chooses %s: this proves nothing", was.Zone)
	}
	if err := replay(t, h, nil); err != nil {
		t.Errorf("a launch that chose %s does not replay now that %s would be chosen: %v", was.Zone, now.Candidates[0].Zone, err)
	}
	// And what it goes by is the record: another choice in it would lead elsewhere.
	changed := false
	for _, ev := range h.Events {
		m := ev.GetMarkerRecordedEventAttributes()
		if changed || m.GetMarkerName() != "LocalActivity" {
			continue
		}
		var data struct{ ActivityType string }
		decode(t, converter.GetDefaultDataConverter(), m.Details["data"], &data)
		if data.ActivityType == "Plan" {
			p := recorded[0]
			p.Choice, p.Error, p.Retry = nil, &api.Error{Kind: api.ErrResourcesUnavailable, Message: "nothing fits"}, false
			pl, err := converter.GetDefaultDataConverter().ToPayloads(p)
			if err != nil {
				t.Fatal(err)
			}
			m.Details["result"], changed = pl, true
		}
	}
	if err := replay(t, h, nil); err == nil {
		t.Error("a history with another decision in it replays as well: the decision is not what is followed")
	}
}

// The files name nobody and no machine, and are small.
func TestFilesAreClean(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	words := []string{host, "/home/", "/root/", "/tmp/", "/work/", "/dev/shm"}
	if u, err := user.Current(); err == nil && len(u.Username) > 4 {
		words = append(words, u.Username)
	}
	encrypted := regexp.MustCompile(`"encoding":"(binary/encrypted|YmluYXJ5L2VuY3J5cHRlZA==)"`)
	total := 0
	for _, f := range files(t) {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		total += len(b)
		if len(b) > 300<<10 {
			t.Errorf("%s has %d KB", f, len(b)>>10)
		}
		if !json.Valid(b) {
			t.Errorf("%s is no JSON", f)
		}
		if encrypted.Match(b) {
			t.Errorf("%s holds encrypted payloads", f)
		}
		for _, ev := range load(t, storyOf(f)).Events {
			if ev.EventType == enumspb.EVENT_TYPE_UNSPECIFIED {
				t.Errorf("%s: event %d has no type", f, ev.EventId)
			}
		}
		plain := readable(t, f)
		for _, word := range words {
			if bytes.Contains(plain, []byte(word)) {
				t.Errorf("%s names %q", f, word)
			}
		}
	}
	t.Logf("%d KB in all", total>>10)
}

// readable gives a file's content with its payloads decoded.
func readable(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, x := range v {
				if s, ok := x.(string); ok && k == "data" {
					if raw, err := base64.StdEncoding.DecodeString(s); err == nil {
						out.Write(raw)
						continue
					}
				}
				walk(x)
			}
		case []any:
			for _, x := range v {
				walk(x)
			}
		case string:
			out.WriteString(v + "\n")
		}
	}
	walk(v)
	return out.Bytes()
}
