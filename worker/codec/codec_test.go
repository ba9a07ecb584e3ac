package codec

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

const secret = "s3cr3t-plain-text"

type private struct {
	Text string
	List []int `json:",omitempty"`
}

type answer struct{ Text string }

func (answer) PublicPayload() {}

type pointerAnswer struct{ Text string }

func (*pointerAnswer) PublicPayload() {}

func newRing(t *testing.T) *Ring {
	t.Helper()
	r, err := LoadRing(filepath.Join(t.TempDir(), "keys.json"))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func wire(t *testing.T, m proto.Message) []byte {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestValuesAreEncryptedAndReadBack(t *testing.T) {
	dc := New(newRing(t))
	cases := map[string]struct{ in, out any }{
		"struct":  {private{Text: secret, List: []int{1}}, new(private)},
		"string":  {secret, new(string)},
		"bytes":   {[]byte(secret), new([]byte)},
		"map":     {map[string]string{secret: secret}, new(map[string]string)},
		"proto":   {&commonpb.WorkflowExecution{WorkflowId: secret}, new(commonpb.WorkflowExecution)},
		"pointer": {&private{Text: secret}, new(private)},
		"nil":     {nil, new(*private)},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p, err := dc.ToPayload(c.in)
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(wire(t, p), []byte(secret)) {
				t.Fatal("the plain text is in the payload")
			}
			if got := string(p.Metadata["encoding"]); got != "binary/encrypted" {
				t.Fatalf("encoding %q", got)
			}
			if err := dc.FromPayload(p, c.out); err != nil {
				t.Fatal(err)
			}
			if !same(c.in, c.out) {
				t.Fatalf("read back %+v, want %+v", c.out, c.in)
			}
			plain, err := converter.GetDefaultDataConverter().ToPayload(c.in)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := dc.ToString(p), converter.GetDefaultDataConverter().ToString(plain); got != want {
				t.Fatalf("ToString gives %q, want %q", got, want)
			}
		})
	}
}

// same compares a value with what a pointer of the reader's choice received.
func same(in, out any) bool {
	if m, ok := in.(proto.Message); ok {
		return proto.Equal(m, out.(proto.Message))
	}
	got := reflect.ValueOf(out).Elem()
	if in == nil {
		return got.IsNil()
	}
	want := reflect.ValueOf(in)
	if want.Kind() == reflect.Pointer {
		want = want.Elem()
	}
	return reflect.DeepEqual(got.Interface(), want.Interface())
}

func TestSameValueTwiceDiffers(t *testing.T) {
	dc := New(newRing(t))
	a, _ := dc.ToPayload(secret)
	b, _ := dc.ToPayload(secret)
	if bytes.Equal(a.Data, b.Data) {
		t.Fatal("a nonce was used twice")
	}
}

func TestPublicValuesStayPlain(t *testing.T) {
	dc := New(newRing(t))
	for name, v := range map[string]any{
		"value": answer{Text: "ok"}, "pointer": &answer{Text: "ok"},
		"pointer receiver, value": pointerAnswer{Text: "ok"}, "pointer receiver, pointer": &pointerAnswer{Text: "ok"},
	} {
		t.Run(name, func(t *testing.T) {
			// A foreign worker has the SDK's default converter only.
			p, err := dc.ToPayload(v)
			if err != nil {
				t.Fatal(err)
			}
			var got answer
			if err := converter.GetDefaultDataConverter().FromPayload(p, &got); err != nil || got.Text != "ok" {
				t.Fatalf("a foreign worker reads %+v, %v", got, err)
			}
			if err := dc.FromPayload(p, &got); err != nil || got.Text != "ok" {
				t.Fatalf("we read %+v, %v", got, err)
			}
		})
	}
	mixed, err := dc.ToPayloads(answer{Text: "open"}, private{Text: secret})
	if err != nil {
		t.Fatal(err)
	}
	if isEncrypted(mixed.Payloads[0]) || !isEncrypted(mixed.Payloads[1]) {
		t.Fatal("of two arguments the private one must be encrypted, the public one not")
	}
	var a answer
	var p private
	if err := dc.FromPayloads(mixed, &a, &p); err != nil || a.Text != "open" || p.Text != secret {
		t.Fatalf("%+v %+v %v", a, p, err)
	}
}

func TestPlainInputIsRead(t *testing.T) {
	dc := New(newRing(t))
	p, err := converter.GetDefaultDataConverter().ToPayloads(private{Text: "from elsewhere"})
	if err != nil {
		t.Fatal(err)
	}
	var got private
	if err := dc.FromPayloads(p, &got); err != nil || got.Text != "from elsewhere" {
		t.Fatalf("%+v, %v", got, err)
	}
}

func TestEmpty(t *testing.T) {
	dc := New(newRing(t))
	if p, err := dc.ToPayloads(); p != nil || err != nil {
		t.Fatalf("no values give %v, %v", p, err)
	}
	if err := dc.FromPayload(nil, new(string)); err != nil {
		t.Fatal(err)
	}
	if err := dc.FromPayloads(nil, new(string)); err != nil {
		t.Fatal(err)
	}
	if s := dc.ToString(nil); s != "" {
		t.Fatal(s)
	}
	if s := dc.ToStrings(nil); s != nil {
		t.Fatal(s)
	}
	out, err := Codec(newRing(t)).Decode([]*commonpb.Payload{nil, {}})
	if err != nil || len(out) != 2 {
		t.Fatalf("payloads without metadata: %v, %v", out, err)
	}
	// Metadata lost on the way must end in an error, not in a panic.
	if err := dc.FromPayload(&commonpb.Payload{Data: []byte("x")}, new(string)); err == nil {
		t.Fatal("a payload without encoding was read")
	}
}

func TestRawValuesPassOnceOnly(t *testing.T) {
	dc := New(newRing(t))
	sealed, _ := dc.ToPayload(private{Text: secret})
	again, err := dc.ToPayload(converter.NewRawValue(sealed)) // passed on unread
	if err != nil {
		t.Fatal(err)
	}
	var got private
	if err := dc.FromPayload(again, &got); err != nil || got.Text != secret {
		t.Fatalf("%+v, %v", got, err)
	}
	var raw converter.RawValue
	if err := dc.FromPayload(sealed, &raw); err != nil || isEncrypted(raw.Payload()) {
		t.Fatalf("a raw value must be handed over in clear (%v)", err)
	}
}

func TestRotation(t *testing.T) {
	r := newRing(t)
	dc := New(r)
	first := r.Active()
	old, _ := dc.ToPayload(private{Text: secret})
	second, err := r.Rotate()
	if err != nil {
		t.Fatal(err)
	}
	if second == first || r.Active() != second || len(r.IDs()) != 2 {
		t.Fatalf("first %s, second %s, active %s, all %v", first, second, r.Active(), r.IDs())
	}
	young, _ := dc.ToPayload(private{Text: secret})
	if got := string(young.Metadata["encryption-key-id"]); got != second {
		t.Fatalf("encrypted with %s", got)
	}
	reopened, err := LoadRing(r.path)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*commonpb.Payload{old, young} {
		var got private
		if err := New(reopened).FromPayload(p, &got); err != nil || got.Text != secret {
			t.Fatalf("%+v, %v", got, err)
		}
	}
}

func TestOtherReplicaRotates(t *testing.T) {
	r := newRing(t)
	other, err := LoadRing(r.path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Rotate(); err != nil {
		t.Fatal(err)
	}
	p, _ := New(other).ToPayload(secret)
	r.now = func() time.Time { return time.Now().Add(2 * reloadEvery) }
	var got string
	if err := New(r).FromPayload(p, &got); err != nil || got != secret {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestUnknownKey(t *testing.T) {
	p, _ := New(newRing(t)).ToPayload(secret)
	stranger := newRing(t)
	err := New(stranger).FromPayload(p, new(string))
	var unknown *UnknownKeyError
	if !errors.As(err, &unknown) || unknown.ID != string(p.Metadata["encryption-key-id"]) {
		t.Fatalf("%v", err)
	}
	for _, word := range []string{unknown.ID, stranger.path, stranger.Active(), "backup"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the message lacks %q: %v", word, err)
		}
	}
}

func TestDamage(t *testing.T) {
	dc := New(newRing(t))
	damage := map[string]func(p *commonpb.Payload){
		"flipped bit": func(p *commonpb.Payload) { p.Data[len(p.Data)-1] ^= 1 },
		"cut":         func(p *commonpb.Payload) { p.Data = p.Data[:5] },
		"empty":       func(p *commonpb.Payload) { p.Data = nil },
		"no key id":   func(p *commonpb.Payload) { delete(p.Metadata, "encryption-key-id") },
	}
	for name, do := range damage {
		t.Run(name, func(t *testing.T) {
			p, _ := dc.ToPayload(secret)
			do(p)
			got := ""
			if err := dc.FromPayload(p, &got); err == nil || got != "" {
				t.Fatalf("read %q, %v", got, err)
			}
			if s := dc.ToString(p); strings.Contains(s, secret) || s == "" {
				t.Fatalf("ToString gives %q", s)
			}
		})
	}
}

func TestRingFile(t *testing.T) {
	good := newRing(t)
	data, err := os.ReadFile(good.path)
	if err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(good.path); info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v", info.Mode())
	}
	cases := map[string]struct {
		text string
		mode os.FileMode
		want string
	}{
		"readable by all": {string(data), 0o644, "chmod 600"},
		"mounted secret":  {string(data), 0o440, ""},
		"not JSON":        {"{", 0o600, "backup"},
		"empty":           {"", 0o600, "backup"},
		"newer format":    {strings.Replace(string(data), `"version": 1`, `"version": 9`, 1), 0o600, "install the version"},
		"no active key":   {strings.Replace(string(data), `"active": "`, `"active": "x`, 1), 0o600, "active key"},
		"changed key":     {strings.Replace(string(data), `"key": "`, `"key": "AAAA`, 1), 0o600, "backup"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "keys.json")
			if err := os.WriteFile(path, []byte(c.text), c.mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			_, err := LoadRing(path)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if now, _ := os.ReadFile(path); string(now) != c.text {
				t.Fatal("the file was changed")
			}
		})
	}
	if _, err := LoadRing(filepath.Join(t.TempDir(), "no", "such", "folder")); err == nil {
		t.Fatal("a ring in a folder that does not exist was made")
	}
}

func TestFirstKeyRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	var wg sync.WaitGroup
	ids := make([]string, 8)
	for i := range ids {
		wg.Go(func() {
			r, err := LoadRing(path)
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = r.Active()
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("two processes made two rings: %v", ids)
		}
	}
}

func TestFailures(t *testing.T) {
	dc := New(newRing(t))
	fc := FailureConverter(dc)
	f := fc.ErrorToFailure(temporal.NewApplicationErrorWithOptions(secret, "NoCapacity", temporal.ApplicationErrorOptions{
		NonRetryable: true, Details: []any{private{Text: secret}, answer{Text: "open"}},
	}))
	if bytes.Contains(wire(t, f), []byte(secret)) {
		t.Fatal("the message is in the failure in clear")
	}
	err := fc.FailureToError(f)
	var app *temporal.ApplicationError
	if !errors.As(err, &app) || app.Message() != secret || app.Type() != "NoCapacity" || !app.NonRetryable() {
		t.Fatalf("%v", err)
	}
	var p private
	var a answer
	if err := app.Details(&p, &a); err != nil || p.Text != secret || a.Text != "open" {
		t.Fatalf("%+v %+v %v", p, a, err)
	}
	foreign := temporal.NewDefaultFailureConverter(temporal.DefaultFailureConverterOptions{}).
		ErrorToFailure(temporal.NewApplicationError("plain message", "Theirs"))
	if err := fc.FailureToError(foreign); !strings.Contains(err.Error(), "plain message") {
		t.Fatalf("%v", err)
	}
}

func post(t *testing.T, h http.Handler, path, contentType string, body []byte) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(body))
	req.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w
}

func TestHandler(t *testing.T) {
	r := newRing(t)
	dc := New(r)
	h := Handler(r)
	mine, _ := dc.ToPayload(private{Text: secret})
	plain, _ := converter.GetDefaultDataConverter().ToPayload("plain")
	lost, _ := New(newRing(t)).ToPayload("lost")
	body, err := protojson.Marshal(&commonpb.Payloads{Payloads: []*commonpb.Payload{mine, plain, lost}})
	if err != nil {
		t.Fatal(err)
	}
	w := post(t, h, "/temporal/_codec/decode?preserveStorageRefs=true", "application/json; charset=utf-8", body)
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	var out commonpb.Payloads
	if err := protojson.Unmarshal(w.Body.Bytes(), &out); err != nil || len(out.Payloads) != 3 {
		t.Fatalf("%v %s", err, w.Body)
	}
	for i, want := range []string{secret, "plain", "not readable"} {
		if !strings.Contains(string(out.Payloads[i].Data), want) || string(out.Payloads[i].Metadata["encoding"]) != "json/plain" {
			t.Errorf("payload %d: %v", i, out.Payloads[i])
		}
	}

	body, _ = protojson.Marshal(&commonpb.Payloads{Payloads: []*commonpb.Payload{plain}})
	w = post(t, h, "/encode", "application/json", body)
	if err := protojson.Unmarshal(w.Body.Bytes(), &out); err != nil || !isEncrypted(out.Payloads[0]) {
		t.Fatalf("%v %s", err, w.Body)
	}
	var got string
	if err := dc.FromPayload(out.Payloads[0], &got); err != nil || got != "plain" {
		t.Fatalf("%q %v", got, err)
	}

	// The SDK's own remote codec speaks the same protocol.
	server := httptest.NewServer(h)
	defer server.Close()
	remote := converter.NewRemotePayloadCodec(converter.RemotePayloadCodecOptions{Endpoint: server.URL})
	clear, err := remote.Decode([]*commonpb.Payload{mine})
	if err != nil || !json.Valid(clear[0].Data) || !strings.Contains(string(clear[0].Data), secret) {
		t.Fatalf("%v %v", clear, err)
	}
}

func TestHandlerRefuses(t *testing.T) {
	h := Handler(newRing(t))
	for name, c := range map[string]struct {
		path, contentType string
		body              []byte
		want              int
	}{
		"other path": {"/download", "application/json", []byte("{}"), http.StatusNotFound},
		"form":       {"/decode", "application/x-www-form-urlencoded", []byte("{}"), http.StatusUnsupportedMediaType},
		"no type":    {"/decode", "", []byte("{}"), http.StatusUnsupportedMediaType},
		"not JSON":   {"/decode", "application/json", []byte("{"), http.StatusBadRequest},
		"wrong JSON": {"/decode", "application/json", []byte(`{"payloads":[{"data":7}]}`), http.StatusBadRequest},
		"too big":    {"/decode", "application/json", bytes.Repeat([]byte(" "), maxBody+1), http.StatusRequestEntityTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			if w := post(t, h, c.path, c.contentType, c.body); w.Code != c.want {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
		})
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/decode", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Fatalf("GET gives %d", w.Code)
	}
	if w := post(t, h, "/decode", "application/json", []byte("{}")); w.Code != http.StatusOK {
		t.Fatalf("no payloads give %d %s", w.Code, w.Body)
	}
}
