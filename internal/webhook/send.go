package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

const (
	// Timeout bounds one attempt.
	Timeout = 10 * time.Second
	// readLimit is how much of an answer is read, in bytes, to keep its connection.
	readLimit = 64 << 10
	// maxRedirects bounds redirects within the receiver's host.
	maxRedirects = 3
)

// Message is what is posted. ID is the same each time that it is posted.
type Message struct {
	ID   string
	URL  string
	Body []byte
}

// Sender posts messages.
type Sender struct {
	client *http.Client
	agent  string
	now    func() time.Time
}

// NewSender makes a Sender that reaches what hosts allows. agent is its User-Agent. It connects directly: a proxy would
// resolve names by itself, past the rules.
func NewSender(hosts Hosts, agent string) *Sender {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		if err := hosts.Check(host); err != nil {
			return nil, err
		}
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			return nil, err
		}
		var errs []error
		for _, a := range addrs {
			if err := hosts.CheckAddr(host, a); err != nil {
				errs = append(errs, err)
				continue
			}
			c, err := dialer.DialContext(ctx, network, netip.AddrPortFrom(a.Unmap(), portOf(port)).String())
			if err == nil {
				return c, nil
			}
			errs = append(errs, err)
		}
		return nil, errors.Join(errs...)
	}
	return &Sender{agent: agent, now: time.Now, client: &http.Client{
		Timeout: Timeout,
		Transport: &http.Transport{DialContext: dial, MaxIdleConns: 64, MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second, TLSHandshakeTimeout: 5 * time.Second,
			ResponseHeaderTimeout: Timeout, MaxResponseHeaderBytes: 16 << 10, DisableCompression: true, ForceAttemptHTTP2: true},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			from := via[0].URL
			// Another host, or a redirect that would turn the post into a read, is the end; also from https to http.
			if len(via) > maxRedirects || req.Method != http.MethodPost || req.URL.Host != from.Host || from.Scheme == "https" && req.URL.Scheme != "https" {
				return http.ErrUseLastResponse
			}
			return nil
		},
	}}
}

func portOf(s string) uint16 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}

// Send posts a message once. It succeeds if the receiver answers with a status of 200 to 299.
func (s *Sender) Send(ctx context.Context, m Message, secret string) error {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.URL, bytes.NewReader(m.Body))
	if err != nil {
		return errors.New("the address can't be used")
	}
	at := s.now()
	sig, err := Sign(secret, m.ID, at, m.Body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", s.agent)
	req.Header.Set("webhook-id", m.ID)
	req.Header.Set("webhook-timestamp", strconv.FormatInt(at.Unix(), 10))
	req.Header.Set("webhook-signature", sig)
	resp, err := s.client.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			if ue.Timeout() {
				return fmt.Errorf("no answer within %s", Timeout)
			}
			err = ue.Err // the address is told apart
		}
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, readLimit))
	switch {
	case resp.StatusCode/100 == 2:
		return nil
	case resp.StatusCode/100 == 3:
		return fmt.Errorf("HTTP %d: a redirect that is not followed", resp.StatusCode)
	}
	return fmt.Errorf("HTTP %d", resp.StatusCode)
}

const (
	firstBackoff = time.Second
	maxBackoff   = 10 * time.Minute
)

// Backoff is the pause after a number of attempts in vain, from 1: doubling from one second up to ten minutes, and spread by
// up to a fifth by seed, so that receivers are not met by all at once when they come back.
func Backoff(seed int64, tries int) time.Duration {
	d := maxBackoff
	if tries < 11 {
		d = min(firstBackoff<<max(tries-1, 0), maxBackoff)
	}
	mixed := uint64(seed*31+int64(tries)) * 0x9E3779B97F4A7C15 >> 40
	return d + d/5*time.Duration(mixed%1000)/1000
}
