package filesync

import "testing"

func TestAmountText(t *testing.T) {
	for want, in := range map[string][2]int64{"0 files, 0 B": {0, 0}, "1 file, 999 B": {1, 999}, "2 files, 4.1 kB": {2, 4100}, "3 files, 1.0 MB": {3, 1e6}, "4 files, 2.50 GB": {4, 25e8}} {
		if got := AmountText(int(in[0]), in[1]); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
