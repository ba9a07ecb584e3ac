package task

import (
	"errors"
	"strings"
)

// CronExpressions checks a cron expression, and gives the expressions that mean the same where day of month and day of
// week must both match: in a crontab a day matches if either does, once both are given.
func CronExpressions(cron string) ([]string, error) {
	cron = strings.TrimSpace(cron)
	if wrong := checkCron(cron); wrong != "" {
		return nil, errors.New(wrong)
	}
	f := strings.Fields(cron)
	if len(f) != 5 || strings.HasPrefix(f[2], "*") || strings.HasPrefix(f[4], "*") {
		return []string{cron}, nil
	}
	byDate, byWeekday := append([]string{}, f...), append([]string{}, f...)
	byDate[4], byWeekday[2] = "*", "*"
	return []string{strings.Join(byDate, " "), strings.Join(byWeekday, " ")}, nil
}
