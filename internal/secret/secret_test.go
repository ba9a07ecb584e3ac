package secret

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/skyloom/skyloom/internal/store"
)

func open(t *testing.T) (*Store, *Ring, string) {
	t.Helper()
	dir := t.TempDir()
	db, err := store.Open(t.Context(), filepath.Join(dir, "s.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	r, err := LoadRing(filepath.Join(dir, "home", "secret.key"))
	if err != nil {
		t.Fatal(err)
	}
	return New(db, r), r, dir
}

func TestSecrets(t *testing.T) {
	s, ring, dir := open(t)
	ctx := t.Context()
	const value = "hunter2-the-very-secret-value"
	ref, err := s.Put(ctx, RequestScope("r1"), value)
	if err != nil || !IsRef(ref) || strings.Contains(ref, "hunter") {
		t.Fatal(ref, err)
	}
	again, err := s.Put(ctx, RequestScope("r1"), value)
	if err != nil || again != ref {
		t.Fatal("a repeated Put gave another reference", err)
	}
	other, err := s.Put(ctx, RequestScope("r2"), value)
	if err != nil || other == ref {
		t.Fatal("two scopes share a reference", err)
	}
	if v, err := s.Get(ctx, ref); v != value || err != nil {
		t.Fatal(v, err)
	}
	if err := ring.Rotate(); err != nil {
		t.Fatal(err)
	}
	newer, err := s.Put(ctx, RequestScope("r3"), "x")
	if err != nil {
		t.Fatal(err)
	}
	reloaded, err := LoadRing(ring.path)
	if err != nil {
		t.Fatal(err)
	}
	all, err := New(s.t, reloaded).GetAll(ctx, []string{ref, newer, other})
	if err != nil || all[ref] != value || all[newer] != "x" {
		t.Fatal(all, err)
	}

	if err := s.MoveScope(ctx, RequestScope("r1"), ClusterScope("h")); err != nil {
		t.Fatal(err)
	}
	if again, err := s.Put(ctx, RequestScope("r1"), value); err != nil || again != ref {
		t.Fatal(err)
	}
	if err := s.DeleteScope(ctx, RequestScope("r1")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, ref); err != nil {
		t.Fatal("a secret that the cluster needs went with the request: ", err)
	}
	if err := s.DeleteScope(ctx, ClusterScope("h")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, ref); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, other, ref); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GetAll(ctx, []string{newer, other}); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	if _, err := s.Put(ctx, "", "x"); err == nil {
		t.Fatal("a secret without a scope")
	}

	// Nothing in clear on the disk.
	if _, err := s.Put(ctx, RequestScope("r4"), value); err != nil {
		t.Fatal(err)
	}
	_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if b, err := os.ReadFile(p); err == nil && bytes.Contains(b, []byte("hunter2")) {
			t.Errorf("%s holds the secret in clear", p)
		}
		return nil
	})
}

func TestRefs(t *testing.T) {
	s, _, _ := open(t)
	for _, bad := range []string{"", "secret://", "secret://xyz", "hunter2", "secret://" + strings.Repeat("A", 40), "secret://" + strings.Repeat("a", 39)} {
		if IsRef(bad) {
			t.Error(bad)
		}
		_, err := s.Get(t.Context(), bad)
		if err == nil || (bad == "hunter2" && strings.Contains(err.Error(), bad)) {
			t.Errorf("%q: %v", bad, err)
		}
		if err := s.Delete(t.Context(), bad); err == nil {
			t.Error(bad)
		}
	}
}

func TestSealedIsBound(t *testing.T) {
	_, r, _ := open(t)
	a, err := r.seal([]byte("v"), "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.open(a, "b"); err == nil {
		t.Fatal("a sealed value opened under another reference")
	}
	b, _ := r.seal([]byte("v"), "a")
	if bytes.Equal(a, b) {
		t.Fatal("the same nonce twice")
	}
	for i := range a {
		bad := bytes.Clone(a)
		bad[i] ^= 1
		if _, err := r.open(bad, "a"); err == nil {
			t.Fatalf("byte %d may be altered", i)
		}
		if _, err := r.open(a[:i], "a"); err == nil {
			t.Fatalf("cut at %d", i)
		}
	}
}

func TestRingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h", "k")
	var wg sync.WaitGroup
	rings := make([]*Ring, 8)
	for i := range rings {
		wg.Go(func() {
			var err error
			if rings[i], err = LoadRing(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, r := range rings {
		if r == nil || r.file.Active != rings[0].file.Active {
			t.Fatal("two processes made two keys")
		}
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatal(fi.Mode(), err)
	}
	if list, _ := os.ReadDir(filepath.Dir(path)); len(list) != 1 {
		t.Fatalf("leftovers: %v", list)
	}
	good, _ := os.ReadFile(path)
	for name, content := range map[string]string{"empty": "", "cut": string(good[:len(good)/2]), "no keys": `{"active":"x","keys":{}}`, "short key": `{"active":"x","keys":{"x":"AAAA"}}`} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadRing(path); err == nil || !strings.Contains(err.Error(), "backup") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(path, good, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadRing(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Fatal(err)
	}
}

func TestDigest(t *testing.T) {
	s, r, _ := open(t)
	d := s.Digest([]byte("body"))
	if d != s.Digest([]byte("body")) || d == s.Digest([]byte("body2")) || len(d) != 64 {
		t.Fatal(d)
	}
	if err := r.Rotate(); err != nil || s.Digest([]byte("body")) != d {
		t.Fatal("a rotation changes digests", err)
	}
	s2, _, _ := open(t)
	if s2.Digest([]byte("body")) == d {
		t.Fatal("the digest is not keyed")
	}
}

func TestRedactor(t *testing.T) {
	const v = `p"ss/w&rd+1`
	j, _ := json.Marshal(v)
	r := NewRedactor(v, "longer-than-"+v, "", "  ", "7", "line one of key\nline two of key\n")
	for in, want := range map[string]string{
		"a " + v + " b":              "a ***** b",
		"json " + string(j):          `json "*****"`,
		"?q=" + url.QueryEscape(v):   "?q=*****",
		"/x/" + url.PathEscape(v):    "/x/*****",
		"longer-than-" + v:           Mask,
		"line two of key":            Mask,
		"port 7, 77, a7, 7.5 and (7": "port *****, 77, a7, 7.5 and (*****",
		"7":                          Mask,
		"7 7":                        "***** *****",
		"nothing here":               "nothing here",
		"b64 " + base64.StdEncoding.EncodeToString([]byte(v)): "b64 *****=",
	} {
		if got := r.String(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	if got := string(r.Bytes([]byte(v))); got != Mask {
		t.Error(got)
	}
	for _, none := range []*Redactor{nil, {}, NewRedactor()} {
		if none.String("x") != "x" || string(none.Bytes([]byte("x"))) != "x" {
			t.Error("an empty redactor changed the text")
		}
	}
}

type brokenTable struct{ Table }

func (brokenTable) PutSecret(context.Context, string, string, []byte) error {
	return errors.New("disk full")
}

func TestPutFails(t *testing.T) {
	_, r, _ := open(t)
	if _, err := New(brokenTable{}, r).Put(t.Context(), "s", "v"); err == nil {
		t.Fatal("a Put that was not stored succeeded")
	}
}
