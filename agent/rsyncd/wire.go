package rsyncd

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// Messages between the ends, as codes of a multiplexed stream.
const (
	msgData      = 0
	msgErrorXfer = 1 // a text for a person; the client's exit code becomes 23
	msgInfo      = 2
	msgError     = 3
	msgIOError   = 22
	msgErrorExit = 86
	msgSuccess   = 100 // a file has arrived: --remove-source-files
	msgDeleted   = 101
	msgNoSend    = 102
	msgBase      = 7
)

// Numbers that stand for no file.
const (
	ndxDone     = -1
	ndxDelStats = -3
)

// maxName bounds a name and everything else that comes with its length, in bytes.
const maxName = 64 << 10

// trouble is an error that ends the run. It travels as a panic within the package, and becomes an error at its edge:
// nearly every line here reads or writes, and none can go on after a failure.
type trouble struct {
	code int // of rsync's exit codes
	err  error
}

func fail(code int, format string, args ...any) {
	panic(trouble{code, fmt.Errorf(format, args...)})
}

// Exit codes of rsync that are used here.
const (
	exitSyntax    = 1
	exitSupport   = 4
	exitProtocol  = 2
	exitFile      = 3
	exitFileIO    = 11
	exitStream    = 12
	exitPartial   = 23
	exitVanished  = 24
	exitDelLimit  = 25
	ioErrGeneral  = 1
	ioErrVanished = 2
	ioErrDelLimit = 4
)

// catch turns a panic of fail into an error.
func catch(f func()) (t *trouble) {
	defer func() {
		switch v := recover().(type) {
		case nil:
		case trouble:
			t = &v
		default:
			panic(v)
		}
	}()
	f()
	return nil
}

// input reads what the other side sends.
type input struct {
	raw     *bufio.Reader
	mux     bool
	left    int // of the data message being read
	proto   int
	message func(code int, body []byte) // gets what is no data
	idle    func()                      // called before waiting
	total   int64
	lastPos int32 // of the numbers read
	lastNeg int32
}

func newInput(r io.Reader) *input {
	in := &input{lastPos: -1, lastNeg: 1}
	in.raw = bufio.NewReaderSize(&idler{r, in}, 64<<10)
	return in
}

// idler says before each wait for the other side that there is nothing else to do.
type idler struct {
	r  io.Reader
	in *input
}

func (i *idler) Read(p []byte) (int, error) {
	if i.in.idle != nil {
		i.in.idle()
	}
	return i.r.Read(p)
}

func (in *input) full(p []byte) {
	if _, err := io.ReadFull(in.raw, p); err != nil {
		fail(exitStream, "the connection was cut: %w", err)
	}
	in.total += int64(len(p))
}

// Read gives data as it comes; it is for the contents of files.
func (in *input) Read(p []byte) (int, error) {
	in.need()
	if in.mux && len(p) > in.left {
		p = p[:in.left]
	}
	n, err := in.raw.Read(p)
	if n == 0 && err != nil {
		fail(exitStream, "the connection was cut: %w", err)
	}
	in.total += int64(n)
	if in.mux {
		in.left -= n
	}
	return n, nil
}

// need reads messages until there is data.
func (in *input) need() {
	for in.mux && in.left == 0 {
		var h [4]byte
		in.full(h[:])
		v := binary.LittleEndian.Uint32(h[:])
		code, size := int(v>>24)-msgBase, int(v&0xFFFFFF)
		if code == msgData {
			in.left = size
			continue
		}
		if code < 0 || size > maxName {
			fail(exitStream, "a message of kind %d with %d bytes is not understood", code, size)
		}
		body := make([]byte, size)
		in.full(body)
		if in.message != nil {
			in.message(code, body)
		}
	}
}

// bytes fills p with data.
func (in *input) bytes(p []byte) {
	for len(p) > 0 {
		n, _ := in.Read(p)
		p = p[n:]
	}
}

func (in *input) byte() byte {
	var b [1]byte
	in.bytes(b[:])
	return b[0]
}

func (in *input) short() int {
	var b [2]byte
	in.bytes(b[:])
	return int(binary.LittleEndian.Uint16(b[:]))
}

func (in *input) int() int32 {
	var b [4]byte
	in.bytes(b[:])
	return int32(binary.LittleEndian.Uint32(b[:]))
}

func (in *input) text(n int) string {
	if n < 0 || n > maxName {
		fail(exitStream, "a text of %d bytes is too long", n)
	}
	b := make([]byte, n)
	in.bytes(b)
	return string(b)
}

// extraBytes tells by the first byte of a packed number how many more than usual follow.
func extraBytes(first byte) int {
	switch {
	case first < 0x80:
		return 0
	case first < 0xC0:
		return 1
	case first < 0xE0:
		return 2
	case first < 0xF0:
		return 3
	case first < 0xF8:
		return 4
	case first < 0xFC:
		return 5
	}
	return 6
}

// varlong reads a packed number of at least least bytes: the first byte holds the highest bits and the length.
func (in *input) varlong(least int) int64 {
	var head, b [9]byte
	in.bytes(head[:least])
	copy(b[:], head[1:least])
	extra := extraBytes(head[0])
	if least+extra > 9 {
		fail(exitStream, "a number of %d bytes is not understood", least+extra)
	}
	in.bytes(b[least-1 : least-1+extra])
	b[least-1+extra] = head[0]
	if extra > 0 {
		b[least-1+extra] &= 1<<(8-extra) - 1
	}
	return int64(binary.LittleEndian.Uint64(b[:8]))
}

func (in *input) varint() int32 { return int32(in.varlong(1)) }

// varint30 is an integer that protocol 30 began to pack.
func (in *input) varint30() int32 {
	if in.proto < 30 {
		return in.int()
	}
	return in.varint()
}

func (in *input) varlong30(least int) int64 {
	if in.proto >= 30 {
		return in.varlong(least)
	}
	if v := in.int(); v != -1 {
		return int64(v)
	}
	var b [8]byte
	in.bytes(b[:])
	return int64(binary.LittleEndian.Uint64(b[:]))
}

// vstring is a text with its length in one byte or two.
func (in *input) vstring() string {
	n := int(in.byte())
	if n&0x80 != 0 {
		n = (n&0x7F)<<8 | int(in.byte())
	}
	return in.text(n)
}

// ndx reads the number of a file; from protocol 30 as the distance from the last one.
func (in *input) ndx() int32 {
	if in.proto < 30 {
		return in.int()
	}
	b := in.byte()
	last := &in.lastPos
	switch b {
	case 0:
		return ndxDone
	case 0xFF:
		last = &in.lastNeg
		b = in.byte()
	}
	n := *last + int32(b)
	if b == 0xFE {
		hi, lo := in.byte(), in.byte()
		if hi&0x80 != 0 {
			b2, b3 := in.byte(), in.byte()
			n = int32(hi&0x7F)<<24 | int32(b3)<<16 | int32(b2)<<8 | int32(lo)
		} else {
			n = *last + (int32(hi)<<8 | int32(lo))
		}
	}
	*last = n
	if last == &in.lastNeg {
		return -n
	}
	return n
}

// output writes to the other side. Whole messages may come from several goroutines; data from one at a time.
type output struct {
	mu      sync.Mutex
	w       io.Writer
	mux     bool
	proto   int
	buf     []byte // room for a header, then data
	total   int64
	lastPos int32
	lastNeg int32
}

// outputSize is how much is gathered before it is sent, in bytes.
const outputSize = 32 << 10

func newOutput(w io.Writer) *output {
	return &output{w: w, buf: make([]byte, 4, 4+outputSize), lastPos: -1, lastNeg: 1}
}

func (o *output) bytes(p []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(p) > 0 {
		n := min(len(p), cap(o.buf)-len(o.buf))
		o.buf = append(o.buf, p[:n]...)
		if p = p[n:]; len(o.buf) == cap(o.buf) {
			o.send()
		}
	}
}

// send sends what was gathered. The caller holds the lock.
func (o *output) send() {
	if len(o.buf) == 4 {
		return
	}
	b := o.buf
	if o.mux {
		binary.LittleEndian.PutUint32(b, uint32(msgBase+msgData)<<24|uint32(len(b)-4))
	} else {
		b = b[4:]
	}
	o.write(b)
	o.buf = o.buf[:4]
}

func (o *output) write(b []byte) {
	if _, err := o.w.Write(b); err != nil {
		fail(exitStream, "the connection was cut: %w", err)
	}
	o.total += int64(len(b))
}

func (o *output) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.send()
}

// message sends what is no data. Before multiplexing has begun there is no way to.
func (o *output) message(code int, body []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.mux {
		return
	}
	o.send()
	h := binary.LittleEndian.AppendUint32(nil, uint32(msgBase+code)<<24|uint32(len(body)))
	o.write(append(h, body...))
}

func (o *output) messageInt(code int, v int32) {
	o.message(code, binary.LittleEndian.AppendUint32(nil, uint32(v)))
}

// complain tells the person at the other side that something went wrong with one item; the rest goes on.
func (o *output) complain(format string, args ...any) {
	text := "rsync: " + fmt.Sprintf(format, args...) + "\n"
	o.message(msgErrorXfer, []byte(text[:min(len(text), 4000)]))
}

func (o *output) byte(b byte) { o.bytes([]byte{b}) }

func (o *output) short(v int) { o.bytes(binary.LittleEndian.AppendUint16(nil, uint16(v))) }

func (o *output) int(v int32) { o.bytes(binary.LittleEndian.AppendUint32(nil, uint32(v))) }

func (o *output) varlong(v int64, least int) {
	var b [9]byte
	binary.LittleEndian.PutUint64(b[1:], uint64(v))
	n := 8
	for n > least && b[n] == 0 {
		n--
	}
	bit := byte(1) << (7 - n + least)
	switch {
	case b[n] >= bit:
		n++
		b[0] = ^(bit - 1)
	case n > least:
		b[0] = b[n] | ^(bit*2 - 1)
	default:
		b[0] = b[n]
	}
	o.bytes(b[:n])
}

func (o *output) varint(v int32) {
	var b [5]byte
	binary.LittleEndian.PutUint32(b[1:], uint32(v))
	n := 4
	for n > 1 && b[n] == 0 {
		n--
	}
	bit := byte(1) << (8 - n)
	switch {
	case b[n] >= bit:
		n++
		b[0] = ^(bit - 1)
	case n > 1:
		b[0] = b[n] | ^(bit*2 - 1)
	default:
		b[0] = b[1]
	}
	o.bytes(b[:n])
}

func (o *output) varint30(v int32) {
	if o.proto < 30 {
		o.int(v)
	} else {
		o.varint(v)
	}
}

func (o *output) varlong30(v int64, least int) {
	switch {
	case o.proto >= 30:
		o.varlong(v, least)
	case v >= 0 && v <= 0x7FFFFFFF:
		o.int(int32(v))
	default:
		o.int(-1)
		o.bytes(binary.LittleEndian.AppendUint64(nil, uint64(v)))
	}
}

func (o *output) vstring(s string) {
	if len(s) > 0x7F {
		o.byte(byte(len(s)>>8) | 0x80)
	}
	o.byte(byte(len(s)))
	o.bytes([]byte(s))
}

func (o *output) ndx(n int32) {
	if o.proto < 30 {
		o.int(n)
		return
	}
	var b []byte
	last := &o.lastPos
	switch {
	case n == ndxDone:
		o.byte(0)
		return
	case n < 0:
		b = append(b, 0xFF)
		n = -n
		last = &o.lastNeg
	}
	diff := n - *last
	*last = n
	switch {
	case diff > 0 && diff < 0xFE:
		b = append(b, byte(diff))
	case diff < 0 || diff > 0x7FFF:
		b = append(b, 0xFE, byte(n>>24)|0x80, byte(n), byte(n>>8), byte(n>>16))
	default:
		b = append(b, 0xFE, byte(diff>>8), byte(diff))
	}
	o.bytes(b)
}
