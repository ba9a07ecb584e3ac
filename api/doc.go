// Package api holds the wire types of the Skyloom server's HTTP API and its Go client.
//
// It owns names, JSON shapes and states that a user, the command line and other programs see. It must not know how
// the server fulfils a call: it imports neither the engine, nor the store, nor a provider.
//
// Invariants: a mutating call carries a request id chosen by the client, so that repeating it is harmless; a status
// is only ever moved forward in the order given here; a field, once published, keeps its meaning.
package api
