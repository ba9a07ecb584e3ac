package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

// headerSecret carries the cluster's secret between peers.
const headerSecret = "X-Skyloom-Cluster-Secret"

// peerTimeout bounds a peer's answer, besides the time it was asked to wait.
const peerTimeout = 10 * time.Second

// node is what a driver asks of a node, be it this one or a peer. Every call is idempotent.
type node interface {
	prepare(ctx context.Context, r partRequest) (partState, error)
	start(ctx context.Context, ref partRef, phase string) (partState, error)
	await(ctx context.Context, ref partRef, seen int64) (partState, error)
	kill(ctx context.Context, ref partRef, grace time.Duration) (partState, error)
	finish(ctx context.Context, ref partRef, status api.JobStatus, reason string) error
}

// nodeOf gives the node of a job's placement, or errLost.
func (a *Agent) nodeOf(j *jobState, n int) (node, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := j.Place.NodeIDs[n]
	if why, gone := a.lost[id]; gone {
		return nil, errLost{n, why}
	}
	if id == a.cfg.NodeID {
		return localNode{a}, nil
	}
	for _, p := range a.cluster.Spec.Nodes {
		if p.NodeID == id {
			return remoteNode{a.peers.client(a, p.Addr), a.cluster.Spec.Secret}, nil
		}
	}
	return nil, errLost{n, "it is no longer part of the cluster"}
}

type localNode struct{ a *Agent }

func (l localNode) prepare(_ context.Context, r partRequest) (partState, error) {
	return l.a.preparePart(r)
}
func (l localNode) start(_ context.Context, ref partRef, phase string) (partState, error) {
	return l.a.startPart(ref, phase)
}
func (l localNode) await(ctx context.Context, ref partRef, seen int64) (partState, error) {
	return l.a.awaitPart(ctx, ref, seen)
}
func (l localNode) kill(ctx context.Context, ref partRef, grace time.Duration) (partState, error) {
	return l.a.killPart(ctx, ref, grace)
}
func (l localNode) finish(_ context.Context, ref partRef, status api.JobStatus, reason string) error {
	return l.a.finishPart(ref, status, reason)
}

// peerCall is the body of every call between peers.
type peerCall struct {
	Ref     partRef       `json:"ref"`
	Prepare *partRequest  `json:"prepare,omitempty"`
	Phase   string        `json:"phase,omitempty"`
	Seen    int64         `json:"seen,omitempty"`
	Grace   time.Duration `json:"grace,omitempty"`
	Status  api.JobStatus `json:"status,omitempty"`
	Reason  string        `json:"reason,omitempty"`
	Forget  *forgetCall   `json:"forget,omitempty"`
	// Down and Generation are those of the autostop by which the node is to end.
	Down       bool  `json:"down,omitempty"`
	Generation int64 `json:"generation,omitempty"`
}

type remoteNode struct {
	http   *peerClient
	secret string
}

func (r remoteNode) prepare(ctx context.Context, req partRequest) (partState, error) {
	return r.call(ctx, "prepare", peerTimeout, peerCall{Prepare: &req})
}
func (r remoteNode) start(ctx context.Context, ref partRef, phase string) (partState, error) {
	return r.call(ctx, "start", peerTimeout, peerCall{Ref: ref, Phase: phase})
}
func (r remoteNode) await(ctx context.Context, ref partRef, seen int64) (partState, error) {
	return r.call(ctx, "await", partWait+peerTimeout, peerCall{Ref: ref, Seen: seen})
}
func (r remoteNode) kill(ctx context.Context, ref partRef, grace time.Duration) (partState, error) {
	return r.call(ctx, "kill", grace+peerTimeout, peerCall{Ref: ref, Grace: grace})
}
func (r remoteNode) finish(ctx context.Context, ref partRef, status api.JobStatus, reason string) error {
	_, err := r.call(ctx, "finish", peerTimeout, peerCall{Ref: ref, Status: status, Reason: reason})
	return err
}

// end asks a peer to end its node.
func (r remoteNode) end(ctx context.Context, why peerCall) error {
	_, err := r.call(ctx, "end", peerTimeout, why)
	return err
}

func (r remoteNode) call(ctx context.Context, verb string, limit time.Duration, in peerCall) (partState, error) {
	var st partState
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	body, err := json.Marshal(in)
	if err != nil {
		return st, err
	}
	req, err := http.NewRequestWithContext(ctx, "POST", r.http.base+"/v1/peer/"+verb, bytes.NewReader(body))
	if err != nil {
		return st, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(headerSecret, r.secret)
	resp, err := r.http.Do(req)
	if err != nil {
		return st, err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return st, agentapi.ReadError(resp)
	}
	return st, json.NewDecoder(io.LimitReader(resp.Body, 64<<20)).Decode(&st)
}

// servePeer answers a peer's call.
func (a *Agent) servePeer(ctx context.Context, verb string, in peerCall) (partState, error) {
	switch verb {
	case "prepare":
		if in.Prepare == nil {
			return partState{}, invalid("nothing to prepare")
		}
		return a.preparePart(*in.Prepare)
	case "start":
		return a.startPart(in.Ref, in.Phase)
	case "await":
		return a.awaitPart(ctx, in.Ref, in.Seen)
	case "kill":
		return a.killPart(ctx, in.Ref, in.Grace)
	case "finish":
		return partState{}, a.finishPart(in.Ref, in.Status, in.Reason)
	case "forget":
		if in.Forget != nil {
			a.forgetParts(*in.Forget)
		}
		return partState{}, nil
	case "end":
		go a.endNode(in.Reason, in.Down, in.Generation)
		return partState{}, nil
	}
	return partState{}, notFound("peers cannot ask for %q", verb)
}

// trusted checks the secret of a peer's call.
func (a *Agent) trusted(r *http.Request) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cluster == nil {
		return false
	}
	want := a.cluster.Spec.Secret
	return subtle.ConstantTimeCompare([]byte(r.Header.Get(headerSecret)), []byte(want)) == 1
}

// peerSet keeps the HTTP clients of peers by address.
type peerSet struct {
	mu      sync.Mutex
	clients map[string]*peerClient
	serving bool // the listener for peers is up
}

type peerClient struct {
	*http.Client
	base string
}

func (s *peerSet) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.clients {
		c.CloseIdleConnections()
	}
	s.clients = nil
}

func (s *peerSet) client(a *Agent, addr string) *peerClient {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.clients[addr]; c != nil {
		return c
	}
	if s.clients == nil {
		s.clients = map[string]*peerClient{}
	}
	tr := &http.Transport{MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second, TLSHandshakeTimeout: 5 * time.Second}
	c := &peerClient{Client: &http.Client{Transport: tr}, base: strings.TrimSuffix(addr, "/")}
	d := net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		c.base = "http://peer"
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) }
	} else {
		tr.DialTLSContext = func(ctx context.Context, network, hostport string) (net.Conn, error) {
			conf, err := a.tlsConfig()
			if err != nil {
				return nil, err
			}
			return (&tls.Dialer{NetDialer: &d, Config: conf}).DialContext(ctx, network, hostport)
		}
	}
	s.clients[addr] = c
	return c
}

// tlsConfig reads the cluster's keys. Either end must show a certificate of the cluster's own authority, which is what
// counts: addresses of nodes change, so names are not looked at.
func (a *Agent) tlsConfig() (*tls.Config, error) {
	ca, err := os.ReadFile(a.path("tls", "ca.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("tls/ca.pem holds no certificate")
	}
	cert, err := tls.LoadX509KeyPair(a.path("tls", "cert.pem"), a.path("tls", "key.pem"))
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		Certificates:       []tls.Certificate{cert},
		ClientAuth:         tls.RequireAnyClientCert,
		InsecureSkipVerify: true, // the chain is checked below, the name is not
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errors.New("the peer shows no certificate")
			}
			inter := x509.NewCertPool()
			for _, c := range cs.PeerCertificates[1:] {
				inter.AddCert(c)
			}
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
				Roots: pool, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
				CurrentTime: peerTime(cs.PeerCertificates[0], a.now()),
			})
			return err
		},
	}, nil
}

// peerTime is when a certificate is judged: a clock that is minutes off its start must not cut the cluster in two.
func peerTime(c *x509.Certificate, now time.Time) time.Time {
	if early := c.NotBefore.Sub(now); early > 0 && early < time.Hour {
		return c.NotBefore
	}
	return now
}

func newSHA() hash.Hash        { return sha256.New() }
func hexOf(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }
func query(r *http.Request, name string) (int64, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, invalid("%s=%s is not a number from 0", name, s)
	}
	return n, nil
}
