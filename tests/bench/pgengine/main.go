// Command pgengine runs a Temporal server on a PostgreSQL of its own, so that the figures of managed jobs can be taken with an engine
// that is not embedded: `go run ./tests/bench/pgengine -dir DIR`, then `bench -only jobs -config 'temporal: {address: …}'`. It needs
// the programs initdb and postgres, and an account that they accept (they refuse root; -user names another one).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/server/common/cluster"
	"go.temporal.io/server/common/config"
	"go.temporal.io/server/common/dynamicconfig"
	"go.temporal.io/server/common/log"
	"go.temporal.io/server/common/membership/static"
	"go.temporal.io/server/common/persistence/sql/sqlplugin/postgresql"
	"go.temporal.io/server/common/primitives"
	"go.temporal.io/server/schema"
	pgversion "go.temporal.io/server/schema/postgresql/v12"
	"go.temporal.io/server/temporal"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"
)

func main() {
	dir := flag.String("dir", "", "folder for the database; made if it is missing")
	port := flag.Int("port", 17233, "of the frontend on 127.0.0.1; the next ten are used too")
	bin := flag.String("postgres", "/usr/lib/postgresql/15/bin", "folder with initdb and postgres")
	account := flag.String("user", "postgres", "account that PostgreSQL runs as, if this is root")
	namespace := flag.String("namespace", "default", "made if it is missing")
	flag.Parse()
	if err := run(*dir, *port, *bin, *account, *namespace); err != nil {
		fmt.Fprintln(os.Stderr, "pgengine:", err)
		os.Exit(1)
	}
}

func run(dir string, port int, bin, account, namespace string) error {
	if dir == "" {
		return errors.New("-dir is missing")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	pgPort := port + 10
	db, err := startPostgres(dir, bin, account, pgPort)
	if err != nil {
		return err
	}
	defer func() {
		_ = db.Process.Signal(os.Interrupt) // fast shutdown
		_ = db.Wait()
	}()
	address := "127.0.0.1:" + strconv.Itoa(pgPort)
	if err := makeSchema(dir, bin, pgPort); err != nil {
		return err
	}
	server, err := temporal.NewServer(
		temporal.WithConfig(serverConfig(address, port)),
		temporal.ForServices([]string{string(primitives.FrontendService), string(primitives.HistoryService), string(primitives.MatchingService), string(primitives.WorkerService)}),
		temporal.WithStaticHosts(hosts(port)),
		temporal.WithDynamicConfigClient(dynamicconfig.StaticClient{
			dynamicconfig.EnableEagerWorkflowStart.Key():                     true,
			dynamicconfig.FrontendMaxNamespaceVisibilityRPSPerInstance.Key(): 1000,
		}),
		temporal.WithLogger(log.NewNoopLogger()),
	)
	if err != nil {
		return err
	}
	if err := server.Start(); err != nil {
		return err
	}
	defer func() { _ = server.Stop() }()
	if err := makeNamespace(ctx, port, namespace); err != nil {
		return err
	}
	fmt.Printf("ready: temporal 127.0.0.1:%d (process %d), PostgreSQL %s (process %d)\n", port, os.Getpid(), address, db.Process.Pid)
	<-ctx.Done()
	return nil
}

// startPostgres makes a database cluster if there is none, and runs it.
func startPostgres(dir, bin, account string, port int) (*exec.Cmd, error) {
	data := filepath.Join(dir, "pg")
	var as *syscall.Credential
	if os.Getuid() == 0 {
		u, err := user.Lookup(account)
		if err != nil {
			return nil, err
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.MkdirAll(data, 0o700); err != nil {
			return nil, err
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			return nil, err
		}
		if err := os.Chown(data, uid, gid); err != nil {
			return nil, err
		}
	}
	command := func(name string, args ...string) *exec.Cmd {
		c := exec.Command(filepath.Join(bin, name), args...)
		c.Dir, c.Stderr, c.SysProcAttr = dir, os.Stderr, &syscall.SysProcAttr{Credential: as}
		return c
	}
	if _, err := os.Stat(filepath.Join(data, "PG_VERSION")); err != nil {
		if err := command("initdb", "-D", data, "-U", "temporal", "--auth=trust", "--no-locale", "-E", "UTF8").Run(); err != nil {
			return nil, fmt.Errorf("initdb: %w", err)
		}
	}
	// As it comes, full sync included, but for the ports and a larger cache.
	c := command("postgres", "-D", data, "-p", strconv.Itoa(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="+data, "-c", "shared_buffers=256MB", "-c", "log_min_messages=error")
	if err := c.Start(); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		ping := command("pg_isready", "-h", "127.0.0.1", "-p", strconv.Itoa(port))
		if ping.Run() == nil {
			return c, nil
		}
		if time.Now().After(deadline) {
			_ = c.Process.Kill()
			return nil, errors.New("PostgreSQL does not answer")
		}
	}
}

// makeSchema makes the server's two databases at its present version, unless they are there.
func makeSchema(dir, bin string, port int) error {
	for _, d := range []struct{ name, schema, version string }{{"temporal", "temporal", pgversion.Version}, {"temporal_visibility", "visibility", pgversion.VisibilityVersion}} {
		psql := func(database, script string) error {
			c := exec.Command(filepath.Join(bin, "psql"), "-q", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", strconv.Itoa(port), "-U", "temporal", "-d", database)
			c.Stdin = strings.NewReader(script)
			if out, err := c.CombinedOutput(); err != nil {
				return fmt.Errorf("schema of %s: %w: %s", d.name, err, out)
			}
			return nil
		}
		done := filepath.Join(dir, d.name+".made")
		if _, err := os.Stat(done); err == nil {
			continue
		}
		if err := psql("postgres", "CREATE DATABASE "+d.name); err != nil {
			return err
		}
		text, err := fs.ReadFile(schema.Assets(), "postgresql/v12/"+d.schema+"/schema.sql")
		if err != nil {
			return err
		}
		if err := psql(d.name, string(text)+fmt.Sprintf(versionTable, d.name, d.version, d.version)); err != nil {
			return err
		}
		if err := os.WriteFile(done, nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// versionTable is what the server reads its schema's version from, as its own tool makes it.
const versionTable = `
CREATE TABLE schema_version (version_partition INT NOT NULL, db_name VARCHAR(255) NOT NULL, creation_time TIMESTAMP, curr_version VARCHAR(64),
  min_compatible_version VARCHAR(64), PRIMARY KEY (version_partition, db_name));
INSERT INTO schema_version VALUES (0, '%s', now(), '%s', '%s');
`

func serverConfig(postgres string, port int) *config.Config {
	store := func(name string) config.DataStore {
		return config.DataStore{SQL: &config.SQL{PluginName: postgresql.PluginNamePGX, DatabaseName: name, ConnectAddr: postgres, ConnectProtocol: "tcp", User: "temporal",
			MaxConns: 20, MaxIdleConns: 20, MaxConnLifetime: time.Hour}}
	}
	rpc := func(n int) config.Service {
		return config.Service{RPC: config.RPC{GRPCPort: port + n, BindOnIP: "127.0.0.1"}}
	}
	return &config.Config{
		Global: config.Global{Membership: config.Membership{MaxJoinDuration: 30 * time.Second, BroadcastAddress: "127.0.0.1"}},
		Persistence: config.Persistence{DefaultStore: "main", VisibilityStore: "visibility", NumHistoryShards: 4,
			DataStores: map[string]config.DataStore{"main": store("temporal"), "visibility": store("temporal_visibility")}},
		ClusterMetadata: &cluster.Config{FailoverVersionIncrement: 10, MasterClusterName: "active", CurrentClusterName: "active",
			ClusterInformation: map[string]cluster.ClusterInformation{"active": {Enabled: true, InitialFailoverVersion: 1, RPCAddress: address(port, 0)}}},
		DCRedirectionPolicy: config.DCRedirectionPolicy{Policy: "noop"},
		PublicClient:        config.PublicClient{HostPort: address(port, 0)},
		Services: map[string]config.Service{string(primitives.FrontendService): rpc(0), string(primitives.HistoryService): rpc(1),
			string(primitives.MatchingService): rpc(2), string(primitives.WorkerService): rpc(3)},
		Archival: config.Archival{History: config.HistoryArchival{State: "disabled"}, Visibility: config.VisibilityArchival{State: "disabled"}},
		NamespaceDefaults: config.NamespaceDefaults{Archival: config.ArchivalNamespaceDefaults{
			History: config.HistoryArchivalNamespaceDefaults{State: "disabled"}, Visibility: config.VisibilityArchivalNamespaceDefaults{State: "disabled"}}},
	}
}

func address(port, n int) string { return fmt.Sprintf("127.0.0.1:%d", port+n) }

func hosts(port int) map[primitives.ServiceName]static.Hosts {
	return map[primitives.ServiceName]static.Hosts{
		primitives.FrontendService: static.SingleLocalHost(address(port, 0)),
		primitives.HistoryService:  static.SingleLocalHost(address(port, 1)),
		primitives.MatchingService: static.SingleLocalHost(address(port, 2)),
		primitives.WorkerService:   static.SingleLocalHost(address(port, 3)),
	}
}

// makeNamespace makes the namespace and waits until every service knows it.
func makeNamespace(ctx context.Context, port int, name string) error {
	conn, err := grpc.NewClient("passthrough:///"+address(port, 0), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	c := workflowservice.NewWorkflowServiceClient(conn)
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Second) {
		_, err = c.RegisterNamespace(ctx, &workflowservice.RegisterNamespaceRequest{Namespace: name, WorkflowExecutionRetentionPeriod: durationpb.New(72 * time.Hour)})
		if err == nil || strings.Contains(err.Error(), "already") {
			time.Sleep(15 * time.Second) // the services' caches
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
		slog.Info("the frontend is not ready yet", "error", err)
	}
}
