package engine

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"

	"go.temporal.io/server/common/log"
	"go.temporal.io/server/common/log/tag"
)

// serverLogger passes the server's log on to slog. What the server calls information is of no interest to our users,
// and goes to debug; so does all that its parts say about each other's absence while they are being stopped.
type serverLogger struct {
	to       *slog.Logger
	stopping *atomic.Bool
}

func newServerLogger(to *slog.Logger, stopping *atomic.Bool) log.Logger {
	return serverLogger{to: to.With("component", "temporal"), stopping: stopping}
}

// expected are the beginnings of warnings about what we chose ourselves.
var expected = []string{
	"HTTP API port has not been set", // we have no use for Nexus
}

var (
	_ log.Logger     = serverLogger{}
	_ log.WithLogger = serverLogger{}
)

// fatalError is what the server wanted to end the process for.
type fatalError struct{ message string }

func (e *fatalError) Error() string { return e.message }

func (l serverLogger) write(level slog.Level, msg string, tags []tag.Tag) {
	if level > slog.LevelDebug && (l.stopping.Load() || slices.ContainsFunc(expected, func(p string) bool { return strings.HasPrefix(msg, p) })) {
		level = slog.LevelDebug
	}
	ctx := context.Background()
	if !l.to.Enabled(ctx, level) {
		return
	}
	l.to.LogAttrs(ctx, level, msg, attributes(tags)...)
}

func attributes(tags []tag.Tag) []slog.Attr {
	out := make([]slog.Attr, 0, len(tags))
	for _, t := range tags {
		out = append(out, slog.Any(t.Key(), t.Value()))
	}
	return out
}

func (l serverLogger) Debug(msg string, tags ...tag.Tag)  { l.write(slog.LevelDebug-4, msg, tags) }
func (l serverLogger) Info(msg string, tags ...tag.Tag)   { l.write(slog.LevelDebug, msg, tags) }
func (l serverLogger) Warn(msg string, tags ...tag.Tag)   { l.write(slog.LevelWarn, msg, tags) }
func (l serverLogger) Error(msg string, tags ...tag.Tag)  { l.write(slog.LevelError, msg, tags) }
func (l serverLogger) DPanic(msg string, tags ...tag.Tag) { l.write(slog.LevelError, msg, tags) }

func (l serverLogger) Panic(msg string, tags ...tag.Tag) {
	l.write(slog.LevelError, msg, tags)
	panic(msg)
}

// Fatal must not return. It panics rather than exits, so that a start that failed can be reported, or tried again.
func (l serverLogger) Fatal(msg string, tags ...tag.Tag) {
	l.write(slog.LevelError, msg, tags)
	text := msg
	for _, t := range tags {
		text += fmt.Sprintf(" %s=%v", t.Key(), t.Value())
	}
	panic(&fatalError{message: text})
}

// With implements log.WithLogger.
func (l serverLogger) With(tags ...tag.Tag) log.Logger {
	args := make([]any, 0, len(tags))
	for _, a := range attributes(tags) {
		args = append(args, a)
	}
	return serverLogger{to: l.to.With(args...), stopping: l.stopping}
}
