// Package bucket reaches object stores that speak the S3 protocol, on the server's side.
//
// It owns addresses (s3://bucket/prefix and those of compatible stores), the settings and credentials that go with them, and
// what an error of a store means to a person. It must not know what is kept in a bucket, nor nodes or jobs.
//
// Invariants:
//   - Credentials never leave the process: what others may do is signed into a URL, for one object and a limited time.
//   - Every error is an *Error that names the address and says what to do; none holds a signed URL.
//   - Nothing but objects below a key that the caller names is written or deleted.
//   - No checksum header is sent that the caller did not ask for, and none is signed into a URL: many compatible stores refuse them.
package bucket
