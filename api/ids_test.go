package api

import (
	"fmt"
	"strings"
	"testing"
)

func TestIDs(t *testing.T) {
	for _, c := range []struct{ in, out, err string }{
		{"1", "1", ""}, {"3,1,2", "1-3", ""}, {"5-7, 9", "5-7,9", ""}, {"1-2,2-3,3", "1-3", ""}, {"", "", "no job id"}, {"0", "", "no job id"}, {"-3", "", "no job id"}, {"3-", "", "no job id"},
		{"a", "", "no job id"}, {"7-5", "", "before its start"}, {"1-100001", "", "too many"}, {"1-99999,200000-200009", "", "too many"}, {"1-9223372036854775807", "", "too many"},
	} {
		ids, err := ParseIDs(c.in)
		if (err == nil) != (c.err == "") || (err != nil && !strings.Contains(err.Error(), c.err)) || FormatIDs(ids) != c.out {
			t.Errorf("%q: %v %v", c.in, ids, err)
		}
	}
	if ids, err := ParseIDs("1-100000"); err != nil || len(ids) != 100000 {
		t.Error(len(ids), err)
	}
}

func TestManagedState(t *testing.T) {
	row := func(st ManagedStatus, group, primary bool) ManagedJob {
		return ManagedJob{Status: st, Group: group, Primary: primary, Name: string(st)}
	}
	ended := func(name string, st ManagedStatus, by string) ManagedJob {
		return ManagedJob{TaskName: name, Status: st, Group: true, Primary: name != "c" || st == ManagedFailed, EndedBy: by}
	}
	for _, c := range []struct {
		rows []ManagedJob
		want ManagedStatus
	}{
		{nil, ""}, {[]ManagedJob{row(ManagedRunning, false, false)}, ManagedRunning},
		{[]ManagedJob{row(ManagedSucceeded, false, false), row(ManagedFailed, false, false), row(ManagedCancelled, false, false)}, ManagedFailed},
		{[]ManagedJob{row(ManagedSucceeded, false, false), row(ManagedSucceeded, false, false)}, ManagedSucceeded},
		{[]ManagedJob{row(ManagedCancelled, true, false), row(ManagedSucceeded, true, true)}, ManagedSucceeded},
		{[]ManagedJob{row(ManagedFailed, true, false), row(ManagedRunning, true, true)}, ManagedRunning},
		// A launch that failed is the group's end, wherever the task stands and whether it is a primary one.
		{[]ManagedJob{ended("b", ManagedCancelled, "c"), ended("c", ManagedFailedPrechecks, "")}, ManagedFailedPrechecks},
		{[]ManagedJob{ended("c", ManagedFailedPrechecks, ""), ended("b", ManagedCancelled, "c")}, ManagedFailedPrechecks},
		{[]ManagedJob{ended("b", ManagedCancelled, "c"), ended("c", ManagedFailedPrechecks, ""), ended("d", ManagedCancelling, "")}, ManagedCancelling},
		{[]ManagedJob{ended("b", ManagedCancelled, ""), ended("c", ManagedFailed, "")}, ManagedCancelled},
	} {
		if got, decisive := ManagedState(c.rows); got != c.want || (len(c.rows) > 0 && decisive.Status != c.want) {
			t.Errorf("%s: %s %s", fmt.Sprint(c.want), got, decisive.Status)
		}
	}
}
