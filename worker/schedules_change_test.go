package worker

import (
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
)

func TestFiringsOf(t *testing.T) {
	now := time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC)
	at := func(day, hour int) *time.Time {
		d := time.Date(2026, 3, day, hour, 0, 0, 0, time.UTC)
		return &d
	}
	nightly := []api.JobSchedule{{ID: 3, ScheduleSpec: api.ScheduleSpec{Cron: "0 3 * * *", Timezone: "UTC"}}}
	backfill := func(from, to *time.Time) api.SchedulesChangeBody {
		return api.SchedulesChangeBody{IDs: []int64{3}, Action: api.ScheduleBackfill, RequestID: "r", From: from, To: to}
	}
	patch, due, err := firingsOf(backfill(at(1, 3), at(3, 3)), nightly, now) // both ends are included
	if err != nil || len(due) != 3 || !due[0].Equal(*at(1, 3)) || !due[2].Equal(*at(3, 3)) || patch.BackfillRequest[0].OverlapPolicy != overlaps[api.OverlapBufferAll] {
		t.Errorf("%v %v %v", patch, due, err)
	}
	in := backfill(at(1, 3), at(3, 3))
	in.Overlap = api.OverlapAllowAll
	if patch, _, err := firingsOf(in, nightly, now); err != nil || patch.BackfillRequest[0].OverlapPolicy != overlaps[api.OverlapAllowAll] {
		t.Errorf("%v %v", patch, err)
	}
	trigger := api.SchedulesChangeBody{Action: api.ScheduleTrigger, RequestID: "r"}
	if patch, due, err := firingsOf(trigger, nightly, now); err != nil || due != nil || patch.TriggerImmediately == nil || patch.TriggerImmediately.OverlapPolicy != 0 {
		t.Errorf("%v %v %v", patch, due, err)
	}
	if patch, due, err := firingsOf(api.SchedulesChangeBody{Action: api.SchedulePause}, nightly, now); patch != nil || due != nil || err != nil {
		t.Errorf("%v %v %v", patch, due, err)
	}
	minutely := []api.JobSchedule{{ID: 3, ScheduleSpec: api.ScheduleSpec{Cron: "* * * * *", Timezone: "UTC"}}}
	for _, bad := range []struct {
		in   api.SchedulesChangeBody
		rows []api.JobSchedule
		want string
	}{
		{api.SchedulesChangeBody{Action: api.ScheduleTrigger}, nightly, "request_id"},
		{api.SchedulesChangeBody{Action: api.ScheduleTrigger, RequestID: "r", From: at(1, 0)}, nightly, "of a backfill"},
		{api.SchedulesChangeBody{Action: api.SchedulePause, Overlap: api.OverlapSkip}, nightly, "goes with trigger"},
		{api.SchedulesChangeBody{Action: api.ScheduleTrigger, RequestID: "r", Overlap: "x"}, nightly, "unknown overlap"},
		{backfill(at(1, 0), nil), nightly, "from and to"},
		{backfill(at(2, 0), at(1, 0)), nightly, "from and to"},
		{backfill(at(2, 0), at(11, 0)), nightly, "past"},
		{backfill(at(2, 4), at(2, 5)), nightly, "was not due"},
		{backfill(at(1, 0), at(3, 0)), minutely, "more than 400 times"},
		{backfill(at(1, 0), at(3, 0)), append(nightly, minutely...), "of one schedule"},
	} {
		if _, _, err := firingsOf(bad.in, bad.rows, now); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%+v: %v, want %q", bad.in, err, bad.want)
		}
	}
}
