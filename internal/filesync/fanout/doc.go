// Package fanout brings blobs from one source to many nodes: straight, or, where it pays, each blob once from the source
// and then from node to node.
//
// It owns the choice of who sends what to whom. It must not know how blobs travel, what a cluster is, or the engine.
//
// Invariants: a node that finishes has every blob it lacked; a peer that fails costs time, never the transfer, since the
// source is always the last resort; nodes keep what they received until nobody needs it from them.
package fanout
