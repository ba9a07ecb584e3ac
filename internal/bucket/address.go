package bucket

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Address names a bucket, or a place in one.
type Address struct {
	Scheme string // as in schemes
	Bucket string
	Key    string // without slashes at its ends; "": the whole bucket
}

// scheme is a kind of address.
type scheme struct {
	endpoint string // used where the settings name none; %s is the region
	region   string // the same
	virtual  bool   // the bucket is part of the host's name, unless the settings say otherwise
	what     string
}

// schemes are the stores that are reached by the S3 protocol. AWS itself has no endpoint: it follows from the region.
var schemes = map[string]scheme{
	"s3":       {virtual: true, what: "Amazon S3"},
	"gs":       {endpoint: "https://storage.googleapis.com", region: "auto", what: "Google Cloud Storage, with HMAC keys"},
	"r2":       {region: "auto", what: "Cloudflare R2"},
	"nebius":   {endpoint: "https://storage.%s.nebius.cloud", what: "Nebius Object Storage"},
	"cw":       {endpoint: "https://cwobject.com", region: "us-east-1", virtual: true, what: "CoreWeave Object Storage"},
	"vastdata": {region: "us-east-1", what: "VAST Data"},
}

// Schemes lists the kinds of addresses that are supported, in order.
func Schemes() []string { return slices.Sorted(maps.Keys(schemes)) }

// bucketName is what the stores have in common; each refuses more than this.
var bucketName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]$`)

// maxKey bounds the key of an address, in bytes: S3 takes 1024 for an object's.
const maxKey = 700

// Parse reads an address. Its errors are an *Error of KindUnsupported or KindInvalid.
func Parse(text string) (Address, error) {
	name, rest, ok := strings.Cut(text, "://")
	if _, known := schemes[name]; !ok || !known {
		return Address{}, &Error{Kind: KindUnsupported, Address: text, Text: "this kind of bucket is not supported", Hint: "supported are " + strings.Join(Schemes(), "://, ") + "://"}
	}
	a := Address{Scheme: name}
	a.Bucket, a.Key, _ = strings.Cut(rest, "/")
	a.Key = strings.Trim(a.Key, "/")
	bad := func(format string, args ...any) (Address, error) {
		return Address{}, &Error{Kind: KindInvalid, Address: text, Text: fmt.Sprintf(format, args...), Hint: "it looks like " + name + "://bucket/folder"}
	}
	switch {
	case !bucketName.MatchString(a.Bucket):
		return bad("%q is not the name of a bucket", a.Bucket)
	case len(a.Key) > maxKey:
		return bad("the folder is longer than %d bytes", maxKey)
	case strings.ContainsAny(a.Key, "?#\x00\\") || strings.ContainsFunc(a.Key, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }):
		return bad("the folder has characters that not every store takes")
	}
	for part := range strings.SplitSeq(a.Key, "/") {
		if a.Key != "" && (part == "" || part == "." || part == "..") {
			return bad("the folder is not a plain path")
		}
	}
	return a, nil
}

// Join is a place below the address.
func (a Address) Join(parts ...string) Address {
	if a.Key != "" {
		parts = append([]string{a.Key}, parts...)
	}
	a.Key = strings.Join(parts, "/")
	return a
}

func (a Address) String() string {
	if a.Key == "" {
		return a.Scheme + "://" + a.Bucket
	}
	return a.Scheme + "://" + a.Bucket + "/" + a.Key
}
