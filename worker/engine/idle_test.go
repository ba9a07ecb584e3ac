package engine_test

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkIdle says what the engine costs when nothing goes on: percent of one core, and resident memory. It takes
// half a minute: go test ./worker/engine -run '^$' -bench Idle -benchtime 1x
func BenchmarkIdle(b *testing.B) {
	const settle, window = 8 * time.Second, 25 * time.Second
	for b.Loop() {
		start(b, b.TempDir())
		time.Sleep(settle)
		before, began := cpuTime(b), time.Now()
		time.Sleep(window)
		used, passed := cpuTime(b)-before, time.Since(began)
		b.ReportMetric(100*used.Seconds()/passed.Seconds(), "%core")
		b.ReportMetric(resident(b), "MB-resident")
		debug.FreeOSMemory()
		b.ReportMetric(resident(b), "MB-after-GC")
	}
}

// cpuTime is the user and system time of this process, in the kernel's ticks of 10 ms.
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	data, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		tb.Skip("needs /proc: ", err)
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

func resident(tb testing.TB) float64 {
	tb.Helper()
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		tb.Skip("needs /proc: ", err)
	}
	pages, _ := strconv.Atoi(strings.Fields(string(data))[1])
	return float64(pages*os.Getpagesize()) / 1e6
}
