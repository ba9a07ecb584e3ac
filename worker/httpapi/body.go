package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"time"
)

const (
	// maxJSONBody is the size limit of a JSON body, in bytes.
	maxJSONBody = 4 << 20
	// maxCodecBody is the size limit of what the Web UI sends to the codec, in bytes.
	maxCodecBody = 32 << 20
	// jsonBodyTimeout bounds the reading of a JSON body.
	jsonBodyTimeout = 30 * time.Second
	// lingerFor and lingerBytes bound what is still taken of a refused body, so that the sender gets to read the refusal.
	lingerFor   = 5 * time.Second
	lingerBytes = 256 << 20
	// uploadStall bounds the wait for the next piece of an upload.
	uploadStall = 60 * time.Second
)

// readJSON reads a JSON body whole, checks its size, type and syntax, and puts it back for the handler.
// It returns nil when the call may go on.
func readJSON(w http.ResponseWriter, r *http.Request) *Problem {
	if r.ContentLength > maxJSONBody {
		return tooLarge(maxJSONBody)
	}
	ct := r.Header.Get("Content-Type")
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(jsonBodyTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxJSONBody))
	_ = rc.SetReadDeadline(time.Time{})
	if err != nil {
		return bodyProblem(err)
	}
	if len(body) == 0 {
		r.Body = http.NoBody
		return nil
	}
	if mt, _, err := mime.ParseMediaType(ct); err != nil || mt != "application/json" {
		return problem(http.StatusUnsupportedMediaType, "the body must be JSON", "Send it with Content-Type: application/json.")
	}
	if p := checkSyntax(body); p != nil {
		return p
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	r.Header.Set("Content-Type", "application/json")
	return nil
}

// refuseUnread answers while the sender may still be sending: it takes some of the rest, so that the refusal is read
// before the connection ends.
func refuseUnread(w http.ResponseWriter, r *http.Request, p *Problem) {
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex()
	w.Header().Set("Connection", "close")
	writeProblem(w, p)
	_ = rc.Flush()
	_ = rc.SetReadDeadline(time.Now().Add(lingerFor))
	_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, lingerBytes))
}

// checkSyntax tells where a body stops being one JSON object.
func checkSyntax(body []byte) *Problem {
	var v json.RawMessage
	if err := json.Unmarshal(body, &v); err != nil {
		p := problem(http.StatusBadRequest, "the body is not valid JSON: "+err.Error(), "")
		var syn *json.SyntaxError
		if errors.As(err, &syn) && syn.Offset >= int64(len(body)) {
			p.Detail = "the body is not valid JSON: it ends in the middle"
			p.Hint = "It was cut off on its way; send it again."
		}
		return p
	}
	if b := bytes.TrimLeft(body, " \t\r\n"); len(b) == 0 || b[0] != '{' {
		return problem(http.StatusBadRequest, "the body must be a JSON object", "")
	}
	return nil
}

func tooLarge(limit int64) *Problem {
	return problem(http.StatusRequestEntityTooLarge, "the body is too large: the limit is "+byteCount(limit), "")
}

// bodyProblem words an error met while reading a body.
func bodyProblem(err error) *Problem {
	var big *http.MaxBytesError
	var ne net.Error
	switch {
	case errors.As(err, &big):
		return tooLarge(big.Limit)
	case errors.As(err, &ne) && ne.Timeout():
		return problem(http.StatusRequestTimeout, "the body did not arrive in time", "Send it again.")
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return problem(http.StatusBadRequest, "the body ends before its announced length", "It was cut off on its way; send it again.")
	}
	return problem(http.StatusBadRequest, "the body can't be read: "+err.Error(), "Send it again.")
}

func byteCount(n int64) string {
	switch {
	case n >= 1<<30:
		return jsonNumber(float64(n)/(1<<30)) + " GiB"
	case n >= 1<<20:
		return jsonNumber(float64(n)/(1<<20)) + " MiB"
	}
	return jsonNumber(float64(n)/(1<<10)) + " KiB"
}

func jsonNumber(f float64) string { b, _ := json.Marshal(float64(int64(f*10)) / 10); return string(b) }

// stallReader moves a connection's read deadline on at each read: an upload may take hours, but not stand still.
type stallReader struct {
	r  io.Reader
	rc *http.ResponseController
}

func newStallReader(w http.ResponseWriter, r io.Reader) *stallReader {
	return &stallReader{r: r, rc: http.NewResponseController(w)}
}

func (s *stallReader) Read(p []byte) (int, error) {
	_ = s.rc.SetReadDeadline(time.Now().Add(uploadStall))
	return s.r.Read(p)
}

// done takes the deadline away, so that it does not cut the answer.
func (s *stallReader) done() { _ = s.rc.SetReadDeadline(time.Time{}) }

// isBodyError says that an error comes from the sender or its connection, not from us.
func isBodyError(err error) bool {
	var ne net.Error
	return errors.Is(err, io.ErrUnexpectedEOF) || (errors.As(err, &ne) && ne.Timeout()) || errors.Is(err, http.ErrBodyReadAfterClose)
}
