// Package engine hides the workflow engine: a Temporal server inside this process (SQLite file, one connection), or the
// address of one that runs elsewhere. It is the only package that imports go.temporal.io/server.
//
// It owns the engine's folder (database, schema tag and migrations, ports, API key, lock), the engine's configuration,
// who may speak to it, and the registration of our namespace and search attributes. It must not know workflows,
// activities, payload encryption or the HTTP API: callers take [Engine.DialOptions] and add their converters.
//
// Invariants:
//
//   - One process per folder, held by a file lock.
//   - A database is opened only if its schema tag is known: an unknown or newer one is refused untouched, an older one
//     is copied beside itself before the first statement of a migration.
//   - Nobody without the API key gets past the frontend; nobody without a certificate of the CA that lives in this
//     process's memory gets past the inner ports. Everything listens on 127.0.0.1 only.
//   - The database runs in WAL mode with full sync and exactly one connection: more connections only bring
//     "database is locked".
package engine
