package engine

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.temporal.io/server/schema"
	"go.temporal.io/server/schema/sqlite"
)

// TestSchemaMatchesServer fails when the server in go.mod brings another database layout: then raise schemaVersion, add
// the migration (the server ships versioned files for the main store, none for visibility), and only then change this.
func TestSchemaMatchesServer(t *testing.T) {
	if sqlite.Version != "0.11" || sqlite.VisibilityVersion != "0.1" {
		t.Errorf("layout %s, visibility %s", sqlite.Version, sqlite.VisibilityVersion)
	}
	for name, want := range map[string]string{schemaFiles[0]: mainDigest, schemaFiles[1]: visibilityDigest} {
		text, err := fs.ReadFile(schema.Assets(), name)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(text)
		if got := hex.EncodeToString(sum[:8]); got != want {
			t.Errorf("%s changed: %s", name, got)
		}
	}
}

const (
	mainDigest       = "f727af79ce05d245"
	visibilityDigest = "d0044d38916c1733"
)

// testLayout is a schema of one table.
func testLayout(version int, migrations map[int]func(context.Context, *sql.Tx) error) layout {
	return layout{
		version: version, server: "9.9.9", migrations: migrations,
		create: func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `CREATE TABLE things (n INTEGER); INSERT INTO things VALUES (1)`)
			return err
		},
	}
}

func addRow(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO things SELECT max(n) + 1 FROM things`)
	return err
}

func count(t *testing.T, path, query string) (n int) {
	t.Helper()
	db, err := openDatabase(path, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := db.QueryRow(query).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

func change(t *testing.T, path, statement string) {
	t.Helper()
	db, err := openDatabase(path, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if _, err := db.Exec(statement); err != nil {
		t.Fatal(err)
	}
}

func prepare(path string, want layout) error {
	return prepareSchema(context.Background(), path, want, slog.New(slog.DiscardHandler))
}

func backups(t *testing.T, path string) []string {
	t.Helper()
	found, err := filepath.Glob(path + ".backup-*")
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestSchemaOfThisServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "engine.db")
	for range 2 { // fresh, then the same
		if err := prepare(path, currentSchema); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(t, path, `SELECT count(*) FROM sqlite_master WHERE name IN ('executions', 'executions_visibility', 'history_node', 'skyloom_schema')`); n != 4 {
		t.Fatalf("%d of 4 tables", n)
	}
	if n := count(t, path, `SELECT version FROM skyloom_schema`); n != schemaVersion {
		t.Fatalf("tag %d", n)
	}
}

func TestSchemaNewerServerSameLayout(t *testing.T) {
	path := filepath.Join(t.TempDir(), "engine.db")
	if err := prepare(path, testLayout(3, nil)); err != nil {
		t.Fatal(err)
	}
	patched := testLayout(3, nil)
	patched.server = "9.9.10"
	if err := prepare(path, patched); err != nil {
		t.Fatal(err)
	}
	if n := count(t, path, `SELECT count(*) FROM skyloom_schema WHERE server = '9.9.10'`); n != 1 {
		t.Fatal("the tag names the old server")
	}
	if b := backups(t, path); len(b) != 0 {
		t.Fatalf("backups %v", b)
	}
}

func TestSchemaRefusals(t *testing.T) {
	cases := map[string]struct {
		spoil string
		words []string
	}{
		"newer":      {`UPDATE skyloom_schema SET version = 4, server = '10.1.0'`, []string{"newer", "schema 4 of Temporal 10.1.0", "schema 3 of Temporal 9.9.9", "backup"}},
		"not ours":   {`DROP TABLE skyloom_schema`, []string{"did not make it", "Move the file away"}},
		"empty tag":  {`DELETE FROM skyloom_schema`, []string{"did not make it"}},
		"too old":    {`UPDATE skyloom_schema SET version = 1`, []string{"no way up from schema 1", "intermediate version"}},
		"odd number": {`UPDATE skyloom_schema SET version = -7`, []string{"no way up"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "engine.db")
			want := testLayout(3, map[int]func(context.Context, *sql.Tx) error{2: addRow})
			if err := prepare(path, want); err != nil {
				t.Fatal(err)
			}
			change(t, path, c.spoil)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			err = prepare(path, want)
			var refused *SchemaError
			if !errors.As(err, &refused) || refused.Path != path {
				t.Fatalf("%v", err)
			}
			for _, word := range append(c.words, path) {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("the message lacks %q: %v", word, err)
				}
			}
			if after, _ := os.ReadFile(path); string(after) != string(before) || len(backups(t, path)) != 0 {
				t.Error("the file was touched")
			}
		})
	}
	t.Run("no database", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "engine.db")
		if err := os.WriteFile(path, []byte(strings.Repeat("this is no database ", 100)), 0o600); err != nil {
			t.Fatal(err)
		}
		var refused *SchemaError
		if err := prepare(path, currentSchema); !errors.As(err, &refused) || !strings.Contains(err.Error(), "backup") {
			t.Fatalf("%v", err)
		}
	})
}

func TestSchemaMigration(t *testing.T) {
	path := filepath.Join(t.TempDir(), "engine.db")
	if err := prepare(path, testLayout(1, nil)); err != nil {
		t.Fatal(err)
	}
	want := testLayout(3, map[int]func(context.Context, *sql.Tx) error{1: addRow, 2: addRow})
	if err := prepare(path, want); err != nil {
		t.Fatal(err)
	}
	if n := count(t, path, `SELECT max(n) FROM things`); n != 3 {
		t.Fatalf("migrated to %d", n)
	}
	if n := count(t, path, `SELECT version FROM skyloom_schema`); n != 3 {
		t.Fatalf("tag %d", n)
	}
	b := backups(t, path)
	if len(b) != 1 {
		t.Fatalf("backups %v", b)
	}
	if info, _ := os.Stat(b[0]); info.Mode().Perm() != 0o600 {
		t.Errorf("backup mode %v", info.Mode())
	}
	if n := count(t, b[0], `SELECT max(n) + 10 * version FROM things, skyloom_schema`); n != 11 {
		t.Fatalf("the backup is not the file from before: %d", n)
	}
	if err := prepare(path, want); err != nil || len(backups(t, path)) != 1 {
		t.Fatalf("a second start: %v", err)
	}
}

func TestSchemaMigrationFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "engine.db")
	if err := prepare(path, testLayout(1, nil)); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken on purpose")
	fail := func(ctx context.Context, tx *sql.Tx) error { return errors.Join(addRow(ctx, tx), broken) }
	err := prepare(path, testLayout(3, map[int]func(context.Context, *sql.Tx) error{1: addRow, 2: fail}))
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "schema 2") || !strings.Contains(err.Error(), "backup") {
		t.Fatalf("%v", err)
	}
	if n := count(t, path, `SELECT max(n) + 10 * version FROM things, skyloom_schema`); n != 22 {
		t.Fatalf("half a migration was kept: %d", n)
	}
	// The repaired version goes on from there.
	if err := prepare(path, testLayout(3, map[int]func(context.Context, *sql.Tx) error{1: addRow, 2: addRow})); err != nil {
		t.Fatal(err)
	}
	if n := count(t, path, `SELECT max(n) + 10 * version FROM things, skyloom_schema`); n != 33 {
		t.Fatalf("%d", n)
	}
}

// A start that is killed while it lays out the database leaves an empty file: the layout is one transaction.
func TestSchemaKilledAtFirstStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "engine.db")
	stop := errors.New("killed")
	half := testLayout(1, nil)
	create := half.create
	half.create = func(ctx context.Context, tx *sql.Tx) error { return errors.Join(create(ctx, tx), stop) }
	if err := prepare(path, half); !errors.Is(err, stop) {
		t.Fatal(err)
	}
	if err := prepare(path, testLayout(1, nil)); err != nil {
		t.Fatal(err)
	}
}
