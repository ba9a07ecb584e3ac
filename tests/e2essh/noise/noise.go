// Package noise makes output that is hard on logs, the same bytes each time: lines of a megabyte, bytes that are no UTF-8,
// binary blobs, carriage returns, lines without an end.
package noise

import (
	"fmt"
	"io"
	"math/rand/v2"
)

const megabyte = 1 << 20

// Source makes output piece by piece.
type Source struct {
	rnd  *rand.ChaCha8
	n    int
	left int64
}

// New makes a source of size bytes.
func New(size int64) *Source {
	return &Source{rnd: rand.NewChaCha8([32]byte{'n', 'o', 'i', 's', 'e'}), left: size}
}

// Next is the next piece, valid for good; nil at the end.
func (s *Source) Next() []byte {
	if s.left == 0 {
		return nil
	}
	var b []byte
	switch s.n++; s.n % 6 {
	case 1:
		for i := range 2000 {
			b = fmt.Appendf(b, "line %d of part %d, and nothing odd about it\n", i, s.n)
		}
	case 2: // a line of a megabyte
		b = make([]byte, megabyte)
		for i := range b {
			b[i] = byte('a' + i%26)
		}
		b[len(b)-1] = '\n'
	case 3: // no UTF-8: ends of characters without beginnings, and beginnings without ends
		for i := range 2000 {
			b = append(b, 'x', 0xff, 0xfe, 0x80, 0xc3, '(', 0xe2, 0x82, byte(i), 0xf0, 0x9f, '\n')
		}
	case 4: // a blob, with line feeds and carriage returns where they happen to be
		b = make([]byte, 512<<10)
		s.rnd.Read(b)
	case 5: // a progress bar, which ends in no line feed
		for i := range 1000 {
			b = fmt.Appendf(b, "\r%3d %% done", i/10)
		}
	case 0: // a whole megabyte without any line, zeros among it
		b = make([]byte, megabyte)
		s.rnd.Read(b)
		for i := range b {
			if b[i] == '\n' || b[i] == '\r' {
				b[i] = 0
			}
		}
	}
	b = b[:min(int64(len(b)), s.left)]
	s.left -= int64(len(b))
	return b
}

// WriteTo writes all that is left.
func (s *Source) WriteTo(w io.Writer) (n int64, err error) {
	for b := s.Next(); b != nil; b = s.Next() {
		m, err := w.Write(b)
		n += int64(m)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
