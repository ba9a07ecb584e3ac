// Package failpoint gives names to the moments at which tests crash, fail or slow down a process.
//
// A point costs one atomic load when nothing is switched on. It knows nothing of what it interrupts; the packages that
// place points own their names, "area.moment", and register them at init, so that a chaos test can list and visit all.
//
// Environment:
//
//	SKYLOOM_FAILPOINTS="launch.after-create=kill;sync.start=error;status.read=sleep:500ms"
//	SKYLOOM_FAILPOINT_DIR=/folder   keeps the marks of kills that happened; needed for kill
//
// kill ends the process with SIGKILL, once: the mark is on disk before, so that the restarted process passes the point.
// error makes Hit fail, each time, or with error:N the first N times. sleep delays, each time.
package failpoint
