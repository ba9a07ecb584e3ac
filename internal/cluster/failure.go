package cluster

import "time"

// RetryDelay is how long a launch that found no place waits before round n (from 1): 30 s at first, growing by half up
// to five minutes.
func RetryDelay(round int) time.Duration {
	d := 30 * time.Second
	for i := 1; i < round && d < 5*time.Minute; i++ {
		d = d * 3 / 2
	}
	return min(d, 5*time.Minute)
}
