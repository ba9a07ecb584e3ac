package filesync

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"
)

// memBlobs is a BlobSource in memory.
type memBlobs map[string][]byte

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func blobs(contents ...string) memBlobs {
	m := memBlobs{}
	for _, c := range contents {
		m[hashOf([]byte(c))] = []byte(c)
	}
	return m
}

func (m memBlobs) Open(h string) (io.ReadCloser, int64, error) {
	b, ok := m[h]
	if !ok {
		return nil, 0, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(b)), int64(len(b)), nil
}

func (m memBlobs) hashes() []string {
	var out []string
	for h := range m {
		out = append(out, h)
	}
	return out
}

func (m memBlobs) sink(h string, size int64, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if int64(len(b)) != size {
		return fmt.Errorf("size %d, got %d", size, len(b))
	}
	m[h] = b
	return nil
}

func TestPackRoundTrip(t *testing.T) {
	src := blobs("", "one", strings.Repeat("two", 200_000), "three")
	for _, raw := range []bool{false, true} {
		var buf bytes.Buffer
		var lastBlobs int
		var lastBytes int64
		o := PackOptions{Raw: raw, Progress: func(b int, n int64) { lastBlobs, lastBytes = b, n }}
		if err := WritePack(t.Context(), &buf, src, src.hashes(), o); err != nil {
			t.Fatal(err)
		}
		got := memBlobs{}
		st, err := ReadPack(t.Context(), &buf, PackLimits{}, got.sink)
		if err != nil || st.Blobs != 4 || st.Bytes != 600_008 {
			t.Fatalf("raw %v: %+v, %v", raw, st, err)
		}
		if lastBlobs != 4 || lastBytes != st.Bytes {
			t.Fatalf("progress ended at %d, %d", lastBlobs, lastBytes)
		}
		for h, b := range src {
			if !bytes.Equal(got[h], b) {
				t.Fatalf("blob %s differs", h)
			}
		}
	}
}

func TestPackCutAnywhere(t *testing.T) {
	src := blobs("one", "two", strings.Repeat("x", 3000))
	for _, raw := range []bool{false, true} {
		var buf bytes.Buffer
		if err := WritePack(t.Context(), &buf, src, src.hashes(), PackOptions{Raw: raw}); err != nil {
			t.Fatal(err)
		}
		for cut := 0; cut < buf.Len(); cut++ {
			got := memBlobs{}
			_, err := ReadPack(t.Context(), bytes.NewReader(buf.Bytes()[:cut]), PackLimits{}, got.sink)
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("raw %v, cut at %d of %d: %v", raw, cut, buf.Len(), err)
			}
			for h, b := range got {
				if hashOf(b) != h {
					t.Fatalf("cut at %d: a wrong blob was accepted", cut)
				}
			}
		}
	}
}

func TestPackRefuses(t *testing.T) {
	src := blobs("0123456789", "abc")
	var buf bytes.Buffer
	if err := WritePack(t.Context(), &buf, src, src.hashes(), PackOptions{Raw: true}); err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(buf.Bytes())
	flipped[len(flipped)-4] ^= 1
	for name, c := range map[string]struct {
		data []byte
		l    PackLimits
	}{
		"big blob":     {buf.Bytes(), PackLimits{MaxBlob: 9}},
		"big total":    {buf.Bytes(), PackLimits{MaxTotal: 12}},
		"many blobs":   {buf.Bytes(), PackLimits{MaxBlobs: 1}},
		"flipped byte": {flipped, PackLimits{}},
		"not a pack":   {[]byte("GET / HTTP/1.1\r\n\r\n"), PackLimits{}},
		"unknown":      {[]byte(packMagic + "q"), PackLimits{}},
		"huge size":    {append([]byte(packMagic+"r\x01"+strings.Repeat("h", 32)), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1), PackLimits{}},
	} {
		if _, err := ReadPack(t.Context(), bytes.NewReader(c.data), c.l, memBlobs{}.sink); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ReadPack(ctx, bytes.NewReader(buf.Bytes()), PackLimits{}, memBlobs{}.sink); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestPackSinkNeedNotRead(t *testing.T) {
	src := blobs("one", "two")
	var buf bytes.Buffer
	if err := WritePack(t.Context(), &buf, src, src.hashes(), PackOptions{}); err != nil {
		t.Fatal(err)
	}
	st, err := ReadPack(t.Context(), &buf, PackLimits{}, func(string, int64, io.Reader) error { return nil })
	if err != nil || st.Blobs != 2 {
		t.Fatalf("%+v, %v", st, err)
	}
	boom := errors.New("boom")
	buf.Reset()
	if err := WritePack(t.Context(), &buf, src, src.hashes(), PackOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadPack(t.Context(), &buf, PackLimits{}, func(string, int64, io.Reader) error { return boom }); !errors.Is(err, boom) {
		t.Fatal(err)
	}
}

func TestPackSourceChanges(t *testing.T) {
	good := blobs("one")
	h := hashOf([]byte("one"))
	for name, content := range map[string]string{"shorter": "on", "other": "two"} {
		var buf bytes.Buffer
		p := NewPackWriter(&buf, PackOptions{})
		if err := p.Add(h, 3, strings.NewReader(content)); !errors.Is(err, ErrChanged) {
			t.Fatalf("%s: %v", name, err)
		}
		if err := p.Close(); !errors.Is(err, ErrChanged) {
			t.Fatalf("%s: close: %v", name, err)
		}
		if _, err := ReadPack(t.Context(), &buf, PackLimits{}, memBlobs{}.sink); !errors.Is(err, ErrInvalid) {
			t.Fatalf("%s: a reader took the stream for whole: %v", name, err)
		}
	}
	var buf bytes.Buffer
	if err := WritePack(t.Context(), &buf, good, []string{hashA}, PackOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

func FuzzReadPack(f *testing.F) {
	src := blobs("one", "two", "")
	for _, raw := range []bool{true, false} {
		var buf bytes.Buffer
		_ = WritePack(context.Background(), &buf, src, src.hashes(), PackOptions{Raw: raw})
		f.Add(buf.Bytes())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got := memBlobs{}
		st, err := ReadPack(t.Context(), bytes.NewReader(data), PackLimits{MaxBlob: 1 << 16, MaxTotal: 1 << 20}, got.sink)
		if err != nil && !errors.Is(err, ErrInvalid) {
			t.Fatal(err)
		}
		if st.Bytes > 1<<20 {
			t.Fatal("over the limit")
		}
		for h, b := range got {
			if hashOf(b) != h {
				t.Fatal("a wrong blob was accepted")
			}
		}
	})
}
