// Package memory is a cloud that lives in the process: regions, zones, instance types, spot, stop and start, delayed
// visibility, slow creation, capacity, quotas, scripted and seeded faults. A ledger remembers every machine there ever
// was, so that a test can prove that nothing leaked, nothing was made twice and no stranger's machine was touched.
//
// Its nodes answer through simulated agents (package simagent), so whole launches run on it without a process.
// With Config.StateFile the cloud outlives the process, as a real one would: what a killed server had asked for is
// still there, and still billed, when the next one starts.
//
// It must not know who calls it. Invariants: a machine's state is a function of its record and the clock, so nothing
// runs while nobody looks; one token never makes two machines of one rank; a machine that died never lives again; the
// ledger forgets nothing.
package memory
