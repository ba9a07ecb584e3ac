package local

import "testing"

func TestMostNodes(t *testing.T) {
	for gb, want := range map[float64]int{0: 64, 0.5: 64, 8: 128, 23.5: 376, 2000: 1000} {
		if got := mostNodes(gb); got != want {
			t.Errorf("%v GB: %d nodes, want %d", gb, got, want)
		}
	}
}
