package simagent

import "time"

// Clock is the time agents live in.
type Clock interface {
	Now() time.Time
	// AfterFunc calls f in a goroutine of its own, or from whoever moves the clock, after d.
	AfterFunc(d time.Duration, f func()) (stop func() bool)
}

// RealClock is the machine's clock.
type RealClock struct{}

// Now is time.Now.
func (RealClock) Now() time.Time { return time.Now() }

// AfterFunc is time.AfterFunc.
func (RealClock) AfterFunc(d time.Duration, f func()) (stop func() bool) {
	return time.AfterFunc(d, f).Stop
}
