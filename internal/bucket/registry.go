package bucket

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Settings say how a kind of address, or one bucket, is reached. Empty ones have defaults.
type Settings struct {
	Endpoint        string // URL of the store
	Region          string
	Profile         string // of the AWS configuration and credentials files
	CredentialsFile string // in the format of ~/.aws/credentials
	PathStyle       *bool  // the bucket is part of the path, not of the host's name
}

const (
	// keepOpen is how long an opened bucket is used before its credentials are looked up anew: files may change.
	keepOpen = 10 * time.Minute
	// reachTime bounds one call of the server's own to a store.
	reachTime = time.Minute
	// fallbackRegion is where AWS tells of the region of every bucket.
	fallbackRegion = "us-east-1"
)

// Registry opens buckets by address.
type Registry struct {
	settings map[string]Settings // by scheme, or scheme://bucket

	mu     sync.Mutex
	open   map[string]*opened
	checks map[string]*check
}

type opened struct {
	mu    sync.Mutex
	b     *Bucket
	until time.Time
}

// New makes a registry. The settings stand by the kind of address ("r2") or by a bucket's address ("s3://name"), which counts more.
func New(settings map[string]Settings) *Registry {
	return &Registry{settings: settings, open: map[string]*opened{}, checks: map[string]*check{}}
}

// of finds what holds for an address, and the name that it stands by.
func (r *Registry) of(a Address) (Settings, string) {
	own := a.Scheme + "://" + a.Bucket
	if s, ok := r.settings[own]; ok {
		return s, own
	}
	return r.settings[a.Scheme], a.Scheme
}

// Supported says, without asking anybody, whether an address can be used. Its errors are an *Error. A nil registry has none.
func (r *Registry) Supported(text string) error {
	if r == nil {
		return &Error{Kind: KindUnsupported, Address: text, Text: "this server reaches no buckets", Hint: "leave it out"}
	}
	a, err := Parse(text)
	if err != nil {
		return err
	}
	_, _, err = r.endpoint(a)
	return err
}

// endpoint gives the store's URL, "" for AWS itself, and the region, "" if AWS is to tell.
func (r *Registry) endpoint(a Address) (endpoint, region string, err error) {
	s, name := r.of(a)
	def := schemes[a.Scheme]
	region = s.Region
	if region == "" {
		region = def.region
	}
	switch {
	case s.Endpoint != "":
		endpoint = s.Endpoint
	case strings.Contains(def.endpoint, "%s"):
		if region == "" {
			return "", "", &Error{Kind: KindInvalid, Address: a.String(), Text: "the server's configuration does not say in which region of " + def.what + " it is", Hint: "set buckets." + name + ".region"}
		}
		endpoint = fmt.Sprintf(def.endpoint, region)
	case def.endpoint == "" && a.Scheme != "s3":
		return "", "", &Error{Kind: KindInvalid, Address: a.String(), Text: "the server's configuration does not say where " + def.what + " is reached", Hint: "set buckets." + name + ".endpoint, and .profile for the keys"}
	default:
		endpoint = def.endpoint
	}
	if endpoint != "" {
		if u, err := url.Parse(endpoint); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return "", "", &Error{Kind: KindInvalid, Address: a.String(), Text: fmt.Sprintf("buckets.%s.endpoint is not an http or https address", name), Hint: "correct it in the server's configuration"}
		}
		if region == "" {
			region = fallbackRegion
		}
	}
	return endpoint, region, nil
}

// Open gives access to the bucket of an address. It finds credentials, and the region of a bucket of AWS. Its errors are an *Error.
func (r *Registry) Open(ctx context.Context, a Address) (*Bucket, error) {
	own := a.Scheme + "://" + a.Bucket
	r.mu.Lock()
	o := r.open[own]
	if o == nil {
		o = &opened{}
		r.open[own] = o
	}
	r.mu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.b != nil && time.Now().Before(o.until) {
		return o.b, nil
	}
	b, err := r.connect(ctx, Address{Scheme: a.Scheme, Bucket: a.Bucket})
	if err != nil {
		return nil, err
	}
	o.b, o.until = b, time.Now().Add(keepOpen)
	return b, nil
}

func (r *Registry) connect(ctx context.Context, a Address) (*Bucket, error) {
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	endpoint, region, err := r.endpoint(a)
	if err != nil {
		return nil, err
	}
	b := &Bucket{address: a, base: a.String(), name: a.Bucket}
	b.settings, b.settingsName = r.of(a)
	load := []func(*awsconfig.LoadOptions) error{
		awsconfig.WithRequestChecksumCalculation(aws.RequestChecksumCalculationWhenRequired),
		awsconfig.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired),
	}
	if region != "" {
		load = append(load, awsconfig.WithRegion(region))
	}
	if p := b.settings.Profile; p != "" {
		load = append(load, awsconfig.WithSharedConfigProfile(p))
	}
	if f := b.settings.CredentialsFile; f != "" {
		load = append(load, awsconfig.WithSharedCredentialsFiles([]string{f}))
	}
	cfg, err := awsconfig.LoadDefaultConfig(ctx, load...)
	if err == nil {
		_, err = cfg.Credentials.Retrieve(ctx)
	}
	if err != nil {
		var missing awsconfig.SharedConfigProfileNotExistError
		text := "the server has no credentials for it"
		if errors.As(err, &missing) {
			text += fmt.Sprintf(": there is no profile %q", b.settings.Profile)
		}
		return nil, &Error{Kind: KindCredentials, Address: b.base, Text: text, Hint: b.credentialsHint(), Err: err}
	}
	pathStyle := endpoint != "" && !schemes[a.Scheme].virtual || b.settings.Endpoint != ""
	if b.settings.PathStyle != nil {
		pathStyle = *b.settings.PathStyle
	}
	ask := cfg.Region == "" || endpoint == "" && b.settings.Region == ""
	if cfg.Region == "" {
		cfg.Region = fallbackRegion
	}
	b.connect(cfg, endpoint, pathStyle)
	if ask && cfg.BaseEndpoint == nil {
		if is := b.region(ctx); is != "" && is != cfg.Region {
			cfg.Region = is
			b.connect(cfg, endpoint, pathStyle)
		}
	}
	return b, nil
}

func (b *Bucket) connect(cfg aws.Config, endpoint string, pathStyle bool) {
	reach := func(o *s3.Options) {
		o.UsePathStyle = pathStyle
		if endpoint != "" {
			o.BaseEndpoint = &endpoint
		}
	}
	b.signer = s3.NewPresignClient(s3.NewFromConfig(cfg, reach)) // a URL covers no such header
	if strings.Contains(endpoint, "googleapis.com") {
		cfg.APIOptions = append(slices.Clone(cfg.APIOptions), dropAcceptEncoding)
	}
	b.client = s3.NewFromConfig(cfg, reach)
	b.host = "AWS in " + cfg.Region
	if u, err := url.Parse(endpoint); err == nil && u.Host != "" {
		b.host = u.Host
	}
}

// region asks where a bucket of AWS is; "": nobody said. It needs no permission: a refusal says so as well.
func (b *Bucket) region(ctx context.Context) string {
	out, err := b.client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &b.name})
	if err == nil {
		return aws.ToString(out.BucketRegion)
	}
	var resp *awshttp.ResponseError
	if errors.As(err, &resp) && resp.Response != nil {
		return resp.Response.Header.Get("X-Amz-Bucket-Region")
	}
	return ""
}

// dropAcceptEncoding takes a header out before the signature is made: Google's servers change it on its way, and then find the
// signature wrong.
func dropAcceptEncoding(stack *middleware.Stack) error {
	return stack.Finalize.Insert(middleware.FinalizeMiddlewareFunc("DropAcceptEncoding", func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
		if req, ok := in.Request.(*smithyhttp.Request); ok {
			req.Header.Del("Accept-Encoding")
		}
		return next.HandleFinalize(ctx, in)
	}), "Signing", middleware.Before)
}
