// Package agent is the program on each node of a cluster: `sky-agent serve`.
//
// On the head it keeps the job queue, places jobs and drives gangs over the nodes; on every node it runs the processes
// of its ranks through shims, serves their logs, receives files and runs hooks; the head watches idleness.
//
// It must not know how it was brought up or how the server reaches it, and imports neither the server nor any cloud SDK.
//
// Invariants:
//   - A job only moves forward through its states, and ends in exactly one.
//   - An answer that carries an id survives a crash right after it (journal flushed first).
//   - A phase of a job runs at most once per node: a shim's started mark decides, not the agent's memory.
//   - CANCELLED is written only once nothing of the job's process trees is left.
//   - A state change and its event are one journal batch; an event is sent only once it is durable, and kept until
//     acknowledged.
//   - Draining and accepting a job exclude each other under one lock.
package agent
