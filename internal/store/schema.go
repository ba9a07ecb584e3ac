package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"time"
)

// migration is one step of the schema. Steps that landed are never edited.
type migration struct {
	version int
	tag     string // stands in the database; another tag means another product's schema
	// compat is the lowest version of the code that may still use a database with this step: additive steps keep it, so
	// that two versions of the server can run during an upgrade.
	compat int
	sql    string
}

var migrations = []migration{{
	version: 1, tag: "skyloom-0001-initial", compat: 1,
	// Times are Unix microseconds unless a name says otherwise.
	sql: `
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);

CREATE TABLE cluster_names (name TEXT PRIMARY KEY, hash TEXT NOT NULL, request_id TEXT NOT NULL, claimed BIGINT NOT NULL);

CREATE TABLE clusters (
  name TEXT PRIMARY KEY, hash TEXT NOT NULL UNIQUE, seq BIGINT NOT NULL, status TEXT NOT NULL, user_hash TEXT NOT NULL,
  workspace TEXT NOT NULL, launched BIGINT NOT NULL, summary TEXT NOT NULL, task_yaml TEXT NOT NULL);

CREATE TABLE cluster_history (
  hash TEXT PRIMARY KEY, name TEXT NOT NULL, seq BIGINT NOT NULL, removed BIGINT NOT NULL, user_hash TEXT NOT NULL,
  workspace TEXT NOT NULL, launched BIGINT NOT NULL, summary TEXT NOT NULL, task_yaml TEXT NOT NULL);
CREATE INDEX cluster_history_removed ON cluster_history (removed);
CREATE INDEX cluster_history_name ON cluster_history (name);

CREATE TABLE usage_intervals (
  hash TEXT NOT NULL, n BIGINT NOT NULL, name TEXT NOT NULL, user_name TEXT NOT NULL, user_hash TEXT NOT NULL, nodes BIGINT NOT NULL,
  price DOUBLE PRECISION NOT NULL, resources TEXT NOT NULL, resources_str TEXT NOT NULL, started BIGINT NOT NULL, ended BIGINT,
  PRIMARY KEY (hash, n));

CREATE TABLE jobs (
  hash TEXT NOT NULL, job_id BIGINT NOT NULL, cluster TEXT NOT NULL, seq BIGINT NOT NULL, status TEXT NOT NULL, terminal BIGINT NOT NULL,
  user_hash TEXT NOT NULL, ended BIGINT NOT NULL, data TEXT NOT NULL,
  PRIMARY KEY (hash, job_id));
CREATE INDEX jobs_open ON jobs (hash) WHERE terminal = 0;

CREATE TABLE requests (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL, status TEXT NOT NULL, terminal BIGINT NOT NULL, msg TEXT NOT NULL,
  cluster TEXT NOT NULL, user_name TEXT NOT NULL, user_hash TEXT NOT NULL, command TEXT NOT NULL, created BIGINT NOT NULL,
  finished BIGINT, next_retry BIGINT, result TEXT, error TEXT, body {blob}, body_hash TEXT NOT NULL);
CREATE INDEX requests_created ON requests (created);
CREATE INDEX requests_open ON requests (created) WHERE terminal = 0;
CREATE INDEX requests_finished ON requests (finished) WHERE terminal = 1;

CREATE TABLE events (
  id {serial}, key TEXT NOT NULL UNIQUE, at BIGINT NOT NULL, cluster TEXT NOT NULL, hash TEXT NOT NULL, request_id TEXT NOT NULL,
  kind TEXT NOT NULL, data TEXT NOT NULL);
CREATE INDEX events_request ON events (request_id, id) WHERE request_id <> '';
CREATE INDEX events_cluster ON events (cluster, id) WHERE cluster <> '';
CREATE INDEX events_hash ON events (hash, id) WHERE hash <> '';

CREATE TABLE watches (
  hash TEXT PRIMARY KEY, cluster TEXT NOT NULL, data TEXT NOT NULL, seen BIGINT NOT NULL, owner TEXT NOT NULL, fence BIGINT NOT NULL,
  until_ms BIGINT NOT NULL);
CREATE INDEX watches_until ON watches (until_ms);

CREATE TABLE secrets (id TEXT PRIMARY KEY, scope TEXT NOT NULL, data {blob} NOT NULL, created BIGINT NOT NULL);
CREATE INDEX secrets_scope ON secrets (scope);
`,
}, {
	version: 2, tag: "skyloom-0002-managed-jobs", compat: 1,
	sql: `
ALTER TABLE events ADD COLUMN job_id BIGINT NOT NULL DEFAULT 0;
CREATE INDEX events_job ON events (job_id, id) WHERE job_id <> 0;

-- Clusters of managed jobs, which lists leave out.
ALTER TABLE clusters ADD COLUMN managed BIGINT NOT NULL DEFAULT 0;
CREATE INDEX clusters_plain ON clusters (name) WHERE managed = 0;

CREATE TABLE job_numbers (job_id {serial}, request_id TEXT NOT NULL, n BIGINT NOT NULL, UNIQUE (request_id, n));

CREATE TABLE managed_jobs (
  job_id BIGINT NOT NULL, task_id BIGINT NOT NULL, seq BIGINT NOT NULL, status TEXT NOT NULL, terminal BIGINT NOT NULL, name TEXT NOT NULL,
  user_hash TEXT NOT NULL, request_id TEXT NOT NULL, priority BIGINT NOT NULL, submitted BIGINT NOT NULL, ended BIGINT NOT NULL, data TEXT NOT NULL,
  PRIMARY KEY (job_id, task_id));
CREATE INDEX managed_jobs_open ON managed_jobs (job_id, user_hash) WHERE terminal = 0;
CREATE INDEX managed_jobs_ended ON managed_jobs (job_id, ended) WHERE terminal = 1;
CREATE INDEX managed_jobs_status ON managed_jobs (status, job_id);
CREATE INDEX managed_jobs_user ON managed_jobs (user_hash, job_id, status, terminal);
CREATE INDEX managed_jobs_name ON managed_jobs (name, job_id);
CREATE INDEX managed_jobs_submitted ON managed_jobs (submitted, job_id);
CREATE INDEX managed_jobs_request ON managed_jobs (request_id, job_id) WHERE request_id <> '';

CREATE TABLE managed_yaml (job_id BIGINT NOT NULL, task_id BIGINT NOT NULL, yaml TEXT NOT NULL, PRIMARY KEY (job_id, task_id));

CREATE TABLE admissions (
  job_id BIGINT PRIMARY KEY, priority BIGINT NOT NULL, user_hash TEXT NOT NULL, infra TEXT NOT NULL, asked BIGINT NOT NULL,
  waiting BIGINT NOT NULL, phase TEXT NOT NULL, told BIGINT NOT NULL);
CREATE INDEX admissions_waiting ON admissions (priority, phase, user_hash, infra, job_id) WHERE waiting = 1;
CREATE INDEX admissions_untold ON admissions (job_id) WHERE told = 0;

-- How many wait and how many were let in, kept with the rows above, so that a decision reads a few rows and not all.
CREATE TABLE admission_queues (
  priority BIGINT NOT NULL, phase TEXT NOT NULL, user_hash TEXT NOT NULL, infra TEXT NOT NULL, waiting BIGINT NOT NULL,
  PRIMARY KEY (priority, phase, user_hash, infra));
CREATE TABLE admission_use (
  infra TEXT NOT NULL, user_hash TEXT NOT NULL, launching BIGINT NOT NULL, running BIGINT NOT NULL,
  PRIMARY KEY (infra, user_hash));
`,
}, {
	version: 3, tag: "skyloom-0003-checkpoints", compat: 1, sql: checkpointSchema,
}, {
	version: 4, tag: "skyloom-0004-managed-files", compat: 1,
	sql: `CREATE TABLE managed_files (job_id BIGINT NOT NULL, manifest TEXT NOT NULL, PRIMARY KEY (job_id, manifest));`,
}, {
	version: 5, tag: "skyloom-0005-job-waits", compat: 1, sql: afterSchema,
}, {
	version: 6, tag: "skyloom-0006-checkpoint-order", compat: 1,
	sql: `ALTER TABLE checkpoints ADD COLUMN taken BIGINT NOT NULL DEFAULT 0;`,
}, {
	version: 7, tag: "skyloom-0007-schedules", compat: 1, sql: scheduleSchema,
}, {
	version: 8, tag: "skyloom-0008-notices", compat: 1, sql: noticeSchema,
}, {
	version: 9, tag: "skyloom-0009-arrays", compat: 1, sql: arraySchema,
}, {
	version: 10, tag: "skyloom-0010-notices-delivered", compat: 1,
	sql: `ALTER TABLE notice_streams ADD COLUMN delivered BIGINT NOT NULL DEFAULT 0;`,
}, {
	version: 11, tag: "skyloom-0011-checkpoint-places", compat: 1,
	sql: `ALTER TABLE checkpoints ADD COLUMN place TEXT NOT NULL DEFAULT '';`,
}}

const versionTable = `CREATE TABLE schema_version (version BIGINT PRIMARY KEY, tag TEXT NOT NULL, compat BIGINT NOT NULL, applied BIGINT NOT NULL)`

// migrate brings the schema to the newest version. The caller holds the only connection that writes.
func migrate(ctx context.Context, conn *sql.Conn, path string, d dialect, steps []migration) (err error) {
	want := steps[len(steps)-1].version
	found, err := checkSchema(ctx, conn, path, steps)
	if err != nil || found >= want {
		return err
	}
	if found > 0 {
		backup := fmt.Sprintf("%s.before-schema-%d", path, want)
		_ = os.Remove(backup) // one of an attempt that was cut short
		if _, err := conn.ExecContext(ctx, "VACUUM INTO ?", backup); err != nil {
			return fmt.Errorf("cannot back the database up before its schema changes: %w", wrapErr(path, err))
		}
	}
	if _, err := conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return wrapErr(path, err)
	}
	defer func() {
		if err != nil {
			_, _ = conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		}
	}()
	// Another server may have done it while this one waited for the lock.
	if found, err = checkSchema(ctx, conn, path, steps); err != nil {
		return err
	}
	if found == 0 {
		if _, err := conn.ExecContext(ctx, versionTable); err != nil {
			return wrapErr(path, err)
		}
	}
	for _, m := range steps {
		if m.version <= found {
			continue
		}
		if _, err := conn.ExecContext(ctx, d.expand(m.sql)); err != nil {
			return fmt.Errorf("schema %d (%s): %w", m.version, m.tag, wrapErr(path, err))
		}
		if _, err := conn.ExecContext(ctx, "INSERT INTO schema_version VALUES (?, ?, ?, ?)", m.version, m.tag, m.compat, time.Now().UnixMicro()); err != nil {
			return wrapErr(path, err)
		}
	}
	_, err = conn.ExecContext(ctx, "COMMIT")
	return wrapErr(path, err)
}

// checkSchema finds the version of a database, 0 if it is new, and refuses one that is not ours or too new.
func checkSchema(ctx context.Context, conn *sql.Conn, path string, steps []migration) (int, error) {
	want := steps[len(steps)-1].version
	var tables, ours int
	err := conn.QueryRowContext(ctx, "SELECT count(*), coalesce(sum(name = 'schema_version'), 0) FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'").Scan(&tables, &ours)
	if err != nil {
		return 0, wrapErr(path, err)
	}
	if ours == 0 {
		if tables > 0 {
			return 0, &SchemaError{Path: path, Want: want, Reason: "it belongs to another program; choose another file"}
		}
		return 0, nil
	}
	rows, err := conn.QueryContext(ctx, "SELECT version, tag, compat FROM schema_version ORDER BY version")
	if err != nil {
		return 0, wrapErr(path, err)
	}
	defer rows.Close()
	found, compat := 0, 0
	for rows.Next() {
		var v, c int
		var tag string
		if err := rows.Scan(&v, &tag, &c); err != nil {
			return 0, wrapErr(path, err)
		}
		for _, m := range steps {
			if m.version == v && m.tag != tag {
				return 0, &SchemaError{Path: path, Found: v, Want: want, Reason: fmt.Sprintf("step %d of its schema is %q, not %q; it belongs to another program or build", v, tag, m.tag)}
			}
		}
		found, compat = v, max(compat, c)
	}
	if err := rows.Err(); err != nil {
		return 0, wrapErr(path, err)
	}
	if compat > want {
		return 0, &SchemaError{Path: path, Found: found, Want: want, Reason: "a newer version of the server has changed it; run that version, or put back the backup made before the upgrade"}
	}
	return found, nil
}

// quickCheckLimit is the size in bytes up to which a database is checked whole when it is opened.
const quickCheckLimit = 16 << 20

func quickCheck(ctx context.Context, conn *sql.Conn, path string) error {
	fi, err := os.Stat(path)
	if err != nil || fi.Size() > quickCheckLimit {
		return err
	}
	var verdict string
	if err := conn.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return wrapErr(path, err)
	}
	if verdict != "ok" {
		return &CorruptError{Path: path, Err: errors.New(verdict)}
	}
	return nil
}
