package cli

import (
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/session"
)

// openOn lets the logs of a fake begin once Err says something.
func openOn(f *fake, text string) func(*session.Session) {
	f.logGate = make(chan struct{})
	var once sync.Once
	return func(s *session.Session) {
		s.IO.Err = &onWrite{s.IO.Err, text, func() { once.Do(func() { close(f.logGate) }) }}
	}
}

// While the log of a job is silent since the job waits, its reader is told for what, on Err and only once.
func TestLull(t *testing.T) {
	f := newFake(t)
	f.jobs["dev"] = []api.Job{{ID: 4, Status: api.JobPending}, {ID: 3, Status: api.JobPending}, {ID: 2, Status: api.JobRunning}, {ID: 1, Status: api.JobRunning}}
	f.logs[3] = "done\n"
	r := f.sky("", words("logs dev 3"), openOn(f, "before it"))
	if r.code != 0 || r.out != "(sky-cmd, pid=42) done\n" || strings.Count(r.err, "Job 3 is PENDING: jobs 1-2 come before it\n") != 1 {
		t.Errorf("%+v", r)
	}
	f.jobs["dev"][1].Reason = "waiting for A100:2"
	if r = f.sky("", words("logs dev 3"), openOn(f, "A100")); r.code != 0 || !strings.Contains(r.err, "Job 3 is PENDING: waiting for A100:2\n") {
		t.Errorf("%+v", r)
	}
	f.logGate = nil
	if r = f.sky("", words("logs dev 3 --no-follow")); strings.Contains(r.err, "PENDING") {
		t.Errorf("%+v", r)
	}
}

func TestManagedLull(t *testing.T) {
	f := newFake(t)
	f.managed = someJobs()
	f.managedLogs = map[string][]managedFrame{
		"9": {{LogFrame: api.LogFrame{Attempt: 1, PID: 5, Phase: "run"}, text: "done\n"}, {LogFrame: api.LogFrame{End: true, Status: "SUCCEEDED"}}},
	}
	r := f.sky("", words("jobs logs 9"), openOn(f, "PENDING"))
	want := regexp.MustCompile(`Managed job 9 is PENDING, next try at [\d:]+: 8 of 8 launches are under way; 3 jobs are ahead of it\n`)
	if r.code != 0 || !strings.Contains(r.out, "done\n") || len(want.FindAllString(r.err, -1)) != 1 {
		t.Errorf("%+v", r)
	}
}
