package engine

import (
	"fmt"
	"time"
	_ "time/tzdata" // time zones do not depend on what the machine has installed

	schedulepb "go.temporal.io/api/schedule/v1"
	"go.temporal.io/server/common/dynamicconfig"
	"go.temporal.io/server/service/worker/scheduler"
)

// NextFirings computes, as the engine does, up to n times after a moment at which one of several cron expressions fires in
// a time zone ("" is UTC). It fails where the engine would refuse them.
func NextFirings(cron []string, zone string, after time.Time, n int) ([]time.Time, error) {
	if _, err := time.LoadLocation(zone); err != nil {
		return nil, fmt.Errorf("there is no time zone %q; write a name like Europe/Berlin", zone)
	}
	limit := dynamicconfig.GetIntPropertyFn(0)
	spec, err := scheduler.NewSpecBuilder(limit, limit).NewCompiledSpec(&schedulepb.ScheduleSpec{CronString: cron, TimezoneName: zone})
	if err != nil {
		return nil, err
	}
	var out []time.Time
	for len(out) < n {
		next, err := spec.GetNextTime("", after)
		if err != nil {
			return out, err
		}
		if next.Nominal.IsZero() {
			break
		}
		after = next.Nominal
		out = append(out, next.Nominal.UTC())
	}
	return out, nil
}
