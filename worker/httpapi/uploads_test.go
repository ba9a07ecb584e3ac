package httpapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/artifact"
	"github.com/skyloom/skyloom/internal/filesync"
)

func TestUpload(t *testing.T) {
	e := newEnv(t)
	dir := t.TempDir()
	for i := range 20 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", i)), []byte(strings.Repeat(fmt.Sprint(i), 1000)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := filesync.Scan(t.Context(), dir, filesync.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	enc, err := tree.Manifest.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	c := e.client()
	r, err := c.PutManifest(t.Context(), enc)
	if err != nil || len(r.Missing) != 20 || r.ID != tree.Manifest.ID() {
		t.Fatalf("%+v %v", r, err)
	}
	missing, err := c.MissingBlobs(t.Context(), r.Missing[:3])
	if err != nil || len(missing) != 3 {
		t.Fatalf("%v %v", missing, err)
	}
	pack := func() (io.ReadCloser, error) {
		pr, pw := io.Pipe()
		go func() {
			pw.CloseWithError(filesync.WritePack(t.Context(), pw, tree, r.Missing, filesync.PackOptions{}))
		}()
		return pr, nil
	}
	if err := c.PutBlobs(t.Context(), pack); err != nil {
		t.Fatal(err)
	}
	if r, err = c.PutManifest(t.Context(), enc); err != nil || len(r.Missing) != 0 {
		t.Fatalf("%+v %v", r, err)
	}
	if missing, err = c.MissingBlobs(t.Context(), tree.Manifest.Hashes()); err != nil || missing == nil || len(missing) != 0 {
		t.Fatalf("%v %v", missing, err)
	}
}

// packOf makes a pack of one blob.
func packOf(t *testing.T, content []byte, hash string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := filesync.NewPackWriter(&b, filesync.PackOptions{Raw: true})
	if hash == "" {
		sum := sha256.Sum256(content)
		hash = hex.EncodeToString(sum[:])
	}
	if err := w.Add(hash, int64(len(content)), bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestBadUploads(t *testing.T) {
	e := newEnv(t, func(o *Options) { o.MaxUpload = 1 << 20 })
	content := []byte(strings.Repeat("x", 1000))
	good := packOf(t, content, "")
	put := func(path string, body []byte, status int, kind, detail string, headers ...string) {
		t.Helper()
		h := append([]string{"Authorization", "Bearer " + testToken, "Content-Type", "application/octet-stream"}, headers...)
		resp, got := e.send("PUT", "/api/v1/"+path, bytes.NewReader(body), h...)
		e.refused(resp, got, status, kind, detail)
	}
	put("blobs", nil, 400, api.ErrInvalid, "")
	put("blobs", []byte("rubbish"), 400, api.ErrInvalid, "")
	put("blobs", good[:len(good)-5], 400, api.ErrInvalid, "")
	put("blobs", append(append([]byte{}, good...), "more"...), 400, api.ErrInvalid, "")
	put("blobs", good, 415, api.ErrInvalid, "must be a pack", "Content-Type", "application/json")
	wrong := bytes.Clone(good)
	wrong[len(wrong)-50] ^= 1
	put("blobs", wrong, 400, api.ErrInvalid, "")
	put("manifests", []byte("rubbish"), 400, api.ErrInvalid, "")
	put("manifests", nil, 400, api.ErrInvalid, "")
	resp, body := e.call("POST", "/api/v1/blobs/missing", `{"hashes":["../../etc/passwd"]}`)
	e.refused(resp, body, 400, api.ErrInvalid, "SHA-256")
	resp, body = e.call("POST", "/api/v1/blobs/missing", `{"hashes":["`+strings.Repeat(`a","`, 10_000)+`a"]}`)
	e.refused(resp, body, 422, api.ErrInvalid, "hashes")

	// Larger than allowed: the refusal arrives although the sender goes on sending.
	big := packOf(t, bytes.Repeat([]byte("y"), 8<<20), "")
	resp, body = e.send("PUT", "/api/v1/blobs", bytes.NewReader(big), "Authorization", "Bearer "+testToken, "Content-Type", filesync.PackMediaType)
	if resp.StatusCode < 400 || resp.StatusCode >= 500 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if sum := sha256.Sum256(content); mustMissing(t, e, hex.EncodeToString(sum[:])) == false {
		t.Log("a valid blob of a damaged pack was kept, which is harmless")
	}
}

func mustMissing(t *testing.T, e *env, hash string) bool {
	m, err := e.art.Has(t.Context(), []string{hash})
	if err != nil {
		t.Fatal(err)
	}
	return len(m) == 1
}

func TestDiskFull(t *testing.T) {
	e := newEnv(t)
	for _, err := range []error{artifact.ErrFull, fmt.Errorf("x: %w", artifact.ErrFull), &os.PathError{Op: "write", Path: "/x", Err: errNoSpace}} {
		if p := e.s.toProblem(context.Background(), uploadError(err, "a pack")); p.Status != 507 || p.Type != api.ErrStorage || p.Hint == "" {
			t.Errorf("%v: %+v", err, p)
		}
	}
}
