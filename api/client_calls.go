package api

import (
	"context"
	"io"
	"net/url"
	"strconv"
	"time"
)

const prefix = "/api/v1"

// Media types of uploads; package filesync knows the formats.
const (
	PackMediaType     = "application/x-skyloom-pack"
	ManifestMediaType = "application/x-skyloom-manifest"
)

// Health asks whether the server is well. It needs no login.
func (c *Client) Health(ctx context.Context) (*Health, error) {
	out := &Health{}
	return out, c.call(ctx, "GET", prefix+"/health", nil, nil, out)
}

// Info asks what the server is and how to reach its engine.
func (c *Client) Info(ctx context.Context) (*Info, error) {
	out := &Info{}
	return out, c.call(ctx, "GET", prefix+"/info", nil, nil, out)
}

func (c *Client) submit(ctx context.Context, verb string, base *Base, body any) (*Ref, error) {
	if base.RequestID == "" {
		base.RequestID = NewRequestID()
	}
	out := &Ref{}
	if err := c.call(ctx, "POST", prefix+"/"+verb, nil, body, out); err != nil {
		return nil, err
	}
	return out, nil
}

// The mutating calls return as soon as the request is accepted. They fill in RequestID when it is empty.

// Launch brings a cluster up and runs a task on it.
func (c *Client) Launch(ctx context.Context, b *LaunchBody) (*Ref, error) {
	return c.submit(ctx, "launch", &b.Base, b)
}

// Exec runs a task on an UP cluster.
func (c *Client) Exec(ctx context.Context, b *ExecBody) (*Ref, error) {
	return c.submit(ctx, "exec", &b.Base, b)
}

// Start restarts a stopped cluster.
func (c *Client) Start(ctx context.Context, b *StartBody) (*Ref, error) {
	return c.submit(ctx, "start", &b.Base, b)
}

// Stop stops a cluster and keeps its disks.
func (c *Client) Stop(ctx context.Context, b *StopOrDownBody) (*Ref, error) {
	return c.submit(ctx, "stop", &b.Base, b)
}

// Down removes a cluster.
func (c *Client) Down(ctx context.Context, b *StopOrDownBody) (*Ref, error) {
	return c.submit(ctx, "down", &b.Base, b)
}

// Autostop sets or clears the idle timer of a cluster.
func (c *Client) Autostop(ctx context.Context, b *AutostopBody) (*Ref, error) {
	return c.submit(ctx, "autostop", &b.Base, b)
}

// CancelJobs cancels jobs of a cluster.
func (c *Client) CancelJobs(ctx context.Context, b *CancelBody) (*Ref, error) {
	return c.submit(ctx, "cancel", &b.Base, b)
}

// Preempt takes spot nodes away as a cloud would.
func (c *Client) Preempt(ctx context.Context, b *PreemptBody) (*Ref, error) {
	return c.submit(ctx, "preempt", &b.Base, b)
}

// Check asks which infra can be used.
func (c *Client) Check(ctx context.Context, b *CheckBody) (*Ref, error) {
	return c.submit(ctx, "check", &b.Base, b)
}

// Refresh asks the infra about clusters.
func (c *Client) Refresh(ctx context.Context, b *RefreshBody) (*Ref, error) {
	return c.submit(ctx, "refresh", &b.Base, b)
}

// Optimize shows what a launch would choose; nothing is created.
func (c *Client) Optimize(ctx context.Context, b *OptimizeBody) (*Plan, error) {
	out := &Plan{}
	return out, c.call(ctx, "POST", prefix+"/optimize", nil, b, out)
}

// RequestFilter selects rows of `sky api status`.
type RequestFilter struct {
	All     bool // finished ones too
	Limit   int  // 0: all
	Cluster string
	IDs     []string // ids or prefixes
}

// Requests lists requests, newest first.
func (c *Client) Requests(ctx context.Context, f RequestFilter) ([]Request, error) {
	q := url.Values{}
	setBool(q, "all", f.All)
	if f.Limit > 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	setString(q, "cluster", f.Cluster)
	q["id"] = f.IDs
	out := struct {
		Requests []Request `json:"requests"`
	}{}
	err := c.call(ctx, "GET", prefix+"/requests", q, nil, &out)
	return out.Requests, err
}

// Request reads one request by id or unambiguous prefix. With wait > 0 the server holds the answer until the request
// has ended or that time is over.
func (c *Client) Request(ctx context.Context, id string, wait time.Duration) (*Request, error) {
	q := url.Values{}
	if wait > 0 {
		q.Set("wait", wait.String())
	}
	out := &Request{}
	return out, c.call(ctx, "GET", prefix+"/requests/"+url.PathEscape(id), q, nil, out)
}

// WaitRequest waits until a request has ended.
func (c *Client) WaitRequest(ctx context.Context, id string) (*Request, error) {
	for {
		r, err := c.Request(ctx, id, 30*time.Second)
		if err != nil || r.Status.Terminal() {
			return r, err
		}
	}
}

// CancelRequests cancels requests.
func (c *Client) CancelRequests(ctx context.Context, b *CancelRequestsBody) (*CancelRequestsReply, error) {
	out := &CancelRequestsReply{}
	return out, c.call(ctx, "POST", prefix+"/requests/cancel", nil, b, out)
}

// ClusterFilter selects rows of `sky status`.
type ClusterFilter struct {
	Names    []string // globs
	AllUsers bool
	UserHash string
	Verbose  bool // all fields, not only those of a summary
}

// ClusterList is the answer of GET /api/v1/clusters.
type ClusterList struct {
	Clusters     []Cluster `json:"clusters"`
	EnabledInfra []string  `json:"enabled_infra"`
}

// Clusters lists clusters.
func (c *Client) Clusters(ctx context.Context, f ClusterFilter) (*ClusterList, error) {
	q := url.Values{}
	q["name"] = f.Names
	setBool(q, "all_users", f.AllUsers)
	setBool(q, "verbose", f.Verbose)
	setString(q, "user_hash", f.UserHash)
	out := &ClusterList{}
	return out, c.call(ctx, "GET", prefix+"/clusters", q, nil, out)
}

// Cluster reads one cluster.
func (c *Client) Cluster(ctx context.Context, name string) (*Cluster, error) {
	out := &Cluster{}
	return out, c.call(ctx, "GET", prefix+"/clusters/"+url.PathEscape(name), nil, nil, out)
}

// JobFilter selects rows of `sky queue`.
type JobFilter struct {
	Clusters     []string
	SkipFinished bool
	AllUsers     bool
	UserHash     string
}

// JobLists is the answer of GET /api/v1/jobs.
type JobLists struct {
	Clusters map[string][]Job  `json:"clusters"`
	Errors   map[string]string `json:"errors,omitempty" doc:"why a cluster's queue can't be read"`
}

// Jobs lists the jobs of clusters.
func (c *Client) Jobs(ctx context.Context, f JobFilter) (*JobLists, error) {
	q := url.Values{}
	q["cluster"] = f.Clusters
	setBool(q, "skip_finished", f.SkipFinished)
	setBool(q, "all_users", f.AllUsers)
	setString(q, "user_hash", f.UserHash)
	out := &JobLists{}
	return out, c.call(ctx, "GET", prefix+"/jobs", q, nil, out)
}

// GPUFilter selects offers of `sky gpus list`.
type GPUFilter struct {
	Name       string // NAME or NAME:COUNT
	Infra      string // CLOUD[/REGION]
	Region     string
	All        bool // uncommon ones too
	AllRegions bool // every region, not only the cheapest of each instance type
}

// GPUs lists accelerators with prices.
func (c *Client) GPUs(ctx context.Context, f GPUFilter) (*GPUList, error) {
	q := url.Values{}
	setString(q, "name", f.Name)
	setString(q, "infra", f.Infra)
	setString(q, "region", f.Region)
	setBool(q, "all", f.All)
	setBool(q, "all_regions", f.AllRegions)
	out := &GPUList{}
	return out, c.call(ctx, "GET", prefix+"/gpus", q, nil, out)
}

// CostReport lists what clusters have cost over the last days; 0 means all of history.
func (c *Client) CostReport(ctx context.Context, days int) ([]CostRow, error) {
	q := url.Values{"days": {strconv.Itoa(days)}}
	out := struct {
		Rows []CostRow `json:"rows"`
	}{}
	err := c.call(ctx, "GET", prefix+"/cost-report", q, nil, &out)
	return out.Rows, err
}

// MissingBlobs asks which of the hashes the server lacks.
func (c *Client) MissingBlobs(ctx context.Context, hashes []string) ([]string, error) {
	out := &MissingReply{}
	err := c.call(ctx, "POST", prefix+"/blobs/missing", nil, &MissingBody{Hashes: hashes}, out)
	return out.Missing, err
}

// PutBlobs uploads a pack of files. open is called once per try.
func (c *Client) PutBlobs(ctx context.Context, open func() (io.ReadCloser, error)) error {
	return c.callRaw(ctx, "PUT", prefix+"/blobs", nil,
		&payload{open: open, size: -1, contentType: PackMediaType}, nil)
}

// PutManifest uploads an encoded manifest.
func (c *Client) PutManifest(ctx context.Context, encoded []byte) (*ManifestReply, error) {
	out := &ManifestReply{}
	return out, c.callRaw(ctx, "PUT", prefix+"/manifests", nil, bytesPayload(encoded, ManifestMediaType), out)
}

// Complete lists names that begin so: kind is cluster_name or api_request. It does not repeat a failed call.
func (c *Client) Complete(ctx context.Context, kind, incomplete string) ([]string, error) {
	resp, err := c.try(ctx, "GET", prefix+"/completion/"+url.PathEscape(kind), url.Values{"incomplete": {incomplete}}, nil, "application/json")
	if err != nil {
		return nil, err
	}
	var out []string
	return out, decodeBody(resp, &out)
}

// Shutdown ends a local server. Requests in flight go on when it starts again.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.call(ctx, "POST", prefix+"/shutdown", nil, struct{}{}, nil)
}

// LoginLink gets a one-time address that logs a browser in to the workflow Web UI.
func (c *Client) LoginLink(ctx context.Context) (string, error) {
	out := struct {
		URL string `json:"url"`
	}{}
	err := c.call(ctx, "POST", prefix+"/login-link", nil, struct{}{}, &out)
	return out.URL, err
}

func setBool(q url.Values, k string, v bool) {
	if v {
		q.Set(k, "true")
	}
}

func setString(q url.Values, k, v string) {
	if v != "" {
		q.Set(k, v)
	}
}
