// Package cluster is the state machine of a cluster: what it remembers, what an operation may do in which state, and
// what the state of its nodes means. It is pure: values in, values out; no clock, no network, no workflow engine.
//
// A cluster's workflow and a managed job's workflow drive the same machine.
//
// Invariants: a new incarnation has a new hash; the epoch rises at every bring-up; a row's sequence only rises; an
// operation is carried out once per key.
package cluster
