package filesync

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"
)

// The canonical form, in this order:
//
//	"skymf1\n"
//	per entry: kind (1 byte) · shared prefix with the path before (uvarint) · rest of the path (uvarint length, bytes) ·
//	           mode (uvarint) · file: mtime (varint), size (uvarint), hash (32 bytes) · link: target (uvarint length, bytes)
//	0 · number of entries (uvarint)
//
// Paths are in order, so that the prefixes make it compact before any compression.
const manifestMagic = "skymf1\n"

// maxWindow bounds what a zstd frame may make the decoder allocate.
const maxWindow = 16 << 20

func writeCanonical(w io.Writer, magic string, entries []Entry) error {
	bw := bufio.NewWriterSize(w, 32<<10)
	if _, err := bw.WriteString(magic); err != nil {
		return err
	}
	var buf []byte
	last := ""
	for i := range entries {
		e := &entries[i]
		n := commonPrefix(last, e.Path)
		buf = append(buf[:0], byte(e.Kind))
		buf = binary.AppendUvarint(buf, uint64(n))
		buf = binary.AppendUvarint(buf, uint64(len(e.Path)-n))
		buf = append(buf, e.Path[n:]...)
		buf = binary.AppendUvarint(buf, uint64(e.Mode))
		switch e.Kind {
		case KindFile:
			buf = binary.AppendVarint(buf, e.ModTime)
			buf = binary.AppendUvarint(buf, uint64(e.Size))
			var sum [sha256.Size]byte
			_, _ = hex.Decode(sum[:], []byte(e.Hash))
			buf = append(buf, sum[:]...)
		case KindLink:
			buf = binary.AppendUvarint(buf, uint64(len(e.Link)))
			buf = append(buf, e.Link...)
		}
		if _, err := bw.Write(buf); err != nil {
			return err
		}
		last = e.Path
	}
	buf = binary.AppendUvarint(append(buf[:0], 0), uint64(len(entries)))
	if _, err := bw.Write(buf); err != nil {
		return err
	}
	return bw.Flush()
}

func commonPrefix(a, b string) int {
	n := min(len(a), len(b))
	for i := 0; i < n; i++ {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// Encode writes the wire form: the canonical form, compressed.
func (m *Manifest) Encode(w io.Writer) error { return encodeEntries(w, manifestMagic, m.Entries) }

func encodeEntries(w io.Writer, magic string, entries []Entry) error {
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return err
	}
	if err := writeCanonical(z, magic, entries); err != nil {
		_ = z.Close()
		return err
	}
	return z.Close()
}

// Bytes is the wire form in memory.
func (m *Manifest) Bytes() ([]byte, error) {
	var b bytes.Buffer
	err := m.Encode(&b)
	return b.Bytes(), err
}

// Decode reads a manifest in wire form and validates it. Damaged, oversized or hostile input gives an ErrInvalid.
func Decode(r io.Reader, l Limits) (*Manifest, error) {
	c := newChecker(0)
	entries, err := decodeEntries(r, manifestMagic, l, c.add)
	if err != nil {
		return nil, err
	}
	return validated(entries), nil
}

func decodeEntries(r io.Reader, magic string, l Limits, check func(*Entry) error) ([]Entry, error) {
	if l.MaxEntries <= 0 {
		l.MaxEntries = DefaultLimits.MaxEntries
	}
	if l.MaxBytes <= 0 {
		l.MaxBytes = DefaultLimits.MaxBytes
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, invalidf("manifest: %v", err)
	}
	defer z.Close()
	lim := &io.LimitedReader{R: z, N: l.MaxBytes}
	d := decoder{r: bufio.NewReaderSize(lim, 32<<10)}
	var entries []Entry
	for d.magic(magic); d.err == nil; {
		e, end := d.entry()
		if d.err != nil {
			break
		}
		if end {
			if n := d.uvarint(1 << 40); d.err == nil && n != uint64(len(entries)) {
				d.err = invalidf("manifest: %d entries announced, %d found", n, len(entries))
			}
			if d.err != nil {
				break
			}
			// A short read of the compressed stream shows only when its end is asked for.
			if _, err := d.r.ReadByte(); !errors.Is(err, io.EOF) {
				return nil, invalidf("manifest: data after its end, or damaged: %v", err)
			}
			return entries, nil
		}
		if len(entries) >= l.MaxEntries {
			return nil, invalidf("manifest: more than %d entries", l.MaxEntries)
		}
		if err := check(&e); err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	if lim.N <= 0 {
		return nil, invalidf("manifest: longer than %d bytes", l.MaxBytes)
	}
	if errors.Is(d.err, ErrInvalid) {
		return nil, d.err
	}
	return nil, invalidf("manifest: cut short or damaged: %v", d.err)
}

// decoder reads the primitives of the canonical form; its first error sticks.
type decoder struct {
	r    *bufio.Reader
	last string
	err  error
}

func (d *decoder) magic(want string) {
	buf := make([]byte, len(want))
	if _, d.err = io.ReadFull(d.r, buf); d.err == nil && string(buf) != want {
		d.err = invalidf("this is not a manifest, or one of a newer version")
	}
}

func (d *decoder) uvarint(max uint64) uint64 {
	if d.err != nil {
		return 0
	}
	var v uint64
	v, d.err = binary.ReadUvarint(d.r)
	if d.err == nil && v > max {
		d.err = invalidf("manifest: a number is out of range")
	}
	return v
}

func (d *decoder) bytes(n uint64) []byte {
	if d.err != nil {
		return nil
	}
	buf := make([]byte, n)
	_, d.err = io.ReadFull(d.r, buf)
	return buf
}

func (d *decoder) entry() (e Entry, end bool) {
	kind, err := d.r.ReadByte()
	if err != nil {
		d.err = err
		return e, false
	}
	if kind == 0 {
		return e, true
	}
	e.Kind = Kind(kind)
	prefix := d.uvarint(maxPath)
	if d.err == nil && prefix > uint64(len(d.last)) {
		d.err = invalidf("manifest: a path refers beyond the one before it")
	}
	rest := d.bytes(d.uvarint(maxPath))
	if d.err != nil {
		return e, false
	}
	e.Path = d.last[:prefix] + string(rest)
	d.last = e.Path
	e.Mode = uint32(d.uvarint(1 << 31))
	switch e.Kind {
	case KindFile:
		if d.err == nil {
			e.ModTime, d.err = binary.ReadVarint(d.r)
		}
		e.Size = int64(d.uvarint(maxSize))
		e.Hash = hex.EncodeToString(d.bytes(sha256.Size))
	case KindLink:
		e.Link = string(d.bytes(d.uvarint(maxPath)))
	case KindDir, kindGone:
	default:
		d.err = invalidf("manifest: unknown kind %d", kind)
	}
	return e, false
}
