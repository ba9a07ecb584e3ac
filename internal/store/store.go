package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Options configure a Store.
type Options struct {
	// Logger defaults to silence.
	Logger *slog.Logger
	// Now is the clock for times that a caller leaves out; leases use the database's. Default: time.Now.
	Now func() time.Time

	migrations []migration // tests
}

// Store is an open database. It is safe for concurrent use.
type Store struct {
	path string
	d    dialect
	log  *slog.Logger
	now  func() time.Time

	read         *sql.DB
	write        *sql.DB
	w            *writer
	hub          hub
	installation string

	mu    sync.Mutex
	stmts map[string]*sql.Stmt // of readers

	closeOnce sync.Once
	closeErr  error
}

const settingInstallation = "installation"

// Open opens the database at path, making it (0600) and its folder (0700) if there are none, and brings its schema up to
// date. Errors that a user can act on are *SchemaError and *CorruptError.
func Open(ctx context.Context, path string, o Options) (_ *Store, err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.migrations == nil {
		o.migrations = migrations
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the database's folder: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the database: %w; check that its folder belongs to this user", err)
	}
	_ = f.Close()
	s := &Store{path: path, d: sqliteDialect, log: o.Logger, now: o.Now, stmts: map[string]*sql.Stmt{}}
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()
	if s.write, err = sql.Open("sqlite", sqliteDSN(path, false)); err != nil {
		return nil, err
	}
	s.write.SetMaxOpenConns(1)
	conn, err := s.write.Conn(ctx)
	if err != nil {
		return nil, s.wrap(err)
	}
	s.w = &writer{s: s, conn: conn, stmts: map[string]*sql.Stmt{}, jobs: make(chan *writeJob, 256), stop: make(chan struct{}), done: make(chan struct{})}
	if err := quickCheck(ctx, conn, path); err != nil {
		return nil, err
	}
	if err := migrate(ctx, conn, path, s.d, o.migrations); err != nil {
		return nil, err
	}
	if s.read, err = sql.Open("sqlite", sqliteDSN(path, true)); err != nil {
		return nil, err
	}
	s.read.SetMaxOpenConns(4)
	s.read.SetMaxIdleConns(4)
	s.w.started = true
	go s.w.run()
	s.installation, err = s.SettingOnce(ctx, settingInstallation, uuid.NewString())
	return s, err
}

// Close waits for the writes under way and closes the database.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		var errs []error
		if s.w != nil {
			s.w.close()
			errs = append(errs, s.w.conn.Close())
		}
		if s.read != nil {
			errs = append(errs, s.read.Close())
		}
		if s.write != nil {
			errs = append(errs, s.write.Close())
		}
		s.closeErr = errors.Join(errs...)
	})
	return s.closeErr
}

// Path is the database's file.
func (s *Store) Path() string { return s.path }

// Installation is the id made once for this database.
func (s *Store) Installation() string { return s.installation }

// Setting reads a setting.
func (s *Store) Setting(ctx context.Context, key string) (value string, ok bool, err error) {
	err = s.row(ctx, "SELECT value FROM settings WHERE key = ?", key).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return "", false, nil
	}
	return value, err == nil, s.wrap(err)
}

// SetSetting writes a setting, durably.
func (s *Store) SetSetting(ctx context.Context, key, value string) error {
	return s.update(ctx, true, func(t *txn) error {
		_, err := t.exec(`INSERT INTO settings (key, value)
		VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value`, key, value)
		return err
	})
}

// SettingOnce writes a setting if there is none, and returns the one that stands.
func (s *Store) SettingOnce(ctx context.Context, key, value string) (stands string, err error) {
	if v, ok, err := s.Setting(ctx, key); ok || err != nil {
		return v, err
	}
	err = s.update(ctx, true, func(t *txn) error {
		if _, err := t.exec(`INSERT INTO settings (key, value)
		VALUES (?, ?) ON CONFLICT (key) DO NOTHING`, key, value); err != nil {
			return err
		}
		return t.row("SELECT value FROM settings WHERE key = ?", key).Scan(&stands)
	})
	return stands, err
}

// Backup writes a whole, consistent copy to a new file while the store is in use.
func (s *Store) Backup(ctx context.Context, path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("cannot back up to %s: it exists", path)
	}
	tmp := path + ".part"
	_ = os.Remove(tmp)
	if f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err != nil {
		return fmt.Errorf("cannot back up to %s: %w", path, err)
	} else {
		_ = f.Close() // VACUUM INTO accepts an empty file, which keeps the mode
	}
	db, err := sql.Open("sqlite", sqliteDSN(s.path, false))
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "VACUUM INTO ?", tmp); err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("cannot back up to %s: %w", path, s.wrap(err))
	}
	return os.Rename(tmp, path)
}

// stmt prepares a reader's statement once.
func (s *Store) stmt(ctx context.Context, q string) (*sql.Stmt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.stmts[q]; st != nil {
		return st, nil
	}
	st, err := s.read.PrepareContext(ctx, s.d.rebind(s.d.expand(q)))
	if err == nil {
		s.stmts[q] = st
	}
	return st, err
}

type scanner interface{ Scan(dest ...any) error }

type errRow struct{ err error }

func (e errRow) Scan(...any) error { return e.err }

// row and rows run fixed queries; those whose text depends on the arguments go through dynRows.
func (s *Store) row(ctx context.Context, q string, args ...any) scanner {
	st, err := s.stmt(ctx, q)
	if err != nil {
		return errRow{err}
	}
	return st.QueryRowContext(ctx, args...)
}

// collect runs a query and scans each row.
func (s *Store) collect(ctx context.Context, q string, args []any, scan func(scanner) error) error {
	rows, err := s.read.QueryContext(ctx, s.d.rebind(s.d.expand(q)), args...)
	if err != nil {
		return s.wrap(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return s.wrap(err)
		}
	}
	return s.wrap(rows.Err())
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func microsPtr(t *time.Time) sql.NullInt64 {
	if t == nil || t.IsZero() {
		return sql.NullInt64{}
	}
	return sql.NullInt64{Int64: t.UnixMicro(), Valid: true}
}

func timePtr(v sql.NullInt64) *time.Time {
	if !v.Valid {
		return nil
	}
	t := time.UnixMicro(v.Int64).UTC()
	return &t
}

// at fills in the clock for a time that was left out.
func (s *Store) at(t time.Time) time.Time {
	if t.IsZero() {
		return s.now()
	}
	return t
}
