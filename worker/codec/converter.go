package codec

import (
	"reflect"

	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
)

// Public is implemented by types whose values are written in clear, as plain JSON: inputs and results of workflows that
// a foreign worker, without our keys, calls as child workflows. Nothing secret may be in them.
type Public interface{ PublicPayload() }

var publicType = reflect.TypeFor[Public]()

// isPublic looks at the value's type, or at the pointer to it for methods with a pointer receiver.
func isPublic(value any) bool {
	if _, ok := value.(Public); ok {
		return true
	}
	t := reflect.TypeOf(value)
	return t != nil && reflect.PointerTo(t).Implements(publicType)
}

// dataConverter encrypts all but public values. Reading needs no such distinction: the payload says how it is written.
type dataConverter struct {
	plain     converter.DataConverter
	encrypted converter.DataConverter
}

// New returns the data converter for all our clients and workers: the SDK's default one, encrypted with the ring.
func New(r *Ring) converter.DataConverter {
	plain := converter.GetDefaultDataConverter()
	return dataConverter{plain: plain, encrypted: converter.NewCodecDataConverter(plain, Codec(r))}
}

// FailureConverter returns the failure converter that goes with a data converter of New: messages and stack traces are
// encrypted too. Error details of a Public type stay readable for foreign parents; the error's type always is.
func FailureConverter(dc converter.DataConverter) converter.FailureConverter {
	return temporal.NewDefaultFailureConverter(temporal.DefaultFailureConverterOptions{
		DataConverter:          dc,
		EncodeCommonAttributes: true,
	})
}

// ToPayload implements converter.DataConverter.
func (c dataConverter) ToPayload(value any) (*commonpb.Payload, error) {
	if isPublic(value) {
		return c.plain.ToPayload(value)
	}
	return c.encrypted.ToPayload(value)
}

// ToPayloads implements converter.DataConverter.
func (c dataConverter) ToPayloads(values ...any) (*commonpb.Payloads, error) {
	if len(values) == 0 {
		return nil, nil
	}
	out := &commonpb.Payloads{Payloads: make([]*commonpb.Payload, 0, len(values))}
	for _, value := range values {
		p, err := c.ToPayload(value)
		if err != nil {
			return nil, err
		}
		out.Payloads = append(out.Payloads, p)
	}
	return out, nil
}

// FromPayload implements converter.DataConverter.
func (c dataConverter) FromPayload(p *commonpb.Payload, valuePtr any) error {
	return c.encrypted.FromPayload(p, valuePtr)
}

// FromPayloads implements converter.DataConverter.
func (c dataConverter) FromPayloads(p *commonpb.Payloads, valuePtrs ...any) error {
	return c.encrypted.FromPayloads(p, valuePtrs...)
}

// ToString implements converter.DataConverter.
func (c dataConverter) ToString(p *commonpb.Payload) string {
	if p == nil {
		return ""
	}
	return c.encrypted.ToString(p)
}

// ToStrings implements converter.DataConverter.
func (c dataConverter) ToStrings(p *commonpb.Payloads) []string { return c.encrypted.ToStrings(p) }
