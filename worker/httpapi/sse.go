package httpapi

import (
	"bytes"
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"
	"time"

	"github.com/skyloom/skyloom/api"
)

// keepAlive is how long a stream may be silent.
const keepAlive = 10 * time.Second

// sse writes server-sent events.
type sse struct {
	w      http.ResponseWriter
	rc     *http.ResponseController
	buf    bytes.Buffer
	broken bool // the reader is gone
}

func newSSE(w http.ResponseWriter) *sse {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	return &sse{w: w, rc: http.NewResponseController(w)}
}

// event writes one event; its JSON has no line ends in it.
func (s *sse) event(e api.Event) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	s.buf.Reset()
	s.buf.WriteString("id: ")
	s.buf.Write(strconv.AppendInt(nil, e.ID, 10))
	s.buf.WriteString("\ndata: ")
	s.buf.Write(data)
	s.buf.WriteString("\n\n")
	return s.send()
}

func (s *sse) comment() error {
	s.buf.Reset()
	s.buf.WriteString(": still here\n\n")
	if err := s.send(); err != nil {
		return err
	}
	return s.flush()
}

func (s *sse) send() error {
	_, err := s.w.Write(s.buf.Bytes())
	s.broken = s.broken || err != nil
	return err
}

func (s *sse) flush() error {
	err := s.rc.Flush()
	s.broken = s.broken || err != nil
	return err
}

func typeOf[T any]() reflect.Type { return reflect.TypeFor[T]() }
