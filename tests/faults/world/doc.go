// Package world is a server in miniature for tests of what must stay true under faults: the real workflows, activities,
// store and watcher over the memory provider's cloud. It runs in one of two engines: simulated (New: the SDK's test
// environment within a bubble of fake time, so that hours pass in milliseconds) or real (NewReal: the embedded engine).
//
// In the simulated engine each request and each cluster is a workflow of its own, reached through a client.Client as in
// the server. Activities are interrupted before, in the midst of and after their effect, as by a killed server;
// signals arrive late and twice. What happens to which call depends on the seed and on the call, and not on how calls
// interleave, as far as that is possible.
//
// It must not know which workflow does what: it judges by the rows, the cloud's ledger and the agents' jobs.
package world
