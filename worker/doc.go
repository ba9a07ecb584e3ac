// Package worker wires a server: engine, store, providers, workflow workers, watcher and API, in one process.
//
// It owns start-up and shut-down order, and the answers to the API that need more than the store (backend.go). It must not
// decide anything about clusters: that is the workflows' part.
//
// Invariants: a request is durable in store and engine before it is acknowledged; requests accepted before a crash are
// handed to the engine again at start; a watched cluster is watched by one server at a time.
package worker
