// Package config is config.yaml: where its layers lie, how they merge, what may stand in them, and typed access to what
// the product uses.
//
// It owns Home (SKY_HOME) and the rules of precedence: flags over project file over user file; on the server a client's
// settings lie over the server's own, less the keys that only the server decides. It must not know what a setting does,
// opens no connection, and reads no environment or file except through Env.
//
// Invariants: an unknown key is refused with its file, line and a suggestion, except where plugins put theirs; a Config
// is never changed after it was made: Merge and Overlay return a new one; what Get returns is a copy.
package config
