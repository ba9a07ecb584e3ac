// Package daemon finds the local server of a SKY_HOME, and starts, awaits and stops it.
//
// It owns the layout of SKY_HOME as far as client and server share it: server.json (where the server listens, written
// by the server), server.pid, server.log, token, start.lock. It must not know what the server does, and links nothing
// of it.
//
// Invariants: two `sky` at once start one server (a lock on start.lock); stale files are tolerated, since only an
// answer to a health check counts; a server of another product or of another SKY_HOME is never taken for ours.
package daemon
