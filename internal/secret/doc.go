// Package secret keeps what must not stand in clear anywhere: values that users pass with --secret, tokens, keys.
//
// A value is sealed with AES-256-GCM before it reaches the database, and named by a reference "secret://<id>" from then
// on: workflow histories, request bodies and rows hold references. Every value belongs to a scope, a request or a cluster
// incarnation, and goes with it.
//
// It owns the key file and the sealing; where sealed values are kept is behind Table. It must not know what a secret is
// for.
//
// Invariants: the key never leaves its file (0600) and this process; a sealed value opens only under the reference that
// it was made for; storing the same value twice in one scope gives the same reference, so that a repeated call leaves
// nothing behind.
package secret
