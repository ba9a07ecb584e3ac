package managed

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/testserver"
)

// schedule submits with a schedule, twice as a client that repeats would, and gives what was made.
func schedule(t *testing.T, s *testserver.Server, b api.JobsLaunchBody) (api.JobSchedule, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	b.Base = api.Base{RequestID: uuid.NewString(), User: "ana", UserHash: "u1"}
	var res api.JobsLaunchResult
	for range 2 {
		ref, err := s.Client.LaunchJobs(ctx, &b)
		if err != nil {
			return api.JobSchedule{}, err
		}
		r, err := s.Client.WaitRequest(ctx, ref.RequestID)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(r.Result, &res); err != nil || res.Schedule == nil || len(res.JobIDs) != 0 {
			t.Fatalf("%s %v", r.Result, err)
		}
	}
	return *res.Schedule, nil
}

func only(t *testing.T, s *testserver.Server, id int64) api.JobSchedule {
	t.Helper()
	l, err := s.Client.Schedules(context.Background(), "", id)
	if err != nil || len(l.Schedules) != 1 {
		t.Fatalf("%+v %v", l, err)
	}
	return l.Schedules[0]
}

func TestSchedule(t *testing.T) {
	s := testserver.Start(t, config)
	ctx := context.Background()
	far := func(overlap api.ScheduleOverlap) *api.ScheduleSpec {
		return &api.ScheduleSpec{Cron: "0 3 1 1 *", Timezone: "Europe/Berlin", Overlap: overlap}
	}
	fire := func(id int64) {
		t.Helper()
		time.Sleep(1100 * time.Millisecond) // a firing is told from others by its second
		body := &api.SchedulesChangeBody{IDs: []int64{id}, Action: api.ScheduleTrigger, RequestID: uuid.NewString()}
		for range 2 { // as a client that repeats would
			if _, err := s.Client.ChangeSchedules(ctx, body); err != nil {
				t.Fatal(err)
			}
		}
	}
	fired := func(id int64, n int) []api.ScheduleFiring {
		t.Helper()
		for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
			if r := only(t, s, id); len(r.Last) == n {
				return r.Last
			} else if time.Now().After(end) {
				t.Fatalf("schedule %d has fired %d times, want %d", id, len(r.Last), n)
			}
		}
	}

	// Each firing submits two jobs; one whose jobs run has the next one left out.
	made, err := schedule(t, s, api.JobsLaunchBody{Task: "name: two\nrun: sleep 1000", NumJobs: 2, Schedule: far("")})
	if err != nil {
		t.Fatal(err)
	}
	if made.ID != 1 || made.Name != "two" || made.Overlap != api.OverlapSkip || made.CatchUpSeconds != 3600 || len(made.Next) != 3 || made.Next[0].Format("01-02 15:04") != "01-01 02:00" {
		t.Errorf("%+v", made)
	}
	if r := only(t, s, 1); len(r.Next) != 3 || !r.Next[0].Equal(made.Next[0]) || r.Paused || r.User != "ana" {
		t.Errorf("%+v", r)
	}
	fire(1)
	first := fired(1, 1)[0]
	if fmt.Sprint(first.JobIDs) != "[1 2]" {
		t.Errorf("%+v", first)
	}
	r := until(t, s, 2, "running", func(r api.ManagedJob) bool { return r.Status == api.ManagedRunning })
	if r.JobRank != 1 || r.NumJobs != 2 || r.User != "ana" || r.Metadata["schedule_id"] != "1" || !strings.HasPrefix(r.Metadata["due"], "20") {
		t.Errorf("%+v", r)
	}
	if got := story(t, s, 1); !strings.Contains(got, "submitted by ana, by schedule 1, due ") {
		t.Error(got)
	}
	fire(1)
	for end := time.Now().Add(patience); only(t, s, 1).Skipped != 1; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%+v", only(t, s, 1))
		}
	}
	// Deleted, it leaves its jobs alone.
	if _, err := s.Client.ChangeSchedules(ctx, &api.SchedulesChangeBody{IDs: []int64{1, 9}, Action: api.ScheduleDelete}); err == nil || !strings.Contains(err.Error(), "there is no schedule 9; nothing was changed") {
		t.Error(err)
	}
	only(t, s, 1)
	if _, err := s.Client.ChangeSchedules(ctx, &api.SchedulesChangeBody{IDs: []int64{1}, Action: api.ScheduleDelete}); err != nil {
		t.Fatal(err)
	}
	if l, err := s.Client.Schedules(ctx, ""); err != nil || len(l.Schedules) != 0 {
		t.Errorf("%+v %v", l, err)
	}
	until(t, s, 1, "running", func(r api.ManagedJob) bool { return r.Status == api.ManagedRunning })
	if _, err := s.Client.CancelManagedJobs(ctx, &api.JobsCancelBody{AllUsers: true}); err != nil {
		t.Fatal(err)
	}
	ended(t, s, 1, api.ManagedCancelled)
	ended(t, s, 2, api.ManagedCancelled)

	// cancel_other: the jobs of the last firing end first. What the task file says counts as well.
	other, err := schedule(t, s, api.JobsLaunchBody{Task: "name: other\nschedule: {cron: '@yearly', overlap: cancel_other, paused: true}\nrun: sleep 1000"})
	if err != nil {
		t.Fatal(err)
	}
	if !other.Paused || len(only(t, s, other.ID).Next) != 0 {
		t.Errorf("%+v", other)
	}
	for _, x := range []struct {
		action, note string
		paused       bool
	}{{api.ScheduleResume, "", false}, {api.SchedulePause, "maintenance", true}, {api.SchedulePause, "maintenance", true}, {api.ScheduleResume, "done", false}} {
		if _, err := s.Client.ChangeSchedules(ctx, &api.SchedulesChangeBody{IDs: []int64{other.ID}, Action: x.action, Note: x.note}); err != nil {
			t.Fatal(err)
		}
		if r := only(t, s, other.ID); r.Paused != x.paused || x.note != "" && r.Note != x.note {
			t.Errorf("%+v: %+v", x, r)
		}
	}
	fire(other.ID)
	old := fired(other.ID, 1)[0].JobIDs[0]
	until(t, s, old, "running", func(r api.ManagedJob) bool { return r.Status == api.ManagedRunning })
	fire(other.ID)
	ended(t, s, old, api.ManagedCancelled)
	next := fired(other.ID, 2)[0].JobIDs[0]
	until(t, s, next, "running", func(r api.ManagedJob) bool { return r.Status == api.ManagedRunning })
	if _, err := s.Client.CancelManagedJobs(ctx, &api.JobsCancelBody{JobIDs: []int64{next}}); err != nil {
		t.Fatal(err)
	}
	ended(t, s, next, api.ManagedCancelled)
	nothingLeft(t, s)

	// A firing that is refused, since what was uploaded is no more, ends and says why.
	lost, err := schedule(t, s, api.JobsLaunchBody{Task: "name: lost\nrun: echo hi", Schedule: far("")})
	if err != nil {
		t.Fatal(err)
	}
	forget(t, s, lost.ID)
	fire(lost.ID)
	refused := fired(lost.ID, 1)[0].JobIDs[0]
	if r := ended(t, s, refused, api.ManagedFailedPrechecks); !strings.Contains(r.FailureReason, "none_of_this") {
		t.Errorf("%+v", r)
	}
	if got := story(t, s, refused); !strings.Contains(got, "FAILED_PRECHECKS") {
		t.Error(got)
	}
	if _, err := s.Client.ChangeSchedules(ctx, &api.SchedulesChangeBody{IDs: []int64{lost.ID}, Action: api.ScheduleDelete}); err != nil {
		t.Fatal(err)
	}

	// What can't be.
	for _, x := range []struct {
		b    api.JobsLaunchBody
		want string
	}{
		{api.JobsLaunchBody{Schedule: &api.ScheduleSpec{Cron: "0 3 * *"}}, "five fields"},
		{api.JobsLaunchBody{Schedule: &api.ScheduleSpec{Cron: "0 0 31 2 *"}}, "never comes"},
		{api.JobsLaunchBody{Schedule: &api.ScheduleSpec{Cron: "@daily", Timezone: "Mars/Olympus"}}, "no time zone"},
		{api.JobsLaunchBody{Schedule: &api.ScheduleSpec{Cron: "@daily", Timezone: "Local"}}, "no time zone"},
		{api.JobsLaunchBody{Schedule: &api.ScheduleSpec{Cron: "@daily", CatchUpSeconds: 1}}, "10 seconds"},
		{api.JobsLaunchBody{Schedule: far(""), After: []string{"1"}}, "can't be combined with after"},
		{api.JobsLaunchBody{Schedule: far(""), NumJobs: 1001}, "at most 1000"},
	} {
		x.b.Task = "run: echo hi"
		if _, err := schedule(t, s, x.b); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v", x.want, err)
		}
	}
	if l, err := s.Client.Schedules(ctx, ""); err != nil || len(l.Schedules) != 1 {
		t.Errorf("%+v %v", l, err)
	}
}

// forget makes what a schedule submits into what this server does not take, as an older one might have.
func forget(t *testing.T, s *testserver.Server, id int64) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(s.Home, "sky.db")+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("UPDATE job_schedules SET body = ? WHERE schedule_id = ?", []byte(`{"task":"none_of_this: 1"}`), id); err != nil {
		t.Fatal(err)
	}
}
