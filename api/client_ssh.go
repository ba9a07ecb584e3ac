package api

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
)

// SSHHosts tells of the SSH servers of a cluster's nodes, by rank.
func (c *Client) SSHHosts(ctx context.Context, cluster string) (*SSHHosts, error) {
	out := &SSHHosts{}
	return out, c.call(ctx, "GET", prefix+"/clusters/"+url.PathEscape(cluster)+"/ssh-hosts", nil, nil, out)
}

// DialSSH opens a tunnel to the SSH server of a node, for a login with the public key (TYPE BASE64). ctx bounds the
// opening, not the life of the tunnel.
func (c *Client) DialSSH(ctx context.Context, cluster string, node int, publicKey string) (*Tunnel, error) {
	path := prefix + "/clusters/" + url.PathEscape(cluster) + "/ssh?node=" + strconv.Itoa(node)
	w := c.newWait()
	for {
		t, err := c.tryTunnel(ctx, path, publicKey)
		if err == nil {
			return t, nil
		}
		if err := w.next(ctx, err); err != nil {
			return nil, err
		}
	}
}

func (c *Client) tryTunnel(ctx context.Context, path, key string) (*Tunnel, error) {
	c.mu.RLock()
	endpoint, token := c.endpoint, c.token
	c.mu.RUnlock()
	live, cancel := context.WithCancel(context.WithoutCancel(ctx)) // the request lives as long as the tunnel
	stop := context.AfterFunc(ctx, cancel)
	fail := func(err error) (*Tunnel, error) { cancel(); return nil, err }
	req, err := http.NewRequestWithContext(live, "GET", endpoint+path, nil)
	if err != nil {
		return fail(&finalError{fmt.Errorf("%q is no server address: %w", endpoint, err)})
	}
	var nonce [16]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return fail(err)
	}
	wsKey := base64.StdEncoding.EncodeToString(nonce[:])
	h := req.Header
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", "websocket")
	h.Set("Sec-WebSocket-Version", "13")
	h.Set("Sec-WebSocket-Key", wsKey)
	h.Set(HeaderSSHKey, key)
	h.Set(HeaderAPIVersion, strconv.Itoa(Version))
	h.Set("User-Agent", c.agent)
	if token != "" {
		h.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.upgradable().Do(req)
	if err != nil {
		return fail(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		defer cancel()
		if resp.StatusCode < 300 {
			return nil, &finalError{fmt.Errorf("the server at %s opens no websocket: it answered %s\nA proxy in between may not let websockets pass.", endpoint, resp.Status)}
		}
		perr := readProblem(resp)
		if retryableStatus(resp.StatusCode) && perr.Kind == ErrUnavailable && strings.HasPrefix(perr.Message, "the server is ") {
			return nil, &overloaded{err: perr, after: retryAfter(resp.Header.Get("Retry-After"))}
		}
		return nil, &finalError{perr}
	}
	sum := sha1.Sum([]byte(wsKey + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) // RFC 6455, 4.2.2
	rw, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || resp.Header.Get("Sec-WebSocket-Accept") != base64.StdEncoding.EncodeToString(sum[:]) {
		resp.Body.Close()
		return fail(&finalError{fmt.Errorf("the server at %s switched to something that is no websocket", endpoint)})
	}
	if !stop() {
		rw.Close()
		return fail(ctx.Err())
	}
	return &Tunnel{HostKey: resp.Header.Get(HeaderSSHHostKey), conn: rw, cancel: cancel, r: bufio.NewReaderSize(rw, 16<<10)}, nil
}

// upgradable is the client's HTTP client without HTTP/2, which knows no upgrades.
func (c *Client) upgradable() *http.Client {
	h := *c.http
	if t, ok := h.Transport.(*http.Transport); ok {
		t = t.Clone()
		t.ForceAttemptHTTP2 = false
		t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
		if t.TLSClientConfig != nil {
			t.TLSClientConfig.NextProtos = []string{"http/1.1"}
		}
		t.DisableCompression = true
		h.Transport = t
	}
	return &h
}

// Opcodes of websocket frames, RFC 6455, 5.2.
const (
	opContinuation = 0
	opText         = 1
	opBinary       = 2
	opClose        = 8
	opPing         = 9
	opPong         = 10
)

// tunnelFrame is the largest payload that one Write sends in a frame, in bytes.
const tunnelFrame = 128 << 10

// Tunnel is a stream of bytes inside a websocket: the client's half of RFC 6455, without extensions. One goroutine may
// read while another writes.
type Tunnel struct {
	HostKey string // that the node has to show: TYPE BASE64; empty: not told

	conn   io.ReadWriteCloser
	cancel context.CancelFunc
	r      *bufio.Reader
	left   int64 // of the frame being read
	err    error // that ended reading

	mu     sync.Mutex // of writing
	buf    []byte
	mask   [4 << 10]byte
	closed bool
}

// Read reads what the node sent. The end of the stream is io.EOF; a server that ends says so.
func (t *Tunnel) Read(p []byte) (int, error) {
	for t.left == 0 {
		if t.err == nil {
			t.err = t.next()
		}
		if t.err != nil {
			return 0, t.err
		}
	}
	if int64(len(p)) > t.left {
		p = p[:t.left]
	}
	n, err := t.r.Read(p)
	t.left -= int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// next reads frame headers up to the next one that carries data.
func (t *Tunnel) next() error {
	var h [8]byte
	if _, err := io.ReadFull(t.r, h[:2]); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("the connection to the server was cut: %w", err)
	}
	op, size := h[0]&15, int64(h[1]&127)
	if h[0]&0x70 != 0 || h[1]&128 != 0 {
		return errors.New("the server's websocket speaks something else than was agreed")
	}
	ext := map[int64]int{126: 2, 127: 8}[size]
	if ext > 0 {
		if _, err := io.ReadFull(t.r, h[:ext]); err != nil {
			return err
		}
		if size = int64(binary.BigEndian.Uint16(h[:2])); ext == 8 {
			size = int64(binary.BigEndian.Uint64(h[:8]))
		}
	}
	switch op {
	case opContinuation, opText, opBinary:
		if size < 0 {
			return errors.New("the server's websocket sent a frame of no size")
		}
		t.left = size
		return nil
	case opPing, opPong, opClose:
		if size > 125 {
			return errors.New("the server's websocket sent a control frame that is too long")
		}
		body := make([]byte, size)
		if _, err := io.ReadFull(t.r, body); err != nil {
			return err
		}
		switch op {
		case opPing:
			return t.frame(opPong, body)
		case opClose:
			_ = t.frame(opClose, body[:min(len(body), 2)])
			if len(body) > 2 {
				return fmt.Errorf("the tunnel was closed: %s", body[2:])
			}
			return io.EOF
		}
		return nil
	}
	return fmt.Errorf("the server's websocket sent a frame of kind %d", op)
}

// Write sends p to the node.
func (t *Tunnel) Write(p []byte) (int, error) {
	done := 0
	for len(p) > 0 {
		n := min(len(p), tunnelFrame)
		if err := t.frame(opBinary, p[:n]); err != nil {
			return done, err
		}
		p, done = p[n:], done+n
	}
	return done, nil
}

// frame sends one frame, masked as a client's must be.
func (t *Tunnel) frame(op byte, p []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return io.ErrClosedPipe
	}
	b := append(t.buf[:0], 0x80|op)
	switch n := len(p); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	if _, err := rand.Read(t.mask[:4]); err != nil {
		return err
	}
	b = append(b, t.mask[:4]...)
	width := min(len(t.mask), (len(p)+3)&^3)
	for n := 4; n < width; n *= 2 {
		copy(t.mask[n:], t.mask[:n])
	}
	at := len(b)
	b = append(b, p...)
	for ; at < len(b); at += subtle.XORBytes(b[at:], b[at:], t.mask[:width]) {
	}
	t.buf = b
	_, err := t.conn.Write(b)
	return err
}

// Close ends the tunnel.
func (t *Tunnel) Close() error {
	_ = t.frame(opClose, []byte{3, 232}) // 1000: normal
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	err := t.conn.Close()
	t.cancel()
	return err
}
