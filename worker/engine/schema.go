package engine

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"go.temporal.io/server/common/headers"
	"go.temporal.io/server/schema"
	_ "modernc.org/sqlite" // the "sqlite" driver of openDatabase
)

// schemaVersion counts our versions of the engine's database layout. Version 1 is what server 1.32 lays out: main store
// 0.11, visibility 0.1. The server itself never migrates an SQLite file, so whenever it brings another layout this number
// goes up and a migration is added; TestSchemaMatchesServer fails until then.
const schemaVersion = 1

// layout is a version of the database: how to make it, and how to get there from older ones.
type layout struct {
	version int
	server  string // version of the Temporal server, for the record and for messages
	create  func(ctx context.Context, tx *sql.Tx) error
	// migrations by the version they start from; each ends one version higher, within the given transaction.
	migrations map[int]func(ctx context.Context, tx *sql.Tx) error
}

var currentSchema = layout{
	version:    schemaVersion,
	server:     headers.ServerVersion,
	create:     createTables,
	migrations: map[int]func(context.Context, *sql.Tx) error{},
}

// SchemaError says why the engine's database was not opened. The file is as it was.
type SchemaError struct {
	Path   string // of the database
	Found  string // what the file says it is
	Want   string // what this server can use
	Reason string
	Advice string
}

func (e *SchemaError) Error() string {
	return fmt.Sprintf("engine: the workflow database %s can't be used: %s (found %s, this server needs %s). Nothing was changed. %s",
		e.Path, e.Reason, e.Found, e.Want, e.Advice)
}

func (l layout) String() string { return describeLayout(l.version, l.server) }

func describeLayout(version int, server string) string {
	if server == "" {
		server = "unknown"
	}
	return fmt.Sprintf("schema %d of Temporal %s", version, server)
}

// prepareSchema makes a new database, accepts one of the same version, migrates an older one after a backup, and
// refuses anything else.
func prepareSchema(ctx context.Context, path string, want layout, logger *slog.Logger) error {
	if _, err := os.Stat(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("engine: look at its database: %w", err)
	}
	db, err := openDatabase(path, 10*time.Second)
	if err != nil {
		return fmt.Errorf("engine: open its database: %w", err)
	}
	defer func() { _ = db.Close() }()

	found, err := readTag(ctx, db)
	if err != nil {
		return &SchemaError{
			Path: path, Found: "an unreadable file", Want: want.String(), Reason: err.Error(),
			Advice: "Check the disk and the file's owner; if the file is damaged, put back the folder from a backup.",
		}
	}
	switch {
	case found.empty:
		return inTransaction(ctx, db, func(tx *sql.Tx) error {
			if err := want.create(ctx, tx); err != nil {
				return fmt.Errorf("engine: lay out a new database: %w", err)
			}
			return writeTag(ctx, tx, want.version, want.server)
		})
	case !found.tagged:
		return &SchemaError{
			Path: path, Found: "a database without Skyloom's tag", Want: want.String(), Reason: "Skyloom did not make it",
			Advice: "Move the file away, or set SKY_HOME to another folder.",
		}
	case found.version == want.version:
		if found.server == want.server {
			return nil
		}
		return inTransaction(ctx, db, func(tx *sql.Tx) error { return writeTag(ctx, tx, want.version, want.server) })
	case found.version > want.version:
		return &SchemaError{
			Path: path, Found: found.String(), Want: want.String(), Reason: "a newer server has written it",
			Advice: "Install that newer version again, or put back the backup made before the upgrade (engine.db.backup-*, beside the file).",
		}
	}
	for v := found.version; v < want.version; v++ {
		if want.migrations[v] == nil {
			return &SchemaError{
				Path: path, Found: found.String(), Want: want.String(), Reason: fmt.Sprintf("there is no way up from schema %d", v),
				Advice: "Upgrade by way of an intermediate version, or start with an empty folder.",
			}
		}
	}
	backup, err := backUp(ctx, db, path, found.version)
	if err != nil {
		return err
	}
	logger.Info("migrating the workflow database", "from", found.String(), "to", want.String(), "backup", backup)
	for v := found.version; v < want.version; v++ {
		err := inTransaction(ctx, db, func(tx *sql.Tx) error {
			if err := want.migrations[v](ctx, tx); err != nil {
				return err
			}
			return writeTag(ctx, tx, v+1, want.server)
		})
		if err != nil {
			return fmt.Errorf("engine: migrate the database from schema %d to %d: %w; the file is at schema %d still, and a copy from before is in %s",
				v, v+1, err, v, backup)
		}
	}
	return nil
}

// schemaTag is what a database says about itself.
type schemaTag struct {
	empty   bool // no tables at all: new, or left behind by a start that was killed
	tagged  bool
	version int
	server  string
}

func (t schemaTag) String() string { return describeLayout(t.version, t.server) }

func readTag(ctx context.Context, db *sql.DB) (schemaTag, error) {
	var tables, tagTables int
	err := db.QueryRowContext(ctx, `SELECT count(*), count(*) FILTER (WHERE name = 'skyloom_schema') FROM sqlite_master WHERE type = 'table'`).
		Scan(&tables, &tagTables)
	if err != nil {
		return schemaTag{}, err
	}
	if tables == 0 {
		return schemaTag{empty: true}, nil
	}
	if tagTables == 0 {
		return schemaTag{}, nil
	}
	t := schemaTag{tagged: true}
	err = db.QueryRowContext(ctx, `SELECT version, server FROM skyloom_schema WHERE id = 1`).Scan(&t.version, &t.server)
	if errors.Is(err, sql.ErrNoRows) {
		return schemaTag{}, nil
	}
	return t, err
}

func writeTag(ctx context.Context, tx *sql.Tx, version int, server string) error {
	_, err := tx.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS skyloom_schema (
		id INTEGER PRIMARY KEY CHECK (id = 1), version INTEGER NOT NULL, server TEXT NOT NULL, written_at TEXT NOT NULL)`)
	if err != nil {
		return fmt.Errorf("engine: write the schema tag: %w", err)
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO skyloom_schema (id, version, server, written_at) VALUES (1, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET version = excluded.version, server = excluded.server, written_at = excluded.written_at`,
		version, server, time.Now().UTC().Format(time.RFC3339))
	if err != nil {
		return fmt.Errorf("engine: write the schema tag: %w", err)
	}
	return nil
}

// createTables runs the server's own schema files, which it would otherwise run without a transaction.
func createTables(ctx context.Context, tx *sql.Tx) error {
	for _, name := range schemaFiles {
		text, err := fs.ReadFile(schema.Assets(), name)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, string(text)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

var schemaFiles = []string{"sqlite/v3/temporal/schema.sql", "sqlite/v3/visibility/schema.sql"}

// backUp copies the database, as one consistent file, beside itself. Each backup has a name of its own, so that a
// second attempt does not replace a good copy by a half-migrated one.
func backUp(ctx context.Context, db *sql.DB, path string, version int) (string, error) {
	backup := fmt.Sprintf("%s.backup-schema%d-%s", path, version, time.Now().UTC().Format("20060102T150405.000Z"))
	if _, err := db.ExecContext(ctx, `VACUUM INTO ?`, backup); err != nil {
		_ = os.Remove(backup)
		return "", fmt.Errorf("engine: back up the database before its migration: %w; free as much disk space as %s takes, and start again", err, path)
	}
	if err := os.Chmod(backup, 0o600); err != nil {
		return "", fmt.Errorf("engine: back up the database before its migration: %w", err)
	}
	if f, err := os.Open(backup); err == nil {
		err = errors.Join(f.Sync(), f.Close())
		if err != nil {
			return "", fmt.Errorf("engine: back up the database before its migration: %w", err)
		}
	}
	return backup, nil
}

func inTransaction(ctx context.Context, db *sql.DB, do func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("engine: write to its database: %w", err)
	}
	if err := do(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("engine: write to its database: %w", err)
	}
	return nil
}
