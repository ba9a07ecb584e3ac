// Package batchlog keeps the output of the elements of arrays: per batch and node one file with what its elements have printed, in
// the order in which it came, and beside it an index of which part is whose. Both only grow, so a reader who knows how far it was goes
// on there; an index whose name says that it is whole grows no more.
//
// It must not know agents, stores or workflows.
//
// Invariants: bytes of an element stand in the order of its output, none twice and none left out; a line is in the index only after
// its bytes are in the log. What a crash leaves half written at the end of an index is dropped by the next writer. The writers of one
// batch are in one process.
package batchlog
