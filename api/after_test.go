package api

import (
	"fmt"
	"testing"
)

func TestParseAfter(t *testing.T) {
	for in, want := range map[string][]string{
		"[3:ok 7:any]": {"7:any", "3"}, "[3:ok]": {"3:any", "3:ok"}, "[4:any]": {"4:any", "4:any"}, "[]": nil,
	} {
		got, err := ParseAfter(want)
		if err != nil || fmt.Sprint(got) != in {
			t.Errorf("%v: %v %v, want %s", want, got, err, in)
		}
	}
	for _, bad := range []string{"", "0", "-1", "x", "3:", "3:failed", " 3", "1-3", "99999999999999999999"} {
		if got, err := ParseAfter([]string{bad}); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
	many := make([]string, MaxAfter+1)
	for i := range many {
		many[i] = fmt.Sprint(i + 1)
	}
	if _, err := ParseAfter(many); err == nil {
		t.Error("too many were taken")
	}
}
