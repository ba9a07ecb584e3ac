// Package codec encrypts what we write into the workflow engine, so that its database, its backups and whoever runs an
// external cluster hold no task files, environments or error texts in clear.
//
// It owns the key ring, the payload codec, the data and failure converters built on it, and the endpoint through which
// the Web UI reads. It must not know workflows or the engine.
//
// Format: a payload with metadata encoding "binary/encrypted" and encryption-key-id; its data is a 12-byte random nonce,
// followed by the protobuf form of the plain payload sealed with AES-256-GCM, the key id authenticated along. A random
// nonce allows 2^32 payloads per key before chance repeats one: rotate long before, once a year is plenty.
//
// Invariants:
//
//   - Everything is encrypted except values of a [Public] type: the answers of workflows that foreign parents call.
//   - Plain payloads are read as they are: inputs from foreign workflows arrive so.
//   - Keys are never removed from a ring. Without the ring the engine's history can't be read: back it up with the
//     database, and not in the same place.
package codec
