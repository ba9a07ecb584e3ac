package httpapi

import (
	"fmt"
	"testing"

	"github.com/skyloom/skyloom/api"
)

func TestScheduleRoutes(t *testing.T) {
	e := newEnv(t)
	var asked string
	e.be.schedules = func(userHash string, ids []int64) []api.JobSchedule {
		asked = fmt.Sprint(userHash, ids)
		return []api.JobSchedule{{ID: 3, ScheduleSpec: api.ScheduleSpec{Cron: "@daily"}}}
	}
	l, err := e.client().Schedules(t.Context(), "u1", 3, 4)
	if err != nil || len(l.Schedules) != 1 || l.Schedules[0].Cron != "@daily" || asked != "u1[3 4]" {
		t.Errorf("%+v %v %s", l, err, asked)
	}
	r, err := e.client().ChangeSchedules(t.Context(), &api.SchedulesChangeBody{IDs: []int64{3}, Action: api.SchedulePause})
	if err != nil || fmt.Sprint(r.IDs) != "[3]" {
		t.Errorf("%+v %v", r, err)
	}
	for _, bad := range []api.SchedulesChangeBody{{IDs: []int64{3}, Action: "explode"}, {Action: api.SchedulePause}} {
		if _, err := e.client().ChangeSchedules(t.Context(), &bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}
