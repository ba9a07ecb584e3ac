package bucket

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Kind says what may be done about an error.
type Kind string

// Kinds of errors.
const (
	KindUnsupported Kind = "unsupported" // no such kind of address
	KindInvalid     Kind = "invalid"     // the address or the settings are wrong
	KindNoBucket    Kind = "no-bucket"
	KindNotFound    Kind = "not-found" // no such object
	KindCredentials Kind = "credentials"
	KindDenied      Kind = "denied"
	KindRegion      Kind = "region"
	KindUnreachable Kind = "unreachable"
	KindBusy        Kind = "busy" // the store has trouble of its own
)

// Error is what went wrong with a bucket.
type Error struct {
	Kind    Kind
	Address string
	Text    string // what failed, and why
	Hint    string // what to do
	Err     error
}

func (e *Error) Error() string { return e.Address + ": " + e.Text }
func (e *Error) Unwrap() error { return e.Err }

// Is says whether an error is about a bucket and of one of some kinds.
func Is(err error, kinds ...Kind) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	for _, k := range kinds {
		if e.Kind == k {
			return true
		}
	}
	return false
}

// permissions are what a bucket's checkpoints need, by their names in AWS.
const permissions = "s3:PutObject, s3:GetObject, s3:DeleteObject, s3:AbortMultipartUpload and s3:ListMultipartUploadParts on its objects, s3:ListBucket on the bucket"

// fail tells what an answer of the store means. what is the operation in words: "write to it".
func (b *Bucket) fail(what string, err error) error {
	if err == nil {
		return nil
	}
	e := &Error{Kind: KindBusy, Address: b.base, Err: err}
	code, said, status := "", "", 0
	var api smithy.APIError
	if errors.As(err, &api) {
		code, said = api.ErrorCode(), api.ErrorMessage()
	}
	var resp *awshttp.ResponseError
	region := ""
	if errors.As(err, &resp) && resp.Response != nil {
		status, region = resp.HTTPStatusCode(), resp.Response.Header.Get("X-Amz-Bucket-Region")
	}
	var sent *smithyhttp.RequestSendError
	switch {
	case errors.Is(err, context.Canceled):
		e.Text = "it could not " + what + ": it was given up"
	case code == "NoSuchBucket":
		e.Kind, e.Text, e.Hint = KindNoBucket, "there is no such bucket", "make it first, or correct the address; buckets are never made here"
	case code == "NoSuchKey", code == "NotFound" && status == http.StatusNotFound, code == "NoSuchUpload":
		e.Kind, e.Text = KindNotFound, "could not "+what+": it is not there"
	case code == "AuthorizationHeaderMalformed", code == "PermanentRedirect", code == "IllegalLocationConstraintException", code == "IncorrectEndpoint", status == http.StatusMovedPermanently:
		e.Kind, e.Text, e.Hint = KindRegion, "it is in another region than the configuration says", "set buckets."+b.settingsName+".region to that of the bucket"
		if region != "" {
			e.Hint = fmt.Sprintf("set buckets.%s.region to %s", b.settingsName, region)
		} else if said != "" {
			e.Text += " (" + said + ")"
		}
	case code == "InvalidAccessKeyId", code == "SignatureDoesNotMatch", code == "ExpiredToken", code == "InvalidToken", code == "TokenRefreshRequired", status == http.StatusUnauthorized:
		e.Kind, e.Text, e.Hint = KindCredentials, "the store does not accept the server's credentials ("+code+")", b.credentialsHint()
	case code == "RequestTimeTooSkewed":
		e.Kind, e.Text, e.Hint = KindCredentials, "the clock of the server is wrong", "set it: the store accepts a few minutes of difference"
	case code == "AccessDenied", code == "AllAccessDisabled", code == "Forbidden", status == http.StatusForbidden:
		e.Kind, e.Text, e.Hint = KindDenied, "the server's credentials are valid, but they do not allow to "+what, "allow them "+permissions
	case code == "InvalidBucketName":
		e.Kind, e.Text = KindInvalid, "the store takes no bucket of that name"
	case errors.As(err, &sent), status == 0 && code == "":
		e.Kind, e.Text, e.Hint = KindUnreachable, "the server can't reach the store at "+b.host+": "+rootOf(err), "check buckets."+b.settingsName+".endpoint and the network"
	default:
		e.Text = fmt.Sprintf("could not %s: the store answers %d %s", what, status, code)
		if said != "" {
			e.Text += ": " + said
		}
	}
	return e
}

// rootOf is the innermost reason, in one line; it holds no address with a query.
func rootOf(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			break
		}
		err = next
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "it does not answer in time"
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	return text
}

func (b *Bucket) credentialsHint() string {
	s := b.settings
	switch {
	case s.CredentialsFile != "":
		return fmt.Sprintf("put valid keys into %s, or correct buckets.%s", s.CredentialsFile, b.settingsName)
	case s.Profile != "":
		return fmt.Sprintf("put valid keys into the profile %q of the server's ~/.aws/credentials, or correct buckets.%s.profile", s.Profile, b.settingsName)
	case b.address.Scheme == "s3":
		return "give the server the keys of an account: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in its environment, ~/.aws/credentials, a role of its machine, or buckets." + b.settingsName + ".profile"
	}
	return fmt.Sprintf("name the profile that holds the keys in buckets.%s.profile of the server's configuration", b.settingsName)
}
