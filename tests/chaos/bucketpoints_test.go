//go:build unix

package chaos

import (
	"fmt"
	"testing"

	"github.com/skyloom/skyloom/tests/objectstore"
)

// TestBucketSaveFailpoints is TestSaveFailpoints with checkpoints in a bucket, on demand.
func TestBucketSaveFailpoints(t *testing.T) {
	t.Parallel()
	s := objectstore.Start(t)
	s.Bucket("chaos")
	in := openWith(t, fmt.Sprintf("buckets:\n  s3: {endpoint: %q, region: %s, profile: owner, credentials_file: %s}\n", s.URL, objectstore.Region, s.Credentials))
	killedWhileSaving(in, "s3://chaos/saved", bucketPoints, 0)
}
