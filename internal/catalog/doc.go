// Package catalog knows accelerators by name: what they are called, how much memory one device has and who makes it,
// and how lists of them are shown.
//
// It must not know where machines come from: prices and places arrive as offers of the providers. It holds no state,
// reads no clock and opens no connection.
//
// Invariants: a canonical name is a fixed point of Canonical; names compare without case; every device of the table has
// a memory size and a maker.
package catalog
