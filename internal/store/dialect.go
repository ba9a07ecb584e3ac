package store

import (
	"net/url"
	"strings"
)

// dialect is all that differs between databases, apart from how they are opened. Queries are written with ? for
// parameters and use what SQLite and PostgreSQL share (ON CONFLICT, RETURNING, partial indexes).
type dialect struct {
	// serial is the type of a growing primary key, blob that of bytes.
	serial, blob string
	// nowMillis is the database's own clock, in Unix milliseconds.
	nowMillis string
	// rebind rewrites the parameters.
	rebind func(string) string
}

var sqliteDialect = dialect{
	serial:    "INTEGER PRIMARY KEY AUTOINCREMENT",
	blob:      "BLOB",
	nowMillis: "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
	rebind:    func(q string) string { return q },
}

// expand fills the placeholders of schema and queries.
func (d dialect) expand(q string) string {
	return strings.NewReplacer("{serial}", d.serial, "{blob}", d.blob, "{now}", d.nowMillis).Replace(q)
}

// sqliteDSN names a database file for the driver, with the settings of a connection.
func sqliteDSN(path string, readOnly bool) string {
	cache := "cache_size(-8000)" // KiB
	if readOnly {                // several of them
		cache = "cache_size(-2000)"
	}
	q := url.Values{"_pragma": {
		"busy_timeout(15000)",
		"journal_mode(WAL)",
		"synchronous(NORMAL)",
		"temp_store(MEMORY)",
		cache,
		"journal_size_limit(33554432)", // bytes
	}}
	if readOnly {
		q.Add("_pragma", "query_only(1)")
	}
	return (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String()
}

// in gives "(?,?,?)" for n parameters.
func in(n int) string { return "(" + strings.TrimSuffix(strings.Repeat("?,", n), ",") + ")" }

func anys[T any](xs []T) []any {
	out := make([]any, len(xs))
	for i, x := range xs {
		out[i] = x
	}
	return out
}
