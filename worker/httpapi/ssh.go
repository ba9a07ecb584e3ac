package httpapi

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/skyloom/skyloom/api"
)

const (
	// sshDialTime bounds how long a node's SSH server is sought.
	sshDialTime = 20 * time.Second
	// tunnelBuffer is the size of the two buffers of a tunnel, in bytes.
	tunnelBuffer = 128 << 10
)

type sshQuery struct {
	Name string `path:"name" maxLength:"200"`
	Node int    `query:"node" minimum:"0" doc:"rank of the node; 0 is the head"`
	Key  string `header:"X-Skyloom-SSH-Key" doc:"public key that will log in: TYPE BASE64" maxLength:"20000"`
}

func (s *Server) sshRoutes(h huma.API) {
	type nameIn struct {
		Name string `path:"name" maxLength:"200"`
	}
	op := operation("GET", "/clusters/{name}/ssh-hosts", "ssh-hosts", "clusters", "The SSH servers of a cluster's nodes, with their host keys",
		http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable)
	get(h, op, s, func(ctx context.Context, in *nameIn) (api.SSHHosts, error) { return s.be().SSHHosts(ctx, in.Name) })

	op = operation("GET", "/clusters/{name}/ssh", "ssh", "clusters", "A tunnel to the SSH server of a node",
		http.StatusNotFound, http.StatusConflict, http.StatusUpgradeRequired, http.StatusServiceUnavailable)
	op.Description = "A websocket. Its binary messages, in both directions, are the bytes of an SSH connection, cut anywhere. The node takes a login with the " +
		"key in the header " + api.HeaderSSHKey + " and with no other. The answer's header " + api.HeaderSSHHostKey + " is the host key that the node has to show."
	op.Responses = map[string]*huma.Response{"101": {Description: "the tunnel is open"}}
	huma.Register(h, op, func(ctx context.Context, in *sshQuery) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			r, w := humago.Unwrap(hc)
			if err := s.tunnel(w, r, in); err != nil {
				s.writeError(w, r, err)
			}
		}}, nil
	})
	delete(h.OpenAPI().Paths[op.Path].Get.Responses, "200")
}

// tunnel carries the bytes between a client and a node. It returns an error as long as it has answered nothing.
func (s *Server) tunnel(w http.ResponseWriter, r *http.Request, in *sshQuery) error {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return problem(http.StatusUpgradeRequired, "this address is a websocket", "Use it through ssh: ssh "+in.Name)
	}
	if in.Key == "" {
		return failure(api.ErrInvalid, "sky ssh-proxy sends the user's key.", "the header %s is missing: it names the key that is to log in", api.HeaderSSHKey)
	}
	ctx, cancel := s.streamContext(r.Context())
	defer cancel()
	dctx, dcancel := context.WithTimeout(ctx, sshDialTime)
	node, host, err := s.be().DialSSH(dctx, in.Name, in.Node, in.Key)
	dcancel()
	if err != nil {
		return err
	}
	defer node.Close()
	w.Header().Set(api.HeaderSSHHostKey, host.HostKey)
	// The guard has judged the origin.
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		s.log.Info("ssh: no websocket", "cluster", in.Name, "err", err)
		return nil // Accept has answered
	}
	defer ws.CloseNow()
	ws.SetReadLimit(-1)
	// The copies know no context of their own, which would cost at each message.
	stop := context.AfterFunc(ctx, func() { ws.Close(websocket.StatusGoingAway, "the server is ending"); node.Close() })
	defer stop()
	start := s.now()
	up, down := relay(ws, node)
	s.log.Info("ssh: a tunnel has ended", "cluster", in.Name, "node", in.Node, "up", up, "down", down, "took", s.now().Sub(start).Round(time.Millisecond))
	return nil
}

// relay copies both ways until one way ends, which ends the other. It returns how many bytes went to and came from the node.
func relay(ws *websocket.Conn, node io.ReadWriteCloser) (up, down int64) {
	var sent atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		defer node.Close()
		buf := make([]byte, tunnelBuffer)
		for {
			_, msg, err := ws.Reader(context.Background())
			if err != nil {
				return
			}
			n, err := io.CopyBuffer(writerOnly{node}, msg, buf)
			sent.Add(n)
			if err != nil {
				return
			}
		}
	})
	buf := make([]byte, tunnelBuffer)
	for {
		n, err := node.Read(buf)
		if n > 0 {
			if err := ws.Write(context.Background(), websocket.MessageBinary, buf[:n]); err != nil {
				break
			}
			down += int64(n)
		}
		if err != nil {
			ws.Close(websocket.StatusNormalClosure, "")
			break
		}
	}
	ws.CloseNow()
	node.Close()
	wg.Wait()
	return sent.Load(), down
}

// writerOnly hides the shortcuts of a writer from io.CopyBuffer.
type writerOnly struct{ io.Writer }
