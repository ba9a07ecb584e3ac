package engine_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.temporal.io/api/workflowservice/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/skyloom/skyloom/worker/engine"
)

func rawConn(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestFrontendWantsTheKey(t *testing.T) {
	e := shared(t)
	api := workflowservice.NewWorkflowServiceClient(rawConn(t, e.Address()))
	calls := map[string]func(context.Context) error{
		"list": func(ctx context.Context) error {
			_, err := api.ListWorkflowExecutions(ctx, &workflowservice.ListWorkflowExecutionsRequest{Namespace: e.Namespace()})
			return err
		},
		"system info": func(ctx context.Context) error {
			_, err := api.GetSystemInfo(ctx, &workflowservice.GetSystemInfoRequest{})
			return err
		},
		"system namespace": func(ctx context.Context) error {
			_, err := api.DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: "temporal-system"})
			return err
		},
	}
	headers := map[string]struct {
		value string
		want  codes.Code
	}{
		"no key":      {"", codes.PermissionDenied},
		"wrong key":   {"Bearer " + strings.Repeat("x", len(e.Token())), codes.PermissionDenied},
		"empty key":   {"Bearer ", codes.PermissionDenied},
		"no scheme":   {e.Token(), codes.PermissionDenied},
		"basic":       {"Basic " + e.Token(), codes.PermissionDenied},
		"right key":   {"Bearer " + e.Token(), codes.OK},
		"lower case":  {"bearer " + e.Token(), codes.OK},
		"shorter key": {"Bearer " + e.Token()[:10], codes.PermissionDenied},
	}
	for what, call := range calls {
		for name, h := range headers {
			t.Run(what+", "+name, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				if h.value != "" {
					ctx = metadata.AppendToOutgoingContext(ctx, "authorization", h.value)
				}
				if err := call(ctx); status.Code(err) != h.want {
					t.Fatalf("want %s, got %v", h.want, err)
				}
			})
		}
	}
}

// listeners are the TCP ports this process listens on, from the kernel's table.
func listeners(t *testing.T) []string {
	t.Helper()
	inodes := make(map[string]bool)
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("needs /proc: ", err)
	}
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name()))
		if inode, ok := strings.CutPrefix(target, "socket:["); err == nil && ok {
			inodes[strings.TrimSuffix(inode, "]")] = true
		}
	}
	var out []string
	for _, table := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		data, _ := os.ReadFile(table)
		for _, line := range strings.Split(string(data), "\n") {
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != "0A" || !inodes[f[9]] {
				continue
			}
			var ip [4]byte
			var port int
			if n, _ := fmt.Sscanf(f[1], "%02X%02X%02X%02X:%04X", &ip[3], &ip[2], &ip[1], &ip[0], &port); n != 5 {
				t.Errorf("listens on %s, which is no IPv4 address", f[1])
				continue
			}
			out = append(out, fmt.Sprintf("%s:%d", net.IP(ip[:]), port))
		}
	}
	return out
}

func TestInnerPortsRefuseStrangers(t *testing.T) {
	e := shared(t)
	all := listeners(t)
	if len(all) < 5 {
		t.Fatalf("found listeners %v, want five of the engine", all)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// The right key opens the frontend only.
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+e.Token())
	for _, address := range all {
		if !strings.HasPrefix(address, "127.0.0.1:") {
			t.Errorf("listens beyond this machine: %s", address)
		}
		if address == e.Address() {
			continue
		}
		conn := rawConn(t, address)
		for _, method := range []string{
			"/temporal.api.workflowservice.v1.WorkflowService/ListNamespaces",
			"/temporal.server.api.historyservice.v1.HistoryService/DescribeHistoryHost",
			"/temporal.server.api.matchingservice.v1.MatchingService/ListTaskQueuePartitions",
			"/grpc.health.v1.Health/Check",
		} {
			err := conn.Invoke(ctx, method, &workflowservice.ListNamespacesRequest{}, &workflowservice.ListNamespacesResponse{})
			if status.Code(err) != codes.Unavailable {
				t.Errorf("%s on %s: want a refused connection, got %v", method, address, err)
			}
		}
	}
}

func TestKeyFile(t *testing.T) {
	e := shared(t)
	info, err := os.Stat(e.TokenFile())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	for name, mode := range map[string]os.FileMode{"api-key": 0o644} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), []byte("known to all"), mode); err != nil {
			t.Fatal(err)
		}
		_, err := engine.Start(context.Background(), engine.Options{Dir: dir})
		if err == nil || !strings.Contains(err.Error(), "readable by others") {
			t.Fatalf("%v", err)
		}
	}
}
