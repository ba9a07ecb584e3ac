package secret

import (
	"context"
	"fmt"
	"strings"
)

// Table keeps sealed values; package store has one in its database. GetSecret's error for an unknown id is passed on.
type Table interface {
	PutSecret(ctx context.Context, id, scope string, sealed []byte) error
	GetSecret(ctx context.Context, id string) ([]byte, error)
	DeleteSecrets(ctx context.Context, ids ...string) error
	DeleteSecretScope(ctx context.Context, scope string) error
	RescopeSecrets(ctx context.Context, from, to string) error
}

// Store puts secrets away and gives them back by reference.
type Store struct {
	t Table
	r *Ring
}

// New makes a Store over a table and a key ring.
func New(t Table, r *Ring) *Store { return &Store{t: t, r: r} }

const prefix = "secret://"

// IsRef says whether s is a reference to a secret.
func IsRef(s string) bool {
	_, err := refID(s)
	return err == nil
}

func refID(ref string) (string, error) {
	id, ok := strings.CutPrefix(ref, prefix)
	if !ok || len(id) != 40 || strings.Trim(id, "0123456789abcdef") != "" {
		return "", fmt.Errorf("this is not a reference to a secret (%s<id>)", prefix) // the text itself may be one
	}
	return id, nil
}

// RequestScope is the scope of secrets that came with a request.
func RequestScope(id string) string { return "request/" + id }

// ClusterScope is the scope of secrets that a cluster incarnation needs.
func ClusterScope(hash string) string { return "cluster/" + hash }

// JobsScope is the scope of the secrets of managed jobs, by the request that submitted them: they outlive it.
func JobsScope(requestID string) string { return "jobs/" + requestID }

// Put stores a value in a scope and returns its reference; it is durable then. The same value in the same scope gives the
// same reference.
func (s *Store) Put(ctx context.Context, scope, value string) (ref string, err error) {
	if scope == "" {
		return "", fmt.Errorf("a secret needs a scope")
	}
	id := s.r.digest("ref", scope, value)[:40]
	sealed, err := s.r.seal([]byte(value), id)
	if err != nil {
		return "", err
	}
	return prefix + id, s.t.PutSecret(ctx, id, scope, sealed)
}

// Get returns the value of a reference.
func (s *Store) Get(ctx context.Context, ref string) (string, error) {
	id, err := refID(ref)
	if err != nil {
		return "", err
	}
	sealed, err := s.t.GetSecret(ctx, id)
	if err != nil {
		return "", err
	}
	plain, err := s.r.open(sealed, id)
	if err != nil {
		return "", fmt.Errorf("%s: %w", ref, err)
	}
	return string(plain), nil
}

// GetAll returns the values of several references, by reference.
func (s *Store) GetAll(ctx context.Context, refs []string) (map[string]string, error) {
	out := make(map[string]string, len(refs))
	for _, ref := range refs {
		v, err := s.Get(ctx, ref)
		if err != nil {
			return nil, err
		}
		out[ref] = v
	}
	return out, nil
}

// Delete removes secrets; those that are gone are skipped.
func (s *Store) Delete(ctx context.Context, refs ...string) error {
	ids := make([]string, 0, len(refs))
	for _, ref := range refs {
		id, err := refID(ref)
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	return s.t.DeleteSecrets(ctx, ids...)
}

// DeleteScope removes all secrets of a scope.
func (s *Store) DeleteScope(ctx context.Context, scope string) error {
	return s.t.DeleteSecretScope(ctx, scope)
}

// MoveScope binds all secrets of a scope to another, such as from the request to the cluster it made. References stay,
// also those that a repeated Put in the old scope gives.
func (s *Store) MoveScope(ctx context.Context, from, to string) error {
	return s.t.RescopeSecrets(ctx, from, to)
}

// Digest is a keyed hash of data in hex. Unlike a plain one it can't be used to try guesses of a secret in data.
func (s *Store) Digest(data []byte) string { return s.r.digest("digest", string(data)) }
