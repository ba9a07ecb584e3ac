package bucket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"
)

// Limits of the S3 protocol.
const (
	MaxParts    = 10_000  // of one object
	MinPart     = 5 << 20 // bytes; the last may be smaller
	deletesOnce = 8
)

// Bucket is a bucket that can be reached. Keys are those of its objects, from the bucket's root.
type Bucket struct {
	address      Address
	base         string // the bucket's address
	name         string
	host         string // of the store, for people
	settings     Settings
	settingsName string // what they stand by in the configuration
	client       *s3.Client
	signer       *s3.PresignClient
}

// Address names the bucket.
func (b *Bucket) Address() Address { return b.address }

// Object is one object of a listing.
type Object struct {
	Key  string
	Size int64 // bytes
}

// List hands each object below a prefix to visit, in order.
func (b *Bucket) List(ctx context.Context, prefix string, visit func(Object)) error {
	pages := s3.NewListObjectsV2Paginator(b.client, &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: &prefix})
	for pages.HasMorePages() {
		cctx, cancel := context.WithTimeout(ctx, reachTime)
		page, err := pages.NextPage(cctx)
		cancel()
		if err != nil {
			return b.fail("list what is in it", err)
		}
		for i := range page.Contents {
			visit(Object{Key: aws.ToString(page.Contents[i].Key), Size: aws.ToInt64(page.Contents[i].Size)})
		}
	}
	return nil
}

// Put writes a small object, whole or not at all.
func (b *Bucket) Put(ctx context.Context, key, mediaType string, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	size := int64(len(data))
	_, err := b.client.PutObject(ctx, &s3.PutObjectInput{Bucket: &b.name, Key: &key, Body: bytes.NewReader(data), ContentLength: &size, ContentType: &mediaType})
	return b.fail("write to it", err)
}

// Get reads an object of at most limit bytes. KindNotFound: there is none.
func (b *Bucket) Get(ctx context.Context, key string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	out, err := b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.name, Key: &key})
	if err != nil {
		return nil, b.fail("read "+key+" from it", err)
	}
	defer out.Body.Close()
	data, err := io.ReadAll(io.LimitReader(out.Body, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s/%s is larger than %d bytes", b.base, key, limit)
		return nil, &Error{Kind: KindInvalid, Address: b.base, Text: err.Error(), Err: err}
	}
	return data, b.fail("read "+key+" from it", err)
}

// Delete removes objects; those that are not there are passed over. The error is that of the first that was not removed.
func (b *Bucket) Delete(ctx context.Context, keys ...string) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(deletesOnce) // one by one: deleting many in one call is not part of every store
	for _, key := range keys {
		g.Go(func() error {
			cctx, cancel := context.WithTimeout(gctx, reachTime)
			defer cancel()
			_, err := b.client.DeleteObject(cctx, &s3.DeleteObjectInput{Bucket: &b.name, Key: &key})
			if err = b.fail("delete from it", err); Is(err, KindNotFound) {
				return nil
			}
			return err
		})
	}
	return g.Wait()
}

// SignPut gives a URL to which anybody may PUT that object, for so long.
func (b *Bucket) SignPut(ctx context.Context, key string, lasts time.Duration) (string, error) {
	out, err := b.signer.PresignPutObject(ctx, &s3.PutObjectInput{Bucket: &b.name, Key: &key}, s3.WithPresignExpires(lasts))
	if err != nil {
		return "", b.fail("sign a URL of it", err)
	}
	return out.URL, nil
}

// SignGet gives a URL from which anybody may GET that object, for so long.
func (b *Bucket) SignGet(ctx context.Context, key string, lasts time.Duration) (string, error) {
	out, err := b.signer.PresignGetObject(ctx, &s3.GetObjectInput{Bucket: &b.name, Key: &key}, s3.WithPresignExpires(lasts))
	if err != nil {
		return "", b.fail("sign a URL of it", err)
	}
	return out.URL, nil
}

// StartParts begins an object that comes in parts. Nothing is visible of it until FinishParts.
func (b *Bucket) StartParts(ctx context.Context, key string) (upload string, err error) {
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	out, err := b.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &b.name, Key: &key})
	if err != nil {
		return "", b.fail("write to it", err)
	}
	return aws.ToString(out.UploadId), nil
}

// SignPart gives a URL to which anybody may PUT a part, counted from 1, for so long.
func (b *Bucket) SignPart(ctx context.Context, key, upload string, n int, lasts time.Duration) (string, error) {
	out, err := b.signer.PresignUploadPart(ctx, &s3.UploadPartInput{Bucket: &b.name, Key: &key, UploadId: &upload, PartNumber: aws.Int32(int32(n))}, s3.WithPresignExpires(lasts))
	if err != nil {
		return "", b.fail("sign a URL of it", err)
	}
	return out.URL, nil
}

// FinishParts makes one object of the parts that have arrived, which must be so many and size bytes in all.
func (b *Bucket) FinishParts(ctx context.Context, key, upload string, parts int, size int64) error {
	ctx, cancel := context.WithTimeout(ctx, 5*reachTime) // of a large object it takes a store minutes
	defer cancel()
	var done []types.CompletedPart
	var sum int64
	pages := s3.NewListPartsPaginator(b.client, &s3.ListPartsInput{Bucket: &b.name, Key: &key, UploadId: &upload})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return b.fail("list the parts of an object", err)
		}
		for _, p := range page.Parts {
			done = append(done, types.CompletedPart{ETag: p.ETag, PartNumber: p.PartNumber})
			sum += aws.ToInt64(p.Size)
		}
	}
	if len(done) != parts || sum != size {
		return &Error{Kind: KindBusy, Address: b.base, Text: fmt.Sprintf("of %d parts of an object, %d bytes, it has %d, %d bytes", parts, size, len(done), sum)}
	}
	slices.SortFunc(done, func(x, y types.CompletedPart) int { return int(*x.PartNumber - *y.PartNumber) })
	_, err := b.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: &b.name, Key: &key, UploadId: &upload, MultipartUpload: &types.CompletedMultipartUpload{Parts: done}})
	return b.fail("put the parts of an object together", err)
}

// AbortParts gives up an object that comes in parts; what has arrived is dropped.
func (b *Bucket) AbortParts(ctx context.Context, key, upload string) error {
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	_, err := b.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.name, Key: &key, UploadId: &upload})
	if err = b.fail("drop the parts of an object", err); Is(err, KindNotFound) {
		return nil
	}
	return err
}

// AbortAllParts gives up whatever was begun below a prefix and not finished.
func (b *Bucket) AbortAllParts(ctx context.Context, prefix string) error {
	pages := s3.NewListMultipartUploadsPaginator(b.client, &s3.ListMultipartUploadsInput{Bucket: &b.name, Prefix: &prefix})
	var errs []error
	for pages.HasMorePages() {
		cctx, cancel := context.WithTimeout(ctx, reachTime)
		page, err := pages.NextPage(cctx)
		cancel()
		if err != nil {
			return errors.Join(append(errs, b.fail("list unfinished objects", err))...)
		}
		for _, u := range page.Uploads {
			if key := aws.ToString(u.Key); strings.HasPrefix(key, prefix) { // not every store heeds the prefix
				errs = append(errs, b.AbortParts(ctx, key, aws.ToString(u.UploadId)))
			}
		}
	}
	return errors.Join(errs...)
}
