package store

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
)

func TestSchedules(t *testing.T) {
	s, c := open(t)
	ctx := t.Context()
	make := func(req, user string, n int) int64 {
		t.Helper()
		id, err := s.CreateSchedule(ctx, api.JobSchedule{Name: "n-" + req, RequestID: req, UserHash: user, NumJobs: n, ScheduleSpec: api.ScheduleSpec{Cron: "@daily"}}, []byte("body of "+req))
		must(t, err)
		return id
	}
	a, b := make("ra", "u1", 1), make("rb", "u2", 2)
	if again := make("ra", "u1", 1); a != 1 || b != 2 || again != a {
		t.Fatal(a, b, again)
	}
	due := c.now().Truncate(time.Minute)
	var first Firing
	for range 2 { // a firing that is repeated is the same one
		f, err := s.FireSchedule(ctx, b, due, "f1")
		must(t, err)
		if fmt.Sprint(f.JobIDs) != "[1 2]" || string(f.Body) != "body of rb" || f.Schedule.ID != b || f.Schedule.Name != "n-rb" {
			t.Fatalf("%+v", f)
		}
		first = f
	}
	if r, err := s.Request(ctx, "f1"); err != nil || r.Status != api.RequestSucceeded {
		t.Fatal(r, err)
	}
	for i := range 8 {
		f, err := s.FireSchedule(ctx, b, due.Add(time.Duration(i+1)*time.Hour), fmt.Sprint("f1-", i))
		must(t, err)
		if f.JobIDs[0] <= first.JobIDs[1] {
			t.Fatalf("%+v", f)
		}
	}
	rows, err := s.Schedules(ctx, "")
	must(t, err)
	if len(rows) != 2 || len(rows[0].Last) != 0 || rows[0].Next == nil || len(rows[1].Last) != lastFirings || !rows[1].Last[0].At.Equal(due.Add(8*time.Hour)) || fmt.Sprint(rows[1].Last[0].JobIDs) != "[17 18]" {
		t.Fatalf("%+v", rows)
	}
	for _, x := range []struct {
		user string
		ids  []int64
		want int
	}{{"u1", nil, 1}, {"u3", nil, 0}, {"", []int64{2, 9}, 1}, {"u1", []int64{2}, 0}} {
		if rows, err := s.Schedules(ctx, x.user, x.ids...); err != nil || len(rows) != x.want {
			t.Errorf("%+v: %+v %v", x, rows, err)
		}
	}
	// It is gone for everybody but the jobs that run.
	must(t, s.PutManagedJobs(ctx, api.ManagedJob{ID: 1, Status: api.ManagedRunning, Seq: 1, RequestID: "f1"}))
	must(t, s.PutSecret(ctx, "sec", "jobs/rb", []byte("x")))
	must(t, s.DeleteSchedule(ctx, b))
	if rows, err := s.Schedules(ctx, ""); err != nil || len(rows) != 1 {
		t.Fatal(rows, err)
	}
	if _, err := s.FireSchedule(ctx, b, due.Add(99*time.Hour), "f99"); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	if _, err := s.CreateSchedule(ctx, api.JobSchedule{RequestID: "rb"}, nil); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	bodies := func() (n int) {
		must(t, s.EachScheduleBody(ctx, func([]byte) { n++ }))
		return n
	}
	secrets := func() (n int) {
		must(t, s.row(ctx, "SELECT count(*) FROM secrets").Scan(&n))
		return n
	}
	collect := func() {
		t.Helper()
		c.add(100 * 24 * time.Hour)
		_, err := s.Collect(ctx, Retention{Requests: 24 * time.Hour, ManagedJobs: 30 * 24 * time.Hour})
		must(t, err)
	}
	collect()
	if bodies() != 2 || secrets() != 1 {
		t.Fatalf("%d bodies, %d secrets: a job runs that needs them", bodies(), secrets())
	}
	must(t, s.PutManagedJobs(ctx, api.ManagedJob{ID: 1, Status: api.ManagedSucceeded, Seq: 2, RequestID: "f1"}))
	collect()
	collect()
	if bodies() != 1 || secrets() != 0 {
		t.Fatalf("%d bodies, %d secrets are left", bodies(), secrets())
	}
}
