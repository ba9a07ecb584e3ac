// Package task is the task file: reading it with the place of every mistake, merging flags and environment over it,
// checking it, expanding its alternatives, and writing it back.
//
// It owns the syntax and the types of a task, and nothing that happens with one. One table of fields (fields_*.go) drives
// reading, suggestions, rendering, the JSON Schema and the reference. It is linked into the thin command line, so it
// needs the standard library and a YAML parser only. It must not know providers, catalogs, prices, the server or the
// disk: what has to look at the user's machine does so through FS.
//
// Invariants: Parse is pure, bounded in time and memory, and never panics. A *Task that Parse, FromCommand or
// Overrides.Apply returned without an error satisfies Validate. Rendering and parsing again gives an equal task. No
// message holds the value of a secret.
package task
