package engine

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"go.temporal.io/server/common/authorization"
)

// claimMapper knows one key: its bearer may do everything, anybody else nothing.
type claimMapper struct{ want [sha256.Size]byte }

func newClaimMapper(token string) claimMapper { return claimMapper{want: sha256.Sum256([]byte(token))} }

// GetClaims implements authorization.ClaimMapper. It compares digests, in constant time whatever the lengths.
func (m claimMapper) GetClaims(info *authorization.AuthInfo) (*authorization.Claims, error) {
	claims := &authorization.Claims{System: authorization.RoleUndefined}
	scheme, key, ok := strings.Cut(info.AuthToken, " ")
	if !ok || !strings.EqualFold(scheme, "bearer") {
		return claims, nil
	}
	got := sha256.Sum256([]byte(strings.TrimSpace(key)))
	if subtle.ConstantTimeCompare(got[:], m.want[:]) == 1 {
		claims.Subject = "skyloom"
		claims.System = authorization.RoleAdmin
	}
	return claims, nil
}

// authorizer lets administrators do everything. The internal frontend gives that role to the engine's own workers,
// which it knows by their certificate.
type authorizer struct{}

// healthCheck is open, as for any gRPC server: it tells only that the port is alive.
const healthCheck = "/grpc.health.v1.Health/Check"

// Authorize implements authorization.Authorizer.
func (authorizer) Authorize(_ context.Context, claims *authorization.Claims, target *authorization.CallTarget) (authorization.Result, error) {
	if target.APIName == healthCheck || claims != nil && claims.System >= authorization.RoleAdmin {
		return authorization.Result{Decision: authorization.DecisionAllow}, nil
	}
	return authorization.Result{
		Decision: authorization.DecisionDeny,
		Reason:   "the API key of this Skyloom server is missing or wrong; `sky api info` says where to find it",
	}, nil
}

// loadToken reads the instance's API key, or makes one.
func loadToken(path string) (string, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeToken(path)
	}
	if err != nil {
		return "", fmt.Errorf("engine: read its API key: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("engine: read its API key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("engine: its API key %s is readable by others (mode %04o), who could have driven the engine: remove the file, "+
			"the next start makes a new key", path, info.Mode().Perm())
	}
	token := strings.TrimSpace(string(data))
	if token == "" { // a crash of an older file system can leave an empty file
		return makeToken(path)
	}
	return token, nil
}

func makeToken(path string) (string, error) {
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		return "", fmt.Errorf("engine: make an API key: %w", err)
	}
	token := base64.RawURLEncoding.EncodeToString(raw)
	if err := writeFileAtomic(path, []byte(token+"\n")); err != nil {
		return "", fmt.Errorf("engine: keep its API key: %w", err)
	}
	return token, nil
}
