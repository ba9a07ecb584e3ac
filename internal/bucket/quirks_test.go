package bucket_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/skyloom/skyloom/internal/bucket"
)

// TestQuirks is about two stores that can't run here: AWS, which tells of a bucket's region when it is asked in another one, and
// Google's, which can't check a signature that covers Accept-Encoding. What is looked at is what is sent to them.
func TestQuirks(t *testing.T) {
	var mu sync.Mutex
	var puts []http.Header
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodHead:
			w.Header().Set("X-Amz-Bucket-Region", "eu-west-3")
			w.WriteHeader(http.StatusMovedPermanently)
		case http.MethodPut:
			mu.Lock()
			puts = append(puts, r.Header.Clone())
			mu.Unlock()
		}
	}))
	defer s.Close()
	yes := true
	t.Setenv("AWS_ENDPOINT_URL_S3", s.URL)
	t.Setenv("AWS_ACCESS_KEY_ID", "key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	t.Setenv("AWS_REGION", "us-east-1")
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	r := bucket.New(map[string]bucket.Settings{"s3": {PathStyle: &yes}, "gs": {Endpoint: s.URL + "/storage.googleapis.com", PathStyle: &yes}})
	for i, to := range []string{"s3://bkt", "gs://bkt"} {
		a, err := bucket.Parse(to)
		if err != nil {
			t.Fatal(err)
		}
		b, err := r.Open(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Put(t.Context(), "x", "text/plain", []byte("x")); err != nil {
			t.Fatal(err)
		}
		signed := puts[i].Get("Authorization")
		_, headers, _ := strings.Cut(signed, "SignedHeaders=")
		for name := range puts[i] {
			if strings.Contains(strings.ToLower(name), "checksum") {
				t.Errorf("%s: %s is sent", to, name)
			}
		}
		if region := strings.Contains(signed, "/eu-west-3/s3/"); region != (i == 0) {
			t.Errorf("%s: signed with %s", to, signed)
		}
		if covered := strings.Contains(headers, "accept-encoding"); covered != (i == 0) {
			t.Errorf("%s: the signature covers %s", to, headers)
		}
		url, err := b.SignPut(t.Context(), "x", 1e9)
		if err != nil || strings.Contains(strings.ToLower(url), "checksum") || !strings.Contains(url, "X-Amz-SignedHeaders=host&") {
			t.Errorf("%s: %s %v", to, url, err)
		}
	}
}
