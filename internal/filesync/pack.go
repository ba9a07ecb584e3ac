package filesync

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// PackMediaType is the media type of a stream of blobs.
const PackMediaType = "application/x-skyloom-pack"

// A pack is "skypk1", one byte for the encoding of the rest ('z' zstd, 'r' raw), then per blob: 1, hash (32 bytes), size
// (uvarint), bytes; at the end: 0, number of blobs (uvarint). One zstd frame spans all blobs, so that thousands of small
// files compress well.
const packMagic = "skypk1"

// BlobSource gives blobs by hash. The error for one it lacks matches fs.ErrNotExist.
type BlobSource interface {
	Open(hash string) (r io.ReadCloser, size int64, err error)
}

// Mover is a BlobSource that can give a blob away: as a file of its own named name in the folder dir, with any mode and
// time. The source lacks it afterwards. An error means that nothing happened and the blob has to be copied.
type Mover interface {
	Move(hash string, dir *os.File, name string) error
}

// PackOptions tune the writing of a pack.
type PackOptions struct {
	// Raw leaves the compression out: right on a loopback connection.
	Raw bool
	// Trusted sends the bytes of a source that is known to hold what it says without hashing them; readers check anyway.
	Trusted bool
	// Progress is told the blobs and bytes sent so far, before compression.
	Progress func(blobs int, bytes int64)
}

// PackWriter writes blobs as one stream. After an error it writes nothing more, and the reader sees a cut stream.
type PackWriter struct {
	z     *zstd.Encoder
	bw    *bufio.Writer
	o     PackOptions
	h     hash.Hash
	buf   []byte
	blobs int
	bytes int64
	err   error
}

// NewPackWriter starts a pack on w.
func NewPackWriter(w io.Writer, o PackOptions) *PackWriter {
	p := &PackWriter{o: o, h: sha256.New(), buf: make([]byte, 128<<10)}
	enc := byte('z')
	if o.Raw {
		enc = 'r'
	}
	if _, p.err = w.Write(append([]byte(packMagic), enc)); p.err != nil {
		return p
	}
	if !o.Raw {
		p.z, p.err = zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
		w = p.z
	}
	p.bw = bufio.NewWriterSize(w, 128<<10)
	return p
}

// Add sends one blob. A source that is not size bytes long, or whose hash is another, gives an ErrChanged.
func (p *PackWriter) Add(hash string, size int64, r io.Reader) error {
	if p.err != nil {
		return p.err
	}
	p.err = p.add(hash, size, r)
	return p.err
}

func (p *PackWriter) add(hash string, size int64, r io.Reader) error {
	if !isHash(hash) {
		return invalidf("%q is not a blob's hash", short(hash))
	}
	sum, _ := hex.DecodeString(hash)
	head := append([]byte{1}, sum...)
	if _, err := p.bw.Write(binary.AppendUvarint(head, uint64(size))); err != nil {
		return err
	}
	p.h.Reset()
	for left := size; left > 0; {
		n, err := r.Read(p.buf[:min(int64(len(p.buf)), left)])
		if n > 0 {
			if !p.o.Trusted {
				p.h.Write(p.buf[:n])
			}
			if _, werr := p.bw.Write(p.buf[:n]); werr != nil {
				return werr
			}
			left -= int64(n)
			p.bytes += int64(n)
			if p.o.Progress != nil {
				p.o.Progress(p.blobs, p.bytes)
			}
		}
		if left > 0 && errors.Is(err, io.EOF) {
			return fmt.Errorf("blob %s is shorter than announced: %w", hash[:12], ErrChanged)
		}
		if left > 0 && err != nil {
			return err
		}
	}
	if !p.o.Trusted && !bytes.Equal(p.h.Sum(nil), sum) {
		return fmt.Errorf("blob %s has other bytes than announced: %w", hash[:12], ErrChanged)
	}
	p.blobs++
	if p.o.Progress != nil {
		p.o.Progress(p.blobs, p.bytes)
	}
	return nil
}

// Close ends the pack; without it a reader takes the stream for cut. It does not close the underlying writer.
func (p *PackWriter) Close() error {
	if p.err == nil {
		_, p.err = p.bw.Write(binary.AppendUvarint([]byte{0}, uint64(p.blobs)))
	}
	if p.err == nil {
		p.err = p.bw.Flush()
	}
	if p.z == nil {
		return p.err
	}
	if p.err != nil {
		p.z.Reset(nil) // no end mark: the reader has to see the cut
		return p.err
	}
	p.err = p.z.Close()
	return p.err
}

// WritePack sends the named blobs of src, in order.
func WritePack(ctx context.Context, w io.Writer, src BlobSource, hashes []string, o PackOptions) (err error) {
	p := NewPackWriter(w, o)
	defer func() {
		if cerr := p.Close(); err == nil {
			err = cerr
		}
	}()
	for _, h := range hashes {
		if err := ctx.Err(); err != nil {
			p.err = err
			return err
		}
		r, size, err := src.Open(h)
		if err != nil {
			p.err = err
			return err
		}
		err = p.Add(h, size, r)
		_ = r.Close()
		if err != nil {
			if n, ok := src.(interface{ PathOf(string) string }); ok && errors.Is(err, ErrChanged) {
				err = changedErr(n.PathOf(h))
			}
			return err
		}
	}
	return nil
}

// PackBody is a pack as the body of an HTTP request, made while it is sent. Close ends it.
type PackBody struct {
	ctx    context.Context
	cancel context.CancelFunc
	src    BlobSource
	hashes []string
	o      PackOptions
	once   sync.Once
	r      *io.PipeReader
	w      *io.PipeWriter
}

// NewPackBody prepares the sending of the named blobs.
func NewPackBody(ctx context.Context, src BlobSource, hashes []string, o PackOptions) *PackBody {
	ctx, cancel := context.WithCancel(ctx)
	b := &PackBody{ctx: ctx, cancel: cancel, src: src, hashes: hashes, o: o}
	b.r, b.w = io.Pipe()
	return b
}

// WriteTo is what net/http calls: the pack goes straight to the connection.
func (b *PackBody) WriteTo(w io.Writer) (int64, error) {
	c := &counter{w: w}
	err := WritePack(b.ctx, c, b.src, b.hashes, b.o)
	return c.n, err
}

// Read serves those who can't use WriteTo.
func (b *PackBody) Read(p []byte) (int, error) {
	b.once.Do(func() {
		go func() { b.w.CloseWithError(WritePack(b.ctx, b.w, b.src, b.hashes, b.o)) }()
	})
	return b.r.Read(p)
}

// Close ends the sending.
func (b *PackBody) Close() error {
	b.cancel()
	return b.r.Close()
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// PackLimits bound what ReadPack accepts. Zero: 1 TiB per blob, 4 million blobs, no bound on the total.
type PackLimits struct {
	MaxBlob, MaxTotal int64 // bytes
	MaxBlobs          int
}

// PackStats counts what a pack held.
type PackStats struct {
	Blobs int
	Bytes int64
}

// ReadPack hands each blob of a pack to sink. The reader given to sink fails instead of reporting its end if the bytes
// don't match the hash or the stream is cut, so a sink that renames on success keeps nothing half done. Blobs handed
// over before a failure stay valid. A pack ends with its stream.
func ReadPack(ctx context.Context, r io.Reader, l PackLimits, sink func(hash string, size int64, r io.Reader) error) (PackStats, error) {
	var st PackStats
	if l.MaxBlob <= 0 {
		l.MaxBlob = 1 << 40
	}
	if l.MaxBlobs <= 0 {
		l.MaxBlobs = 4_000_000
	}
	head := make([]byte, len(packMagic)+1)
	if _, err := io.ReadFull(r, head); err != nil {
		return st, cutErr(err)
	}
	if string(head[:len(packMagic)]) != packMagic {
		return st, invalidf("this is not a stream of blobs, or one of a newer version")
	}
	switch head[len(packMagic)] {
	case 'r':
	case 'z':
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return st, invalidf("blob stream: %v", err)
		}
		defer z.Close()
		r = z
	default:
		return st, invalidf("blob stream: unknown encoding")
	}
	return readFrames(ctx, bufio.NewReaderSize(r, 128<<10), l, sink)
}

func readFrames(ctx context.Context, br *bufio.Reader, l PackLimits, sink func(string, int64, io.Reader) error) (st PackStats, err error) {
	h := sha256.New()
	var sum [sha256.Size]byte
	for {
		if err := ctx.Err(); err != nil {
			return st, err
		}
		mark, err := br.ReadByte()
		if err != nil {
			return st, cutErr(err)
		}
		switch mark {
		case 0:
			n, err := binary.ReadUvarint(br)
			if err != nil {
				return st, cutErr(err)
			}
			if n != uint64(st.Blobs) {
				return st, invalidf("blob stream: %d blobs announced, %d found", n, st.Blobs)
			}
			// Asking for the end lets the decoder check the rest, and leaves a connection ready for reuse.
			if _, err := br.ReadByte(); err == nil {
				return st, invalidf("blob stream: data after its end")
			} else if !errors.Is(err, io.EOF) {
				return st, cutErr(err)
			}
			return st, nil
		case 1:
		default:
			return st, invalidf("blob stream: damaged")
		}
		if _, err := io.ReadFull(br, sum[:]); err != nil {
			return st, cutErr(err)
		}
		size, err := binary.ReadUvarint(br)
		if err != nil {
			return st, cutErr(err)
		}
		if size > uint64(l.MaxBlob) || st.Blobs >= l.MaxBlobs || (l.MaxTotal > 0 && uint64(l.MaxTotal-st.Bytes) < size) {
			return st, invalidf("blob stream: bigger than allowed here")
		}
		h.Reset()
		b := &blobReader{r: br, left: int64(size), h: h, want: sum}
		if err := sink(hex.EncodeToString(sum[:]), int64(size), b); err != nil {
			return st, err
		}
		if _, err := io.Copy(io.Discard, b); err != nil { // a sink may have had enough
			return st, err
		}
		st.Blobs++
		st.Bytes += int64(size)
	}
}

// cutErr turns an end or damage of the stream into an ErrInvalid, and leaves the connection's own errors as they are.
func cutErr(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: the stream of blobs ended early; send it again", ErrInvalid)
	}
	return fmt.Errorf("%w: blob stream: %w", ErrInvalid, err)
}

// blobReader reads one blob and checks it at its end.
type blobReader struct {
	r    *bufio.Reader
	left int64
	h    hash.Hash
	want [sha256.Size]byte
	err  error
}

func (b *blobReader) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.left == 0 {
		b.err = io.EOF
		if got := b.h.Sum(nil); !bytes.Equal(got, b.want[:]) {
			b.err = invalidf("blob %s has other bytes than its hash says", hex.EncodeToString(b.want[:6]))
		}
		return 0, b.err
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.h.Write(p[:n])
	b.left -= int64(n)
	if err != nil {
		b.err = cutErr(err)
		return n, b.err
	}
	return n, nil
}
