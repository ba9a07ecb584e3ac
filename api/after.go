package api

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
)

// MaxAfter bounds how many other jobs a managed job may wait for.
const MaxAfter = 1000

// AfterJob is a condition of --after: a managed job begins once another one has succeeded, or has ended.
type AfterJob struct {
	JobID int64
	Any   bool // however it ended
}

// String is the condition as it is written: 7:ok, 7:any.
func (a AfterJob) String() string {
	if a.Any {
		return fmt.Sprintf("%d:any", a.JobID)
	}
	return fmt.Sprintf("%d:ok", a.JobID)
}

var afterCondition = regexp.MustCompile(`^([1-9][0-9]{0,17})(?::(ok|any))?$`)

// ParseAfter reads conditions "ID", "ID:ok" and "ID:any", by number of the job. Of two on one job the stricter one stays.
func ParseAfter(given []string) ([]AfterJob, error) {
	at := map[int64]int{}
	var out []AfterJob
	for _, text := range given {
		m := afterCondition.FindStringSubmatch(text)
		if m == nil {
			return nil, fmt.Errorf("%q is none of ID, ID:ok, ID:any", text)
		}
		id, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", text, err)
		}
		a := AfterJob{JobID: id, Any: m[2] == "any"}
		if i, ok := at[id]; ok {
			out[i].Any = out[i].Any && a.Any
			continue
		}
		at[id], out = len(out), append(out, a)
	}
	if len(out) > MaxAfter {
		return nil, fmt.Errorf("%d jobs to wait for are more than %d", len(out), MaxAfter)
	}
	slices.SortFunc(out, func(a, b AfterJob) int { return int(a.JobID - b.JobID) })
	return out, nil
}
