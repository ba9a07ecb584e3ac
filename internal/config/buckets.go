package config

import (
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skyloom/skyloom/task/yamldoc"
)

// Bucket is how a kind of bucket, or one bucket, is reached. Empty settings have defaults that depend on the kind.
type Bucket struct {
	Endpoint        string // URL of the store
	Region          string
	Profile         string // of the AWS configuration and credentials files
	CredentialsFile string // in the format of ~/.aws/credentials, absolute
	PathStyle       *bool
}

var (
	bucketKinds  = []string{"s3", "gs", "r2", "nebius", "cw", "vastdata"}
	bucketFields = []string{"endpoint", "region", "profile", "credentials_file", "path_style"}
)

// Buckets returns how buckets are reached, by the kind of address ("r2") or by a bucket's address ("s3://name").
func (c *Config) Buckets() (map[string]Bucket, error) {
	out := map[string]Bucket{}
	var errs yamldoc.ErrorList
	section := c.Map("buckets")
	for _, name := range slices.Sorted(maps.Keys(section)) {
		fail := func(format string, args ...any) {
			errs = append(errs, &yamldoc.Error{Field: "buckets." + name, Msg: fmt.Sprintf(format, args...)})
		}
		kind, rest, one := strings.Cut(name, "://")
		if !slices.Contains(bucketKinds, kind) || one && (rest == "" || strings.Contains(rest, "/")) {
			fail("is neither a kind of bucket (%s) nor the address of one, such as s3://name%s", strings.Join(bucketKinds, ", "), yamldoc.DidYouMean(kind, bucketKinds))
			continue
		}
		fields, ok := section[name].(map[string]any)
		if !ok {
			if section[name] != nil {
				fail("must be an object with %s", strings.Join(bucketFields, ", "))
			}
			continue
		}
		b := Bucket{}
		for _, f := range slices.Sorted(maps.Keys(fields)) {
			if f == "path_style" {
				v, ok := fields[f].(bool)
				if !ok {
					fail("path_style must be true or false")
				}
				b.PathStyle = &v
				continue
			}
			v, ok := fields[f].(string)
			if !ok {
				fail("%s must be text", f)
			}
			switch f {
			case "endpoint":
				u, err := url.Parse(v)
				if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" {
					fail("endpoint must be an http or https address")
				}
				b.Endpoint = strings.TrimRight(v, "/")
			case "region":
				b.Region = v
			case "profile":
				b.Profile = v
			case "credentials_file":
				b.CredentialsFile = v
				if rest, below := strings.CutPrefix(v, "~/"); below {
					if home, err := os.UserHomeDir(); err == nil {
						b.CredentialsFile = filepath.Join(home, rest)
					}
				}
				if !filepath.IsAbs(b.CredentialsFile) {
					fail("credentials_file must be absolute, or begin with ~/")
				}
			default:
				fail("unknown setting %q%s", f, yamldoc.DidYouMean(f, bucketFields))
			}
		}
		out[name] = b
	}
	return out, errs.Err()
}
