// Package arrays holds the decisions of array jobs: sets of elements, how many of them a cluster gets at once, and what
// follows when one has ended. It is pure: values in, values out; no clock, no network, no workflow engine.
//
// Invariants: a set holds each element once, in order; the same values give the same decision.
package arrays
