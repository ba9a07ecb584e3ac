package agentapi

import (
	"bytes"
	"io"
	"testing"
)

// FuzzLogReader feeds the reader what a broken or hostile agent may send: it ends, and never hands out more bytes than
// there are.
func FuzzLogReader(f *testing.F) {
	f.Add([]byte(`{"rank":0,"job_id":1,"len":0}` + "\n" + `{"phase":"run","len":3}` + "\nabc" + `{"end":true}` + "\n"))
	f.Add([]byte(`{"len":-1}` + "\n"))
	f.Add([]byte(`{"len":9223372036854775807}` + "\nx"))
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := NewLogReader(bytes.NewReader(in))
		total := int64(0)
		for {
			_, data, err := r.Next()
			if err != nil {
				break
			}
			n, _ := io.Copy(io.Discard, data)
			total += n
		}
		if total > int64(len(in)) {
			t.Errorf("%d bytes out of %d", total, len(in))
		}
	})
}
