//go:build unix

package bucket_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/internal/bucket"
	"github.com/skyloom/skyloom/tests/objectstore"
)

func settings(s *objectstore.Store, profile string) bucket.Settings {
	return bucket.Settings{Endpoint: s.URL, Region: objectstore.Region, Profile: profile, CredentialsFile: s.Credentials}
}

// kind checks of which kind an error is, that it tells what to do, and that it holds no key and no signed URL.
func kind(t *testing.T, what string, err error, want bucket.Kind) {
	t.Helper()
	var e *bucket.Error
	if !errors.As(err, &e) || e.Kind != want {
		t.Errorf("%s: %v (%+v), not %s", what, err, e, want)
		return
	}
	if e.Hint == "" || strings.Contains(e.Error()+e.Hint, "Signature=") {
		t.Errorf("%s: %v; hint %q", what, err, e.Hint)
	}
	t.Logf("%s: %v; %s", what, e, e.Hint)
}

func TestParse(t *testing.T) {
	a, err := bucket.Parse("s3://name/some/where/")
	if err != nil || a.Bucket != "name" || a.Key != "some/where" || a.Join("x", "y").String() != "s3://name/some/where/x/y" {
		t.Errorf("%+v %v", a, err)
	}
	for _, bad := range []string{"", "name", "/tmp/x", "s3://", "s3:///x", "s3://a b", "s3://name/../x", "s3://name/a//b", "s3://name/x?y", "s3://name/\x01"} {
		if _, err := bucket.Parse(bad); !bucket.Is(err, bucket.KindInvalid, bucket.KindUnsupported) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, later := range []string{"https://account.blob.core.windows.net/container", "oci://b", "hf://b", "cos://r/b", "file:///tmp"} {
		_, err := bucket.Parse(later)
		kind(t, later, err, bucket.KindUnsupported)
	}
}

// TestSettings is about addresses that the configuration does not say enough of.
func TestSettings(t *testing.T) {
	r := bucket.New(map[string]bucket.Settings{"nebius": {Region: "eu-north1"}, "s3://here": {Endpoint: "ftp://x"}})
	for _, good := range []string{"s3://bkt", "gs://bkt/c", "nebius://bkt", "cw://bkt"} {
		if err := r.Supported(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"r2://bkt", "vastdata://bkt", "s3://here/x"} {
		kind(t, bad, r.Supported(bad), bucket.KindInvalid)
	}
	kind(t, "no region", bucket.New(nil).Supported("nebius://bkt"), bucket.KindInvalid)
	var none *bucket.Registry
	kind(t, "no registry", none.Supported("s3://bkt"), bucket.KindUnsupported)
}

func TestCheck(t *testing.T) {
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	s := objectstore.Start(t)
	s.Bucket("mine")
	away := settings(s, "owner")
	away.Endpoint = "http://127.0.0.1:1"
	elsewhere := settings(s, "owner")
	elsewhere.Region = "eu-central-1"
	r := bucket.New(map[string]bucket.Settings{"s3": settings(s, "owner"), "gs": settings(s, "guest"), "r2": settings(s, "wrong"), "cw": settings(s, "nobody"), "vastdata": away, "nebius": elsewhere})
	if err := r.Check(t.Context(), "s3://mine/some/where"); err != nil {
		t.Error(err)
	}
	if left := s.Objects("mine"); len(left) > 0 {
		t.Errorf("a check leaves %v", left)
	}
	kind(t, "no such bucket", r.Check(t.Context(), "s3://nobodys"), bucket.KindNoBucket)
	kind(t, "no permission", r.Check(t.Context(), "gs://mine"), bucket.KindDenied)
	kind(t, "wrong keys", r.Check(t.Context(), "r2://mine"), bucket.KindCredentials)
	kind(t, "no such profile", r.Check(t.Context(), "cw://mine"), bucket.KindCredentials)
	kind(t, "away", r.Check(t.Context(), "vastdata://mine"), bucket.KindUnreachable)
	kind(t, "another region", r.Check(t.Context(), "nebius://mine"), bucket.KindRegion)
	// What was wrong is looked at anew.
	s.Bucket("nobodys")
	if err := r.Check(t.Context(), "s3://nobodys"); err != nil {
		t.Error(err)
	}
}

// TestObjects moves objects as a node does, with nothing but URLs.
func TestObjects(t *testing.T) {
	s := objectstore.Start(t)
	s.Bucket("bkt")
	a, _ := bucket.Parse("s3://bkt")
	b, err := bucket.New(map[string]bucket.Settings{"s3": settings(s, "owner")}).Open(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	put := func(url string, data []byte) int {
		t.Helper()
		req, _ := http.NewRequestWithContext(t.Context(), "PUT", url, bytes.NewReader(data))
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return resp.StatusCode
	}
	url, err := b.SignPut(t.Context(), "x/one", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if got := put(url, []byte("first")); got != 200 {
		t.Errorf("PUT: %d", got)
	}
	if got := put(strings.Replace(url, "/x/one", "/x/two", 1), []byte("else")); got != 403 {
		t.Errorf("PUT of another object with its URL: %d", got)
	}
	if data, err := b.Get(t.Context(), "x/one", 100); err != nil || string(data) != "first" {
		t.Errorf("%q %v", data, err)
	}
	_, err = b.Get(t.Context(), "x/none", 100)
	if !bucket.Is(err, bucket.KindNotFound) {
		t.Error(err)
	}
	if _, err = b.Get(t.Context(), "x/one", 3); err == nil {
		t.Error("more than was asked for")
	}
	// In parts.
	big := bytes.Repeat([]byte("0123456789abcdef"), (bucket.MinPart+100)/16)
	id, err := b.StartParts(t.Context(), "x/big")
	if err != nil {
		t.Fatal(err)
	}
	for n, part := range [][]byte{big[:bucket.MinPart], big[bucket.MinPart:]} {
		url, err := b.SignPart(t.Context(), "x/big", id, n+1, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			if err := b.FinishParts(t.Context(), "x/big", id, 2, int64(len(big))); err == nil {
				t.Error("finished without its end")
			}
		}
		if got := put(url, part); got != 200 {
			t.Errorf("PUT of part %d: %d", n+1, got)
		}
	}
	if err := b.FinishParts(t.Context(), "x/big", id, 2, int64(len(big))); err != nil {
		t.Error(err)
	}
	if data, err := b.Get(t.Context(), "x/big", int64(len(big))); err != nil || !bytes.Equal(data, big) {
		t.Errorf("%d bytes %v", len(data), err)
	}
	if _, err := b.StartParts(t.Context(), "x/never"); err != nil {
		t.Error(err)
	}
	if err := b.AbortAllParts(t.Context(), "x/"); err != nil {
		t.Error(err)
	}
	var keys []string
	if err := b.List(t.Context(), "x/", func(o bucket.Object) { keys = append(keys, o.Key) }); err != nil || strings.Join(keys, " ") != "x/big x/one" {
		t.Error(keys, err)
	}
	if err := b.Delete(t.Context(), "x/big", "x/one", "x/none"); err != nil {
		t.Error(err)
	}
	if left := s.Objects("bkt"); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
}
