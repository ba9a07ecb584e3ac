package httpapi

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/artifact"
	"github.com/skyloom/skyloom/internal/store"
)

// Backend is what calls do. Errors that are *api.Error (wrapped or not) reach the client as they are; any other error
// is an internal one: it is logged, and the client is told no more than that.
type Backend interface {
	// Submit makes a request durable and hands it to the engine. The request's row exists already, with the body and
	// its hash; a request that had ended, or has another body, never reaches Submit. It may be called again with the
	// same id and body (a client that repeats, a server that died in between) and must then have no further effect.
	// kind is launch, exec, start, stop, down, autostop, cancel, preempt, check, refresh or jobs.launch; body is the api.*Body of
	// that kind, by value. With Options.Secrets set, Secrets of a body were replaced by SecretRefs.
	Submit(ctx context.Context, kind string, base api.Base, cluster string, body any) (api.Ref, error)
	// CancelRequests cancels requests, named by full ids, and returns the ids of those that were still active.
	CancelRequests(ctx context.Context, b api.CancelRequestsBody) ([]string, error)
	// Optimize shows what a launch would choose; nothing is created.
	Optimize(ctx context.Context, b api.OptimizeBody) (api.Plan, error)
	// GPUs lists accelerators with prices and availability.
	GPUs(ctx context.Context, f GPUFilter) (api.GPUList, error)
	// EnabledInfra names the infra in use. It is called at each listing of clusters: it must be cheap.
	EnabledInfra(ctx context.Context) []string
	// NodeClients gives the agents of a cluster by rank, for logs. Where there are none: *api.Error of kind
	// ErrClusterNotUp or ErrClusterDoesNotExist.
	NodeClients(ctx context.Context, cluster string) ([]NodeClient, error)
	// CancelManagedJobs asks managed jobs to end; the cancel is durable when it returns. Exactly one selector of the body is
	// set. Where nothing matches a number or a name: *api.Error of kind ErrJobNotFound.
	CancelManagedJobs(ctx context.Context, b api.JobsCancelBody) (api.JobsCancelReply, error)
	// WaitReasons says in words what managed jobs wait for (other jobs, or to be let in); others are left out.
	WaitReasons(ctx context.Context, jobIDs []int64) (map[int64]string, error)
	// Schedules lists schedules of managed jobs, by number: of a user unless userHash is empty, only these numbers if any are given.
	Schedules(ctx context.Context, userHash string, ids []int64) ([]api.JobSchedule, error)
	// ChangeSchedules pauses, resumes or deletes schedules; it is done when this returns. Where one is not known: *api.Error of
	// kind ErrNotFound, and nothing is changed.
	ChangeSchedules(ctx context.Context, b api.SchedulesChangeBody) (api.SchedulesChangeReply, error)
	// WebhookSecret is what signs the posts of changes of state.
	WebhookSecret(ctx context.Context) (string, error)
	// StoredLog gives what was kept of the log of an attempt of a managed job's task; nothing if none was (yet).
	StoredLog(ctx context.Context, jobID int64, taskID, attempt int) ([]StoredLog, error)
	// SSHHosts tells of the SSH servers of a cluster's nodes, by rank. A node that can't be asked now has no host key.
	// Errors as NodeClients.
	SSHHosts(ctx context.Context, cluster string) (api.SSHHosts, error)
	// DialSSH opens a stream to the SSH server of the node of a rank, for a login with the public key (TYPE BASE64).
	// ctx bounds the opening only. Errors as NodeClients, and ErrNotFound for a rank that the cluster has not.
	DialSSH(ctx context.Context, cluster string, rank int, key string) (io.ReadWriteCloser, api.SSHHost, error)
	// Info describes the server. URL, WebUI, PID and Home are filled in where empty.
	Info() api.Info
	// Shutdown begins an orderly end: it makes the context given to Serve end. It returns at once.
	Shutdown()
}

// NodeClient reaches the agent of one node of a cluster.
type NodeClient struct {
	Rank   int
	Node   string // head, worker1, …
	Client *agentapi.Client
}

// StoredLog is the kept log of one rank and phase, or the word that the end of a rank's log could not be brought.
type StoredLog struct {
	Rank  int
	Phase string // setup or run; empty with Cut
	Cut   string // why the rank's log ends here, perhaps before its end
	Open  func() (io.ReadSeekCloser, error)
}

// GPUFilter selects offers of `sky gpus list`.
type GPUFilter struct {
	Name       string  // accelerator, any case; empty: all
	Quantity   float64 // 0: any
	Infra      string
	Region     string
	All        bool // uncommon accelerators too
	AllRegions bool
}

// SecretStore keeps secret values; *secret.Store is one.
type SecretStore interface {
	// Put returns the reference of a value; the same scope and value give the same reference.
	Put(ctx context.Context, scope, value string) (ref string, err error)
	// Digest is a keyed hash, which gives nothing of a secret away.
	Digest(data []byte) string
}

// Options are what a Server is made of.
type Options struct {
	Backend   Backend // may be set later: SetBackend
	Store     *store.Store
	Artifacts *artifact.Store
	// Secrets, if set, receives the secrets of launch and exec bodies before anything else; bodies then go on, and
	// into the request's row, with references. Without it they reach Submit as they came, and the row has no body.
	Secrets SecretStore
	Codec   http.Handler // mounted at /codec/
	WebUI   http.Handler // mounted at /temporal/; may be set later: SetWebUI
	// Home is SKY_HOME (absolute): server.json, server.pid and token stand there.
	Home string
	// Token is the instance token; empty: Home/token is read, or made.
	Token string
	// Addr is where to listen; empty: 127.0.0.1:46580. It must be a loopback address. If the port is taken, a free one is used.
	Addr string
	// FixedPort makes a taken port an error instead.
	FixedPort bool
	// AllowedHosts are further values of the Host header (host:port) to answer to.
	AllowedHosts []string
	Version      string
	Commit       string
	Installation string // default: the store's
	// Features are told by health to those who are logged in; nil: those of Backend.Info.
	Features []string
	LogPath  string // the server's log, for `sky api logs --server-logs`; default Home/server.log
	Logger   *slog.Logger
	// Debug serves profiles under /debug/pprof/.
	Debug bool
	// MaxUpload bounds one upload of files, in bytes; 0 means 256 GiB.
	MaxUpload int64
	// Now replaces the clock (tests).
	Now func() time.Time
}
