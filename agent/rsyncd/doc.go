// Package rsyncd is the far end of rsync: what `rsync --server …` does on a node, for nodes that have no rsync.
//
// It speaks protocols 29 to 31 with any client since 2.6.4, in both directions: recursion, relative names, filters,
// symbolic and hard links, modes, times, owners, devices, deletion, checksums, compression by zlib, dry runs. Files are
// always sent whole: no block sums are made, and those of a client are read and not used. What is not known is refused
// by name, before anything is changed.
//
// It must not know SSH or the agent: it reads one stream and writes another.
//
// The protocol has no specification but its implementation; the comments name what was learned from watching it on the
// wire. Terms are rsync's: the sender has the files, the generator looks at what the receiving side has and asks, the
// receiver writes. One goroutine generates while another receives, so that neither side waits for the other's buffers.
//
// Invariants:
//   - A file appears under its name whole or not at all, unless --inplace says otherwise.
//   - Names from the other side never leave the destination.
//   - Nothing is deleted if the other side's list is incomplete.
package rsyncd
