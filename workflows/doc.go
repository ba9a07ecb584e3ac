// Package workflows holds the durable stories: one file per workflow, thin. Requests (Launch, Exec, Start, Stop, Down,
// Autostop, CancelJobs, Preempt, Refresh, Check) live until answered and own nothing; Cluster is the entity that owns a
// cluster name, from its first launch until it is down; Reaper looks for what nobody owns.
//
// Workflow code must be deterministic: every decision that depends on the world or may be improved later is taken in an
// activity and so recorded. Inputs and outputs are public and plain JSON: a workflow in any language may start Launch
// as its child.
//
// Invariants: an operation is carried out once per key; a reply is sent after the rows it depends on were written; an
// entity drains its signals before it continues as new and before it closes.
package workflows
