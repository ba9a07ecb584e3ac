// Package agentapi is the contract between a server and the agent of a node: wire types and an HTTP client.
//
// It must not know how either end works: it imports neither the agent nor the server. The client speaks HTTP over any
// dialer that a provider's transport gives (a unix socket on the machine itself, a tunnel elsewhere).
//
// Invariants: submitting is idempotent by key; an agent refuses a lower epoch than it has seen; events are kept until
// acknowledged; logs are bytes addressed by (job, rank, phase, offset).
package agentapi
