package codec

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"path"

	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/encoding/protojson"
)

// maxBody bounds a request of the Web UI: it asks for the payloads of one page of a history at a time.
const maxBody = 32 << 20

// Handler returns the codec endpoint that the Web UI and the temporal command line speak to: POST …/decode and
// …/encode with a JSON document of payloads. Who may read histories in clear is the caller's to decide: mount it behind
// a login.
//
// A payload that can't be decoded comes back as the reason, as text, so that the rest of a page is still readable.
func Handler(r *Ring) http.Handler {
	c := payloadCodec{ring: r}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var do func(*commonpb.Payload) (*commonpb.Payload, error)
		switch path.Base(req.URL.Path) {
		case "decode":
			do = func(p *commonpb.Payload) (*commonpb.Payload, error) {
				out, err := c.decrypt(p)
				if err != nil {
					return unreadable(err)
				}
				return out, nil
			}
		case "encode":
			do = c.encrypt
		default:
			http.NotFound(w, req)
			return
		}
		if req.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "send payloads by POST", http.StatusMethodNotAllowed)
			return
		}
		// A form on a foreign site can't send this type without asking first.
		if kind, _, err := mime.ParseMediaType(req.Header.Get("Content-Type")); err != nil || kind != "application/json" {
			http.Error(w, "send payloads as application/json", http.StatusUnsupportedMediaType)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxBody))
		if err != nil {
			status := http.StatusBadRequest
			var tooBig *http.MaxBytesError
			if errors.As(err, &tooBig) {
				status = http.StatusRequestEntityTooLarge
			}
			http.Error(w, err.Error(), status)
			return
		}
		var payloads commonpb.Payloads
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, &payloads); err != nil {
			http.Error(w, "not a JSON document of payloads: "+err.Error(), http.StatusBadRequest)
			return
		}
		out, err := each(payloads.GetPayloads(), do)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		data, err := protojson.Marshal(&commonpb.Payloads{Payloads: out})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		_, _ = w.Write(data)
	})
}

func unreadable(cause error) (*commonpb.Payload, error) {
	text, err := json.Marshal("[not readable: " + cause.Error() + "]")
	if err != nil {
		return nil, err
	}
	return &commonpb.Payload{
		Metadata: map[string][]byte{converter.MetadataEncoding: []byte(converter.MetadataEncodingJSON)},
		Data:     text,
	}, nil
}
