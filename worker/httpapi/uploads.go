package httpapi

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"mime"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/filesync"
)

const (
	// maxManifest bounds an encoded manifest, in bytes; one of a million files has some 60 MB.
	maxManifest = 256 << 20
)

// PackReply tells what an upload of files brought.
type PackReply struct {
	Blobs int   `json:"blobs"`
	Bytes int64 `json:"bytes"`
}

func (s *Server) uploadRoutes(h huma.API) {
	type missingIn struct{ Body api.MissingBody }
	get(h, operation("POST", "/blobs/missing", "missing-blobs", "files", "Which files the server lacks, by content hash"), s,
		func(ctx context.Context, in *missingIn) (api.MissingReply, error) {
			for _, x := range in.Body.Hashes {
				if b, err := hex.DecodeString(x); err != nil || len(b) != 32 {
					return api.MissingReply{}, failure(api.ErrInvalid, "", "%q is not a SHA-256 in hex", shorten(x))
				}
			}
			missing, err := s.o.Artifacts.Has(ctx, in.Body.Hashes)
			return api.MissingReply{Missing: nonNil(missing)}, err
		})

	upload(h, s, operation("PUT", "/blobs", "put-blobs", "files", "Upload files, as a pack"), filesync.PackMediaType, "a pack", typeOf[PackReply],
		func(w http.ResponseWriter, r *http.Request, body io.Reader) (any, error) {
			st, err := s.o.Artifacts.PutPack(r.Context(), body, filesync.PackLimits{MaxTotal: s.o.MaxUpload})
			return PackReply{Blobs: st.Blobs, Bytes: st.Bytes}, err
		})
	upload(h, s, operation("PUT", "/manifests", "put-manifest", "files", "Upload the list of files of a folder"), filesync.ManifestMediaType, "a manifest", typeOf[api.ManifestReply],
		func(w http.ResponseWriter, r *http.Request, body io.Reader) (any, error) {
			m, err := filesync.Decode(http.MaxBytesReader(w, io.NopCloser(body), maxManifest), filesync.Limits{})
			if err != nil {
				return nil, err
			}
			id, missing, err := s.o.Artifacts.PutManifest(r.Context(), m)
			return api.ManifestReply{ID: id, Missing: nonNil(missing)}, err
		})
}

// upload registers a call that takes a stream. A refusal is sent while the sender still sends.
func upload(h huma.API, s *Server, op huma.Operation, media, what string, replyType func() reflect.Type, f func(http.ResponseWriter, *http.Request, io.Reader) (any, error)) {
	op.Errors = append(op.Errors, http.StatusInsufficientStorage)
	binary := func() map[string]*huma.MediaType {
		return map[string]*huma.MediaType{media: {Schema: &huma.Schema{Type: "string", Format: "binary", Description: what}}}
	}
	op.RequestBody = &huma.RequestBody{Required: true, Content: binary()}
	stream(h, op, s, "application/json", "what arrived", func(w http.ResponseWriter, r *http.Request, _ *empty) error {
		mt, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if err != nil || (mt != media && mt != "application/octet-stream") {
			return problem(http.StatusUnsupportedMediaType, "the body must be "+what, "Send it with Content-Type: "+media+".")
		}
		_ = http.NewResponseController(w).EnableFullDuplex()
		body := newStallReader(w, r.Body)
		defer body.done()
		v, err := f(w, r, body)
		if err == nil {
			// A stream of no known length is whole only if nothing follows.
			if n, _ := io.Copy(io.Discard, io.LimitReader(body, 1)); n > 0 {
				err = failure(api.ErrInvalid, "", "something follows after the end of %s", what)
			}
		}
		if err == nil {
			return writeJSON(w, v)
		}
		if r.Context().Err() != nil {
			return nil
		}
		refuseUnread(w, r, s.toProblem(r.Context(), uploadError(err, what)))
		return nil
	})
	h.OpenAPI().Paths[op.Path].Put.Responses["200"].Content["application/json"].Schema =
		h.OpenAPI().Components.Schemas.Schema(replyType(), true, "Reply")
}

func uploadError(err error, what string) error {
	var p *Problem
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &p):
		return err
	case errors.As(err, &big):
		return tooLarge(big.Limit)
	case errors.Is(err, filesync.ErrInvalid):
		return failure(api.ErrInvalid, "If sending it again does not help, client and server may not fit together: compare sky api info.", "%s was refused: %v", what, err)
	case isBodyError(err):
		return bodyProblem(err)
	}
	return err
}
