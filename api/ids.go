package api

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// maxIDs is how many numbers a list of ranges may stand for.
const maxIDs = 100_000

// FormatIDs writes numbers in order, as ranges: 1-3,7.
func FormatIDs(ids []int64) string {
	ids = slices.Clone(ids)
	slices.Sort(ids)
	ids = slices.Compact(ids)
	var parts []string
	for i := 0; i < len(ids); {
		j := i
		for j+1 < len(ids) && ids[j+1] == ids[j]+1 {
			j++
		}
		p := strconv.FormatInt(ids[i], 10)
		if j > i {
			p += "-" + strconv.FormatInt(ids[j], 10)
		}
		parts, i = append(parts, p), j+1
	}
	return strings.Join(parts, ",")
}

// ParseIDs reads numbers from 1 and ranges of them, separated by commas: 1-3,7. It gives them in order, each once.
func ParseIDs(s string) ([]int64, error) {
	var out []int64
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		from, to, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseInt(from, 10, 64)
		b := a
		if err == nil && isRange {
			b, err = strconv.ParseInt(to, 10, 64)
		}
		switch {
		case err != nil || a < 1:
			return nil, fmt.Errorf("%q is no job id: give a number from 1, or a range such as 3-7", part)
		case b < a:
			return nil, fmt.Errorf("%q is no range: its end is before its start", part)
		case b-a >= maxIDs || len(out)+int(b-a) >= maxIDs:
			return nil, fmt.Errorf("%q means too many jobs: at most %d can be named at once", s, maxIDs)
		}
		for id := a; id <= b; id++ {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}
