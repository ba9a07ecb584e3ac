package store

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
)

func stream(job int64, n int, url string) NoticeStream {
	return NoticeStream{JobID: job, N: n, TaskID: -1, URL: "http://" + url + "/hook", Host: url}
}

func TestNotices(t *testing.T) {
	s, c := open(t)
	ctx := t.Context()
	none := func(int64, int) bool { return false }
	take := func(owner string, busy ...string) []Notice {
		t.Helper()
		out, err := s.DueNotices(ctx, owner, 30*time.Second, 10, 10, busy, none)
		must(t, err)
		return out
	}
	told, stop := s.Subscribe(NoticeTopic)
	defer stop()
	// What was written for the job at its submission tells nobody; its own rows do.
	must(t, s.PutManagedJobs(ctx, managed(1, 0, api.ManagedPending, 0), managed(1, 1, api.ManagedPending, 0)))
	only := stream(1, 1, "b")
	only.TaskID, only.States, only.SecretRef = 1, []string{"succeeded", "failed"}, "secret://x"
	first := Batch{NoticeStreams: []NoticeStream{stream(1, 0, "a"), only}, ManagedJobs: []api.ManagedJob{managed(1, 0, api.ManagedPending, 1), managed(1, 1, api.ManagedPending, 1)}}
	must(t, s.Write(ctx, first))
	must(t, s.Write(ctx, first))
	<-told
	must(t, s.PutManagedJobs(ctx, managed(1, 0, api.ManagedStarting, 2)))
	must(t, s.PutManagedJobs(ctx, managed(1, 0, api.ManagedStarting, 3))) // no change of state
	must(t, s.PutManagedJobs(ctx, managed(1, 0, api.ManagedSucceeded, 4)))
	end := managed(1, 1, api.ManagedFailed, 2)
	end.FailureReason, end.UserYAML = "so it is", "run: x"
	must(t, s.PutManagedJobs(ctx, end))
	must(t, s.PutManagedJobs(ctx, managed(2, 0, api.ManagedPending, 1))) // nobody asked

	got := take("me")
	if len(got) != 2 || got[0].Stream.Host != "a" || got[1].Stream.SecretRef != "secret://x" || len(got[1].Stream.States) != 2 {
		t.Fatalf("%+v", got)
	}
	if out := take("you"); len(out) != 0 {
		t.Fatalf("taken twice: %+v", out)
	}
	if out := take("me", "a"); len(out) != 1 || out[0].Stream.Host != "b" {
		t.Fatalf("%+v", out)
	}
	// They come in order, each once accepted.
	var story []string
	for {
		var x struct {
			Type string
			Data struct {
				Task     int    `json:"task_id"`
				Previous string `json:"previous_status"`
				Ended    bool   `json:"job_ended"`
				YAML     string `json:"user_yaml"`
				Reason   string `json:"failure_reason"`
			}
		}
		out := take("me", "b")
		if len(out) == 0 {
			break
		}
		must(t, json.Unmarshal(out[0].Data, &x))
		story = append(story, fmt.Sprintf("%d %s<%s %v%s%s", x.Data.Task, x.Type, x.Data.Previous, x.Data.Ended, x.Data.YAML, x.Data.Reason))
		must(t, s.NoticeDelivered(ctx, out[0]))
		must(t, s.NoticeDelivered(ctx, out[0]))
	}
	if want := "0 job.pending< false, 1 job.pending< false, 0 job.starting<PENDING false, 0 job.succeeded<STARTING false, 1 job.failed<PENDING trueso it is"; strings.Join(story, ", ") != want {
		t.Errorf("%q\n%q", strings.Join(story, ", "), want)
	}
	// The secret that signs what is left must stay.
	if n, err := s.NoticesOpen(ctx, "r1"); err != nil || n != 1 {
		t.Error(n, err)
	}
	if at, err := s.NextNotice(ctx); err != nil || at.IsZero() {
		t.Error(at, err)
	}
	// Another owner may go on when the lease is over.
	c.add(31 * time.Second)
	b := take("you")
	if len(b) != 1 {
		t.Fatalf("%+v", b)
	}
	fail := func(n Notice, after time.Duration) Dropped {
		t.Helper()
		d, err := s.NoticeFailed(ctx, n, "HTTP 503", s.now().Add(after), 24*time.Hour)
		must(t, err)
		return d
	}
	fail(b[0], time.Minute)
	if out := take("you"); len(out) != 0 {
		t.Fatalf("%+v", out)
	}
	c.add(time.Minute)
	if b = take("you"); len(b) != 1 || b[0].Tries != 1 {
		t.Fatalf("%+v", b)
	}
	fail(b[0], time.Minute)
	c.add(25 * time.Hour)
	b = take("you")
	if d := fail(b[0], time.Minute); d != (Dropped{1, 1}) {
		t.Errorf("%+v", d)
	}
	if n, err := s.NoticesOpen(ctx, "r1"); err != nil || n != 0 {
		t.Error(n, err)
	}
	if at, err := s.NextNotice(ctx); err != nil || !at.IsZero() {
		t.Error(at, err)
	}
	evs, err := s.Events(ctx, EventFilter{JobID: 1})
	must(t, err)
	if len(evs) != 2 || evs[0].Kind != api.EventRetry || !strings.Contains(evs[0].Message, "b does not accept notifications: HTTP 503") || !strings.Contains(evs[1].Message, "1 notification(s) to b were dropped, 1 so far") {
		t.Errorf("%+v", evs)
	}
	// What became of them is told where jobs are listed.
	rows, err := s.ManagedJob(ctx, 1)
	must(t, err)
	if n := rows[1].Notices; n == nil || *n != (api.NoticeCounts{Delivered: 5, Dropped: 1}) {
		t.Errorf("%+v", n)
	}
	raw, _, _, err := s.ManagedRows(ctx, ManagedFilter{Full: true})
	must(t, err)
	for _, r := range raw {
		var j api.ManagedJob
		must(t, json.Unmarshal(r, &j))
		if (j.Notices != nil) != (j.ID == 1) || j.Notices != nil && j.Notices.Delivered != 5 {
			t.Errorf("%s", r)
		}
	}
	c.add(100 * 24 * time.Hour)
	_, err = s.Collect(ctx, Retention{ManagedJobs: time.Hour})
	must(t, err)
	var left int
	must(t, s.row(ctx, "SELECT (SELECT count(*) FROM notice_streams) + (SELECT count(*) FROM notices)").Scan(&left))
	if left != 0 {
		t.Errorf("%d rows are left", left)
	}
}

// A receiver that does not accept holds up its own stream only, and what is new waits behind what is old.
func TestNoticesPerHost(t *testing.T) {
	s, _ := open(t)
	ctx := t.Context()
	for id := int64(1); id <= 300; id++ {
		must(t, s.Write(ctx, Batch{NoticeStreams: []NoticeStream{stream(id, 0, "dead")}, ManagedJobs: []api.ManagedJob{managed(id, 0, api.ManagedPending, 1)}}))
	}
	must(t, s.Write(ctx, Batch{NoticeStreams: []NoticeStream{stream(301, 0, "well")}, ManagedJobs: []api.ManagedJob{managed(301, 0, api.ManagedPending, 1)}}))
	taken := map[int64]bool{}
	except := func(job int64, _ int) bool { return taken[job] }
	for range 4 {
		out, err := s.DueNotices(ctx, "me", time.Minute, 60, 1, nil, except)
		must(t, err)
		if len(out) != 1 || out[0].Stream.Host != "dead" {
			t.Fatalf("%+v", out)
		}
		taken[out[0].Stream.JobID] = true
	}
	out, err := s.DueNotices(ctx, "me", time.Minute, 60, 1, []string{"dead"}, except)
	must(t, err)
	if len(out) != 1 || out[0].Stream.JobID != 301 {
		t.Fatalf("%+v", out)
	}
}
