package cli

import (
	"strings"
	"testing"
)

func TestJobsElements(t *testing.T) {
	f := newFake(t)
	f.managed = someJobs()
	for line, call := range map[string]string{
		"jobs queue 3 --elements":                       "GET jobs/3/elements?limit=50",
		"jobs queue --elements=5-9 3 -a":                "GET jobs/3/elements?first=5&last=9",
		"jobs queue 3 --elements=17 --status=FAILED":    "GET jobs/3/elements?first=17&last=17&limit=50&status=FAILED",
		"jobs queue 3 --elements=100- -l 7 -o json":     "GET jobs/3/elements?first=100&limit=7",
		"jobs logs 3 --element 17 --no-follow --tail 3": "GET jobs/3/logs?element=17&tail=3",
		"jobs logs 3 --element 5-9":                     "GET jobs/3/logs?first=5&follow=true&last=9",
		"jobs logs 3 --element 5- --no-follow":          "GET jobs/3/logs?first=5&last=-1",
	} {
		if f.sky("", words(line)); !f.called(call) {
			t.Errorf("%s: %v", line, f.calls)
		}
	}
	for line, want := range map[string]string{"jobs queue --elements": "exactly one", "jobs queue x --elements": "no job id", "jobs queue 3 --elements=9-5": "no element or range",
		"jobs logs 3 --element -1": "no element or range", "jobs logs 3 one --element 1": "does not go with"} {
		if r := f.sky("", words(line)); r.code != 2 || !strings.Contains(r.err, want) {
			t.Errorf("%s: %+v", line, r)
		}
	}
}
