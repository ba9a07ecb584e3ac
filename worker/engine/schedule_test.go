package engine

import (
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/task"
)

func TestNextFirings(t *testing.T) {
	from := time.Date(2026, 3, 28, 12, 0, 0, 0, time.UTC) // a Saturday; the clocks of Berlin go forward the night after
	for _, c := range []struct{ cron, zone, want string }{
		{"0 3 * * *", "", "03-29 03:00, 03-30 03:00, 03-31 03:00"},
		{"0 3 * * *", "Europe/Berlin", "03-29 01:00, 03-30 01:00, 03-31 01:00"},
		{"30 2 * * *", "Europe/Berlin", "03-30 00:30, 03-31 00:30, 04-01 00:30"}, // 2:30 does not exist that night
		{"*/20 12 * * *", "UTC", "03-28 12:20, 03-28 12:40, 03-29 12:00"},
		{"0 0 1 * 1", "UTC", "03-30 00:00, 04-01 00:00, 04-06 00:00"}, // the first of a month, or a Monday
		{"0 0 * * 7", "UTC", "03-29 00:00, 04-05 00:00, 04-12 00:00"},
		{"@daily", "America/New_York", "03-29 04:00, 03-30 04:00, 03-31 04:00"},
		{"0 0 31 2 *", "UTC", ""},
	} {
		cron, err := task.CronExpressions(c.cron)
		if err != nil {
			t.Fatal(err)
		}
		next, err := NextFirings(cron, c.zone, from, 3)
		if err != nil {
			t.Errorf("%s: %v", c.cron, err)
			continue
		}
		var got []string
		for _, n := range next {
			got = append(got, n.Format("01-02 15:04"))
		}
		if text := strings.Join(got, ", "); text != c.want {
			t.Errorf("%s %s: %s, want %s", c.cron, c.zone, text, c.want)
		}
	}
	if _, err := NextFirings([]string{"@daily"}, "Mars/Olympus", from, 1); err == nil || !strings.Contains(err.Error(), "Mars/Olympus") {
		t.Error(err)
	}
}
