// Package store is the read model and the records: what users list (clusters, jobs, managed jobs, requests), the timeline,
// usage and prices paid, watch leases, admission of managed jobs, settings. One SQL database holds it; SQLite here, in a file of its own.
//
// It owns the schema and the rules by which rows move. It must not know workflows, providers or HTTP: its types are those
// of package api, and everything that depends on the SQL dialect stands in dialect.go and schema.go.
//
// Invariants:
//   - A row never goes backwards: a cluster row is replaced only by a higher sequence of its incarnation or by a new
//     incarnation; a terminated incarnation never comes back; a terminal status is never left.
//   - Every write may be repeated: rows carry (incarnation, sequence), events and usage intervals their own keys, requests
//     the id that the client chose. A stale or repeated write is skipped and is no error.
//   - CreateRequest and everything marked durable is on disk when the call returns. Other writes survive a crash of the
//     process, and are made again by their workflow after a crash of the machine.
//   - Admission decides in one transaction, by a pure order (admission_order.go); the counts that it reads stand in tables
//     of their own, which change together with the rows.
//   - One transaction per Write; readers never wait for writers.
//   - No secret is stored in clear: request bodies and task files arrive here with secrets replaced by references.
package store
