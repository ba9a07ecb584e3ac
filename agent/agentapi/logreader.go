package agentapi

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"

	"github.com/skyloom/skyloom/api"
)

// maxHeader bounds the header line of a log frame, in bytes.
const maxHeader = 64 << 10

// LogReader reads a framed log stream in constant memory.
type LogReader struct {
	r    *bufio.Reader
	left io.LimitedReader
	done bool
}

// NewLogReader reads frames from r.
func NewLogReader(r io.Reader) *LogReader {
	l := &LogReader{r: bufio.NewReaderSize(r, 32<<10)}
	l.left.R = l.r
	return l
}

// Next gives the next frame and its bytes, which are to be read before the next call (what is left of them is skipped).
// After the End frame it gives io.EOF; a stream that was cut before gives io.ErrUnexpectedEOF.
func (l *LogReader) Next() (api.LogFrame, io.Reader, error) {
	var f api.LogFrame
	if l.done {
		return f, nil, io.EOF
	}
	if l.left.N > 0 {
		if _, err := io.Copy(io.Discard, &l.left); err != nil {
			return f, nil, err
		}
		if l.left.N > 0 {
			return f, nil, io.ErrUnexpectedEOF
		}
	}
	var line []byte
	for {
		part, err := l.r.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			break
		}
		if err != bufio.ErrBufferFull {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return f, nil, err
		}
		if len(line) > maxHeader {
			return f, nil, fmt.Errorf("log stream: a frame's header is longer than %d bytes", maxHeader)
		}
	}
	if err := json.Unmarshal(line, &f); err != nil {
		return f, nil, fmt.Errorf("log stream: frame header %.80q: %w", line, err)
	}
	if f.Len < 0 {
		return f, nil, fmt.Errorf("log stream: frame of negative length %d", f.Len)
	}
	l.left.N = int64(f.Len)
	l.done = f.End && f.Len == 0
	return f, &l.left, nil
}
