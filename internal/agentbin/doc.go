// Package agentbin finds the agent's program for a node: beside the running executable, on the PATH, or inside the
// executable itself (put there by `make build`, zstd-compressed).
//
// It must not know what the program does or how it reaches a node. Invariants: a path it returns is a complete
// executable file with the SHA-256 it names; what it unpacks lies in a 0700 folder under its content hash, so that two
// servers of different versions share one cache folder.
package agentbin
