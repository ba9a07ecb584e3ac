package httpapi

import (
	"io"
	"net"
	"strings"
	"testing"
)

// cutter is a proxy in front of a server that breaks each connection after so many bytes of answer.
func cutter(t *testing.T, url string, after int64) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	addr := strings.TrimPrefix(url, "http://")
	go func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := net.Dial("tcp", addr)
				if err != nil {
					return
				}
				defer out.Close()
				go func() { // the proxy's own address is not the server's name
					io.Copy(&hostWriter{out, ln.Addr().String(), addr}, in)
					out.Close()
				}()
				io.CopyN(in, out, after)
			}()
		}
	}()
	return "http://" + ln.Addr().String()
}

// hostWriter replaces the Host header, which comes whole in the first write.
type hostWriter struct {
	w        io.Writer
	old, new string
}

func (h *hostWriter) Write(p []byte) (int, error) {
	_, err := io.WriteString(h.w, strings.Replace(string(p), "Host: "+h.old, "Host: "+h.new, 1))
	return len(p), err
}
