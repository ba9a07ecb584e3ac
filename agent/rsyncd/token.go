package rsyncd

import (
	"bytes"
	"compress/flate"
	"io"
)

// chunk is how much of a file is sent at once, in bytes.
const chunk = 32 << 10

// sendContents sends a file's bytes, up to size of them, and their checksum.
func (s *session) sendContents(r io.Reader, size int64) {
	sum := s.newSum(true)
	var z *deflater
	if s.o.compress {
		z = newDeflater(s.out)
	}
	buf := make([]byte, chunk)
	for size > 0 {
		n, err := r.Read(buf[:min(int64(len(buf)), size)])
		if n > 0 {
			size -= int64(n)
			sum.Write(buf[:n])
			if z != nil {
				z.any = true
				z.w.Write(buf[:n])
			} else {
				s.out.int(int32(n))
				s.out.bytes(buf[:n])
			}
		}
		if err != nil {
			break // shorter than it was: what is sent is what there is
		}
	}
	if z != nil {
		z.end()
	} else {
		s.out.int(0)
	}
	s.out.bytes(sum.Sum(nil))
}

// receiveContents writes a file's bytes to w and says if their checksum is right.
func (s *session) receiveContents(w io.Writer) (good bool, err error) {
	sum := s.newSum(true)
	both := &keepGoing{w: w, also: sum}
	if s.o.compress {
		s.inflate(both)
	} else {
		s.copyLiterals(both)
	}
	want := make([]byte, sumSize)
	s.in.bytes(want)
	return bytes.Equal(want, sum.Sum(nil)), both.err
}

// keepGoing takes all that comes also after w has failed: the stream must be read to the file's end.
type keepGoing struct {
	w    io.Writer
	also io.Writer
	err  error
}

func (k *keepGoing) Write(p []byte) (int, error) {
	k.also.Write(p)
	if k.err == nil {
		_, k.err = k.w.Write(p)
	}
	return len(p), nil
}

func (s *session) copyLiterals(w io.Writer) {
	buf := make([]byte, chunk)
	for {
		n := s.in.int()
		switch {
		case n == 0:
			return
		case n < 0:
			fail(exitStream, "the sender refers to blocks of a file that it was not told of")
		}
		for n > 0 {
			k, _ := s.in.Read(buf[:min(int(n), len(buf))])
			w.Write(buf[:k])
			n -= int32(k)
		}
	}
}

// A compressed file is one stream of raw deflate, in frames of up to deflateMax bytes with 14 bits of length. Its last
// four bytes are always those of an empty block, and are left out.
const (
	deflatedData = 0x40
	deflateMax   = 16383
)

var deflateTail = []byte{0, 0, 0xFF, 0xFF}

// deflater frames what a compressor writes.
type deflater struct {
	out  *output
	held []byte // not yet sent; the last four bytes may have to be left out
	w    *flate.Writer
	any  bool
}

func newDeflater(out *output) *deflater {
	d := &deflater{out: out}
	d.w, _ = flate.NewWriter(d, flate.DefaultCompression)
	return d
}

func (d *deflater) Write(p []byte) (int, error) {
	d.held = append(d.held, p...)
	for len(d.held) >= deflateMax+len(deflateTail) {
		d.frame(deflateMax)
	}
	return len(p), nil
}

func (d *deflater) frame(n int) {
	d.out.bytes([]byte{deflatedData | byte(n>>8), byte(n)})
	d.out.bytes(d.held[:n])
	d.held = d.held[n:]
}

func (d *deflater) end() {
	if d.any {
		d.w.Flush()
	}
	if n := len(d.held) - len(deflateTail); n > 0 {
		d.frame(min(n, deflateMax))
		if n > deflateMax {
			d.frame(n - deflateMax)
		}
	}
	d.out.byte(0)
}

// inflate expands a file.
func (s *session) inflate(w io.Writer) {
	f := &frames{in: s.in}
	z := flate.NewReader(f)
	if _, err := io.Copy(w, z); err != nil {
		fail(exitStream, "the compressed contents of a file are damaged: %w", err)
	}
	if !f.ended {
		fail(exitStream, "the compressed contents of a file go on after their end")
	}
}

// frames gives the bytes of a compressed file, the tail that was left out, and the end that a file's stream never has.
type frames struct {
	in    *input
	left  int
	any   bool
	ended bool
	tail  []byte
}

func (f *frames) Read(p []byte) (int, error) {
	for f.left == 0 && !f.ended {
		switch b := f.in.byte(); {
		case b == 0:
			f.ended = true
			if f.any {
				f.tail = append(f.tail, deflateTail...)
			}
			f.tail = append(f.tail, 1, 0, 0, 0xFF, 0xFF) // an empty last block
		case b&0xC0 == deflatedData:
			f.left, f.any = int(b&0x3F)<<8|int(f.in.byte()), true
		default:
			fail(exitStream, "the sender refers to blocks of a file that it was not told of")
		}
	}
	if f.left > 0 {
		n, err := f.in.Read(p[:min(len(p), f.left)])
		f.left -= n
		return n, err
	}
	if len(f.tail) == 0 {
		return 0, io.EOF
	}
	n := copy(p, f.tail)
	f.tail = f.tail[n:]
	return n, nil
}
