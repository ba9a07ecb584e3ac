package httpapi

import (
	"strings"
	"testing"
)

func TestCursor(t *testing.T) {
	c, err := parseCursor("0/setup:12,0/run:0,3/run:9000000000")
	if err != nil || len(c) != 2 || c[0]["setup"] != 12 || c[3]["run"] != 9_000_000_000 {
		t.Fatalf("%v %v", c, err)
	}
	if c, err := parseCursor(""); err != nil || len(c) != 0 {
		t.Fatalf("%v %v", c, err)
	}
}

func TestOffsetsWant(t *testing.T) {
	for _, tt := range []struct {
		at     offsets
		phase  string
		from   int64
		wanted bool
	}{
		{offsets{}, "setup", 0, true},
		{offsets{}, "run", 0, true},
		{offsets{"setup": 5}, "setup", 5, true},
		{offsets{"setup": 5}, "run", 0, true},
		{offsets{"run": 5}, "setup", 0, false},
		{offsets{"run": 5}, "run", 5, true},
		{offsets{"setup": 5, "run": 6}, "setup", 5, true},
	} {
		from, _, wanted := tt.at.wants(tt.phase)
		if from != tt.from || wanted != tt.wanted {
			t.Errorf("%v wants %s: %d %v", tt.at, tt.phase, from, wanted)
		}
	}
}

func FuzzCursor(f *testing.F) {
	f.Add("0/setup:12,0/run:0")
	f.Add(strings.Repeat("1/run:1,", 10))
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parseCursor(s)
		for rank, at := range c {
			for phase, n := range at {
				if err == nil && (rank < 0 || n < 0 || (phase != "" && phases[phase] == 0)) {
					t.Fatalf("%q gave %v", s, c)
				}
			}
		}
	})
}
