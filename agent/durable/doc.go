// Package durable keeps small records on disk: an append-only journal of JSON values by key, with a checksum per line.
//
// It must not know what the records mean. The owner holds the state in memory, replays it at the start and hands it
// over when the journal is compacted.
//
// Invariants: a batch is there whole or not at all, whatever byte the process or the machine dies at; a full disk
// refuses a batch and loses nothing that was there; what Sync has returned for survives a crash of the machine.
package durable
