// Package optimizer decides where a cluster is tried, in which order, and what a failure rules out.
//
// It owns the ranking of offers for a task's requests, the block list of failover and the hash of a plan. Everything here is
// a pure function over plain JSON values: no clock, no network, no workflow engine. Callers run it in an activity and record
// what it returned, so the rules may change without breaking a workflow that is under way.
//
// It must not know any provider: what an infra lacks, how it sizes nodes by default and whether it is only a fallback
// comes with the input.
//
// Invariants: the result does not depend on the order of offers or enabled infra; every choice meets its request and no block matches
// it; inside one group the choices never get cheaper from first to last; the choices of a group stand before those of the
// next; a decision to go on always blocks at least the choice that failed.
package optimizer
