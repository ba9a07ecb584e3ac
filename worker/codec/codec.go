package codec

import (
	"crypto/rand"
	"errors"
	"fmt"

	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/proto"
)

const (
	encodingEncrypted = "binary/encrypted"
	metadataKeyID     = "encryption-key-id"
)

// payloadCodec encrypts payload by payload.
type payloadCodec struct{ ring *Ring }

// Codec returns the payload codec alone, for tools that hold payloads and not values. Encrypted payloads pass Encode,
// and plain ones Decode, unchanged.
func Codec(r *Ring) converter.PayloadCodec { return payloadCodec{ring: r} }

// Encode implements converter.PayloadCodec.
func (c payloadCodec) Encode(in []*commonpb.Payload) ([]*commonpb.Payload, error) {
	return each(in, c.encrypt)
}

// Decode implements converter.PayloadCodec.
func (c payloadCodec) Decode(in []*commonpb.Payload) ([]*commonpb.Payload, error) {
	return each(in, c.decrypt)
}

func each(in []*commonpb.Payload, do func(*commonpb.Payload) (*commonpb.Payload, error)) ([]*commonpb.Payload, error) {
	out := make([]*commonpb.Payload, len(in))
	for i, p := range in {
		var err error
		if out[i], err = do(p); err != nil {
			return in, err
		}
	}
	return out, nil
}

func isEncrypted(p *commonpb.Payload) bool {
	return string(p.GetMetadata()[converter.MetadataEncoding]) == encodingEncrypted
}

func (c payloadCodec) encrypt(p *commonpb.Payload) (*commonpb.Payload, error) {
	if p == nil || isEncrypted(p) {
		return p, nil
	}
	plain, err := proto.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encrypt a payload: %w", err)
	}
	id, aead := c.ring.sealer()
	nonce := make([]byte, aead.NonceSize(), aead.NonceSize()+len(plain)+aead.Overhead())
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("encrypt a payload: %w", err)
	}
	return &commonpb.Payload{
		Metadata: map[string][]byte{
			converter.MetadataEncoding: []byte(encodingEncrypted),
			metadataKeyID:              []byte(id),
		},
		Data: aead.Seal(nonce, nonce, plain, []byte(id)),
	}, nil
}

var errDamaged = errors.New("its data is damaged, or was encrypted under another key of the same id")

func (c payloadCodec) decrypt(p *commonpb.Payload) (*commonpb.Payload, error) {
	if !isEncrypted(p) {
		return p, nil
	}
	id := string(p.GetMetadata()[metadataKeyID])
	aead, err := c.ring.opener(id)
	if err != nil {
		return nil, err
	}
	if len(p.GetData()) < aead.NonceSize() {
		return nil, fmt.Errorf("decrypt a payload of key %s: %w", id, errDamaged)
	}
	nonce, sealed := p.GetData()[:aead.NonceSize()], p.GetData()[aead.NonceSize():]
	plain, err := aead.Open(nil, nonce, sealed, []byte(id))
	if err != nil {
		return nil, fmt.Errorf("decrypt a payload of key %s: %w", id, errDamaged)
	}
	out := new(commonpb.Payload)
	if err := proto.Unmarshal(plain, out); err != nil {
		return nil, fmt.Errorf("decrypt a payload of key %s: %w", id, err)
	}
	return out, nil
}
