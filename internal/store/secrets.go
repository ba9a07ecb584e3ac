package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// PutSecret stores sealed bytes under an id, durably. An id that exists stays as it is, in the scope that
// it may have been moved to.
func (s *Store) PutSecret(ctx context.Context, id, scope string, sealed []byte) error {
	return s.update(ctx, true, func(t *txn) error {
		_, err := t.exec(`INSERT INTO secrets (id, scope, data, created)
		VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING`, id, scope, sealed, s.now().UnixMicro())
		return err
	})
}

// GetSecret reads sealed bytes.
func (s *Store) GetSecret(ctx context.Context, id string) (sealed []byte, err error) {
	err = s.row(ctx, "SELECT data FROM secrets WHERE id = ?", id).Scan(&sealed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("secret %s: %w", id, ErrNotFound)
	}
	return sealed, s.wrap(err)
}

// DeleteSecrets removes secrets; those that don't exist are skipped.
func (s *Store) DeleteSecrets(ctx context.Context, ids ...string) error {
	return s.update(ctx, false, func(t *txn) error {
		for _, id := range ids {
			if _, err := t.exec("DELETE FROM secrets WHERE id = ?", id); err != nil {
				return err
			}
		}
		return nil
	})
}

// DeleteSecretScope removes all secrets of a scope.
func (s *Store) DeleteSecretScope(ctx context.Context, scope string) error {
	return s.update(ctx, false, func(t *txn) error {
		_, err := t.exec("DELETE FROM secrets WHERE scope = ?", scope)
		return err
	})
}

// RescopeSecrets moves all secrets of a scope to another, durably.
func (s *Store) RescopeSecrets(ctx context.Context, from, to string) error {
	return s.update(ctx, true, func(t *txn) error {
		_, err := t.exec("UPDATE secrets SET scope = ? WHERE scope = ?", to, from)
		return err
	})
}
